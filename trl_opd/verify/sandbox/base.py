"""What every backend offers."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from trl_opd.verify.sandbox.limits import Limits
from trl_opd.verify.sandbox.process import Process


class Backend(Protocol):
    """A way to confine a process."""

    name: str

    def describe(self) -> dict[str, Any]:
        """What is in force, for a record and for a line that a person reads."""

    def start(
        self, task: Mapping[str, Any], limits: Limits, descriptors: Sequence[int] = (), **streams: int
    ) -> Process:
        """Start a task of `guest/start.py` with these descriptors open, under the same numbers, and these streams."""


def script_task(sources: Sequence[str]) -> dict[str, Any]:
    """A program that reads its standard input and writes its standard output."""
    return {"role": "script", "sources": list(sources)}
