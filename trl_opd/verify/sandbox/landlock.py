"""Landlock and seccomp: for machines, or containers, that allow no namespaces.

The program stays in sight of the machine's processes and file names, but can open none of the files, signal none of the
processes and make no socket. It cannot start a process either, so that killing it leaves nothing.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from trl_opd.verify.sandbox.bubblewrap import program_uid
from trl_opd.verify.sandbox.guest_code import BOOT, task_file
from trl_opd.verify.sandbox.interpreter import ENVIRONMENT, Interpreter
from trl_opd.verify.sandbox.limits import Limits
from trl_opd.verify.sandbox.process import Process, start


class Landlock:
    """Runs tasks that confine themselves before the program's code runs.

    Args:
        interpreter (`Interpreter`): What may be read.
    """

    name = "landlock"

    def __init__(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter
        hidden = set(interpreter.hidden)
        parents = {os.path.dirname(path) for path in hidden}
        self._read = [
            *(path for path in interpreter.libraries if path not in parents),
            *(entry.path for folder in parents for entry in os.scandir(folder) if entry.path not in hidden),
            *interpreter.packages,
        ]
        self._list = [*parents, *interpreter.package_paths]

    def describe(self) -> dict[str, Any]:
        """What is in force."""
        as_root = os.geteuid() == 0
        return {
            "backend": self.name,
            "version": os.uname().release,
            "user": "one of its own" if as_root else "ours",
            "network": "no sockets",
            "files": "the interpreter and a private folder, by Landlock; names of other files can be tried",
            "processes": "none but itself, by seccomp",
            "threads_limited": as_root,
        }

    def start(
        self, task: Mapping[str, Any], limits: Limits, descriptors: Sequence[int] = (), **streams: int
    ) -> Process:
        """Start a task; see `guest/start.py`."""
        uid = program_uid()
        folder = private_folder(uid)
        restriction = {
            "uid": uid,
            "parent": os.getpid(),
            "read": self._read,
            "list": self._list,
            "write": folder,
            "devices": ["/dev/null", "/dev/zero", "/dev/urandom"],
        }
        task_descriptor = task_file(
            {
                **task,
                "limits": limits.rlimits(count_threads=uid is not None),
                "uid": None,
                "restrict": restriction,
                "paths": self.interpreter.package_paths,
            }
        )
        return start_in(folder, self.interpreter, task_descriptor, descriptors, streams)


def start_in(
    folder: str,
    interpreter: Interpreter,
    task_descriptor: int,
    descriptors: Sequence[int],
    streams: Mapping[str, int],
) -> Process:
    """Start a task in a private folder, which is removed with it; the task's descriptor is closed here."""
    try:
        command = interpreter.command(BOOT, task_descriptor)
        environment = {**ENVIRONMENT, "HOME": folder, "TMPDIR": folder}
        popen = start(command, [*descriptors, task_descriptor], streams, environment, folder)
    except BaseException:
        remove_folder(folder)
        raise
    finally:
        os.close(task_descriptor)
    return Process(popen, clean=lambda: remove_folder(folder))


def private_folder(uid: int | None) -> str:
    """A new folder that one user can enter."""
    folder = tempfile.mkdtemp(prefix="trl-opd-")
    if uid is not None:
        os.chown(folder, uid, uid)
    return folder


def remove_folder(folder: str) -> None:
    """Remove a folder that a program may have filled with closed or very deep folders."""
    try:
        os.rmdir(folder)
    except OSError:
        subprocess.run(["chmod", "-R", "u+rwx", folder], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["rm", "-rf", folder], stderr=subprocess.DEVNULL, check=False)
    if os.path.lexists(folder):
        raise RuntimeError(f"The program's folder {folder} could not be removed.")
