"""Every benchmark and suite that comes with the package, against the local copies of the data where they are."""

import json
import re
from dataclasses import replace

import pytest

from trl_opd.errors import UserError
from trl_opd.evals.rows import load_rows
from trl_opd.evals.suites import load_suite, names

SUITES = {"math", "math-hard", "code", "science", "quick", "testbed"}
BENCHMARKS = sorted(set(names()) - SUITES)
UNPINNED = {"livecodebench"}
BUILT_IN = {"arithmetic", "arithmetic_reading", "arithmetic_validation"}


def only(name):
    (benchmark,) = load_suite(name)
    return benchmark


def test_all_standard_sets_are_there():
    assert set(BENCHMARKS) == {
        *("gsm8k", "math500", "aime2024", "aime2025", "hmmt_feb_2025", "hmmt_nov_2025", "amc2023", "minerva_math"),
        *("olympiadbench", "humaneval", "humanevalplus", "mbpp", "mbppplus", "livecodebench", "leetcode", "codeforces"),
        *("sciknoweval_chemistry", "sciknoweval_physics", "sciknoweval_biology", "sciknoweval_material"),
        *("tooluse", "gsm8k_validation", "arithmetic", "arithmetic_reading", "arithmetic_validation"),
    }


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_description_says_where_its_numbers_come_from(name):
    benchmark = only(name)
    assert benchmark.name == name
    assert benchmark.licence
    assert len(benchmark.protocol.note) > 40
    assert benchmark.protocol.sampling.max_new_tokens > 0
    assert (benchmark.rows_sha256 is None) == (name in UNPINNED)
    assert benchmark.protocol.n == 1 or benchmark.protocol.temperature > 0


@pytest.mark.parametrize("name", sorted(SUITES))
def test_a_suite_holds_each_benchmark_once(name):
    members = [benchmark.name for benchmark in load_suite(name)]
    assert len(set(members)) == len(members) >= 1
    assert not UNPINNED & set(members)


@pytest.mark.parametrize(
    ("name", "count"), [("arithmetic", 512), ("arithmetic_reading", 512), ("arithmetic_validation", 256)]
)
def test_the_arithmetic_rows_are_the_testbeds(name, count):
    rows = load_rows(only(name))
    assert len(rows.problems) == count
    assert rows.comparable


def test_the_reading_benchmark_asks_the_same_problems_after_a_context():
    plain, reading = (load_rows(only(name)).problems for name in ("arithmetic", "arithmetic_reading"))
    assert [row.answer for row in reading] == [row.answer for row in plain]
    for before, after in zip(plain, reading, strict=True):
        assert after.problem.startswith("Example:\n")
        assert after.problem.endswith(f"Again:\n{before.problem}")


def test_an_unknown_form_of_the_testbeds_prompts_is_refused():
    benchmark = only("arithmetic_reading")
    wrong = replace(benchmark, source=replace(benchmark.source, config="shouting"))
    with pytest.raises(UserError, match="asks for the form 'shouting'"):
        load_rows(wrong)


@pytest.mark.parametrize("name", sorted({*BENCHMARKS} - UNPINNED - BUILT_IN))
def test_a_local_copy_is_the_expected_data_and_every_prompt_is_whole(shared, name):
    benchmark = only(name)
    rows = load_rows(benchmark, shared / "data")
    assert rows.comparable
    assert len(rows.problems) == benchmark.rows - len(rows.excluded)
    for problem in rows.problems:
        user = benchmark.messages(problem)[-1]["content"]
        assert problem.problem in user
        frame = user
        for text in (problem.problem, *(str(line) for line in problem.fields.get("test_list", []))):
            frame = frame.replace(text, "")
        assert not re.search(r"\{[a-z_]+\}", frame)


@pytest.mark.parametrize("name", sorted({*BENCHMARKS} - UNPINNED - BUILT_IN))
def test_one_changed_answer_is_refused(shared, tmp_path, name):
    benchmark = only(name)
    copy = tmp_path / benchmark.local.file
    lines = (shared / "data" / benchmark.local.file).read_bytes().split(b"\n")
    first = benchmark.source.slice[0] if benchmark.source.slice else 0
    row = json.loads(lines[first])
    read = ("answer", "tests", "test", "test_list", "base_input")
    column = next(key for key in read if key in (*benchmark.source.keep, "answer") and key in row)
    row[column] = ["changed"] if isinstance(row[column], list) else "changed"
    lines[first] = json.dumps(row).encode()
    copy.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match="has the hash"):
        load_rows(benchmark, tmp_path)
    with pytest.raises(UserError, match="rows with the hash"):
        load_rows(replace(benchmark, local=replace(benchmark.local, sha256=None)), tmp_path)


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_validation"])
def test_gsm8k_is_the_expected_data_from_either_source(shared, monkeypatch, name):
    gsm8k = only(name)
    local = load_rows(gsm8k, shared / "data")
    lines = (shared / "data" / gsm8k.local.file).read_text(encoding="utf-8").rstrip("\n").split("\n")
    hub = [{"question": row["problem"], "answer": row["solution"]} for row in map(json.loads, lines)]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: hub)
    assert load_rows(gsm8k) == local


def test_the_known_errata_are_applied(shared):
    changes = {
        name: (rows.corrected, rows.excluded)
        for name in BENCHMARKS
        if only(name).errata
        for rows in [load_rows(only(name), shared / "data")]
    }
    assert changes == {
        "aime2024": ([], []),  # the pinned copies have the right answers; the errata are for others
        "aime2025": ([], []),
        "hmmt_nov_2025": (["hmmt2025_nov-20"], []),
        "minerva_math": (["minerva-72"], []),
        "olympiadbench": (["olympiadbench-2045", "olympiadbench-2349"], []),
        "tooluse": ([], ["4079"]),
    }


@pytest.mark.parametrize("starter", ["", "class Solution:\n    def solve(self, x): ..."])
def test_livecodebench_loads_from_the_format_sample(shared, tmp_path, starter):
    (line,) = (shared / "data" / "livecodebench_format_sample.jsonl").read_text().splitlines()
    sample = json.loads(line)
    row = {"question_id": "1873_A", "question_content": "Swap two cards?", "starter_code": starter, **sample}
    (tmp_path / "livecodebench_v6.jsonl").write_text(json.dumps(row) + "\n")
    benchmark = only("livecodebench")
    with pytest.raises(UserError, match="no problems in its window"):
        load_rows(benchmark, tmp_path, allow_other_data=True)
    with pytest.raises(UserError, match="names no hash"):
        load_rows(benchmark.within("2023-08", "2023-08"), tmp_path)
    rows = load_rows(benchmark.within("2023-08", "2023-08"), tmp_path, allow_other_data=True)
    (problem,) = rows.problems
    assert not rows.comparable
    assert problem.fields["evaluation_sample"] == sample["evaluation_sample"]
    assert starter in benchmark.messages(problem)[-1]["content"]
