"""Running programs that nobody has read: see docs/security.md for what is promised and what is not."""

import os
from functools import cache
from typing import Any

from trl_opd.errors import UserError
from trl_opd.verify.sandbox.base import Backend
from trl_opd.verify.sandbox.bubblewrap import Bubblewrap
from trl_opd.verify.sandbox.guest import seccomp
from trl_opd.verify.sandbox.interpreter import find_interpreter
from trl_opd.verify.sandbox.landlock import Landlock
from trl_opd.verify.sandbox.limits import Limits
from trl_opd.verify.sandbox.plain import Plain
from trl_opd.verify.sandbox.probe import ProbeFailed, check

__all__ = ["BACKENDS", "Backend", "Limits", "describe", "open_sandbox", "sandbox_name"]

BACKENDS = ("auto", "bwrap", "landlock", "none")
"""The names of sandboxes; "auto" is bubblewrap, or Landlock where bubblewrap cannot run, and never "none"."""

VARIABLE = "TRL_OPD_SANDBOX"


def sandbox_name() -> str:
    """The sandbox that the environment variable `TRL_OPD_SANDBOX` names, by default "auto"."""
    return os.environ.get(VARIABLE, "auto")


@cache
def open_sandbox(name: str = "auto") -> Backend:
    """A sandbox that has passed its self-test in this process.

    Args:
        name (`str`, defaults to `"auto"`): A name in `BACKENDS`.

    Raises:
        UserError: The name is unknown, or no such sandbox holds here.
    """
    if name not in BACKENDS:
        raise UserError(f"The sandbox {name!r} is unknown: choose one of {', '.join(BACKENDS)}.")
    if name == "none":
        return Plain(find_interpreter())
    failures = []
    for candidate in ("bwrap", "landlock") if name == "auto" else (name,):
        try:
            backend = _make(candidate)
            check(backend)
        except ProbeFailed as error:
            failures.append(f"{candidate}: {error}")
        else:
            return backend
    raise UserError(
        f"No sandbox can run programs here ({'; '.join(failures)}): install bubblewrap or pip install "
        f"'trl-opd[sandbox]', on Linux with user namespaces or Landlock; {VARIABLE}=none runs them without protection."
    )


def describe(backend: Backend, limits: Limits) -> dict[str, Any]:
    """What is in force: the backend, that its self-test passed, and the limits."""
    tested = "not run" if backend.name == "none" else "passed"
    return {**backend.describe(), "self_test": tested, "limits": limits.describe()}


def _make(name: str) -> Backend:
    if not seccomp.supported():
        raise ProbeFailed(f"the system calls of {os.uname().machine} are not known")
    if name == "landlock":
        return Landlock(find_interpreter())
    executable = Bubblewrap.find()
    if executable is None:
        raise ProbeFailed("not installed")
    return Bubblewrap(executable, find_interpreter())
