import base64
import json
import pickle
import zlib
from dataclasses import replace

import pytest

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Erratum, Problem, Window, load_benchmark
from trl_opd.evals.livecodebench import evaluation_sample
from trl_opd.evals.rows import load_rows, rows_sha256

from .conftest import sums, write_benchmark


def test_rows_come_in_order_and_a_limit_keeps_the_first(benchmark, sums_path):
    rows = load_rows(benchmark, sums_path.parent)
    assert rows.comparable
    assert [row.id for row in rows.problems] == [f"sum-{i}" for i in range(12)]
    assert load_rows(benchmark, sums_path.parent, limit=3).problems == rows.problems[:3]


def test_other_data_are_refused_or_taken_and_named(benchmark, sums_path):
    data = sums_path.parent / "sums.jsonl"
    with data.open("a") as file:
        file.write(json.dumps({"id": "more", "problem": "1+1=?", "answer": "2"}) + "\n")
    with pytest.raises(UserError, match=r"sums\.jsonl has the hash"):
        load_rows(benchmark, sums_path.parent)
    rows = load_rows(benchmark, sums_path.parent, allow_other_data=True)
    assert len(rows.problems) == 13
    assert rows.settings()["comparable"] is False


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (sums(), {"rows_sha256": "0f" * 32}, "12 rows with the hash"),
        (sums(), {"rows_sha256": None}, "names no hash that its 12 rows"),
        (sums(), {"rows": 13}, "where 13 rows"),
        ([sums()[0], sums()[0]], {}, "same id"),
        ([{"id": "a", "problem": "1+1=?", "answer": " "}], {}, "Row 0 of sums has no 'answer'"),
        ([{"id": "a", "problem": "1+1=?", "answer": None}], {}, "Row 0 of sums has no 'answer'"),
        (sums(), {"source": {"hub": "a/b", "split": "test", "keep": ["date"]}}, "Row 0 of sums has no 'date'"),
        ([], {}, "is empty"),
    ],
)
def test_rows_that_are_not_the_expected_ones_are_refused(tmp_path, rows, changes, message):
    benchmark = load_benchmark(write_benchmark(tmp_path, rows, **changes))
    with pytest.raises(UserError, match=message):
        load_rows(benchmark, tmp_path)


@pytest.mark.parametrize(("line", "message"), [("{", "Line 13 of .* is not JSON"), ("[1]", "is not a JSON object")])
def test_a_damaged_file_is_a_sentence(benchmark, sums_path, line, message):
    with (sums_path.parent / "sums.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        load_rows(benchmark, sums_path.parent, allow_other_data=True)


def test_a_file_that_is_no_text_is_a_sentence(benchmark, sums_path):
    (sums_path.parent / "sums.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"Line 1 of .* is not JSON"):
        load_rows(benchmark, sums_path.parent, allow_other_data=True)


def test_missing_data_and_no_problems_are_refused(benchmark, tmp_path, sums_path):
    with pytest.raises(UserError, match=r"folder that holds sums\.jsonl"):
        load_rows(benchmark, tmp_path / "nowhere")
    with pytest.raises(UserError, match="limit must be at least 1"):
        load_rows(benchmark, sums_path.parent, limit=0)
    source = {"url": "https://example.org/sums", "split": "test"}
    with pytest.raises(UserError, match=r"get it from https://example.org/sums as sums\.jsonl"):
        load_rows(load_benchmark(write_benchmark(tmp_path, sums(), source=source)))


def test_a_hub_data_set_is_mapped_to_our_fields(tmp_path, monkeypatch):
    rows = [
        {"id": "sums-test-0", "problem": "1+0=?", "answer": "1"},
        {"id": "sums-test-1", "problem": "999+1=?", "answer": "1000"},
    ]
    source = {"hub": "nobody/sums", "split": "test", "fields": {"problem": "question"}, "answer_after": "####"}
    path = write_benchmark(tmp_path, rows, source=source)
    hub = [{"question": "1+0=? ", "answer": "one #### 1"}, {"question": "999+1=?", "answer": "#### #### 1,000"}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: hub)
    benchmark = load_benchmark(path)
    assert load_rows(benchmark) == load_rows(benchmark, tmp_path)


def test_a_slice_is_cut_out_of_its_split_and_keeps_the_row_numbers(tmp_path, monkeypatch):
    hub = [{"problem": f"{number}+0=?", "answer": number} for number in range(6)]
    kept = [{"id": f"s-{number}", "problem": f"{number}+0=?", "answer": str(number)} for number in (2, 3)]
    source = {"hub": "nobody/sums", "split": "train", "id": "s-{row}", "slice": [2, 4]}
    benchmark = load_benchmark(write_benchmark(tmp_path, kept, source=source))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: hub)
    assert [problem.id for problem in load_rows(benchmark).problems] == ["s-2", "s-3"]
    with pytest.raises(UserError, match="1 rows with the hash"):
        load_rows(replace(benchmark, source=replace(benchmark.source, slice=[5, 7])))
    with pytest.raises(UserError, match="a first row and the row after"):
        replace(benchmark.source, slice=[4, 4])


def test_hub_ids_and_answers_of_other_types_become_text(tmp_path, monkeypatch):
    rows = [{"id": "s-7", "problem": "1-1=?", "answer": "0"}, {"id": "s-8", "problem": "x^2=1", "answer": "1, -1"}]
    source = {"hub": "nobody/sums", "split": "test", "id": "s-{number}"}
    benchmark = load_benchmark(write_benchmark(tmp_path, rows, source=source))
    hub = [{"number": 7, "problem": "1-1=?", "answer": 0}, {"number": 8, "problem": "x^2=1", "answer": ["1", "-1"]}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: hub)
    assert load_rows(benchmark) == load_rows(benchmark, tmp_path)


def test_hub_files_are_named_in_full(benchmark, monkeypatch):
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *given, **named: asked.append((given, named)) or sums())
    load_rows(replace(benchmark, source=replace(benchmark.source, files=["a.jsonl"], fields={"id": "id"})))
    assert asked == [(("json",), {"data_files": ["hf://datasets/nobody/sums/a.jsonl"], "split": "train"})]


def test_an_unreachable_hub_data_set_is_a_sentence(benchmark, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UserError, match="pass --data-dir"):
        load_rows(benchmark)


def test_the_hash_covers_all_that_is_read():
    row = Problem("a", "1+1=?", "2")
    others = [
        replace(row, id="b"),
        replace(row, problem="?"),
        replace(row, answer="3"),
        replace(row, fields={"tests": []}),
        replace(row, system="x"),
    ]
    assert len({rows_sha256([problem]) for problem in (row, *others)}) == 6


ERRATA = [
    Erratum(id="sum-1", why="wrong", source="seen", answer="77"),
    Erratum(id="sum-2", why="broken", source="seen"),
    Erratum(id="sum-3", why="right already", source="seen", answer="4"),
]


def test_errata_correct_and_exclude_and_are_counted(benchmark, sums_path):
    benchmark = replace(benchmark, errata=ERRATA)
    rows = load_rows(benchmark, sums_path.parent)
    assert (rows.corrected, rows.excluded) == (["sum-1"], ["sum-2"])
    assert {row.id: row.answer for row in rows.problems}["sum-1"] == "77"
    assert "sum-2" not in {row.id for row in rows.problems}
    plain = load_rows(benchmark, sums_path.parent, errata=False)
    assert (plain.corrected, plain.excluded, len(plain.problems)) == ([], [], 12)
    assert plain.settings()["data"] != rows.settings()["data"]


def test_an_erratum_without_a_row_is_refused_on_the_benchmarks_own_data_alone(benchmark, sums_path):
    other = replace(benchmark, errata=[Erratum(id="sum-99", why="w", source="s")])
    with pytest.raises(UserError, match="names 'sum-99', and no row has that id"):
        load_rows(other, sums_path.parent)
    assert load_rows(replace(other, rows_sha256=None), sums_path.parent, allow_other_data=True).excluded == []


def test_a_window_keeps_its_months_both_ends_included(tmp_path):
    dates = ["2025-01-31", "2025-02-01T00:00:00", "2025-03-15", "2025-05-31T23:00:00", "2025-06-01"]
    rows = [{**row, "date": date} for row, date in zip(sums(5), dates, strict=True)]
    source = {"hub": "nobody/sums", "split": "test", "keep": ["date"]}
    benchmark = load_benchmark(write_benchmark(tmp_path, rows, source=source, rows_sha256=None))
    benchmark = replace(benchmark, window=Window(field="date", start="2025-02", end="2025-05"))
    inside = load_rows(benchmark, tmp_path, allow_other_data=True)
    assert [row.id for row in inside.problems] == ["sum-1", "sum-2", "sum-3"]
    assert inside.outside_window == 2
    open_end = load_rows(benchmark.within("2025-03", None), tmp_path, allow_other_data=True)
    assert [row.id for row in open_end.problems] == ["sum-2", "sum-3", "sum-4"]
    with pytest.raises(UserError, match="no problems in its window"):
        load_rows(benchmark.within("2026-01", None), tmp_path, allow_other_data=True)


def packed(text: str) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(text))).decode()


def test_livecodebench_rows_of_the_hub_become_the_evaluators_form():
    tests = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]
    more = [{"input": "3\n", "output": "4\n", "testtype": "stdin"}]
    expected = {"inputs": ["1\n", "3\n"], "outputs": ["2\n", "4\n"], "fn_name": "add"}
    row = {"public_test_cases": json.dumps(tests), "metadata": '{"func_name": "add"}'}
    for private in (json.dumps(more), packed(json.dumps(more))):
        assert evaluation_sample({**row, "private_test_cases": private}) == expected
    assert evaluation_sample({"evaluation_sample": json.dumps(expected)}) == expected


class Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit(77)",)


@pytest.mark.parametrize(
    "private",
    [packed("{"), "AAAA", "!", base64.b64encode(zlib.compress(pickle.dumps(Payload()))).decode()],
    ids=["no JSON", "no zlib", "no base64", "a pickle that runs code"],
)
def test_livecodebench_tests_that_cannot_be_read_are_refused(private):
    row = {"public_test_cases": "[]", "metadata": "{}", "private_test_cases": private}
    with pytest.raises(UserError, match="no tests that can be read"):
        evaluation_sample(row)


@pytest.mark.parametrize(
    "sample", [{"inputs": [], "outputs": [], "fn_name": None}, {"inputs": ["1"], "outputs": [], "fn_name": None}]
)
def test_livecodebench_rows_without_tests_are_refused(sample):
    with pytest.raises(UserError, match="has no tests, or not one output"):
        evaluation_sample({"evaluation_sample": sample})
