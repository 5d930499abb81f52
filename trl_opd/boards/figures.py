"""The board's figures as SVG and PNG files, on a white card that suits a light and a dark page."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from trl_opd.boards import series, table
from trl_opd.boards.schema import Results
from trl_opd.boards.series import LineStyle

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8589a", "#b98600", "#3a9bdc")
"""Okabe and Ito's colours without yellow, three of them darkened until they show on white; `board.css` has the same."""
INK, SOFT, GREY, RULE, BASE = "#1b1f24", "#59616b", "#8b929b", "#e3e5e8", "#7a5c3e"
DASHES = ("solid", (0, (6, 2.2)), (0, (1.4, 1.8)), (0, (6, 2, 1.4, 2)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.hashsalt": "trl_opd",
}
DPI = 200
LABEL_GAP = 12.0  # points
PANEL_WIDTH, PANEL_HEIGHT = 3.8, 3.2  # inches


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Write forest plot, learning curves, accuracy against cost, and pass@k, each as SVG and PNG.

    A figure without data is not drawn, and an older file of it is removed.

    Returns:
        `list[Path]`: the files that were written; the same results give the same bytes.
    """
    drawings: dict[str, Callable[[Results], Figure | None]] = {
        "forest": forest,
        "learning_curves": learning_curves,
        "pareto": pareto,
        "pass_at_k": pass_at_k,
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw(results)
            for suffix, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
                path = folder / f"{name}{suffix}"
                path.unlink(missing_ok=True)
                if figure is not None:
                    figure.savefig(path, metadata=metadata, dpi=DPI, bbox_inches="tight", pad_inches=0.15)
                    written.append(path)
    return written


def forest(results: Results) -> Figure | None:
    """Differences to the baseline with their intervals, the largest on top; hollow and grey: not distinguishable."""
    rows = series.forest_rows(results)
    if not rows:
        return None
    styles = series.line_styles(results)
    figure = Figure(figsize=(7.2, 1.0 + 0.36 * len(rows)))
    axes = figure.add_subplot()
    axes.axvline(0, color=SOFT, linewidth=1.2)
    for place, row in enumerate(rows):
        difference, colour = series.difference_of(results, row), GREY
        if difference["distinguishable"]:
            colour = _colour(results, row["name"], styles[row["name"]])
        axes.plot([100 * difference["low"], 100 * difference["high"]], [place, place], color=colour, linewidth=2.4)
        face = colour if difference["distinguishable"] else "white"
        axes.plot(100 * difference["value"], place, "o", color=colour, markerfacecolor=face, markersize=7)
        interval = table.interval(difference["low"], difference["high"], table.points)
        axes.annotate(
            f"{table.points(difference['value'])}  {interval}",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=INK if difference["distinguishable"] else SOFT,
        )
    axes.set_yticks(range(len(rows)), [_plain(row["label"]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: table.points(value / 100).replace(".0", "") if value else "0")
    )
    axes.set_xlabel(f"Difference to {_baseline(results)} on {_plain(results['primary'])}, percentage points")
    axes.spines["left"].set_visible(False)
    _colour_tick_labels(axes, [series.difference_of(results, row)["distinguishable"] for row in rows])
    return figure


def learning_curves(results: Results) -> Figure | None:
    """Mean reward against generated tokens and against training time, with the band over seeds."""
    return _pair(results, _draw_curves, series.QUANTITIES["reward"])


def pareto(results: Results) -> Figure | None:
    """Primary accuracy against generated tokens and against training time; the line joins what nothing else beats."""
    return _pair(results, _draw_costs, f"Accuracy on {_plain(results['primary'])}, %")


def pass_at_k(results: Results) -> Figure | None:
    """pass@k of the benchmark with the largest k."""
    keys = series.pass_at_k_benchmarks(results)
    if not keys:
        return None
    styles, curves = series.line_styles(results), series.pass_at_k(results, keys[0])
    figure, (axes,) = _panels(results, 1, 1.6 * PANEL_WIDTH)
    axes.set_xscale("log", base=2)
    for name, curve in curves.items():
        x, y = zip(*curve, strict=True)
        symbol = _symbol(results, name, styles[name]) | _look(results, name, styles[name])
        axes.plot(x, [100 * value for value in y], markersize=4.5, **symbol)
    axes.set_xticks(ks := sorted({k for curve in curves.values() for k, _ in curve}), [str(k) for k in ks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("k, answers to a problem")
    axes.set_ylabel(f"pass@k on {_plain(keys[0])}, %")
    _write_labels(axes, results, {name: (curve[-1][0], 100 * curve[-1][1]) for name, curve in curves.items()})
    return figure


def _pair(results: Results, draw: Callable[[Axes, Results, str], bool], y_label: str) -> Figure | None:
    """One panel against generated tokens and one against training time; None where neither has data."""
    figure, panels = _panels(results, 2, PANEL_WIDTH)
    drawn = [draw(axes, results, axis) for axes, axis in zip(panels, series.AXES, strict=True)]
    panels[0].set_ylabel(y_label)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return figure if any(drawn) else None


def _panels(results: Results, count: int, width: float) -> tuple[Figure, list[Axes]]:
    """Panels `width` inches wide, side by side, each with room for the longest name on its right."""
    longest = max(len(row["label"]) for row in results["rows"])
    pitch = width + 0.45 + 0.075 * longest
    figure = Figure(figsize=(count * pitch, PANEL_HEIGHT))
    panels: list[Axes] = []
    for place in range(count):
        box = (place / count, 0, width / (count * pitch), 1)
        panels.append(figure.add_axes(box, sharey=panels[0] if panels else None))
    return figure, panels


def _draw_curves(axes: Axes, results: Results, axis: str) -> bool:
    styles, bands = series.line_styles(results), series.learning_curves(results, "reward", axis)
    if not bands:
        axes.set_visible(False)
        return False
    scale = _label_axis(axes, axis, max(band.x[-1] for band in bands.values()))
    for name, band in bands.items():
        look = _look(results, name, styles[name])
        axes.plot(band.x / scale, band.mean, **look)
        axes.fill_between(band.x / scale, band.low, band.high, color=look["color"], alpha=0.12, linewidth=0)
    _write_labels(axes, results, {name: (band.x[-1] / scale, band.mean[-1]) for name, band in bands.items()})
    return True


def _draw_costs(axes: Axes, results: Results, cost: str) -> bool:
    styles, points = series.line_styles(results), series.cost_points(results, cost)
    if not points:
        axes.set_visible(False)
        return False
    scale = _label_axis(axes, cost, max(point.cost for point in points))
    front = series.pareto_front(points)
    axes.plot(
        [point.cost / scale for point in front],
        [100 * point.mean for point in front],
        color=GREY, linewidth=1.2, drawstyle="steps-post", zorder=1,
    )  # fmt: skip
    for point in points:
        look, x = _symbol(results, point.line, styles[point.line]), point.cost / scale
        axes.plot([x, x], [100 * point.low, 100 * point.high], color=look["color"], linewidth=1, alpha=0.45)
        axes.plot(x, 100 * point.mean, markersize=7, **look)
    axes.margins(x=0.12)
    _write_labels(axes, results, {point.line: (point.cost / scale, 100 * point.mean) for point in points})
    return True


def _label_axis(axes: Axes, axis: str, longest: float) -> float:
    """Name the x axis and its unit; returns what a value is divided by."""
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if axis == "seconds":
        unit, scale = series.time_unit(longest)
        axes.set_xlabel(f"{series.COSTS[axis]}, {unit}")
        return scale
    axes.set_xlabel(series.COSTS[axis])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: table.tokens(value).replace(".0 ", " ")))
    return 1.0


def _write_labels(axes: Axes, results: Results, points: dict[str, tuple[float, float]]) -> None:
    """Names in the right margin, moved apart where they would meet, each with a thin leader to its point."""
    low, high = axes.get_ylim()
    room = 72 * axes.get_position().height * axes.figure.get_size_inches()[1]
    places = [(y - low) / (high - low) * room for _, y in points.values()]
    styles = series.line_styles(results)
    for (name, point), place in zip(points.items(), series.spread_labels(places, LABEL_GAP, 0, room), strict=True):
        axes.annotate(
            _plain(series.label_of(results, name)),
            xy=point,
            xytext=(1.05, place / room),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            fontweight="bold" if name == results["baseline"] else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": _colour(results, name, styles[name]), "linewidth": 0.6, "alpha": 0.7,
                "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 4,
            },
        )  # fmt: skip


def _look(results: Results, name: str, style: LineStyle) -> dict:
    first = name == results["baseline"]
    return {
        "color": _colour(results, name, style),
        "linestyle": DASHES[style.dash],
        "linewidth": 2.4 if first else 1.6,
        "zorder": 4 if first else 3,
    }


def _symbol(results: Results, name: str, style: LineStyle) -> dict:
    colour = _colour(results, name, style)
    return {
        "marker": MARKERS[style.symbol],
        "color": colour,
        "markerfacecolor": "white" if style.hollow else colour,
        "linestyle": "none",
    }


def _colour(results: Results, name: str, style: LineStyle) -> str:
    if style.colour is None:
        return INK if name == results["baseline"] else BASE
    return PALETTE[style.colour]


def _baseline(results: Results) -> str:
    return _plain(series.label_of(results, results["baseline"]))


def _plain(text: str) -> str:
    """A name as it is: a dollar sign would start matplotlib's mathematics, a control character has no shape."""
    return "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text).replace("$", r"\$")


def _colour_tick_labels(axes: Axes, clear: list[bool]) -> None:
    for text, distinguishable in zip(axes.get_yticklabels(), clear, strict=True):
        text.set_color(INK if distinguishable else SOFT)
