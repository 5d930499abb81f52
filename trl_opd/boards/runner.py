"""Do what is missing of a board: a queue of runs, a few jobs at a time, resumable after any death.

The queue knows runs and stages, the executor knows processes. Nothing but files is remembered: a run's stages by what
they wrote, its attempts by `state.json`. So the queue may die at any moment, and the next one goes on.
"""

import errno
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from trl_opd.boards import attempts
from trl_opd.boards.launch import ClusterLost, Executor, FolderBusy, Handle, Job, make_executor
from trl_opd.boards.launch.process import is_held, locked, on_devices
from trl_opd.boards.progress import Display, show_progress
from trl_opd.boards.runs import (
    FAILED,
    FINISHED,
    Run,
    Stage,
    check_identity,
    plan_runs,
    status_of,
    write_identity,
)
from trl_opd.boards.spec import BoardSpec
from trl_opd.boards.trials import settle_trials
from trl_opd.errors import INTERRUPTED, UserError

LAUNCHER = (sys.executable, "-m", "trl_opd")
POLL_SECONDS = 0.05
LOCK_PATIENCE_SECONDS = 30.0
#: A board that died while it started a process leaves its lock to that process for a moment.
BOARD_LOCK_PATIENCE_SECONDS = 3.0
#: Longer than a process that was asked to end is given before it is killed.
STOP_PATIENCE_SECONDS = 20.0
#: Exit status of a command that refuses its settings: it would refuse them again.
REFUSED = 2
LOG_TAIL_BYTES = 1 << 16
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
#: A disk with less room than this counts as full when a job has failed on it.
LEAST_ROOM_BYTES = 1 << 20


@dataclass(frozen=True)
class Active:
    """A job at work on a run's stage; `started` in seconds since the epoch."""

    run: Run
    stage: Stage
    handle: Handle
    attempt: int
    started: float

    @property
    def seconds(self) -> float:
        return time.time() - self.started


def run_board(spec: BoardSpec, launcher: Sequence[str] = LAUNCHER, console: Console | None = None) -> int:
    """Run whatever is not finished; a stage that fails is tried again from its last checkpoint, `retries` times.

    Returns:
        `int`: 0 when every run is finished, 1 when one failed, 130 when interrupted.

    Raises:
        UserError: if another process works on this board, a folder holds a run with other settings, the launch
            settings cannot work here, or the disk is full.
    """
    for run in plan_runs(spec):
        check_identity(run)
    with (
        _board_lock(spec),
        closing(make_executor(spec.launch)) as executor,
        show_progress(console or Console(), executor.slots) as display,
        _terminate_as_interrupt(),
    ):
        queue = _Queue(spec, executor, launcher, display)
        try:
            queue.drain()
        except KeyboardInterrupt:
            queue.stop()
            queue.note_interruption()
            display.event(f"Stopped: {_standing(spec)}; the same command goes on from here.")
            return INTERRUPTED
        except ClusterLost as error:
            raise UserError(f"{error}: {_standing(spec)}; the same command goes on once it is back.") from error
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            queue.stop()
            raise UserError(
                f"The disk of {spec.folder} is full, so the board was stopped: {_standing(spec)}; make room, then the "
                "same command goes on from here."
            ) from error
    return 0 if all(status_of(run).state == FINISHED for run in plan_runs(spec)) else 1


class _Queue:
    """Runs that are ready, and the jobs at work on others."""

    def __init__(self, spec: BoardSpec, executor: Executor, launcher: Sequence[str], display: Display):
        self.spec = spec
        self.executor = executor
        self.launcher = launcher
        self.display = display
        self.active: dict[str, Active] = {}
        self.begun: set[str] = set()
        self.given_up: set[str] = set()
        self.failures: Counter[Path] = Counter()
        self.busy_since: dict[str, float] = {}
        self.runs: list[Run] = []
        self.ready: list[Run] = []

    def drain(self) -> None:
        self._plan()
        self._find_again()
        while self.active or self.ready:
            self._start_ready()
            self._reap()
            self.display.refresh(self.runs, self.active)
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End the jobs, and wait for it; what a cluster has not ended by then, it ends later."""
        for one in self.active.values():
            one.handle.stop()
        deadline = time.monotonic() + STOP_PATIENCE_SECONDS
        while any(one.handle.poll() is None for one in self.active.values()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def note_interruption(self) -> None:
        for one in self.active.values():
            attempts.end_attempt(one.run.folder, attempts.INTERRUPTED, seconds=one.seconds)

    def _plan(self) -> None:
        """What is ready as the files stand now; a run that has begun goes on before others begin."""
        to_do = {run.name for run in plan_runs(self.spec) if run.next_stage() and run.name not in self.given_up}
        for sentence in settle_trials(self.spec, to_do):
            self.display.event(sentence)
        self.runs = plan_runs(self.spec)
        out = self.active.keys() | self.given_up
        ready = [run for run in self.runs if run.name not in out and run.next_stage() is not None]
        self.ready = sorted(ready, key=lambda run: run.name not in self.begun)

    def _find_again(self) -> None:
        """Jobs that outlived an earlier board are waited for; an attempt that died with it is closed."""
        for run in self.runs:
            attempt = attempts.open_attempt(run.folder)
            if attempt is None:
                continue
            stage = next((one for one in run.stages if one.log.name == attempt["log"]), None)
            handle = None
            if stage is not None and attempt["executor"] == self.spec.launch.executor:
                handle = self.executor.attach(self._job(run, stage, attempt["number"]))
            if handle is None:
                ended = stage is not None and stage.is_finished()
                attempts.end_attempt(run.folder, FINISHED if ended else attempts.INTERRUPTED)
                continue
            started = datetime.fromisoformat(attempt["started"]).timestamp()
            self.active[run.name] = Active(run, stage, handle, attempt["number"], started)
            self.begun.add(run.name)
            self.display.event(f"{run.name}: {stage.kind} found again, {handle.where}")
        self._plan()

    def _start_ready(self) -> None:
        for run in list(self.ready):
            if len(self.active) >= self.executor.slots:
                return
            self._try_start(run)

    def _try_start(self, run: Run) -> None:
        stage = run.next_stage()
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            check_identity(run)
            if is_held(run.lock_file):
                raise FolderBusy
            write_identity(run)
            number = attempts.begin_attempt(run.folder, stage.kind, stage.log, self.spec.launch.executor)
            handle = self.executor.start(self._job(run, stage, number))
        except FolderBusy:
            self._wait_for_folder(run, stage)
            return
        except UserError as error:
            self._give_up(run, stage, str(error))
            return
        attempts.name_job(run.folder, handle.job_id)
        self.busy_since.pop(run.name, None)
        self.ready.remove(run)
        self.begun.add(run.name)
        self.active[run.name] = Active(run, stage, handle, number, time.time())
        again = f" again (attempt {number})" if self.failures[stage.log] else ""
        self.display.event(f"{run.name}: {stage.kind} started{again}, log in {stage.log}")

    def _wait_for_folder(self, run: Run, stage: Stage) -> None:
        since = self.busy_since.setdefault(run.name, time.monotonic())
        if time.monotonic() - since >= LOCK_PATIENCE_SECONDS:
            sentence = f"another process still writes {run.folder}: end it, then start the board again"
            self._give_up(run, stage, sentence)

    def _job(self, run: Run, stage: Stage, attempt: int) -> Job:
        minutes = self.spec.launch.timeout_minutes
        return Job(
            name=f"{self.spec.name}/{run.name}/{stage.kind}",
            attempt=attempt,
            argv=on_devices((*self.launcher, *stage.arguments), stage.processes),
            command=stage.command,
            directory=Path.cwd(),
            folder=run.folder,
            log=stage.log,
            environment=self.spec.environment,
            timeout_seconds=minutes and 60 * minutes,
        )

    def _reap(self) -> None:
        for one in list(self.active.values()):
            status = one.handle.poll()
            if status is None:
                continue
            del self.active[one.run.name]
            if one.stage.is_finished():
                attempts.end_attempt(one.run.folder, FINISHED, seconds=one.seconds)
                self.display.event(f"{one.run.name}: {one.stage.kind} finished in {one.seconds:.0f} s")
            else:
                self._failed(one, status)
            self._plan()

    def _failed(self, one: Active, status: int) -> None:
        error = last_words(one.stage.log, status)
        self.failures[one.stage.log] += 1
        full = _says_disk_is_full(one.stage.log)
        left = self.failures[one.stage.log] <= self.spec.launch.retries
        retry = left and status != REFUSED and not full
        attempts.end_attempt(one.run.folder, FAILED, error, one.seconds, retry)
        self.display.event(f"{one.run.name}: {one.stage.kind} failed: {error}")
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(one.run.folder))
        if not retry:
            self.given_up.add(one.run.name)

    def _give_up(self, run: Run, stage: Stage, error: str) -> None:
        if attempts.open_attempt(run.folder) is None:
            attempts.refuse_run(run.folder, stage.kind, error)
        else:
            attempts.end_attempt(run.folder, FAILED, error)
        self.given_up.add(run.name)
        self.display.event(f"{run.name}: {stage.kind} failed: {error}")
        self._plan()


def last_words(log: Path, status: int) -> str:
    """Why an attempt ended without a finished result: the last line of its log, and how it ended."""
    ending = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    if status == 0:
        ending = "ended without a finished result"
    lines = [line for line in map(_printable, _last_attempt(log).splitlines()) if line]
    return f"{lines[-1]} ({ending})" if lines else ending


def _printable(line: str) -> str:
    """Without what would steer a terminal: the line may quote a model."""
    return "".join(letter if letter.isprintable() else " " for letter in line).strip()


def _last_attempt(log: Path) -> str:
    """The end of what the last command wrote, without the command itself."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - LOG_TAIL_BYTES, 0))
        text = file.read().decode(errors="replace")
    _, head, last = text.rpartition("\n$ ")
    return last.partition("\n")[2] if head else text


def _says_disk_is_full(log: Path) -> bool:
    said = _last_attempt(log)
    no_room = shutil.disk_usage(log.parent).free < LEAST_ROOM_BYTES
    return no_room or any(os.strerror(number) in said for number in FULL_DISK)


def _standing(spec: BoardSpec) -> str:
    runs = plan_runs(spec)
    finished = sum(status_of(run).state == FINISHED for run in runs)
    return f"{finished} of {len(runs)} runs are finished and stay"


@contextmanager
def _board_lock(spec: BoardSpec) -> Iterator[None]:
    spec.runs_folder.mkdir(parents=True, exist_ok=True)
    with (spec.runs_folder / "lock").open("w") as lock:
        deadline = time.monotonic() + BOARD_LOCK_PATIENCE_SECONDS
        while not locked(lock):
            if time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                continue
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
