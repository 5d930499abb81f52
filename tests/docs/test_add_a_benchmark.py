"""The page's example is loaded, refused and taken as the page says."""

import re
from pathlib import Path

import pytest

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark
from trl_opd.evals.rows import load_rows, rows_sha256
from trl_opd.evals.suites import load_suite

PAGE = (Path(__file__).parents[2] / "docs" / "add_a_benchmark.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_sums.jsonl").write_text(block("json"))
    (tmp_path / "my_sums.yaml").write_text(block("yaml"))
    return tmp_path


def test_the_example_needs_its_hash(folder):
    (benchmark,) = load_suite(str(folder / "my_sums.yaml"))
    with pytest.raises(UserError, match="names no hash"):
        load_rows(benchmark, folder)
    rows = load_rows(benchmark, folder, allow_other_data=True)
    assert not rows.comparable
    (folder / "my_sums.yaml").write_text(block("yaml") + f"rows_sha256: {rows_sha256(rows.problems)}\n")
    (pinned,) = load_suite(str(folder / "my_sums.yaml"))
    assert load_rows(pinned, folder).comparable


def test_every_key_in_the_table_is_a_key():
    names = set(Benchmark.__dataclass_fields__)
    told = {
        name.split(".")[0]
        for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
        for name in re.findall(r"`(.*?)`", row)
    }
    assert told <= names
    assert names - told <= {"name", "title", "licence", "rows", "rows_sha256"}
