"""Geometry of the page's figures: scales, ticks and paths as plain numbers and strings that the template draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from trl_opd.boards.spec import BASE_RUN
from trl_opd.boards.stats import NOT_DISTINGUISHABLE
from trl_opd.boards.table import percent, points, tokens

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 44
GRID_POINTS = 160
SMOOTHING_SHARE = 0.05
PALETTE_SIZE = 6
TIME_UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))
TITLES = {"generated_tokens": "generated tokens", "seconds": "training time"}


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to pixels, with round ticks."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(float(self.start + share * (self.end - self.start)), 1)

    def ticks(self, count: int = 5) -> list[float]:
        values = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(value) for value in values if self.low - slack <= value <= self.high + slack]


def style_of(results: dict[str, Any], name: str) -> str:
    """CSS class of a line: the text's colour for the baseline, brown for the base, a palette colour for the others."""
    if name == results["baseline"]:
        return "series-reference"
    if name == BASE_RUN:
        return "series-base"
    others = [row["name"] for row in results["rows"] if row["name"] not in (results["baseline"], BASE_RUN)]
    return f"series-{others.index(name) % PALETTE_SIZE}"


def learning_curves(results: dict[str, Any], column: str) -> dict[str, Any] | None:
    """Mean reward over seeds with the band from the lowest to the highest seed, against `column`.

    Each seed is smoothed with a trailing mean over a twentieth of its logged steps and interpolated to one grid, up to
    the end of the shortest seed. Steps that logged no reward are left out. None if nothing was logged.
    """
    curves = {name: _mean_curve(seeds, column) for name, seeds in results["curves"].items()}
    curves = {name: curve for name, curve in curves.items() if curve is not None}
    if not curves:
        return None
    label, unit, write = _unit(column, max(curve["x"][-1] for curve in curves.values()))
    for curve in curves.values():
        curve["x"] = curve["x"] / unit
    x = Axis(0.0, max(curve["x"][-1] for curve in curves.values()) or 1.0, LEFT, WIDTH - RIGHT)
    lowest = min(curve["low"].min() for curve in curves.values())
    highest = max(curve["high"].max() for curve in curves.values())
    margin = 0.05 * (highest - lowest) or 0.05
    y = Axis(lowest - margin, highest + margin, HEIGHT - BOTTOM, TOP)
    legend = sorted(curves, key=lambda name: name != results["baseline"])
    return {
        "title": TITLES[column],
        "label": label,
        "legend": legend,
        "x_ticks": [(x(value), write(value)) for value in x.ticks()],
        "y_ticks": [(y(value), f"{value:g}") for value in y.ticks()],
        "series": [_drawn(name, style_of(results, name), curves[name], x, y) for name in reversed(legend)],
    }


def smoothing_window(logged: int) -> int:
    """Logged steps in the trailing mean."""
    return max(1, round(SMOOTHING_SHARE * logged))


def forest(results: dict[str, Any]) -> dict[str, Any] | None:
    """The methods' differences to the baseline with their intervals; None if there is none.

    The untrained base is in the table alone: it lies so far off that nothing else could be told apart.
    """
    rows = [row for row in results["rows"] if row["difference"] and row["name"] != BASE_RUN]
    if not rows:
        return None
    values = [row["difference"][key] or 0.0 for row in rows for key in ("low", "value", "high")]
    reach = 1.08 * max(map(abs, values)) or 0.01
    x = Axis(-reach, reach, LEFT + 60, WIDTH - RIGHT)
    return {
        "height": 40 * len(rows) + BOTTOM,
        "zero": x(0.0),
        "ticks": [(x(value), points(value).removesuffix(".0") if value else "0") for value in x.ticks()],
        "rows": [_forest_row(row, style_of(results, row["name"]), x, 22 + 40 * i) for i, row in enumerate(rows)],
    }


def accuracy_bar(row: dict[str, Any], width: int = 120) -> dict[str, float] | None:
    """The table's small bar: interval and mean on a scale from 0 to 100 %."""
    if not row["accuracy"]:
        return None
    x = Axis(0.0, 1.0, 4, width - 4)
    accuracy = row["accuracy"]
    low, high = accuracy["low"], accuracy["high"]
    return {
        "mean": x(accuracy["mean"]),
        "low": x(accuracy["mean"] if low is None else low),
        "high": x(accuracy["mean"] if high is None else high),
    }


def _mean_curve(seeds: Sequence[dict[str, Any]], column: str) -> dict[str, np.ndarray] | None:
    curves = [curve for seed in seeds if len((curve := _smoothed(seed, column))[0])]
    if not curves:
        return None
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(start, max(start, end), GRID_POINTS)
    rewards = np.stack([np.interp(grid, x, reward) for x, reward in curves])
    return {"x": grid, "mean": rewards.mean(axis=0), "low": rewards.min(axis=0), "high": rewards.max(axis=0)}


def _smoothed(seed: dict[str, Any], column: str) -> tuple[np.ndarray, np.ndarray]:
    """`x`, `[P]`, and the trailing mean of the reward, `[P]`, over the steps that logged both."""
    pairs = zip(seed[column], seed["reward"], strict=True)
    logged = np.array([(x, reward) for x, reward in pairs if x is not None and reward is not None], dtype=float)
    if not len(logged):
        return np.empty(0), np.empty(0)
    window = smoothing_window(len(logged))
    sums = np.concatenate([[0.0], np.cumsum(logged[:, 1])])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window, 0)
    return logged[:, 0], (sums[ends] - sums[starts]) / (ends - starts)


def _unit(column: str, longest: float) -> tuple[str, float, Callable[[float], str]]:
    """Label of the axis, what to divide by, and how a tick is written: one unit of time for the whole axis."""
    if column == "generated_tokens":
        return "Generated tokens", 1.0, tokens
    name, seconds = next((name, size) for name, size in TIME_UNITS if longest >= 2 * size or size == 1)
    return f"Training time, {name}", float(seconds), "{:g}".format


def _drawn(name: str, style: str, curve: dict[str, np.ndarray], x: Axis, y: Axis) -> dict[str, Any]:
    pixels = [x(value) for value in curve["x"]]
    above = list(zip(pixels, map(y, curve["high"]), strict=True))
    below = list(zip(pixels, map(y, curve["low"]), strict=True))
    return {
        "name": name,
        "style": style,
        "line": _path(zip(pixels, map(y, curve["mean"]), strict=True)),
        "band": _path(above + below[::-1]) + " Z",
        "last": f"{curve['mean'][-1]:.2f}",
    }


def _forest_row(row: dict[str, Any], style: str, x: Axis, y: float) -> dict[str, Any]:
    difference = row["difference"]
    known = difference["low"] is not None
    unclear = difference["verdict"] == NOT_DISTINGUISHABLE or not known
    return {
        "name": row["name"],
        "style": "series-none" if unclear else style,
        "unclear": unclear,
        "y": y,
        "value": x(difference["value"]),
        "low": x(difference["low"]) if known else None,
        "high": x(difference["high"]) if known else None,
        "text": f"{points(difference['value'])} points: {difference['verdict']}",
    }


def _path(pairs: Any) -> str:
    return "M" + " L".join(f"{x} {y}" for x, y in pairs)


def describe_accuracy(row: dict[str, Any]) -> str:
    """The bar in words, for those who cannot see it."""
    accuracy = row["accuracy"]
    if accuracy["low"] is None:
        return f"{percent(accuracy['mean'])} %, no interval"
    return f"{percent(accuracy['mean'])} %, interval {percent(accuracy['low'])} to {percent(accuracy['high'])}"
