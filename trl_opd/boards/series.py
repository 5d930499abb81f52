"""What the figures draw, as plain numbers from `results.json`: the page and the static figures share it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from trl_opd.boards.schema import Results, Row, primary_score

GRID_POINTS = 80
SMOOTHING_SHARE = 0.05
COLOURS = 6
"""Size of the palette; a line beyond it takes the same colour with another dash pattern and the next symbol."""

QUANTITIES = {"reward": "Mean reward", "validation": "Validation accuracy", "entropy": "Entropy, nats a token"}
AXES = {"generated_tokens": "Generated tokens", "seconds": "Training time"}
COSTS = {
    "generated_tokens": "Generated tokens",
    "all_tokens": "Generated and teacher tokens",
    "seconds": "Training time",
    "gpu_hours": "GPU-hours",
    "peak_memory_bytes": "Peak memory",
}


@dataclass(frozen=True)
class LineStyle:
    """How a line of the board is told apart, in every figure alike.

    Args:
        colour (`int`, *optional*):
            Place in the palette; None for the baseline (the text's colour) and the untrained base (grey).
        dash (`int`):
            0 solid, 1 dashed, 2 dotted, 3 dash-dotted: methods start at 0, other baselines at 1, references at 2.
        symbol (`int`):
            Place in the list of symbols.
        hollow (`bool`):
            Whether the symbol is an outline: of all lines that are neither methods nor the baseline.
    """

    colour: int | None
    dash: int
    symbol: int
    hollow: bool


@dataclass(frozen=True)
class Band:
    """Mean over seeds with the lowest and the highest seed, all `[P]`, on an even grid from `x[0]` to `x[-1]`."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


@dataclass(frozen=True)
class CostPoint:
    """A line's primary accuracy and its interval against one cost."""

    line: str
    cost: float
    mean: float
    low: float
    high: float


def line_styles(results: Results) -> dict[str, LineStyle]:
    """A style for each row, by name; no two of up to 12 methods, or of up to 12 other lines, look alike."""
    styles, methods, others = {}, 0, 0
    for row in results["rows"]:
        name, kind = row["name"], row["kind"]
        if row["is_baseline"]:
            styles[name] = LineStyle(None, 0, 0, False)
        elif kind == "base":
            styles[name] = LineStyle(None, 2, 0, True)
        elif kind == "method":
            styles[name] = LineStyle(methods % COLOURS, methods // COLOURS % 4, 1 + methods % COLOURS, False)
            methods += 1
        else:
            dash = (1 if kind == "baseline" else 2) + others // COLOURS
            styles[name] = LineStyle(others % COLOURS, dash % 4, 1 + others % COLOURS, True)
            others += 1
    return styles


def label_of(results: Results, name: str) -> str:
    """How the board writes a line's name."""
    return next((row["label"] for row in results["rows"] if row["name"] == name), name)


def learning_curves(results: Results, quantity: str, axis: str) -> dict[str, Band]:
    """Each line's `quantity` against `axis`, in the order of the rows, without the lines that logged neither.

    Each seed is smoothed with a trailing mean over a twentieth of its logged steps (validation is not: it is a mean
    already), and read on one grid that ends with the shortest seed. Steps that did not log the value are left out, and
    so are unfinished runs where the line has finished ones: they would end the curve of all.
    """
    drawn = {row["name"]: _band(_seeds_of(results, row["name"]), quantity, axis) for row in results["rows"]}
    return {name: band for name, band in drawn.items() if band is not None}


def smoothing_window(logged: int) -> int:
    """Logged steps in the trailing mean."""
    return max(1, round(SMOOTHING_SHARE * logged))


def forest_rows(results: Results) -> list[Row]:
    """Rows with a difference to the baseline, the largest first.

    The untrained base is in the table alone: it often lies so far off that nothing else could be told apart.
    """
    rows = [row for row in results["rows"] if row["kind"] != "base" and difference_of(results, row)]
    return sorted(rows, key=lambda row: -difference_of(results, row)["value"])


def difference_of(results: Results, row: Row) -> dict[str, Any] | None:
    """The row's primary difference to the baseline."""
    score = primary_score(results, row)
    return score["difference"] if score else None


def accuracy_of(results: Results, row: Row) -> dict[str, Any] | None:
    """The row's primary accuracy."""
    score = primary_score(results, row)
    return score["accuracy"] if score else None


def cost_of(row: Row, cost: str) -> float | None:
    """One of `COSTS` of a row; None where it is not known."""
    training = row["training"]
    if cost != "all_tokens":
        return training[cost]
    parts = (training["generated_tokens"], training["teacher_tokens"])
    return None if None in parts else sum(parts)


def cost_points(results: Results, cost: str) -> list[CostPoint]:
    """The trained lines whose cost and accuracy are known."""
    points = []
    for row in results["rows"]:
        accuracy, value = accuracy_of(results, row), cost_of(row, cost)
        if row["kind"] != "base" and accuracy and value is not None:
            points.append(CostPoint(row["name"], value, accuracy["mean"], accuracy["low"], accuracy["high"]))
    return points


def pareto_front(points: Iterable[CostPoint]) -> list[CostPoint]:
    """The points that no other one beats at the same or a lower cost, from cheap to dear."""
    front: list[CostPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.mean)):
        if not front or point.mean > front[-1].mean:
            front.append(point)
    return front


def pass_at_k(results: Results, key: str) -> dict[str, list[tuple[int, float]]]:
    """Each line's pass@k on a benchmark, by rising k; without the lines that have none."""
    curves = {}
    for row in results["rows"]:
        values = (row["scores"].get(key) or {}).get("pass_at_k")
        if values:
            curves[row["name"]] = sorted((int(k), value) for k, value in values.items())
    return curves


def pass_at_k_benchmarks(results: Results) -> list[str]:
    """Benchmark keys with more than one k, the one with the largest k first."""
    largest = {
        entry["key"]: max((k for curve in curves.values() for k, _ in curve), default=1)
        for entry in results["suite"]
        if (curves := pass_at_k(results, entry["key"]))
    }
    return sorted((key for key, k in largest.items() if k > 1), key=lambda key: -largest[key])


def time_unit(longest: float) -> tuple[str, float]:
    """The unit of a time axis and its seconds: the largest of which the axis holds two."""
    units = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
    return next((name, size) for name, size in units if longest >= 2 * size or size == 1.0)


def spread_labels(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move `places` to be `gap` apart within `low`..`high`, their order kept, by the least squares.

    Where there is no room for all, the gap shrinks.
    """
    if not len(places):
        return []
    order = np.argsort(places, kind="stable")
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    offsets = gap * np.arange(len(places))
    fitted = isotonic_regression(np.asarray(places, dtype=float)[order] - offsets).x
    found = np.empty(len(places))
    found[order] = np.clip(fitted, low, high - offsets[-1]) + offsets
    return found.tolist()


def _seeds_of(results: Results, name: str) -> list[dict[str, Any]]:
    finished = {
        run["seed"]
        for run in results["runs"]
        if run["line"] == name and run["role"] == "final" and run["status"] == "finished"
    }
    curves = results["curves"].get(name, [])
    return [curve for curve in curves if curve["seed"] in finished] or curves


def _band(seeds: Sequence[dict[str, Any]], quantity: str, axis: str) -> Band | None:
    curves = [curve for seed in seeds if len((curve := _seed_curve(seed, quantity, axis))[0])]
    if not curves:
        return None
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if end < start:
        return None
    grid = np.linspace(start, end, GRID_POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    return Band(grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0), len(curves))


def _seed_curve(seed: dict[str, Any], quantity: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """`x` and smoothed `y`, both `[P]`, of one seed."""
    if quantity == "validation":
        steps, spent = _known(zip([0, *seed["step"]], [0.0, *seed[axis]], strict=True))
        if len(steps) < 2:
            return _known([])
        return _known((np.interp(step, steps, spent), value) for step, value in seed["validation"])
    x, y = _known(zip(seed[axis], seed[quantity], strict=True))
    if not len(x):
        return x, y
    window = smoothing_window(len(y))
    sums = np.concatenate([[0.0], np.cumsum(y)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window, 0)
    return x, (sums[ends] - sums[starts]) / (ends - starts)


def _known(pairs: Iterable[tuple[float | None, float | None]]) -> tuple[np.ndarray, np.ndarray]:
    known = np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2)
    return known[:, 0], known[:, 1]
