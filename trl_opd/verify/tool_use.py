"""Tool calls written as text: are they the expected ones?

Graded as in the released code of SDPO (https://huggingface.co/papers/2601.20802): the names after `Action:` must be the
expected ones, each as often, in any order; the JSON objects after `Action Input:`, merged into one with later keys over
earlier ones, must equal the expected objects merged likewise. So which input went to which call is not looked at. We
deviate in one point: an object inside an object is read, where the released expression stops at the first closing brace
and can never accept such a call.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from trl_opd.errors import UserError
from trl_opd.verify.base import Verdict

RULES = "tool-use 1"
"""Raise it whenever extraction or comparison changes here."""

_ACTION = re.compile(r"Action:\s*(\w+)")
_INPUT = re.compile(r"Action Input:\s*(?=\{)")
_DECODER = json.JSONDecoder()


def tool_calls(text: str) -> str | None:
    """The calls in a completion as JSON, names sorted and inputs merged, or `None` where there are none."""
    names, inputs = _ACTION.findall(text), _merged(_inputs(text))
    return _as_json(names, inputs) if names or inputs else None


def verify_tool_use(completion: str, answer: str) -> Verdict:
    """Score the calls in one completion.

    Args:
        completion (`str`): The text to score, which is not trusted.
        answer (`str`): A JSON list of objects with `Action`, a name, and `Action_Input`, an object or its JSON text.

    Raises:
        UserError: The reference is not of that form.
    """
    expected_names, expected_inputs = _reference(answer)
    names, inputs = _ACTION.findall(completion), _merged(_inputs(completion))
    if not names and not inputs:
        feedback = "No call was found: write `Action:` with a tool's name, then `Action Input:` with a JSON object."
        return Verdict(correct=False, extracted=None, reason="no answer", feedback=feedback)
    right_names, right_inputs = Counter(names) == Counter(expected_names), inputs == expected_inputs
    extracted = _as_json(names, inputs)
    if right_names and right_inputs:
        return Verdict(True, extracted, "correct")
    wrong = ["the tools"] * (not right_names) + ["the inputs"] * (not right_inputs)
    return Verdict(False, extracted, "wrong", f"Not what was expected: {' and '.join(wrong)} of the calls.")


def _inputs(text: str) -> list[dict[str, Any]]:
    """The JSON objects after `Action Input:`; what is none is passed over."""
    found = []
    for mark in _INPUT.finditer(text):
        try:
            found.append(_DECODER.raw_decode(text, mark.end())[0])
        except (ValueError, RecursionError):  # cut short, no JSON, or nested beyond any tool's input
            continue
    return found


def _reference(answer: str) -> tuple[list[str], dict[str, Any]]:
    try:
        calls = json.loads(answer)
        names = [call["Action"] for call in calls]
        given = [call["Action_Input"] for call in calls]
        inputs = [json.loads(value) if isinstance(value, str) else dict(value) for value in given]
        merged = _merged(inputs)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "A tool-use reference must be a JSON list of objects with Action and Action_Input: mend that row's answer."
        ) from error
    if not names:
        raise UserError("A tool-use reference names no call: give every row at least one.")
    return names, merged


def _merged(inputs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for one in inputs for key, value in one.items()}


def _as_json(names: list[str], inputs: Mapping[str, Any]) -> str:
    return json.dumps({"actions": sorted(names), "inputs": inputs}, sort_keys=True)
