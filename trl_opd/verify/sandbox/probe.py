"""The self-test: a program that tries to get out, run once before a sandbox is trusted."""

import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from trl_opd.verify.sandbox.base import Backend, script_task
from trl_opd.verify.sandbox.limits import Limits
from trl_opd.verify.sandbox.process import Output, read_pipes

_PROGRAM = r"""
import json, os, socket
escapes = []
def attempt(name, action):
    try:
        if action() is not False:
            escapes.append(name)
    except Exception:
        pass
def connected(family, kind, address):
    with socket.socket(family, kind) as s:
        s.settimeout(2)
        s.connect(address)
def forked():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
attempt("network", lambda: connected(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", PORT)))
attempt("unix sockets", lambda: connected(socket.AF_UNIX, socket.SOCK_STREAM, FOLDER + "/socket"))
attempt("abstract sockets", lambda: connected(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + ABSTRACT))
attempt("reading /etc/passwd", lambda: open("/etc/passwd").read())
attempt("reading files", lambda: open(FOLDER + "/secret").read())
attempt("writing files", lambda: open(FOLDER + "/escaped", "w").write("x"))
attempt("writing to the interpreter", lambda: open(os.path.dirname(os.__file__) + "/escaped.py", "w"))
attempt("new processes", forked)
attempt("signals", lambda: os.kill(PARENT, 0))
attempt("other processes' memory", lambda: open(f"/proc/{PARENT}/environ", "rb").read())
attempt("the environment", lambda: "TRL_OPD_PROBE" in os.environ)
attempt("root", lambda: os.geteuid() == 0)
open("private", "w").write("x")
print(json.dumps(escapes))
"""


class ProbeFailed(Exception):
    """A backend that cannot run here, or that does not hold."""


def check(backend: Backend) -> None:
    """Run the self-test.

    Raises:
        ProbeFailed: The probe did not run, or found a way out.
    """
    with _world() as constants:
        source = "".join(f"{name} = {value!r}\n" for name, value in constants.items()) + _PROGRAM
        output, status = _run(backend, source)
    if status != 0:
        lines = output.texts[1].decode(errors="replace").strip().splitlines()
        raise ProbeFailed(lines[-1] if lines else f"it ended with status {status}")
    escapes = json.loads(output.texts[0])
    if escapes:
        raise ProbeFailed(f"it leaves open: {', '.join(escapes)}")


def _run(backend: Backend, source: str) -> tuple[Output, int]:
    out, out_writer = os.pipe()
    error, error_writer = os.pipe()
    limits = Limits()
    try:
        try:
            process = backend.start(script_task([source]), limits, stdout=out_writer, stderr=error_writer)
        finally:
            os.close(out_writer)
            os.close(error_writer)
        until = time.monotonic() + limits.wall_seconds
        output = read_pipes([out, error], until, limits.output_bytes)
        return output, process.end(until)
    finally:
        os.close(out)
        os.close(error)


@contextmanager
def _world() -> Iterator[dict[str, str | int]]:
    """Things on this machine that a program must not reach, all open to everyone."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trl-opd-probe-")))
        folder.chmod(0o777)
        (folder / "secret").write_text("secret")
        abstract = f"trl-opd-{secrets.token_hex(8)}"
        listeners = []
        for address in (("127.0.0.1", 0), str(folder / "socket"), f"\0{abstract}"):
            family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.bind(address)
            listener.listen()
            listeners.append(listener)
        (folder / "socket").chmod(0o777)
        yield {
            "PORT": listeners[0].getsockname()[1],
            "FOLDER": str(folder),
            "ABSTRACT": abstract,
            "PARENT": os.getpid(),
        }
