"""One job as a subprocess of the machine that it lands on; every executor ends up here."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

#: A command that dies with its parent; the parent's process id, or 0, comes next.
CHILD = (sys.executable, "-I", "-S", str(Path(__file__).parents[1] / "child.py"))
POLL_SECONDS = 0.1
STOP_GRACE_SECONDS = 10.0
#: Exit status of a job that was stopped at its time limit, as `timeout` has it.
TIMED_OUT = 124
#: Exit status of a job that its cluster lost: no status of its own is known.
LOST = 125


class FolderBusy(Exception):
    """Another process holds the lock on a run's folder."""


class ClusterLost(Exception):
    """The cluster itself does not answer any more; its jobs may still be at work."""


@dataclass(frozen=True)
class Job:
    """A command to run as one attempt at a stage.

    Args:
        name (`str`):
            Name of the run and its stage, for the queue of a cluster.
        attempt (`int`):
            Number of the attempt at this run, from 1.
        argv (`tuple[str, ...]`):
            The command.
        command (`str`):
            The command as a reader may copy it, for the head of the log.
        directory (`Path`):
            Working directory of the command.
        folder (`Path`):
            The run's folder; whoever writes it holds the file `lock` in it.
        log (`Path`):
            File that the command's output is added to.
        environment (`dict[str, str]`):
            Variables laid over those of the machine that it lands on.
        timeout_seconds (`float`, *optional*):
            Time limit.
    """

    name: str
    attempt: int
    argv: tuple[str, ...]
    command: str
    directory: Path
    folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float | None = None

    @property
    def lock_file(self) -> Path:
        return self.folder / "lock"

    def note(self, text: str) -> None:
        """Add a line to the log: the last line of a log is why a job failed."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n{text}\n")


class Process:
    """A job as a subprocess that holds the lock on its folder and dies with this process.

    Args:
        job (`Job`):
            What to run.
        environment (`Mapping[str, str]`):
            Variables beside the job's own, such as its devices.

    Raises:
        FolderBusy: if another process holds the lock.
    """

    def __init__(self, job: Job, environment: Mapping[str, str] | None = None):
        self.job = job
        with job.lock_file.open("a") as lock, job.log.open("a", encoding="utf-8") as log:
            if not locked(lock):
                raise FolderBusy(f"another process still writes {job.folder}")
            log.write(f"\n$ {job.command}\n")
            log.flush()
            self._process = subprocess.Popen(
                [*CHILD, str(os.getpid()), *job.argv],
                cwd=job.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(job.environment) | dict(environment or {}),
                pass_fds=(lock.fileno(),),
                start_new_session=True,
            )
        self.job_id = str(self._process.pid)
        self._status: int | None = None
        self._deadline = None if job.timeout_seconds is None else time.monotonic() + job.timeout_seconds
        self._kill_at: float | None = None
        self._overtime = False

    def poll(self) -> int | None:
        """Exit status, or None while it runs; enforces the time limit and the end of a stopped process."""
        if self._status is None:
            self._status = self._look()
        return self._status

    def stop(self) -> None:
        """Ask the process and its children to end; `poll` kills what has not ended after a grace period."""
        self._kill_at = time.monotonic() + STOP_GRACE_SECONDS
        self._signal(signal.SIGTERM)

    def _look(self) -> int | None:
        status, now = self._process.poll(), time.monotonic()
        if status is None and self._kill_at is not None and now >= self._kill_at:
            self._signal(signal.SIGKILL)
        elif status is None and self._kill_at is None and self._deadline is not None and now >= self._deadline:
            self._overtime = True
            self.stop()
        if status is None or not self._overtime:
            return status
        self.job.note(f"Stopped at the time limit of {self.job.timeout_seconds / 60:g} minutes.")
        return TIMED_OUT

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def run_to_end(job: Job) -> int:
    """Run a job on a node of a cluster, and wait for it. Returns the exit status.

    A folder that another process holds is waited for: nothing else can be done with the node's slot meanwhile, and
    the cluster's own time limit ends the wait.
    """
    process = _started(job)
    try:
        while (status := process.poll()) is None:
            time.sleep(POLL_SECONDS)
        return status
    finally:  # the cluster interrupts this function to end the job
        if process.poll() is None:
            process.stop()
            while process.poll() is None:
                time.sleep(POLL_SECONDS)


def _started(job: Job) -> Process:
    while True:
        try:
            return Process(job)
        except FolderBusy:
            time.sleep(POLL_SECONDS)


def on_devices(command: tuple[str, ...], count: int) -> tuple[str, ...]:
    """A training command as it runs on several devices of one machine: a process each, which torchrun starts."""
    if count < 2:
        return command
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count))
    return (*torchrun, "--no-python", *CHILD, "0", *command)


def locked(file: IO) -> bool:
    """Take the lock on an open file, or say that another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """What an error of a cluster's library says first."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def is_held(lock_file: Path) -> bool:
    """Whether a process holds the lock."""
    with lock_file.open("a") as lock:
        return not locked(lock)
