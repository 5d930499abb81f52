"""New verdicts on old completions."""

import json

import pytest

from trl_opd.cli.eval import main
from trl_opd.errors import UserError
from trl_opd.evals.benchmark import load_benchmark
from trl_opd.evals.rescore import rescore
from trl_opd.evals.results import read_run
from trl_opd.evals.runner import evaluate
from trl_opd.evals.scorers import MathScorer
from trl_opd.verify import Verdict

from .conftest import ScriptedEngine, result_rows, sums, write_benchmark


@pytest.fixture
def run(benchmark, sums_path, tmp_path):
    evaluate(benchmark, ScriptedEngine(), tmp_path / "run", data_dir=sums_path.parent)
    return tmp_path / "run"


@pytest.fixture
def lenient(monkeypatch):
    """A newer scorer that lets everything pass."""
    monkeypatch.setattr(MathScorer, "identity", lambda self: {"version": "lenient"})
    monkeypatch.setattr(MathScorer, "score", lambda *_: Verdict(correct=True, extracted="1", reason="correct"))


def test_a_new_scorer_adds_verdicts_and_keeps_the_old_ones(run, benchmark, sums_path, lenient):
    before = read_run(run)
    generations = result_rows(run, "generations")
    with pytest.raises(UserError, match="eval rescore"):
        evaluate(benchmark, ScriptedEngine(), run, data_dir=sums_path.parent)
    summary = rescore(run, benchmark=benchmark, data_dir=sums_path.parent)
    assert summary.metrics.accuracy == 1 > before.summary["metrics"]["accuracy"]
    assert result_rows(run, "generations") == generations
    assert len(list((run / "verdicts").iterdir())) == 2
    old = run / "verdicts" / before.manifest["scoring"] / "000.jsonl"
    assert sum(json.loads(line)["correct"] for line in old.read_text().splitlines()) < 48
    assert all(verdict["correct"] for verdict in read_run(run).verdicts.values())
    engine = ScriptedEngine()
    assert evaluate(benchmark, engine, run, data_dir=sums_path.parent) == summary
    assert engine.drawn == 0


def test_rescoring_twice_changes_nothing(run, benchmark, sums_path, lenient):
    first = rescore(run, benchmark=benchmark, data_dir=sums_path.parent)
    manifest = (run / "manifest.json").read_text()
    assert rescore(run, benchmark=benchmark, data_dir=sums_path.parent) == first
    assert (run / "manifest.json").read_text() == manifest


def test_corrected_answers_are_read(run, benchmark, tmp_path):
    rows = sums()
    rows[3]["answer"] = "1000"
    corrected = load_benchmark(write_benchmark(tmp_path / "corrected", rows))
    rescore(run, benchmark=corrected, data_dir=tmp_path / "corrected")
    stored = read_run(run)
    assert not any(verdict["correct"] for (problem, _), verdict in stored.verdicts.items() if problem == "sum-3")
    assert any(verdict["correct"] for verdict in stored.verdicts.values())


def test_other_questions_are_refused(run, tmp_path):
    changed = load_benchmark(write_benchmark(tmp_path / "changed", sums(), prompt="Tell me {problem}"))
    with pytest.raises(UserError, match=r"does not ask what .* answers"):
        rescore(run, benchmark=changed, data_dir=tmp_path / "changed")


def test_an_unfinished_run_goes_on_with_the_new_scorer(run, benchmark, sums_path, lenient):
    (run / "summary.json").unlink()
    file = run / "generations" / "000.jsonl"
    file.write_bytes(file.read_bytes()[:-500])
    assert rescore(run, benchmark=benchmark, data_dir=sums_path.parent) is None
    summary = evaluate(benchmark, ScriptedEngine(), run, data_dir=sums_path.parent)
    assert summary.metrics.accuracy == 1
    assert len(result_rows(run, "generations")) == 48


def test_the_command_says_what_changed(run, sums_path, lenient, capsys):
    assert main(["rescore", str(run), "--benchmark", str(sums_path), "--data-dir", str(sums_path.parent)]) == 0
    assert "accuracy before: " in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no run"):
        main(["rescore", str(run.parent / "none")])


def test_errata_are_applied_to_an_old_run_and_leave_rows_out(tmp_path):
    folder = tmp_path / "data"
    benchmark = load_benchmark(write_benchmark(folder, sums()))
    evaluate(benchmark, ScriptedEngine(), tmp_path / "run", data_dir=folder)
    known = {"why": "a test", "source": "this file"}
    errata = [{"id": "sum-3", "answer": "1000", **known}, {"id": "sum-5", **known}]
    mended = load_benchmark(write_benchmark(folder, sums(), errata=errata))
    summary = rescore(tmp_path / "run", benchmark=mended, data_dir=folder)
    assert summary.metrics.problems == 11
    stored = read_run(tmp_path / "run")
    assert {problem for problem, _ in stored.verdicts} == {f"sum-{i}" for i in range(12)} - {"sum-5"}
    assert stored.manifest["settings"]["errata"] == {"corrected": ["sum-3"], "excluded": ["sum-5"]}
    summary = rescore(tmp_path / "run", benchmark=mended, data_dir=folder, errata=False)
    assert summary.metrics.problems == 12
