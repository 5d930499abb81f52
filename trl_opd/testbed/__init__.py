"""The embedded default: a tiny pretrained model, a stronger teacher, and the sums that both are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from trl_opd.errors import UserError
from trl_opd.testbed.tasks import (
    DEMONSTRATION_AND_FEEDBACK_TEMPLATE,
    DEMONSTRATION_TEMPLATE,
    FEEDBACK_TEMPLATE,
    REFERENCE_TEMPLATE,
    feedback,
    rows,
)

__all__ = [
    "CHECKPOINTS",
    "DATA",
    "DEMONSTRATION_AND_FEEDBACK_TEMPLATE",
    "DEMONSTRATION_TEMPLATE",
    "FEEDBACK_TEMPLATE",
    "REFERENCE_TEMPLATE",
    "feedback",
    "model_path",
    "rows",
]

CHECKPOINTS = ("base", "teacher")
DATA = Path(__file__).parent / "data"


def model_path(name: Literal["base", "teacher"]) -> Path:
    """The folder of a checkpoint that comes with the package.

    Raises:
        UserError: if there is no checkpoint of that name.
    """
    if name not in CHECKPOINTS:
        raise UserError(f"The testbed has no checkpoint {name!r}: choose one of {', '.join(CHECKPOINTS)}.")
    return DATA / name
