import json
import time

import pytest

from trl_opd.errors import UserError
from trl_opd.verify.tool_use import verify_tool_use


def reference(*calls) -> str:
    return json.dumps([{"Action": name, "Action_Input": json.dumps(given)} for name, given in calls])


ONE = reference(("find", {"city": "Rome", "page": 1}))
NO_INPUT = reference(("listCountries", {}))
NESTED = reference(("update", {"id": 7, "profile": {"name": "Ann", "tags": ["a", "b"]}}))
TWO = reference(("convert", {"from": "EUR", "to": "GBP"}), ("alert", {"pair": "EUR/GBP"}))
SAME = reference(("find", {"city": "Rome", "page": 1}), ("find", {"city": "Oslo", "page": 1}))

GRADED = [
    ('Thought: look.\nAction: find\nAction Input: {"city": "Rome", "page": 1}', ONE, "correct"),
    ('Action: find\nAction Input: {"page": 1, "city": "Rome"}', ONE, "correct"),  # keys in any order
    ('Action: find\nAction Input: {"city": "Rome", "page": 1.0}', ONE, "correct"),  # equal numbers
    ('Action: find\nAction Input:\n{\n  "city": "Rome",\n  "page": 1\n}\nObservation: ok', ONE, "correct"),
    ('Action:find Action Input:{"city": "Rome", "page": 1}', ONE, "correct"),
    ('Action: find\nAction Input: {"city": "Rome", "page": "1"}', ONE, "wrong"),  # a text is no number
    ('Action: find\nAction Input: {"city": "rome", "page": 1}', ONE, "wrong"),
    ('Action: find\nAction Input: {"city": "Rome"}', ONE, "wrong"),
    ('Action: find\nAction Input: {"city": "Rome", "page": 1, "size": 2}', ONE, "wrong"),
    ('Action: Find\nAction Input: {"city": "Rome", "page": 1}', ONE, "wrong"),
    ('Action: search\nAction Input: {"city": "Rome", "page": 1}', ONE, "wrong"),
    ('Action: `find`\nAction Input: {"city": "Rome", "page": 1}', ONE, "wrong"),  # as the released code reads names
    ("Action: find\nAction Input: {'city': 'Rome', 'page': 1}", ONE, "wrong"),  # no JSON
    ('Action: find\nAction Input: {"city": "Rome", "page": 1', ONE, "wrong"),  # cut
    ('Action: find\nAction Input: ```json\n{"city": "Rome", "page": 1}\n```', ONE, "wrong"),
    ('Action Input: {"city": "Rome", "page": 1}', ONE, "wrong"),
    ("find(city='Rome', page=1)", ONE, "no answer"),
    ("", ONE, "no answer"),
    ("Action: listCountries\nAction Input: {}", NO_INPUT, "correct"),
    ("Action: listCountries", NO_INPUT, "correct"),  # nothing merged is nothing expected
    ("Action: listCountries\nAction: listCountries\nAction Input: {}", NO_INPUT, "wrong"),
    ('Action: update\nAction Input: {"id": 7, "profile": {"tags": ["a", "b"], "name": "Ann"}}', NESTED, "correct"),
    ('Action: update\nAction Input: {"id": 7, "profile": {"tags": ["b", "a"], "name": "Ann"}}', NESTED, "wrong"),
    (
        'Action: convert\nAction Input: {"from": "EUR", "to": "GBP"}\nAction: alert\nAction Input: {"pair": "EUR/GBP"}',
        TWO,
        "correct",
    ),
    (
        'Action: alert\nAction Input: {"pair": "EUR/GBP"}\nAction: convert\nAction Input: {"from": "EUR", "to": "GBP"}',
        TWO,
        "correct",  # calls in any order
    ),
    ('Action: convert\nAction: alert\nAction Input: {"from": "EUR", "to": "GBP", "pair": "EUR/GBP"}', TWO, "correct"),
    ('Action: convert\nAction Input: {"from": "EUR", "to": "GBP"}', TWO, "wrong"),
    ('Action: find\nAction: find\nAction Input: {"city": "Oslo", "page": 1}', SAME, "correct"),  # the last key wins
    ('Action: find\nAction Input: {"city": "Oslo", "page": 1}', SAME, "wrong"),  # one call too few
]


@pytest.mark.parametrize(("completion", "answer", "reason"), GRADED)
def test_names_as_a_multiset_and_merged_inputs_decide(completion, answer, reason):
    verdict = verify_tool_use(completion, answer)
    assert (verdict.reason, verdict.correct) == (reason, reason == "correct")
    assert (verdict.extracted is None) == (reason == "no answer")


def test_feedback_says_what_is_wrong_and_not_what_is_right():
    feedback = verify_tool_use('Action: look\nAction Input: {"city": "Oslo"}', ONE).feedback
    assert feedback == "Not what was expected: the tools and the inputs of the calls."
    assert verify_tool_use('Action: find\nAction Input: {"city": "Oslo"}', ONE).feedback.endswith(
        ": the inputs of the calls."
    )
    assert "`Action:`" in verify_tool_use("none", ONE).feedback


@pytest.mark.parametrize(
    "answer", ["", "{}", "[]", "[1]", '[{"Action": "x"}]', '[{"Action": "x", "Action_Input": "{"}]']
)
def test_a_reference_of_another_form_is_refused(answer):
    with pytest.raises(UserError, match="A tool-use reference"):
        verify_tool_use("Action: find", answer)


@pytest.mark.parametrize(
    "completion",
    [
        "Action Input: {" * 5_000,
        'Action Input: {"a":' + '{"a":' * 50_000,
        "Action: " * 50_000,
        'Action Input: {"a": ' + "9" * 9999,
    ],
    ids=["many", "deep", "names", "a long number"],
)
def test_degenerate_completions_end_at_once(completion):
    start = time.perf_counter()
    assert not verify_tool_use(completion, ONE).correct
    assert time.perf_counter() - start < 2


def test_every_reference_is_graded_as_itself(shared):
    lines = (shared / "data" / "tooluse_test.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    failed = []
    for row in map(json.loads, lines):
        calls = json.loads(row["answer"])
        text = "\n".join(f"Action: {call['Action']}\nAction Input: {call['Action_Input']}" for call in calls)
        failed += [] if verify_tool_use(text, row["answer"]).correct else [row["idx"]]
    assert failed == [4079]  # a tool's name with "[Optional]" in it: an erratum of the benchmark
