"""What a board says while it runs: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from trl_opd.boards.files import read_json
from trl_opd.boards.runs import FINISHED, TRAIN, Run, Stage, status_of
from trl_opd.evals.results import count_generations

LIVE_SECONDS = 0.5
PLAIN_SECONDS = 30.0

Active = Mapping[str, tuple[Stage, float]]


class Display:
    """Progress of a board: `event` tells what just happened, `refresh` how things stand."""

    def __init__(self, runs: list[Run], console: Console, live: Live | None):
        self.runs = runs
        self.console = console
        self.live = live
        self.started = time.monotonic()
        self.next_refresh = self.started

    def event(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)
        self.next_refresh = time.monotonic() + (0 if self.live else PLAIN_SECONDS)

    def refresh(self, active: Active) -> None:
        if time.monotonic() < self.next_refresh:
            return
        self.next_refresh = time.monotonic() + (LIVE_SECONDS if self.live else PLAIN_SECONDS)
        if self.live:
            self.live.update(self._table(active), refresh=True)
            return
        for name, (stage, started) in active.items():
            self.console.print(f"  {name}: {stage_progress(stage, started)}", highlight=False, soft_wrap=True)
        self.console.print(f"  {self._overall()}", highlight=False)

    def _table(self, active: Active) -> Table:
        table = Table(box=None, show_header=False, caption=self._overall(), caption_justify="left")
        for run in self.runs:
            running = active.get(run.name)
            table.add_row(run.name, stage_progress(*running) if running else escape(_standing(run)))
        return table

    def _overall(self) -> str:
        states = [status_of(run).state for run in self.runs]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states) if state != FINISHED]
        finished = f"{states.count(FINISHED)} of {len(states)} runs finished"
        return ", ".join([finished, *counts, _clock(time.monotonic() - self.started)])


@contextmanager
def show_progress(runs: list[Run], console: Console) -> Iterator[Display]:
    if not console.is_terminal:
        yield Display(runs, console, None)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield Display(runs, console, live)


def stage_progress(stage: Stage, started: float) -> str:
    """One line on a running stage, from the files that it writes."""
    clock = _clock(time.monotonic() - started)
    if stage.kind == TRAIN:
        stored = read_json(stage.folder / "run.json") or {}
        if "total_steps" in stored:
            return f"train, step {stored.get('step', 0)} of {stored['total_steps']}, {clock}"
        return f"train, starting, {clock}"
    return f"eval, {count_generations(stage.folder)} answers, {clock}"


def _standing(run: Run) -> str:
    status = status_of(run)
    return f"{status.state}: {status.error}" if status.error else status.state


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
