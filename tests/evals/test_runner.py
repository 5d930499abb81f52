from dataclasses import replace

import pytest

from trl_opd.errors import UserError
from trl_opd.evals.engines import Sampling, request_seed
from trl_opd.evals.runner import evaluate

from .conftest import ScriptedEngine, result_rows, results


@pytest.fixture
def run(benchmark, sums_path, tmp_path):
    def run(name: str, engine=None, **settings):
        settings = {"data_dir": sums_path.parent} | settings
        return evaluate(benchmark, engine or ScriptedEngine(), tmp_path / name, **settings)

    return run


def test_the_numbers_are_those_of_the_verdicts(run, tmp_path):
    metrics = run("run").metrics
    verdicts = result_rows(tmp_path / "run", "verdicts")
    assert [(row["problem_id"], row["index"]) for row in verdicts] == [
        (f"sum-{i}", j) for i in sorted(range(12), key=str) for j in range(4)
    ]
    assert metrics.accuracy == sum(row["correct"] for row in verdicts) / 48
    assert 0 < metrics.accuracy < 1
    assert 0 < metrics.no_answer_rate == metrics.truncated_rate < 1
    assert metrics.pass_at_k["1"] == pytest.approx(metrics.accuracy)
    assert metrics.decoding_interval[0] < metrics.accuracy < metrics.problem_interval[1]


@pytest.mark.parametrize(("generations", "verdicts"), [(0.01, 0), (0.55, 0), (1, 0.4), (1, 1)])
def test_a_run_cut_at_any_byte_ends_as_an_undisturbed_one(run, tmp_path, generations, verdicts):
    run("whole")
    whole = results(tmp_path / "whole")
    run("cut")
    folder = tmp_path / "cut"
    (folder / "summary.json").unlink()
    for name, share in (("generations", generations), ("verdicts", verdicts)):
        (file,) = (folder / name).rglob("*.jsonl")
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
    engine = ScriptedEngine()
    run("cut", engine)
    assert results(folder) == whole
    assert engine.drawn == pytest.approx(48 * (1 - generations), abs=4)


def test_a_finished_run_is_reported_and_not_repeated(run):
    first = run("run")
    engine = ScriptedEngine()
    assert run("run", engine) == first
    assert engine.drawn == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": ScriptedEngine("other")}, "engine.model"),
        ({"n": 2}, "n is 4 there and 2 here"),
        ({"seed": 1}, "seed"),
        ({"limit": 3}, "problems is 12 there and 3 here"),
        ({"sampling": Sampling(temperature=0.5, top_p=0.9, max_new_tokens=24)}, "sampling.temperature is 1.0 there"),
    ],
)
def test_other_settings_are_refused(run, change, message):
    run("run")
    with pytest.raises(UserError, match=message):
        run("run", **change)


def test_another_prompt_is_another_run(run, benchmark, sums_path, tmp_path):
    run("run")
    other = replace(benchmark, prompt="What is {problem}")
    with pytest.raises(UserError, match="prompts is"):
        evaluate(other, ScriptedEngine(), tmp_path / "run", data_dir=sums_path.parent)


def test_senseless_settings_are_refused(run):
    with pytest.raises(UserError, match="n must be at least 1"):
        run("run", n=0)
    with pytest.raises(UserError, match="greedy samples are all the same"):
        run("run", sampling=Sampling(temperature=0, top_p=1, max_new_tokens=8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_impossible_sampling_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Sampling(**({"temperature": 1, "top_p": 1, "max_new_tokens": 8} | change))


def test_request_seeds_are_stable_and_distinct():
    assert request_seed(0, "gsm8k-test-0", 0) == 6739116946433252421
    seeds = {request_seed(run, f"p{i}", j) for run in range(3) for i in range(50) for j in range(8)}
    assert len(seeds) == 3 * 50 * 8
    assert max(seeds) < 2**63
