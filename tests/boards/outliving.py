"""What an executor of a cluster must hold: jobs outlive a queue that is killed, and end with one that is stopped."""

import io
import os
import signal
from multiprocessing import Process
from pathlib import Path

from rich.console import Console

from tests.boards.test_runner import alive, output_of, pids, start_board, starts, wait_until
from trl_opd.boards.runner import run_board
from trl_opd.boards.runs import FINISHED, plan_runs, status_of
from trl_opd.boards.spec import load_spec


def quiet() -> Console:
    return Console(file=io.StringIO())


def killed_and_gone_on_with(spec_file: Path, launcher: tuple[str, ...]) -> str:
    """Kill the queue of a board of two runs, start it again, and return what the second queue said."""
    spec = load_spec(spec_file)
    queue = start_board(launcher, spec_file)
    wait_until(lambda: len(pids(spec.folder)) == 2, queue)
    queue.kill()
    queue.join()
    console = quiet()
    assert run_board(spec, launcher, console) == 0
    assert set(starts(spec.runs_folder).values()) == {1}
    assert {status_of(run).state for run in plan_runs(spec)} == {FINISHED}
    return console.file.getvalue()


def stopped_by_hand(spec_file: Path, launcher: tuple[str, ...]) -> Process:
    """Interrupt the queue of a board of two runs, and return it when its jobs have ended."""
    spec = load_spec(spec_file)
    queue = start_board(launcher, spec_file)
    wait_until(lambda: len(pids(spec.folder)) == 2, queue)
    os.kill(queue.pid, signal.SIGINT)
    assert "Stopped: 0 of 2 runs are finished and stay" in output_of(queue, spec_file)
    wait_until(lambda: not any(alive(pid) for pid in pids(spec.folder)))
    return queue
