"""Solutions of our own for sets that bring none, and all reference solutions of those that do."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.verify.sandboxes import block, verifier

SOLUTIONS = Path(__file__).parents[1] / "data" / "code_solutions"


def rows(shared, name: str) -> list[dict]:
    with (shared / "data" / f"{name}.jsonl").open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize(
    ("name", "file", "key", "dialect"),
    [
        ("leetcode", "leetcode_contest_100", "task_id", "leetcode"),
        ("codeforces", "codeforces_stdin_200", "id", "stdin"),
    ],
)
def test_own_solutions_pass_and_wrong_variants_fail(shared, name, file, key, dialect):
    by_id = {row[key]: row for row in rows(shared, file)}
    requests, expected = [], []
    for problem, solution in yaml.safe_load((SOLUTIONS / f"{name}.yaml").read_text()).items():
        old, new = solution["wrong"]
        assert old in solution["right"]
        for code in (solution["right"], solution["right"].replace(old, new)):
            requests.append((block(code), dialect, by_id[problem]))
        expected += [(problem, "correct"), (problem, "wrong")]
    assert len(expected) >= 20
    verdicts = verifier("auto").verify_all(requests)
    found = [(problem, verdict.reason) for (problem, _), verdict in zip(expected, verdicts, strict=True)]
    assert found == expected


def reference(dialect: str, row: dict) -> str:
    """The row's own solution as a model would write it."""
    return block(row["prompt"] + row["canonical_solution"] if dialect.startswith("humaneval") else row["code"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("file", "dialect", "count"),
    [
        ("humaneval", "humaneval", 164),
        ("humanevalplus_mini", "humanevalplus", 164),
        ("humanevalplus", "humanevalplus", 164),
        ("mbpp_test", "mbpp", 500),
        ("mbpp_train", "mbpp", 374),
        ("mbppplus", "mbppplus", 378),
    ],
)
def test_all_reference_solutions_pass(shared, file, dialect, count):
    requests = [(reference(dialect, row), dialect, row) for row in rows(shared, file)]
    verdicts = verifier("auto").verify_all(requests)
    assert Counter(verdict.reason for verdict in verdicts) == {"correct": count}


def test_first_reference_solutions_pass(shared):
    sets = [("humaneval", "humaneval"), ("humanevalplus_mini", "humanevalplus"), ("mbpp_test", "mbpp")]
    requests = [(reference(way, row), way, row) for file, way in sets for row in rows(shared, file)[:8]]
    requests += [(reference("mbpp", row), "mbpp", row) for row in rows(shared, "mbpp_test") if row["task_id"] == 367]
    requests += [(reference("", row), "mbppplus", row) for row in rows(shared, "mbppplus") if row["task_id"] == 126]
    assert [verdict.reason for verdict in verifier("auto").verify_all(requests)] == ["correct"] * 26
