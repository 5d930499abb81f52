"""Every attempt at a run, kept beside it in `state.json` with how it ended.

status, stage, error     how the run stands: "running", "retrying", "interrupted", "finished" or "failed"
attempts                 one entry for each subprocess that was started:
    number, stage, log   counted from 1 over all stages and all sittings; which stage, and its log file
    executor, job        who ran it, and what the executor calls it; null until it has been started
    started, seconds     UTC, and how long it took; null while it runs, or where nobody saw its end
    status, error        "running", "finished", "failed" or "interrupted", and why it failed
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trl_opd.boards.files import read_json, write_json
from trl_opd.boards.runs import FAILED

RUNNING, RETRYING, INTERRUPTED = "running", "retrying", "interrupted"


def attempts_of(folder: Path) -> list[dict[str, Any]]:
    """All attempts at the run in `folder`, in order."""
    return (read_json(folder / "state.json") or {}).get("attempts", [])


def seconds_of(folder: Path) -> float:
    """How long the attempts at a run took together, as far as their ends were seen."""
    return sum(attempt["seconds"] or 0.0 for attempt in attempts_of(folder))


def open_attempt(folder: Path) -> dict[str, Any] | None:
    """The attempt that the board saw no end of."""
    last = (attempts_of(folder) or [None])[-1]
    return last if last is not None and last["status"] == RUNNING else None


def begin_attempt(folder: Path, stage: str, log: Path, executor: str) -> int:
    """Note that an attempt is about to be started. Returns its number."""
    attempts = attempts_of(folder)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"number": len(attempts) + 1, "stage": stage, "log": log.name, "executor": executor, "job": None}
    entry |= {"started": started, "seconds": None, "status": RUNNING, "error": None}
    _write(folder, RUNNING, stage, None, [*attempts, entry])
    return entry["number"]


def name_job(folder: Path, job: str) -> None:
    """Note what the executor calls the attempt that was just started."""
    *before, last = attempts_of(folder)
    _write(folder, RUNNING, last["stage"], None, [*before, last | {"job": job}])


def end_attempt(
    folder: Path, status: str, error: str | None = None, seconds: float | None = None, retry: bool = False
) -> None:
    """Note how the open attempt ended.

    Args:
        folder (`Path`):
            The run's folder.
        status (`str`):
            "finished", "failed" or "interrupted".
        error (`str`, *optional*):
            Why it failed.
        seconds (`float`, *optional*):
            How long it took, where that is known.
        retry (`bool`):
            Whether it is tried again at once: the run has not failed yet.
    """
    *before, last = attempts_of(folder)
    ended = last | {"status": status, "error": error, "seconds": None if seconds is None else round(seconds, 1)}
    _write(folder, RETRYING if retry else status, last["stage"], error, [*before, ended])


def refuse_run(folder: Path, stage: str, error: str) -> None:
    """Note that a run failed before anything was started."""
    _write(folder, FAILED, stage, error, attempts_of(folder))


def _write(folder: Path, status: str, stage: str, error: str | None, attempts: list[dict[str, Any]]) -> None:
    write_json(folder / "state.json", {"status": status, "stage": stage, "error": error, "attempts": attempts})
