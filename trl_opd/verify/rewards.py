"""The scorer as TRL reward functions."""

from collections.abc import Callable
from functools import cache
from typing import Any

from trl_opd.errors import UserError
from trl_opd.verify.math import MathVerifier


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
    if answer is None:
        raise UserError("math_reward needs a data set with an 'answer' column: rename the column with the references.")
    if any(not isinstance(reference, str) for reference in answer):
        raise UserError("math_reward needs a string in every row of the 'answer' column: convert or drop the others.")
    texts = [completion if isinstance(completion, str) else _last_text(completion) for completion in completions]
    verdicts = _verifier().verify_all(list(zip(texts, answer, strict=True)))
    if log_extra is not None:
        log_extra("extracted", [verdict.extracted or "" for verdict in verdicts])
        log_extra("verdict", [verdict.reason for verdict in verdicts])
        log_extra("feedback", [verdict.feedback for verdict in verdicts])
    return [float(verdict.correct) for verdict in verdicts]


def _last_text(messages: list[dict[str, Any]]) -> str:
    """The text of the last message; a turn that only calls tools has none."""
    content = messages[-1].get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
