"""One run of a program in the sandbox, in each of the three forms that tests have.

A verdict never rests on the word of the program's process: its output and the values that it returns are compared
here, and programs of asserts run in a process of their own (`sandbox/guest/judge.py`).
"""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from trl_opd.verify.sandbox import Backend, Limits
from trl_opd.verify.sandbox.base import script_task
from trl_opd.verify.sandbox.guest import wire
from trl_opd.verify.sandbox.process import Process, data_file, read_pipes

_OUT_OF_TIME = (128 + signal.SIGXCPU, 128 + signal.SIGKILL)
_GRACE_SECONDS = 1.0
REPLY_BYTES = 256 * 2**20
"""What the values of one run may come to as text."""


@dataclass(frozen=True)
class Script:
    """What a script did: its output, and `failure` ("timeout" or "error: ...") with the error's text."""

    output: str = ""
    failure: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Call:
    """What one call gave: a value, or the text of an error."""

    value: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Calls:
    """What some calls gave, in order; `failure` where there are fewer of them than asked for."""

    calls: tuple[Call, ...] = ()
    failure: str | None = None
    error: str | None = None
    cpu_seconds: float | None = None


class Opaque:
    """Stands for a returned object that is no plain value: it equals nothing."""

    def __init__(self, content: Any) -> None:
        _, kind = content
        self.kind = str(kind)

    def __repr__(self) -> str:
        return f"<{self.kind} object>"


def run_script(backend: Backend, sources: Sequence[str], text: str, limits: Limits) -> Script:
    """Run a program that reads `text` from its standard input."""
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(os.fdopen(data_file(text.encode(), "stdin"), "rb", buffering=0))
        output, output_writer = _pipe(stack)
        errors, errors_writer = _pipe(stack)
        until = time.monotonic() + limits.wall_seconds
        streams = {"stdin": given, "stdout": output_writer, "stderr": errors_writer}
        process = backend.start(script_task(sources), limits, **{name: file.fileno() for name, file in streams.items()})
        stack.callback(process.end)
        output_writer.close()
        errors_writer.close()
        read = read_pipes([output.fileno(), errors.fileno()], until, limits.output_bytes)
        status = process.end(0 if read.too_much else until)
    written, complaints = (part.decode(errors="replace") for part in read.texts)
    if read.too_much:
        return Script(failure=f"error: more than {limits.output_bytes} bytes of output")
    if process.killed or status in _OUT_OF_TIME:
        return Script(failure="timeout")
    if status != 0:
        return Script(failure=_last_line(complaints) or f"error: exit status {status}", error=complaints)
    return Script(output=written)


def run_calls(
    backend: Backend, sources: Sequence[str], function: str, arguments: Sequence[Sequence[Any]], limits: Limits
) -> Calls:
    """Call one function with each of some lists of arguments."""
    with contextlib.ExitStack() as stack:
        replies, replies_writer = _pipe(stack)
        task = {
            "role": "calls",
            "sources": list(sources),
            "function": function,
            "arguments": [wire.dumps(list(inputs)).decode() for inputs in arguments],
            "replies": replies_writer.fileno(),
        }
        until = time.monotonic() + limits.wall_seconds
        process = backend.start(task, limits, [replies_writer.fileno()])
        stack.callback(process.end)
        replies_writer.close()
        read = read_pipes([replies.fileno()], until, REPLY_BYTES)
        status = process.end(time.monotonic() + _GRACE_SECONDS if read.finished else 0)
    if read.too_much:
        return Calls(failure="error: the program returned too much")
    lines = read.texts[0].split(b"\n")
    calls = [_call(line) for line in lines[: len(arguments) + 2] if line]
    if calls and calls[0].error is not None:
        return Calls(failure=_last_line(calls[0].error), error=calls[0].error)
    results, spent = tuple(calls[1 : len(arguments) + 1]), calls[len(arguments) + 1 :]
    if len(results) < len(arguments):
        late = not read.finished or (not process.killed and status in _OUT_OF_TIME)
        return Calls(results, failure="timeout" if late else "error: the program ended its process")
    return Calls(results, cpu_seconds=spent[0].value if spent and isinstance(spent[0].value, float) else None)


@dataclass(frozen=True)
class TestProgram:
    """Tests that are a program themselves.

    Attributes:
        preamble (`tuple[str, ...]`): Sources that the tests may use, trusted.
        names (`tuple[str, ...]`): What the tests use of the program under test.
        tests (`tuple[str, ...]`): Sources with the asserts.
    """

    __test__ = False  # for pytest

    preamble: tuple[str, ...]
    names: tuple[str, ...]
    tests: tuple[str, ...]


def run_tests(backend: Backend, sources: Sequence[str], tests: TestProgram, limits: Limits) -> dict[str, Any]:
    """Run a program of asserts against the functions of another program, each in a sandbox of its own.

    Returns:
        `dict`: `reason` as in a verdict, and what `sandbox/guest/judge.py` knows of the failure.
    """
    with contextlib.ExitStack() as stack:
        pipes = [_pipe(stack) for _ in range(3)]
        (requests, requests_writer), (replies, replies_writer), (result, result_writer) = pipes
        until = time.monotonic() + limits.wall_seconds
        program = _start(backend, limits, "serve", requests, replies_writer, sources=list(sources))
        stack.callback(program.end)
        judge = _start(backend, limits, "judge", replies, requests_writer, result_writer, **asdict(tests))
        stack.callback(judge.end)
        for file in (requests, requests_writer, replies, replies_writer, result_writer):
            file.close()
        read = read_pipes([result.fileno()], until, limits.output_bytes)
        return _outcome(program, judge, read.texts[0], read.finished)


def _start(
    backend: Backend,
    limits: Limits,
    role: str,
    incoming: BinaryIO,
    outgoing: BinaryIO,
    stdout: BinaryIO | None = None,
    **task: Any,
) -> Process:
    """Start one of the two that talk to each other."""
    line = [incoming.fileno(), outgoing.fileno()]
    streams = {} if stdout is None else {"stdout": stdout.fileno()}
    return backend.start({"role": role, "incoming": line[0], "outgoing": line[1], **task}, limits, line, **streams)


def _outcome(program: Process, judge: Process, text: bytes, finished: bool) -> dict[str, Any]:
    if not finished:
        return {"reason": "timeout"}
    status = judge.end(time.monotonic() + _GRACE_SECONDS)
    if not text.endswith(b"\n"):
        return {"reason": "timeout" if status in _OUT_OF_TIME else f"error: the tests ended with status {status}"}
    outcome = wire.loads(text)
    if outcome["reason"].startswith("error: "):  # the line to the program broke
        status = program.end(time.monotonic() + _GRACE_SECONDS)
        if not program.killed and status in _OUT_OF_TIME:
            return {"reason": "timeout", "call": outcome["call"]}
    elif outcome["reason"] == "error":
        outcome["reason"] = _last_line(outcome["error"])
    return outcome


def _call(line: bytes) -> Call:
    try:
        kind, value = wire.loads(line, Opaque)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError):
        return Call(error="the program sent no value")
    return Call(error=str(value)) if kind == "error" else Call(value)


def _last_line(text: str) -> str:
    """An error's kind and message as the reason of a verdict; empty where there is no text."""
    lines = text.strip().splitlines()
    return f"error: {lines[-1][:200]}" if lines else ""


def _pipe(stack: contextlib.ExitStack) -> tuple[BinaryIO, BinaryIO]:
    """Both ends of a pipe as files, which can be closed twice where a bare number would be another's by then."""
    reader, writer = os.pipe()
    return (
        stack.enter_context(os.fdopen(reader, "rb", buffering=0)),
        stack.enter_context(os.fdopen(writer, "wb", buffering=0)),
    )
