import json

import pytest
import yaml

from trl_opd.errors import UserError
from trl_opd.evals import suites
from trl_opd.evals.benchmark import load_benchmark, load_rows
from trl_opd.evals.suites import load_suite, names, suites_dir

from .conftest import sums, write_benchmark


def test_rows_come_in_order_and_a_limit_keeps_the_first(benchmark, sums_path):
    rows = load_rows(benchmark, sums_path.parent)
    assert [row.id for row in rows] == [f"sum-{i}" for i in range(12)]
    assert load_rows(benchmark, sums_path.parent, limit=3) == rows[:3]


def test_messages_put_the_problem_in_place_and_leave_other_braces(tmp_path):
    path = write_benchmark(tmp_path, sums(), prompt=r"{problem} in \boxed{}", system="Be {brief}.")
    benchmark = load_benchmark(path)
    problem = load_rows(benchmark, tmp_path)[0]
    assert benchmark.messages(problem) == [
        {"role": "system", "content": "Be {brief}."},
        {"role": "user", "content": r"1+0=? in \boxed{}"},
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promt": "x"}, "unknown key 'promt': did you mean 'prompt'"),
        ({"source": {"hub": "a/b", "split": "test", "spilt": "x"}}, "did you mean 'split'"),
        ({"source": {"split": "test"}}, "either 'hub' or 'builtin'"),
        ({"source": {"split": "test", "builtin": "testbet"}}, "choose one of testbed"),
        ({"protocol": {"n": 1}}, "lacks 'temperature', 'top_p', 'max_new_tokens', 'note'"),
        ({"rows": "twelve"}, "rows cannot be 'twelve': give a value of type int"),
        ({"prompt": "?"}, "has no {problem}"),
        ({"extraction": "first"}, "choose one of boxed, last-number"),
        ({"scorer": "judge"}, "choose one of math"),
        ({"file_sha256": None}, "go together"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_benchmark(write_benchmark(tmp_path, sums(), **changes))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_a_file_without_a_mapping_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml"):
        load_suite(str(tmp_path / "x.yaml"))


def test_other_data_are_refused(benchmark, sums_path):
    data = sums_path.parent / "sums.jsonl"
    with data.open("a") as file:
        file.write(json.dumps({"id": "more", "problem": "1+1=?", "answer": "2"}) + "\n")
    with pytest.raises(UserError, match=r"sums\.jsonl has the hash"):
        load_rows(benchmark, sums_path.parent)


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (sums(), {"rows_sha256": "0" * 64}, "12 rows with the hash"),
        (sums(), {"rows": 13}, "where 13 rows"),
        ([sums()[0], sums()[0]], {}, "same id"),
        ([{"id": "a", "problem": "1+1=?", "answer": " "}], {}, "Row 0 of sums has no 'answer'"),
        ([], {}, "is empty"),
    ],
)
def test_rows_that_are_not_the_expected_ones_are_refused(tmp_path, rows, changes, message):
    benchmark = load_benchmark(write_benchmark(tmp_path, rows, **changes))
    with pytest.raises(UserError, match=message):
        load_rows(benchmark, tmp_path)


def test_missing_data_and_no_problems_are_refused(benchmark, tmp_path, sums_path):
    with pytest.raises(UserError, match=r"folder that holds sums\.jsonl"):
        load_rows(benchmark, tmp_path / "nowhere")
    with pytest.raises(UserError, match="limit must be at least 1"):
        load_rows(benchmark, sums_path.parent, limit=0)


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


def test_an_unreachable_hub_data_set_is_a_sentence(benchmark, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UserError, match="pass --data_dir"):
        load_rows(benchmark)


def test_every_shipped_benchmark_loads():
    assert {"arithmetic", "gsm8k", "testbed"} <= set(names())
    for name in names():
        benchmarks = load_suite(name)
        assert all(benchmark.protocol.sampling.max_new_tokens > 0 for benchmark in benchmarks)


def test_the_arithmetic_rows_are_the_testbeds():
    (arithmetic,) = load_suite("testbed")
    assert len(load_rows(arithmetic)) == 512


@pytest.mark.slow
def test_gsm8k_is_the_expected_data_from_either_source(shared, monkeypatch):
    (gsm8k,) = load_suite("gsm8k")
    local = load_rows(gsm8k, shared / "data")
    lines = (shared / "data" / "gsm8k_test.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    hub = [{"question": row["problem"], "answer": row["solution"]} for row in map(json.loads, lines)]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: hub)
    assert load_rows(gsm8k) == local


def test_a_suite_finds_benchmarks_beside_it_and_among_ours(tmp_path, sums_path):
    suite = sums_path.parent / "mine.yaml"
    suite.write_text(yaml.safe_dump({"title": "Mine", "benchmarks": ["sums", "gsm8k"]}))
    assert [benchmark.name for benchmark in load_suite(str(suite))] == ["sums", "gsm8k"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"benchmarks": []}, "names no benchmarks"),
        ({"benchmarks": ["gsm8k"], "benchmark": 1}, "unknown key 'benchmark'"),
        ({"benchmarks": ["gsm"]}, "no benchmark or suite 'gsm': did you mean 'gsm8k'"),
    ],
)
def test_a_wrong_suite_is_refused(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        load_suite(str(tmp_path / "mine.yaml"))


def test_an_unknown_name_or_path_is_refused():
    with pytest.raises(UserError, match="did you mean 'arithmetic'"):
        load_suite("arithmetics")
    with pytest.raises(UserError, match="does not exist"):
        load_suite("nowhere/x.yaml")


def test_an_installed_package_finds_its_own_suites(tmp_path, monkeypatch):
    assert suites_dir().name == "evals"
    package = tmp_path / "trl_opd"
    (package / "_evals").mkdir(parents=True)
    monkeypatch.setattr(suites, "__file__", str(package / "evals" / "suites.py"))
    assert suites_dir() == package / "_evals"
