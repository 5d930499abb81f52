"""What every scorer says of a completion."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What the scorer says of one completion.

    Attributes:
        correct (`bool`): Whether the completion solves the problem.
        extracted (`str` or `None`): The answer, or the program, that was found in the completion.
        reason (`str`): "correct", "wrong", "no answer", "timeout" or "error: ...".
        feedback (`str`, *optional*): What an environment may tell the model of a failed attempt; never the expected
            answer of a problem that has a single one.
    """

    correct: bool
    extracted: str | None
    reason: str
    feedback: str | None = None
