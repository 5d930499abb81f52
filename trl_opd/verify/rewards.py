"""The scorers of text as TRL reward functions."""

from collections.abc import Callable
from functools import cache
from typing import Any

from trl_opd.errors import UserError
from trl_opd.verify.base import Verdict
from trl_opd.verify.choice import verify_choice
from trl_opd.verify.math import MathVerifier
from trl_opd.verify.tool_use import verify_tool_use


@cache
def _verifier() -> MathVerifier:
    return MathVerifier()


def math_reward(
    completions: list[str] | list[list[dict[str, Any]]],
    answer: list[str] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    r"""1.0 for a completion whose last `\boxed{...}` equals the reference answer, else 0.0.

    Args:
        completions (`list`): `B` texts or `B` lists of messages, of which the last one is scored.
        answer (`list[str]`): The data set's `answer` column, `B` strings.
        log_extra (`Callable`, *optional*): TRL's hook for more columns in the completions table; gets the answers that
            were read, the reasons of the verdicts, and feedback for methods whose teacher reads it.
        **kwargs: What else TRL passes; not read.

    Returns:
        `list[float]`: `B` rewards.

    Raises:
        UserError: The data set has no `answer` column, or an answer in it is missing.
    """
    return _rewards("math_reward", _verifier().verify_all, completions, answer, log_extra)


def choice_reward(
    completions: list[str] | list[list[dict[str, Any]]],
    answer: list[str] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    """1.0 for a completion whose letter in the last `<answer>` is the reference letter, else 0.0.

    Arguments, result and errors are those of `math_reward`.
    """
    return _rewards("choice_reward", _each(verify_choice), completions, answer, log_extra)


def tool_use_reward(
    completions: list[str] | list[list[dict[str, Any]]],
    answer: list[str] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    """1.0 for a completion whose calls, in text, are the expected ones, see `trl_opd.verify.tool_use`, else 0.0.

    Arguments, result and errors are those of `math_reward`.
    """
    return _rewards("tool_use_reward", _each(verify_tool_use), completions, answer, log_extra)


VerifyAll = Callable[[list[tuple[str, str]]], list[Verdict]]


def _each(verify: Callable[[str, str], Verdict]) -> VerifyAll:
    return lambda pairs: [verify(completion, answer) for completion, answer in pairs]


def _rewards(
    name: str,
    verify_all: VerifyAll,
    completions: list[str] | list[list[dict[str, Any]]],
    answer: list[str] | None,
    log_extra: Callable[[str, list], None] | None,
) -> list[float]:
    if answer is None:
        raise UserError(f"{name} needs a data set with an 'answer' column: rename the column with the references.")
    if any(not isinstance(reference, str) for reference in answer):
        raise UserError(f"{name} needs a string in every row of the 'answer' column: convert or drop the others.")
    texts = [completion if isinstance(completion, str) else last_text(completion) for completion in completions]
    verdicts = verify_all(list(zip(texts, answer, strict=True)))
    if log_extra is not None:
        log_extra("extracted", [verdict.extracted or "" for verdict in verdicts])
        log_extra("verdict", [verdict.reason for verdict in verdicts])
        log_extra("feedback", [verdict.feedback for verdict in verdicts])
    return [float(verdict.correct) for verdict in verdicts]


def last_text(messages: list[dict[str, Any]]) -> str:
    """The text of the last message; a turn that only calls tools has none."""
    content = messages[-1].get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
