"""Our benchmarks inside lm-evaluation-harness and its backends inside ours: through lm-eval itself."""

import json

import pytest

pytest.importorskip("lm_eval")

from trl_opd.errors import UserError
from trl_opd.evals.engines import EngineOptions, Request, Sampling
from trl_opd.evals.lm_eval_engine import LmEvalEngine
from trl_opd.evals.lm_eval_tasks import PREFIX, export, process_results
from trl_opd.evals.models import resolve_model
from trl_opd.evals.scorers import make_scorer
from trl_opd.evals.suites import load_suite

TASK = PREFIX + "arithmetic"


@pytest.fixture(scope="module")
def arithmetic():
    return load_suite("arithmetic")


@pytest.fixture(scope="module")
def results(arithmetic, tmp_path_factory):
    """What lm-eval's own command of five problems, four samples each, leaves behind."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    assert export(arithmetic, folder, limit=5) == [TASK]
    return simple_evaluate(
        model="hf",
        model_args={"pretrained": str(resolve_model("testbed/base")), "dtype": "float32"},
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=True,
        device="cpu",
        batch_size=4,
    )


def test_lm_eval_gives_our_verdicts_on_the_same_generations(arithmetic, results):
    from trl_opd.evals.benchmark import Problem

    scorer = make_scorer(arithmetic[0])
    samples = results["samples"][TASK]
    assert len(samples) == 5
    assert all(len(sample["resps"][0]) == 4 for sample in samples)
    for sample in samples:
        doc = sample["doc"]
        problem = Problem(doc["id"], doc["problem"], doc["answer"], json.loads(doc["fields"]))
        ours = [scorer.score(text, problem).correct for text in sample["resps"][0]]
        assert sample["accuracy"] == sum(ours) / 4
    scorer.close()
    assert 0 < results["results"][TASK]["accuracy,all"] < 1, "both verdicts must occur, or nothing is compared"


def test_lm_eval_asks_with_our_prompt(arithmetic, results):
    from transformers import AutoTokenizer

    from trl_opd.evals.benchmark import load_rows

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("testbed/base"))
    problems = {problem.id: problem for problem in load_rows(arithmetic[0], None, 5)}
    for sample in results["samples"][TASK]:
        messages = arithmetic[0].messages(problems[sample["doc"]["id"]])
        ours = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert sample["arguments"][0][0] == ours


def test_a_wrong_completion_and_one_without_answer_are_told_apart():
    doc = {"id": "1", "benchmark": "arithmetic", "problem": "1+1=?", "answer": "2", "fields": "{}"}
    completions = [r"\boxed{2}", r"\boxed{3}", "two", "2"]
    assert process_results(doc, [completions]) == {"accuracy": 0.25, "no_answer": 0.5}


def test_a_folder_that_cannot_be_written_is_refused(arithmetic, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(arithmetic, tmp_path / "file", limit=1)


@pytest.fixture(scope="module")
def engine():
    return LmEvalEngine(str(resolve_model("testbed/base")), EngineOptions(batch_size=4, dtype="float32"))


REQUESTS = [Request(f"p{i}", 0, [{"role": "user", "content": f"{i + 13}+{i + 9}=?"}], seed=i) for i in range(10)]
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=24)


def test_a_resumed_run_draws_what_the_undisturbed_one_drew(engine):
    whole = {generation.key: generation for generation in engine.generate(engine.batches(REQUESTS, SAMPLING), SAMPLING)}
    assert len({generation.completion for generation in whole.values()}) > 3
    done = {("p0", 0), ("p5", 0), *(request.key for request in REQUESTS[8:])}
    rest = list(engine.generate(engine.batches(REQUESTS, SAMPLING), SAMPLING, done))
    assert {generation.key for generation in rest} == {request.key for request in REQUESTS} - done
    assert all(whole[generation.key] == generation for generation in rest)


def test_a_completion_as_long_as_the_limit_counts_as_cut(engine):
    short = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=3)
    drawn = list(engine.generate([REQUESTS[:4]], short))
    assert [generation.finish_reason for generation in drawn] == ["length"] * 4


def test_an_unknown_backend_is_refused():
    with pytest.raises(UserError, match="no backend 'nope'"):
        LmEvalEngine("model", backend="nope")
