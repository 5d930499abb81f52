from __future__ import annotations

import random
import re
from itertools import permutations, product

import pytest

from trl_opd.errors import UserError
from trl_opd.testbed.corpus import _attempts
from trl_opd.testbed.tasks import SPLITS, Problem, boxed_number, draw, feedback, rows

PROBLEM = "23+45+61=?"


def test_hash_buckets_are_owned_by_exactly_one_split():
    owned = [bucket for split in SPLITS.values() for bucket in split.buckets]
    assert sorted(owned) == list(range(10))


def test_rows_of_different_splits_share_no_problem_even_reordered():
    unordered = {
        split: {tuple(sorted(Problem.parse(row["problem"]).numbers)) for row in rows(split)} for split in SPLITS
    }
    assert not unordered["train"] & unordered["test"]
    assert not unordered["train"] & unordered["validation"]
    assert not unordered["validation"] & unordered["test"]


def test_reorderings_of_a_problem_are_in_its_split():
    for problem in (Problem((23, 45, 61)), Problem((10, 99)), Problem((77, 77, 12))):
        assert {Problem(order).split for order in permutations(problem.numbers)} == {problem.split}


def test_split_of_a_problem_never_changes():
    sizes = dict.fromkeys(SPLITS, 0)
    for numbers in product(range(10, 100), repeat=2):
        sizes[Problem(numbers).split] += 1
    assert sizes == {"train": 6472, "validation": 826, "test": 802}


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_distinct_of_default_count_and_in_their_split(split):
    problems = [row["problem"] for row in rows(split)]
    assert len(set(problems)) == len(problems) == SPLITS[split].default_count
    assert {Problem.parse(problem).split for problem in problems} == {split}


def test_rows_are_deterministic_and_fewer_are_a_prefix_of_more():
    assert rows("train", 20) == rows("train", 50)[:20]
    assert rows("train", 20, seed=1) != rows("train", 20, seed=0)


def test_row_fields():
    for row in rows("validation", 50):
        left, *numbers = Problem.parse(row["problem"]).numbers
        assert row["answer"] == str(left + sum(numbers))
        assert row["prompt"] == [{"role": "user", "content": row["problem"]}]
        assert row["solution"].endswith(f"\n\\boxed{{{row['answer']}}}")
        assert feedback(row["problem"], row["solution"]) is None
        assert row["id"].startswith("validation-")


def test_worked_solution_of_a_known_problem():
    assert Problem.parse(PROBLEM).solution == "23+45=68\n68+61=129\n\\boxed{129}"
    assert Problem.parse("10+35=?").solution == "10+35=45\n\\boxed{45}"


@pytest.mark.parametrize(
    ("split", "count", "message"),
    [("dev", 4, "no split 'dev'"), ("test", 0, "count=0"), ("test", -3, "count=-3"), ("test", 20_001, "20000 rows")],
)
def test_rows_refuse_what_they_cannot_give(split, count, message):
    with pytest.raises(UserError, match=message):
        rows(split, count)


@pytest.mark.parametrize("text", ["23+45+61", "2+45=?", "23=?", "23+45+61+10=?", "23+045=?", "", "23+45=?\n"])
def test_feedback_refuses_a_problem_that_is_not_of_the_testbed(text):
    with pytest.raises(UserError, match="not a problem of the testbed"):
        feedback(text, "\\boxed{1}")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("\\boxed{129}", None),
        ("23+45=99\n\\boxed{129}", None),
        ("\\boxed{1}\n\\boxed{129}", None),
        ("23+45=67\n67+61=128\n\\boxed{128}", "Step 1 is wrong: 23+45 is not 67."),
        ("23+45=68\n68+61=128\n\\boxed{128}", "Step 2 is wrong: 68+61 is not 128."),
        ("45+23=68\n61+68=128\n\\boxed{128}", "Step 2 is wrong: 61+68 is not 128."),
        ("23+45=68\n68+16=84\n\\boxed{84}", "Step 2 is wrong: it has to add 68 and 61."),
        ("23+45=67\n", "Step 1 is wrong: 23+45 is not 67."),
        ("\\boxed{128}", "Step 1 is missing: 23+45+61 is not 128."),
        ("23+45=68\n\\boxed{68}", "Step 2 is missing: 23+45+61 is not 68."),
        ("23+45=68\n68+61=129\n129+61=190\n\\boxed{190}", "Step 3 is one too many: 23+45+61 is not 190."),
        ("23+45=68\n68+61=129\n\\boxed{192}", "The answer is wrong: 23+45+61 is not 192."),
        ("23+45=68\n68+61=129\n", "No answer in \\boxed{}."),
        ("", "No answer in \\boxed{}."),
        ("\\boxed{many}", "No answer in \\boxed{}."),
        ("\\boxed{" + "9" * 5000 + "}", "No answer in \\boxed{}."),
        ("\\boxed{<script>}", "No answer in \\boxed{}."),
    ],
)
def test_feedback_points_at_the_first_thing_that_is_wrong(completion, expected):
    assert feedback(PROBLEM, completion) == expected


def test_feedback_gives_neither_the_answer_nor_the_right_result_of_the_wrong_step_away():
    rng = random.Random(0)
    seen = 0
    for problem, _ in zip(draw(rng, "train"), range(200), strict=False):
        for attempt, _ in zip(_attempts(rng, problem), range(10), strict=False):
            text = feedback(problem.text, attempt)
            if text is None:
                continue
            numbers = set(map(int, re.findall(r"[0-9]+", text)))
            wrong_step = re.match(r"Step ([12]) is wrong", text)
            if wrong_step:
                assert problem.steps[int(wrong_step[1]) - 1][2] not in numbers
                seen += 1
            if f"={problem.answer}\n" not in attempt:  # a result that the attempt wrote itself may be repeated
                assert problem.answer not in numbers
    assert seen > 200


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("\\boxed{12} then \\boxed{34}", 34),
        ("\\boxed{007}", 7),
        ("\\boxed{}", None),
        ("12", None),
        ("\\boxed{1.0}", None),
    ],
)
def test_boxed_number(completion, number):
    assert boxed_number(completion) == number
