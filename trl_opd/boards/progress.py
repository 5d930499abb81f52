"""What a board says while it runs: a live view on a terminal, plain lines elsewhere."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trl_opd.boards.attempts import attempts_of, seconds_of
from trl_opd.boards.commands import BUDGET_OPTIONS
from trl_opd.boards.files import read_json
from trl_opd.boards.launch import Handle
from trl_opd.boards.runs import FAILED, FINISHED, TRAIN, Run, Stage, Status, status_of
from trl_opd.evals.store import MANIFEST, generation_files

LIVE_SECONDS = 1.0
PLAIN_SECONDS = 30.0
#: Lines of a terminal that are left to the heading and to what was printed before.
MARGIN_LINES = 6
BAR_WIDTH = 40
LAST_ROW_BYTES = 1 << 14


class Working(Protocol):
    """A job at work, as the queue holds it."""

    stage: Stage
    handle: Handle
    attempt: int

    @property
    def seconds(self) -> float:
        """How long it has been at work."""


Active = Mapping[str, Working]


class Display:
    """Progress of a board: `event` tells what just happened, `refresh` how things stand.

    Args:
        console (`Console`):
            Where to.
        live (`Live`, *optional*):
            The live view, None where there is no terminal.
        slots (`int`):
            Runs at a time, for the estimate of what is left.
    """

    def __init__(self, console: Console, live: Live | None, slots: int):
        self.console = console
        self.live = live
        self.slots = slots
        self.started = self.next_refresh = time.monotonic()
        self._took: dict[str, float] = {}  # seconds of the runs that are finished; a finished run stays so
        self._counter = _LineCounter()

    def event(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)
        self.next_refresh = time.monotonic() + (0 if self.live else PLAIN_SECONDS)

    def refresh(self, runs: Sequence[Run], active: Active) -> None:
        if time.monotonic() < self.next_refresh:
            return
        self.next_refresh = time.monotonic() + (LIVE_SECONDS if self.live else PLAIN_SECONDS)
        states = self._states(runs)
        if self.live:
            self.live.update(self._view(runs, states, active), refresh=True)
            return
        for name, one in active.items():
            line = f"  {name}: {one.stage.kind}, {self._progress(one)}, {_clock(one.seconds)}, {one.handle.where}"
            self.console.print(escape(line), highlight=False, soft_wrap=True)
        self.console.print(f"  {self._overall(runs, states, active)}", highlight=False, soft_wrap=True)

    def _states(self, runs: Sequence[Run]) -> dict[str, Status]:
        states = {}
        for run in runs:
            states[run.name] = Status(FINISHED) if run.name in self._took else status_of(run)
            if states[run.name].state == FINISHED:
                self._took.setdefault(run.name, seconds_of(run.folder))
        return states

    def _view(self, runs: Sequence[Run], states: Mapping[str, Status], active: Active) -> RenderableType:
        """The overall bar, then as many runs as the terminal has lines for, those at work first."""
        bar = Table.grid(padding=(0, 1))
        finished = sum(status.state == FINISHED for status in states.values())
        bar.add_row(ProgressBar(len(runs), finished, BAR_WIDTH), self._overall(runs, states, active))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("run", "role", "state", "progress", "where", "attempt"):
            table.add_column(heading, no_wrap=True)
        table.add_column("last error", overflow="ellipsis", no_wrap=True)
        ordered = sorted(runs, key=lambda run: _importance(run, states[run.name], active))
        room = max(self.console.height - MARGIN_LINES, 1)
        for run in ordered[:room]:
            table.add_row(*self._row(run, states[run.name], active.get(run.name)))
        rest = [states[run.name].state for run in ordered[room:]]
        return Group(bar, table, Text(f"and {_counted(rest)}" if rest else ""))

    def _row(self, run: Run, status: Status, one: Working | None) -> list[Text]:
        attempts = attempts_of(run.folder)
        error = next((attempt["error"] for attempt in reversed(attempts) if attempt["error"]), None) or status.error
        attempt = str(len(attempts)) if attempts else ""
        if one is None:
            cells = [run.name, run.role, status.state, "", "", attempt, error or ""]
        else:
            progress = f"{self._progress(one)}, {_clock(one.seconds)}"
            cells = [run.name, run.role, one.stage.kind, progress, one.handle.where, attempt, error or ""]
        return [Text(cell) for cell in cells]

    def _progress(self, one: Working) -> str:
        return _training(one.stage) if one.stage.kind == TRAIN else self._evaluation(one.stage.folder)

    def _evaluation(self, folder: Path) -> str:
        settings = (read_json(folder / MANIFEST) or {}).get("settings")
        if settings is None:
            return "starting"
        return f"{self._counter.count(generation_files(folder))} of {settings['problems'] * settings['n']} answers"

    def _overall(self, runs: Sequence[Run], states: Mapping[str, Status], active: Active) -> str:
        finished = sum(status.state == FINISHED for status in states.values())
        others = [status.state for status in states.values() if status.state != FINISHED]
        parts = [f"{finished} of {len(runs)} runs finished", _counted(others), _clock(time.monotonic() - self.started)]
        left = self._left(runs, states, active)
        return ", ".join([part for part in parts if part] + ([f"about {_clock(left)} left"] if left else []))

    def _left(self, runs: Sequence[Run], states: Mapping[str, Status], active: Active) -> float | None:
        """Seconds until all is done, if the runs to come take as long as finished ones of their role; else None."""
        took: dict[str, list[float]] = {}
        for run in runs:
            if self._took.get(run.name):
                took.setdefault(run.role, []).append(self._took[run.name])
        to_do = [run for run in runs if run.name in active or states[run.name].state not in (FINISHED, FAILED)]
        if not to_do or any(run.role not in took for run in to_do):
            return None
        left = 0.0
        for run in to_do:
            spent = seconds_of(run.folder) + (active[run.name].seconds if run.name in active else 0.0)
            left += max(sum(took[run.role]) / len(took[run.role]) - spent, 0.0)
        return left / min(self.slots, len(to_do))


@contextmanager
def show_progress(console: Console, slots: int) -> Iterator[Display]:
    """A display that lasts as long as the `with` block."""
    if not console.is_terminal:
        yield Display(console, None, slots)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield Display(console, live, slots)


class _LineCounter:
    """Counts the lines of files that grow, and reads each byte once."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, int]] = {}

    def count(self, files: Sequence[Path]) -> int:
        return sum(self._count(file) for file in files)

    def _count(self, path: Path) -> int:
        offset, lines = self._seen.get(path, (0, 0))
        if path.stat().st_size < offset:  # a resumed evaluation dropped an unfinished line
            offset = lines = 0
        with path.open("rb") as file:
            file.seek(offset)
            added = file.read()
        self._seen[path] = (offset + len(added), lines + added.count(b"\n"))
        return self._seen[path][1]


def _training(stage: Stage) -> str:
    stored = read_json(stage.folder / "run.json") or {}
    if not stored.get("total_steps"):
        return "starting"
    unit, total = _budget(stage, stored)
    parts = [f"step {stored.get('step', 0)}" + (f" of {total}" if unit == "steps" else "")]
    reward = _last_row(stage.folder / "log.jsonl").get("reward")
    if reward is not None:
        parts.append(f"reward {reward:.3f}")
    if stored.get("generated_tokens") is not None:
        parts.append(f"{stored['generated_tokens']:,}{f' of {total:,}' if unit == 'generated_tokens' else ''} tokens")
    spent = stored.get("step" if unit == "steps" else unit)
    if spent and stored.get("seconds") is not None:
        parts.append(f"{_clock(max(total - spent, 0) * stored['seconds'] / spent)} left")
    return ", ".join(parts)


def _budget(stage: Stage, stored: Mapping[str, Any]) -> tuple[str, float]:
    """What ends a training run, by the unit of the board's budget: its command says it, or its record."""
    for unit in ("generated_tokens", "seconds"):
        option = f"--{BUDGET_OPTIONS[unit]}"
        if option in stage.arguments:
            given = float(stage.arguments[stage.arguments.index(option) + 1])
            return unit, int(given) if given.is_integer() else given
    return "steps", stored["total_steps"]


def _last_row(path: Path) -> dict:
    """The last whole row of a JSON-lines file; empty where there is none."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - LAST_ROW_BYTES, 0))
        lines = file.read().split(b"\n")[:-1]
    try:
        return json.loads(lines[-1]) if lines else {}
    except ValueError:  # longer than what was read: a row of metrics is not
        return {}


def _importance(run: Run, status: Status, active: Active) -> int:
    if run.name in active:
        return 0
    return {FAILED: 1, FINISHED: 3}.get(status.state, 2)


def _counted(states: Sequence[str]) -> str:
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
