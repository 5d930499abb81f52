from dataclasses import replace

import pytest
import yaml

from trl_opd.errors import UserError
from trl_opd.evals import suites
from trl_opd.evals.benchmark import Problem, Window, load_benchmark
from trl_opd.evals.suites import load_suite, suites_dir

from .conftest import sums, write_benchmark


def test_messages_put_the_problem_in_place_and_leave_other_braces(tmp_path):
    path = write_benchmark(tmp_path, sums(), prompt=r"{problem} in \boxed{}", system="Be {brief}.")
    assert load_benchmark(path).messages(Problem("a", "{problem} {x}?", "1")) == [
        {"role": "system", "content": "Be {brief}."},
        {"role": "user", "content": r"{problem} {x}? in \boxed{}"},
    ]


def test_messages_take_kept_columns_and_a_rows_own_system_message(tmp_path):
    source = {"hub": "nobody/sums", "split": "test", "keep": ["tests", "limits"]}
    path = write_benchmark(tmp_path, sums(), prompt="{problem}\n{tests}\n{limits}", system="Mine.", source=source)
    problem = Problem("a", "1+0=?", "1", {"tests": ["x == 1", "{problem}"], "limits": {"s": 1}}, system="Yours.")
    assert load_benchmark(path).messages(problem) == [
        {"role": "system", "content": "Yours."},
        {"role": "user", "content": '1+0=?\nx == 1\n{problem}\n{"s": 1}'},
    ]


def test_what_was_public_before_a_cutoff_is_told(benchmark):
    assert [benchmark.seen_before(cutoff) for cutoff in ("2024-01", "2024-02", "2025-01")] == [False, True, True]
    dated = replace(benchmark, source=replace(benchmark.source, keep=["date"]), window=Window(field="date"))
    assert dated.seen_before("2024-12")
    assert not dated.within("2025-02", None).seen_before("2024-12")
    assert dated.within("2025-02-14", None).seen_before("2025-02")
    with pytest.raises(UserError, match="cutoff must be a month"):
        benchmark.seen_before("2024")
    with pytest.raises(UserError, match="no dates"):
        benchmark.within("2025-02", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promt": "x"}, "unknown key 'promt': did you mean 'prompt'"),
        ({"source": {"hub": "a/b", "split": "test", "spilt": "x"}}, "did you mean 'split'"),
        ({"source": {"split": "test"}}, "exactly one of"),
        ({"source": {"split": "test", "builtin": "testbet"}}, "choose one of testbed"),
        ({"protocol": {"n": 1}}, "lacks 'temperature', 'top_p', 'max_new_tokens', 'note'"),
        ({"rows": "twelve"}, "rows cannot be 'twelve': give a value of type int"),
        ({"prompt": "?"}, "has no {problem}"),
        ({"extraction": "first"}, "choose one of boxed, last-number"),
        ({"scorer": "judge"}, "choose one of math"),
        ({"scorer": "code"}, "'scorer: code' and the section 'code' go together"),
        ({"code": {"dialect": "stdin"}}, "'scorer: code' and the section 'code' go together"),
        ({"released": "2024"}, 'released must be a month as in "2024-02"'),
        ({"released": 2024}, "released cannot be 2024"),
        ({"prompt": "{problem} {tests}"}, "has {tests}, which 'source: keep' does not list"),
        ({"window": {"field": "date"}}, "must list 'date'"),
        ({"source": {"url": "https://x", "split": "test"}, "local": None}, "add the section 'local'"),
        ({"errata": [{"id": "sum-1", "why": "wrong"}]}, "errata lacks 'source'"),
        ({"errata": ["sum-1"]}, "errata must be a mapping"),
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


def test_a_suite_finds_benchmarks_beside_it_and_among_ours(tmp_path, sums_path):
    suite = sums_path.parent / "mine.yaml"
    suite.write_text(yaml.safe_dump({"title": "Mine", "benchmarks": ["sums", "gsm8k"]}))
    assert [benchmark.name for benchmark in load_suite(str(suite))] == ["sums", "gsm8k"]


def test_a_suite_may_set_the_protocol(tmp_path):
    suite = tmp_path / "mine.yaml"
    suite.write_text(yaml.safe_dump({"benchmarks": ["gsm8k"], "protocol": {"n": 3, "temperature": 1}}))
    (gsm8k,) = load_suite(str(suite))
    assert (gsm8k.protocol.n, gsm8k.protocol.temperature, gsm8k.protocol.max_new_tokens) == (3, 1, 1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"benchmarks": ["gsm8k"], "protocol": {"m": 3}}, "unknown key 'm'"),
        ({"benchmarks": ["gsm8k"], "protocol": {"n": "3"}}, "n cannot be '3'"),
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
