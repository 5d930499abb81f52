"""Do what is missing of a board: a queue of runs, a few subprocesses at a time, resumable after any death."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from trl_opd.boards.progress import Display, show_progress
from trl_opd.boards.runs import (
    FAILED,
    FINISHED,
    Run,
    Stage,
    check_identity,
    plan_runs,
    record_attempt,
    status_of,
    write_identity,
)
from trl_opd.boards.spec import BoardSpec
from trl_opd.boards.trials import settle_trials
from trl_opd.errors import UserError

LAUNCHER = (sys.executable, "-m", "trl_opd")
POLL_SECONDS = 0.1
LOCK_PATIENCE_SECONDS = 30.0
STOP_GRACE_SECONDS = 10.0
INTERRUPTED = 130


@dataclass
class _Active:
    """A running subprocess."""

    run: Run
    stage: Stage
    process: subprocess.Popen
    started: float


def run_board(spec: BoardSpec, launcher: Sequence[str] = LAUNCHER, console: Console | None = None) -> int:
    """Run whatever is not finished; each failed run is tried once more from its last checkpoint.

    Returns:
        `int`: 0 when every run is finished, 1 when one failed, 130 when interrupted.

    Raises:
        UserError: if another process works on this board, or a folder holds a run with other settings.
    """
    runs = plan_runs(spec)
    for run in runs:
        check_identity(run)
    with _board_lock(spec), show_progress(runs, console or Console()) as display, _terminate_as_interrupt():
        queue = _Queue(spec, launcher, display)
        try:
            queue.drain()
        except KeyboardInterrupt:
            queue.stop()
            done = sum(status_of(run).state == FINISHED for run in plan_runs(spec))
            display.event(
                f"Stopped: {done} of {len(runs)} runs are finished and stay; the same command goes on from here."
            )
            return INTERRUPTED
    return 1 if any(status_of(run).state != FINISHED for run in plan_runs(spec)) else 0


class _Queue:
    """Pending runs and the subprocesses at work on the others."""

    def __init__(self, spec: BoardSpec, launcher: Sequence[str], display: Display):
        self.spec = spec
        self.launcher = launcher
        self.display = display
        self.runs: dict[str, Run] = {}
        self.queued: set[str] = set()
        self.pending: deque[Run] = deque()
        self.active: list[_Active] = []
        self.waiting_since: dict[str, float] = {}
        self._plan()

    def _plan(self) -> None:
        """Look at the files again: trials that have ended choose a rate, and the runs that waited for them begin."""
        for sentence in settle_trials(self.spec):
            self.display.event(sentence)
        self.runs = {run.name: run for run in plan_runs(self.spec)}
        begin = [run for run in self.runs.values() if run.name not in self.queued and run.next_stage() is not None]
        for run in begin:
            check_identity(run)
        self.pending.extend(begin)
        self.queued.update(run.name for run in begin)
        self.display.runs = list(self.runs.values())

    def drain(self) -> None:
        while self.pending or self.active:
            self._start_waiting()
            self._reap()
            self.display.refresh({one.run.name: (one.stage, one.started) for one in self.active})
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Ask the subprocesses to end, then make them."""
        for one in self.active:
            _signal_group(one.process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_SECONDS
        for one in self.active:
            try:
                one.process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                _signal_group(one.process, signal.SIGKILL)
                one.process.wait()

    def _start_waiting(self) -> None:
        for _ in range(len(self.pending)):
            if len(self.active) >= self.spec.launch.workers:
                return
            self._try_start(self.pending.popleft())

    def _try_start(self, run: Run) -> None:
        stage = run.next_stage()
        run.folder.mkdir(parents=True, exist_ok=True)
        with run.lock_file.open("w") as lock:
            if not _locked(lock):
                self._wait_for_lock(run, stage)
                return
            write_identity(run)
            record_attempt(run, "running", stage.kind)
            process = self._spawn(stage, lock.fileno())
        self.active.append(_Active(run, stage, process, time.monotonic()))
        self.display.event(f"{run.name}: {stage.kind} started, log in {stage.log}")

    def _wait_for_lock(self, run: Run, stage: Stage) -> None:
        since = self.waiting_since.setdefault(run.name, time.monotonic())
        if time.monotonic() - since < LOCK_PATIENCE_SECONDS:
            self.pending.append(run)
            return
        self._fail(run, stage, f"another process still writes {run.folder}: end it, then start the board again")

    def _spawn(self, stage: Stage, lock: int) -> subprocess.Popen:
        command = [*self.launcher, *stage.arguments]
        wrapper = [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py")), str(os.getpid())]
        with stage.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {stage.command}\n")
            log.flush()
            return subprocess.Popen(
                wrapper + command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | self.spec.environment,
                pass_fds=(lock,),
                start_new_session=True,
            )

    def _reap(self) -> None:
        for one in [one for one in self.active if one.process.poll() is not None]:
            self.active.remove(one)
            if one.process.returncode == 0 and one.stage.is_finished():
                self._advance(one)
            else:
                self._fail(one.run, one.stage, _last_words(one))

    def _advance(self, one: _Active) -> None:
        self.display.event(f"{one.run.name}: {one.stage.kind} finished in {time.monotonic() - one.started:.0f} s")
        self._plan()
        if self.runs[one.run.name].next_stage() is not None:
            self.pending.appendleft(self.runs[one.run.name])

    def _fail(self, run: Run, stage: Stage, error: str) -> None:
        record_attempt(run, FAILED, stage.kind, error)
        self.display.event(f"{run.name}: {stage.kind} failed: {error}")
        self._plan()


def _last_words(one: _Active) -> str:
    """Why a stage ended without finishing: how it ended, and the last line of its log."""
    code = one.process.returncode
    ending = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    if code == 0:
        ending = "ended without a finished result"
    lines = [line.strip() for line in one.stage.log.read_text(encoding="utf-8", errors="replace").splitlines()]
    spoken = [line for line in lines if line]
    last = spoken[-1] if spoken else ""
    return ending if last.startswith("$ ") else f"{last} ({ending})"


def _locked(file: IO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)


@contextmanager
def _board_lock(spec: BoardSpec) -> Iterator[None]:
    spec.runs_folder.mkdir(parents=True, exist_ok=True)
    with (spec.runs_folder / "lock").open("w") as lock:
        if not _locked(lock):
            raise UserError(f"Another `board run` is at work on {spec.folder}: wait for it, or stop it first.")
        yield


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM stops the board as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
