"""How numbers are written, and the board as a Markdown table."""

from typing import Any

from trl_opd.boards.spec import BASE_RUN
from trl_opd.evals.calibration import UNCALIBRATED

ABSENT = "-"
MINUS = "\N{MINUS SIGN}"


def percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """A signed difference in percentage points."""
    return ABSENT if value is None else f"{100 * value:+.1f}".replace("-", MINUS)


def p_text(value: float | None) -> str:
    if value is None:
        return ABSENT
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def tokens(value: float | None) -> str:
    return ABSENT if value is None else _scaled(value, 1000, ("", "k", "M", "G", "T"))


def memory(value: float | None) -> str:
    return ABSENT if value is None else _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ABSENT
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def interval(low: float | None, high: float | None, write=percent) -> str:
    return ABSENT if low is None else f"[{write(low)}, {write(high)}]"


def seeds_text(row: dict[str, Any]) -> str:
    """Finished runs, against the planned ones where some are not there."""
    if row["name"] == BASE_RUN:
        return ABSENT if row["finished"] else "missing"
    return str(row["finished"]) if row["finished"] == row["planned"] else f"{row['finished']} of {row['planned']}"


def render_table(results: dict[str, Any]) -> str:
    """The board in Markdown: one row a line of the board, and the runs that did not finish below it."""
    baseline = results["baseline"]
    head = [
        "Line", "Accuracy, %", "95 % interval", f"Difference to {_cell(baseline)}, points", "95 % interval",
        "Verdict", "Seeds", "Tokens", "Time", "Memory",
    ]  # fmt: skip
    lines = [f"# {_cell(results['title'])}", "", _row(head), _row(["---"] + ["--:"] * 4 + ["---"] + ["--:"] * 4)]
    lines += [_row(_cells(row)) for row in results["rows"]]
    lines += ["", _footnote(results), *(["", _cell(warning)] if (warning := uncalibrated(results)) else [])]
    absent = [run for run in results["runs"] if run["status"] != "finished" or run["not_comparable"]]
    if absent:
        lines += ["", "Not in the table above:", ""]
        lines += [f"- {_cell(run['name'])}: {_cell(standing(run))}" for run in absent]
    return "\n".join(lines) + "\n"


def standing(run: dict[str, Any]) -> str:
    """How a run stands, in words."""
    if run["status"] == "failed":
        return f"failed in {run['stage']}: {run['error']}"
    return run["not_comparable"] or run["status"]


def _cells(row: dict[str, Any]) -> list[str]:
    accuracy, difference = row["accuracy"] or {}, row["difference"] or {}
    return [
        _cell(row["name"]),
        percent(accuracy.get("mean")),
        interval(accuracy.get("low"), accuracy.get("high")),
        points(difference.get("value")),
        interval(difference.get("low"), difference.get("high"), points),
        "baseline" if row["baseline"] else difference.get("verdict", "missing" if not accuracy else ABSENT),
        seeds_text(row),
        tokens(row["cost"]["generated_tokens"]),
        duration(row["cost"]["seconds"]),
        memory(row["cost"]["peak_memory_bytes"]),
    ]


def uncalibrated(results: dict[str, Any]) -> str:
    """A warning where no published score was reproduced on the board's benchmark; empty elsewhere."""
    if results["calibration"] != UNCALIBRATED:
        return ""
    return f"{results['evaluation']['benchmark']} is uncalibrated: no published score was reproduced with this harness."


def _footnote(results: dict[str, Any]) -> str:
    return (
        f"{results['problems']} problems x {results['answers']} answers, {len(results['seeds'])} training seeds. The "
        "intervals are over seeds and problems; differences are paired by problem, not by seed. Costs are means over "
        "seeds."
    )


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """Text that stays inside its cell and is no markup."""
    for mark in "\\`*_[]<>|#!":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= step and power < len(units) - 1:
        value /= step
        power += 1
    return f"{value:.{0 if value >= 100 or power == 0 else 1}f} {units[power]}".strip()
