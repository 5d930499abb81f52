"""Confined processes as the outside sees them: started, watched, ended with all that they started."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_CHUNK = 2**16


class Process:
    """A confined process.

    Args:
        popen (`subprocess.Popen`): The process, which leads a session.
        first_inside (`Callable`, *optional*): The process id whose end ends all that is confined, or `None` where it is
            not known yet.
        clean (`Callable`, *optional*): Called once when the process has ended.

    Attributes:
        killed (`bool`): Whether it had to be killed.
    """

    def __init__(
        self,
        popen: subprocess.Popen,
        first_inside: Callable[[], int | None] = lambda: None,
        clean: Callable[[], None] = lambda: None,
    ) -> None:
        self._popen = popen
        self._first_inside = first_inside
        self._clean = clean
        self._status: int | None = None
        self.killed = False

    def end(self, grace_until: float = 0.0) -> int:
        """Wait until `grace_until` (`time.monotonic`), then kill; collect the process and its traces either way.

        Returns:
            `int`: The exit status: 128 and the signal's number where a signal ended the program.
        """
        if self._status is None:
            self._status = self._collect(grace_until)
        return self._status

    def _collect(self, grace_until: float) -> int:
        leader = self._popen.pid
        if not _has_ended(leader, grace_until - time.monotonic()):
            self.killed = True
            inside = self._first_inside()
            if inside is not None:
                _kill(inside)
            os.killpg(leader, signal.SIGKILL)
            _has_ended(leader, None)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)  # what outlived the leader, where nothing else confines it
        code = self._popen.wait()
        self._clean()
        return 128 - code if code < 0 else code


def _has_ended(pid: int, seconds: float | None) -> bool:
    """Whether a process ends within so many seconds; it is not collected."""
    with _pid_descriptor(pid) as descriptor, selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(seconds if seconds is None else max(seconds, 0)))


def _kill(pid: int) -> None:
    """Kill a process that is not our child, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError), _pid_descriptor(pid) as descriptor:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            selector.select()


@contextlib.contextmanager
def _pid_descriptor(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def start(
    command: Sequence[str],
    descriptors: Sequence[int],
    streams: Mapping[str, int],
    environment: Mapping[str, str],
    folder: str | None = None,
) -> subprocess.Popen:
    """Start a command in a session of its own, which gets these descriptors and streams and no others."""
    null = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    return subprocess.Popen(
        command,
        pass_fds=tuple(descriptors),
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
        **{**null, **streams},
    )


def data_file(data: bytes, name: str) -> int:
    """A descriptor from which a child can read `data`, in memory alone."""
    descriptor = os.memfd_create(name)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


@dataclass
class Output:
    """What came out of some pipes.

    Attributes:
        texts (`list[bytes]`): By pipe.
        finished (`bool`): Whether all pipes were closed by the other side.
        too_much (`bool`): Whether the limit was reached.
    """

    texts: list[bytes] = field(default_factory=list)
    finished: bool = False
    too_much: bool = False


def read_pipes(pipes: Sequence[int], until: float, limit: int) -> Output:
    """Read pipes to their ends, at most `limit` bytes together and not beyond `until` (`time.monotonic`)."""
    chunks: dict[int, list[bytes]] = {pipe: [] for pipe in pipes}
    room = limit
    output = Output()
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and room > 0 and (remaining := until - time.monotonic()) > 0:
            for key, _ in selector.select(remaining):
                chunk = os.read(key.fd, _CHUNK)
                if not chunk:
                    selector.unregister(key.fd)
                chunks[key.fd].append(chunk)
                room -= len(chunk)
        output.finished = not selector.get_map()
    output.too_much = room <= 0
    output.texts = [b"".join(chunks[pipe]) for pipe in pipes]
    return output
