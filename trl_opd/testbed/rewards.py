"""The testbed's reward: right or wrong, and feedback on which step is wrong."""

from collections.abc import Callable
from typing import Any

from trl_opd.testbed.tasks import feedback
from trl_opd.verify.rewards import math_reward


def testbed_reward(
    completions: list, problem: list[str], answer: list[str], log_extra: Callable[[str, list], None], **kwargs: Any
) -> list[float]:
    """`math_reward`, with the environment's feedback for methods whose teacher reads it.

    Args:
        completions (`list`): B completions as messages.
        problem, answer (`list[str]`): The columns of the testbed's rows.
        log_extra (`Callable`): TRL's way for a reward function to hand on a column; gets "feedback".
    """
    texts = [completion[0]["content"] for completion in completions]
    log_extra("feedback", [feedback(task, text) for task, text in zip(problem, texts, strict=True)])
    return math_reward(completions=completions, answer=answer, **kwargs)
