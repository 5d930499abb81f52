"""How numbers are written, and the board as a Markdown table."""

from collections.abc import Sequence

from trl_opd.boards.schema import Benchmark, Results, Row, RunResult, benchmark_of, primary_score
from trl_opd.boards.spec import BASE_RUN

ABSENT = "-"
MINUS = "\N{MINUS SIGN}"


def percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """A signed difference in percentage points; what rounds to nothing is +0.0."""
    return ABSENT if value is None else f"{100 * value:+z.1f}".replace("-", MINUS)


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


def seeds_text(row: Row) -> str:
    """Finished runs, against the planned ones where some are not there."""
    if row["name"] == BASE_RUN:
        return ABSENT if row["finished"] else "missing"
    return str(row["finished"]) if row["finished"] == row["planned"] else f"{row['finished']} of {row['planned']}"


def render_table(results: Results) -> str:
    """The board in Markdown: the primary benchmark, then the other benchmarks and the costs, then what is missing."""
    lines = [f"# {_cell(results['title'])}", "", *_primary_table(results), "", _footnote(results)]
    lines += _listed("Notes", results["notes"]) + _listed("Warnings", _warnings(results))
    lines += ["", *_second_table(results), "", _second_footnote(results)]
    absent = [run for run in results["runs"] if run["status"] != "finished" or run["not_comparable"]]
    lines += _listed("Not, or only partly, in the numbers", [f"{run['name']}: {standing(run)}" for run in absent])
    return "\n".join(lines) + "\n"


def standing(run: RunResult) -> str:
    """How a run stands, in words."""
    if run["status"] == "failed":
        return f"failed in {run['stage']}: {run['error']}"
    return run["not_comparable"] or run["status"]


def _primary_table(results: Results) -> list[str]:
    baseline = next(row["label"] for row in results["rows"] if row["is_baseline"])
    head = [
        "Line", "Accuracy, %", "95 % interval", f"Difference to {_cell(baseline)}, points", "95 % interval", "p, Holm",
        "Verdict", "Seeds",
    ]  # fmt: skip
    rows = [_row(_primary_cells(results, row)) for row in results["rows"]]
    return [_row(head), _row(["---"] + ["--:"] * 5 + ["---", "--:"]), *rows]


def _primary_cells(results: Results, row: Row) -> list[str]:
    score = primary_score(results, row)
    accuracy, difference = (score["accuracy"] or {}, score["difference"] or {}) if score else ({}, {})
    words = difference.get("verdict", "missing" if not accuracy else ABSENT)
    return [
        _cell(row["label"]),
        percent(accuracy.get("mean")),
        interval(accuracy.get("low"), accuracy.get("high")),
        points(difference.get("value")),
        interval(difference.get("low"), difference.get("high"), points),
        p_text(difference.get("p_holm")),
        "baseline" if row["is_baseline"] else words,
        seeds_text(row),
    ]


def _second_table(results: Results) -> list[str]:
    others = [entry for entry in results["suite"] if entry["key"] != results["primary"]]
    head = ["Line", *(_cell(_headline(entry)) for entry in others)]
    head += ["Generated tokens", "Teacher tokens", "Time", "GPU-hours", "Memory"]
    rows = []
    for row in results["rows"]:
        training = row["training"]
        costs = [
            tokens(training["generated_tokens"]),
            tokens(training["teacher_tokens"]),
            duration(training["seconds"]),
            ABSENT if training["gpu_hours"] is None else f"{training['gpu_hours']:.2f}",
            memory(training["peak_memory_bytes"]),
        ]
        rows.append(_row([_cell(row["label"]), *(_other_cell(row, entry) for entry in others), *costs]))
    return [_row(head), _row(["---"] + ["--:"] * (len(head) - 1)), *rows]


def _headline(entry: Benchmark) -> str:
    if entry["purpose"] == "pass_at_k":
        return f"{entry['benchmark']}, pass@{entry['ks'][-1] if entry['ks'] else 'k'}, %"
    if entry["purpose"] == "forgetting":
        return f"Forgetting: {entry['benchmark']} against the base, points"
    return f"{entry['benchmark']}, %"


def _other_cell(row: Row, entry: Benchmark) -> str:
    score = row["scores"].get(entry["key"])
    if score is None:
        return ABSENT
    if entry["purpose"] == "pass_at_k":
        return percent(score["pass_at_k"][str(entry["ks"][-1])]) if score["pass_at_k"] and entry["ks"] else ABSENT
    if entry["purpose"] == "forgetting":
        against = score["to_base"]
        if against is None:
            return ABSENT
        return f"{points(against['value'])} {interval(against['low'], against['high'], points)}"
    return percent(score["accuracy"]["mean"]) if score["accuracy"] else ABSENT


def _warnings(results: Results) -> list[str]:
    of_rows = [f"{row['label']}: {warning}" for row in results["rows"] for warning in row["warnings"]]
    return results["warnings"] + of_rows


def _footnote(results: Results) -> str:
    primary, design = benchmark_of(results, results["primary"]), results["design"]
    seeds = len(results["seeds"])
    text = (
        f"{primary['benchmark']}: {primary['problems'] or ABSENT} problems x {primary['answers'] or ABSENT} answers, "
    )
    text += f"{seeds} training seed{'s' if seeds > 1 else ''}. Differences are paired by problem, not by seed. "
    if seeds < 2:
        return text + "Intervals are over problems: they are about these runs, and say nothing of other seeds."
    text += "Intervals are over seeds and problems; verdicts are after Holm's correction over all compared lines."
    if any(row["finished"] == 1 and row["kind"] != "base" for row in results["rows"]):
        text += " Lines with one finished seed: over problems alone, for these runs."
    if design["smallest_detectable"] is not None:
        text += (
            f" A true difference of {100 * design['smallest_detectable']:.1f} points is found with 80 % power at the "
            f"5 % level, one of {100 * design['smallest_detectable_holm']:.1f} after the correction for "
            f"{design['comparisons']} comparisons (variances from {design['assumed_from']})."
        )
    return text


def _second_footnote(results: Results) -> str:
    budget = results["budget"]
    same = f"Every run had {budget['value']:g} {budget['unit'].replace('_', ' ')}."
    return f"{same} Costs are means over seeds; `{ABSENT}` is unknown."


def _listed(title: str, texts: Sequence[str]) -> list[str]:
    return ["", f"{title}:", "", *(f"- {_cell(text)}" for text in texts)] if texts else []


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
