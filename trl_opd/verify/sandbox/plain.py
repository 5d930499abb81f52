"""A plain subprocess: limits, but no protection. For programs that one would run anyway."""

from collections.abc import Mapping, Sequence
from typing import Any

from trl_opd.verify.sandbox.guest_code import task_file
from trl_opd.verify.sandbox.interpreter import Interpreter
from trl_opd.verify.sandbox.landlock import private_folder, start_in
from trl_opd.verify.sandbox.limits import Limits
from trl_opd.verify.sandbox.process import Process


class Plain:
    """Runs tasks with this user's rights."""

    name = "none"

    def __init__(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter

    def describe(self) -> dict[str, Any]:
        """What is in force."""
        return {
            "backend": self.name,
            "version": "",
            "user": "ours",
            "network": "open",
            "files": "open",
            "processes": "open",
            "threads_limited": False,
        }

    def start(
        self, task: Mapping[str, Any], limits: Limits, descriptors: Sequence[int] = (), **streams: int
    ) -> Process:
        """Start a task; see `guest/start.py`."""
        folder = private_folder(None)
        task_descriptor = task_file(
            {
                **task,
                "limits": limits.rlimits(count_threads=False),
                "uid": None,
                "restrict": None,
                "paths": self.interpreter.package_paths,
            }
        )
        return start_in(folder, self.interpreter, task_descriptor, descriptors, streams)
