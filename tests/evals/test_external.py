"""Completions that were drawn elsewhere: matching, refusals, the same verdicts and files as a run."""

import json

import pytest

from trl_opd.cli.eval import main
from trl_opd.errors import UserError
from trl_opd.evals.external import read_generations, score_generations
from trl_opd.evals.runner import evaluate

from .conftest import ScriptedEngine, result_rows


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_completions_of_a_run_get_its_verdicts_and_metrics(benchmark, sums_path, tmp_path):
    summary = evaluate(benchmark, ScriptedEngine(), tmp_path / "run", data_dir=sums_path.parent)
    drawn = result_rows(tmp_path / "run", "generations")
    rows = [{**row, "id": row["problem_id"], "more": "is left alone"} for row in drawn[::-1]]
    file = tmp_path / "rows.jsonl"
    write(file, rows)
    again, given = score_generations(benchmark, file, tmp_path / "again", data_dir=sums_path.parent)
    assert again.metrics == summary.metrics
    assert (given.least, given.most, given.missing_ids, given.unknown_rows) == (4, 4, [], 0)
    assert result_rows(tmp_path / "again", "verdicts") == result_rows(tmp_path / "run", "verdicts")
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert manifest["settings"]["engine"]["engine"] == "external"


def test_the_command_counts_what_does_not_fit_and_writes_it(sums_path, tmp_path, capsys):
    rows = [
        {"id": "sum-1", "completion": "it is 3"},
        {"id": "nobody", "completion": "7"},
        {"id": "sum-0", "completion": "1"},
        {"id": "sum-1", "completion": "[bold]4\x1b[31m", "finish_reason": "length"},
        {"id": "nobody", "completion": "8"},
    ]
    file, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.json"
    options = ["--data-dir", str(sums_path.parent), "--json", str(out), "--output-dir", str(tmp_path / "run")]
    assert main(["score", str(sums_path), "--generations", file, *options]) == 0
    printed = capsys.readouterr()
    assert "2 rows have an id that no problem scored here has ('nobody'): they are not scored." in printed.err
    assert "10 problems have no completion ('sum-2', 'sum-3', 'sum-4', ...)" in printed.err
    assert "Problems have 1 to 2 completions" in printed.err
    found = json.loads(out.read_text())
    assert found["samples"] == [
        {"id": "sum-0", "index": 0, "correct": True, "extracted": "1", "reason": "correct"},
        {"id": "sum-1", "index": 0, "correct": True, "extracted": "3", "reason": "correct"},
        {"id": "sum-1", "index": 1, "correct": False, "extracted": "31", "reason": "wrong"},
    ]
    assert found["metrics"]["accuracy"] == 0.75
    assert found["metrics"]["mean_tokens"] is found["metrics"]["truncated_rate"] is None
    assert found["counts"]["unknown_rows"] == 2
    assert found["counts"]["missing_ids"] == 10 == len(found["missing_ids"])
    assert found["comparable"] is False
    assert main(["score", str(sums_path), "--generations", file, *options[:4], "--limit", "2"]) == 0
    assert json.loads(out.read_text())["counts"]["missing_ids"] == 0
    assert json.loads(out.read_text())["comparable"] is False  # a part of the benchmark
    assert main(["show", str(tmp_path / "run"), "--id", "sum-1", "--failures"]) == 0
    shown = capsys.readouterr().out
    assert "[bold]4\\u001b[31m" in shown
    assert "drawn elsewhere" in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: there is nothing to score"),
        ("id,completion\n1,2\n", "Line 1 of .* is not JSON"),
        ("[1]\n", "Line 1 of .* is no JSON object"),
        ('{"completion": "1"}\n', "Line 1 of .* has no 'id'"),
        ('{"id": "sum-1"}\n', "Line 1 of .* has no 'completion'"),
        ('{"id": "sum-1", "completion": 1}\n', "Line 1 of .* has no 'completion' that is a text"),
        ('{"id": "a", "completion": ""}\n', "such as 'a', and the benchmark's are like 'sum-0'"),
        ('{"id": "sum-1", "completion": "", "index": 0}\n' * 2, "Line 2 of .* is a second sample 0 of 'sum-1'"),
        ('{"id": "sum-1", "completion": "", "tokens": -1}\n', "the tokens -1"),
        ('{"id": "sum-1", "completion": "", "finish_reason": "eos"}\n', "the finish_reason 'eos'"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused_in_one_sentence(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_generations(tmp_path / "rows.jsonl", ["sum-0", "sum-1"], "sums")


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path, sums_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="it is no UTF-8 text"):
        read_generations(tmp_path / "rows.jsonl", ["sum-0"], "sums")
    with pytest.raises(UserError, match="There is no file"):
        main(["score", str(sums_path), "--generations", str(tmp_path / "none.jsonl")])
    with pytest.raises(UserError, match="did you mean 'arithmetic'"):
        main(["score", "arithmetics", "--generations", str(tmp_path / "rows.jsonl")])
    with pytest.raises(UserError, match=r"The folder of .* does not exist"):
        main(["score", "arithmetic", "--generations", str(tmp_path / "rows.jsonl"), "--json", "no/where.json"])
