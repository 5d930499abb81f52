"""What the page's template and its figures ask of `results.json`, worked out once."""

from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from trl_opd.boards import series
from trl_opd.boards.schema import Benchmark, Results, Row, RunResult, primary_score
from trl_opd.boards.series import Band

BAR_WIDTH = 120.0
BAR_STEP = 0.05
CURVE_DIGITS = 4  # significant
SHARE_DIGITS = 4  # after the point: colours, and percent with one digit


class PageView:
    """The board as the template walks through it.

    Args:
        results (`Results`):
            `results.json`.
    """

    def __init__(self, results: Results):
        self.results = results
        self.styles = series.line_styles(results)

    @cached_property
    def ranked(self) -> list[Row]:
        """The rows by falling primary accuracy; without one, last."""
        return sorted(self.results["rows"], key=self._rank)

    @cached_property
    def baseline_label(self) -> str:
        return series.label_of(self.results, self.results["baseline"])

    @cached_property
    def secondary(self) -> list[Benchmark]:
        return [entry for entry in self.results["suite"] if entry["key"] != self.results["primary"]]

    @cached_property
    def verdicts(self) -> dict[str, list[str]]:
        """Labels of the compared lines as better, worse, or unclear."""
        found: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
        for row in series.forest_rows(self.results):
            found[self.verdict(row)].append(row["label"])
        return found

    @cached_property
    def absent(self) -> list[RunResult]:
        """Runs that are in no number: failed, missing, unfinished, not comparable."""
        return [run for run in self.results["runs"] if run["status"] != "finished" or run["not_comparable"]]

    @cached_property
    def provenance(self) -> dict[str, str]:
        """What the runs name between them, one line a key: commits, versions, hardware."""
        found = {}
        for key, value in self.results["provenance"].items():
            entries = value.items() if isinstance(value, dict) else [("", value)]
            texts = [f"{name} {_listed(one)}".strip() for name, one in entries if one]
            if texts:
                found[key.capitalize()] = ", ".join(texts)
        return found

    @cached_property
    def negative(self) -> list[Row]:
        return [row for row in self.results["rows"] if row["kind"] != "base" and self.verdict(row) == "worse"]

    @cached_property
    def bar_range(self) -> tuple[float, float]:
        """Ends of the accuracy bars, the same for all rows: whole steps around the intervals of the trained lines."""
        trained = [row for row in self.results["rows"] if row["kind"] != "base"]
        known = [accuracy for row in trained if (accuracy := series.accuracy_of(self.results, row))]
        low = min((accuracy["low"] for accuracy in known), default=0.0)
        high = max((accuracy["high"] for accuracy in known), default=1.0)
        return float(np.floor(low / BAR_STEP) * BAR_STEP), float(np.ceil(high / BAR_STEP) * BAR_STEP)

    def score(self, row: Row, key: str | None = None) -> dict[str, Any]:
        """The row's score on a benchmark, by default the primary one; every value None where there is none."""
        score = row["scores"].get(key or self.results["primary"])
        return score or dict.fromkeys(
            ("accuracy", "difference", "to_base", "majority", "pass_at_k", "truncated", "no_answer", "mean_tokens")
        )

    def verdict(self, row: Row, key: str | None = None) -> str:
        """CSS class of a difference: better, worse, or unclear."""
        difference = self.score(row, key)["difference"]
        if not difference or not difference["distinguishable"]:
            return "unclear"
        return "better" if difference["value"] > 0 else "worse"

    def verdict_text(self, row: Row) -> str:
        if row["is_baseline"]:
            return "baseline"
        score = primary_score(self.results, row)
        if not score or not score["accuracy"]:
            return "no finished run"
        return score["difference"]["verdict"] if score["difference"] else "-"

    def bar(self, row: Row) -> dict[str, float] | None:
        """Pixels of the table's small bar, and where the baseline's mean lies; None where the bar would not hold it."""
        accuracy = series.accuracy_of(self.results, row)
        if not accuracy or accuracy["low"] < self.bar_range[0] or accuracy["high"] > self.bar_range[1]:
            return None
        reference = next(row for row in self.results["rows"] if row["is_baseline"])
        found = {key: self._bar_place(accuracy[key]) for key in ("low", "mean", "high")}
        if known := series.accuracy_of(self.results, reference):
            found["baseline"] = self._bar_place(known["mean"])
        return found

    def runs_of(self, row: Row) -> list[RunResult]:
        return [run for run in self.results["runs"] if run["line"] == row["name"]]

    def line_class(self, row: Row) -> str:
        style = self.styles[row["name"]]
        if style.colour is None:
            return "line-baseline" if row["is_baseline"] else "line-base hollow"
        return f"line-{style.colour}{' hollow' if style.hollow else ''}"

    def last_values(self, quantity: str) -> dict[str, Band]:
        """Each line's band against tokens, for the table behind the curves."""
        return series.learning_curves(self.results, quantity, "generated_tokens")

    def _bar_place(self, value: float) -> float:
        low, high = self.bar_range
        return round(4 + (BAR_WIDTH - 8) * (value - low) / (high - low or 1.0), 2)

    def _rank(self, row: Row) -> tuple[bool, float]:
        accuracy = series.accuracy_of(self.results, row)
        return accuracy is None, -accuracy["mean"] if accuracy else 0.0


def _listed(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def script_data(results: Results) -> dict[str, Any]:
    """What the figures draw. Lines are named by their place in `lines`, so that no name is ever a key of an object."""
    place = {row["name"]: i for i, row in enumerate(results["rows"])}
    styles = series.line_styles(results)
    return {
        "primary": results["primary"],
        "lines": [
            {
                "label": row["label"],
                "kind": row["kind"],
                "baseline": row["is_baseline"],
                "accuracy": (primary_score(results, row) or {}).get("accuracy"),
            }
            | asdict(styles[row["name"]])
            for row in results["rows"]
        ],
        "forest": [
            {"line": place[row["name"]], **series.difference_of(results, row)} for row in series.forest_rows(results)
        ],
        "curves": _curves(results, place),
        "costs": [_cost(results, place, cost, label) for cost, label in series.COSTS.items()],
        "passAtK": [
            {
                "key": key,
                "lines": [
                    {"line": place[name], "points": points} for name, points in series.pass_at_k(results, key).items()
                ],
            }
            for key in series.pass_at_k_benchmarks(results)
        ],
        "problems": [_problems(results, key) for key in results["problems"]],
    }


def _curves(results: Results, place: dict[str, int]) -> list[dict[str, Any]]:
    found = []
    for quantity, label in series.QUANTITIES.items():
        axes = {
            axis: [
                {"line": place[name], **_packed(band)}
                for name, band in series.learning_curves(results, quantity, axis).items()
            ]
            for axis in series.AXES
        }
        if any(axes.values()):
            found.append({"label": label, "axes": axes})
    return found


def _packed(band: Band) -> dict[str, Any]:
    return {"start": float(band.x[0]), "end": float(band.x[-1]), "seeds": band.seeds} | {
        key: [float(f"{value:.{CURVE_DIGITS}g}") for value in getattr(band, key)] for key in ("mean", "low", "high")
    }


def _cost(results: Results, place: dict[str, int], cost: str, label: str) -> dict[str, Any]:
    points = series.cost_points(results, cost)
    drawn = {point.line for point in points}
    return {
        "cost": cost,
        "label": label,
        "points": [asdict(point) | {"line": place[point.line]} for point in points],
        "front": [place[point.line] for point in series.pareto_front(points)],
        "unknown": [
            place[row["name"]] for row in results["rows"] if row["kind"] != "base" and row["name"] not in drawn
        ],
    }


def _problems(results: Results, key: str) -> dict[str, Any]:
    """Shares `[lines][problems]` and answers `[problems][lines]`, both null where there is none."""
    stored = results["problems"][key]
    names = [row["name"] for row in results["rows"]]
    return {
        "key": key,
        "ids": stored["ids"],
        "questions": [stored["questions"].get(problem) for problem in stored["ids"]],
        "shares": [_rounded(stored["share"].get(name)) for name in names],
        "answers": [_answers(stored["answers"].get(problem), names) for problem in stored["ids"]],
        "hardest": _order_by_share(stored),
    }


def _rounded(shares: list[float] | None) -> list[float] | None:
    return None if shares is None else [round(share, SHARE_DIGITS) for share in shares]


def _answers(answers: dict[str, Any] | None, names: list[str]) -> list[dict[str, Any] | None] | None:
    return None if answers is None else [answers.get(name) for name in names]


def _order_by_share(stored: dict[str, Any]) -> list[int]:
    """Places of the problems, from what most lines miss to what most lines solve."""
    if not stored["share"]:
        return list(range(len(stored["ids"])))
    means = np.mean(list(stored["share"].values()), axis=0)
    return np.argsort(means, kind="stable").tolist()
