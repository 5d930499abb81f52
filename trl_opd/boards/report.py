"""From stored runs to `results.json`, `table.md` and `board.html`; the page is made from the results alone."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from trl_opd.boards import stats
from trl_opd.boards.collect import RunRecord, collect
from trl_opd.boards.files import content_hash, write_json, write_text
from trl_opd.boards.page_format1 import render_page
from trl_opd.boards.runs import FINAL, FINISHED, MISSING, plan_runs, status_of
from trl_opd.boards.spec import BASE_RUN, BoardSpec
from trl_opd.boards.table import render_table
from trl_opd.errors import UserError
from trl_opd.evals.calibration import state_of

FORMAT = 1
SAMPLE_PROBLEMS = 4
COSTS = ("generated_tokens", "teacher_tokens", "seconds", "peak_memory_bytes", "steps")
CURVE_COLUMNS = ("step", "generated_tokens", "seconds", "reward", "loss")


def write_report(spec: BoardSpec) -> dict[str, Path]:
    """Read the stored runs of a board and write its three files.

    Returns:
        `dict[str, Path]`: "results", "table" and "page".
    """
    runs = plan_runs(spec)
    if all(status_of(run).state == MISSING for run in runs):
        raise UserError(
            f"No run of {spec.name} was started here, so there is nothing to report: use `board run` first."
        )
    results = build_results(spec, collect(runs))
    paths = {
        "results": spec.folder / "results.json",
        "table": spec.folder / "table.md",
        "page": spec.folder / "board.html",
    }
    write_json(paths["results"], results)
    write_text(paths["table"], render_table(results))
    write_text(paths["page"], render_page(results))
    return paths


def build_results(spec: BoardSpec, records: Sequence[RunRecord]) -> dict[str, Any]:
    """Everything on the page, as JSON values."""
    lines = {BASE_RUN: [record for record in records if record.run.method is None]} | {
        method.name: [record for record in records if record.run.role == FINAL and record.run.method == method]
        for method in spec.methods
    }
    evaluation = asdict(replace(spec.primary, data_dir=None))
    problems, answers = next((record.correct.shape for record in records if record.counts), (0, 0))
    return {
        "format": FORMAT,
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "base_model": spec.base_model,
        "baseline": spec.baseline,
        "seeds": spec.seeds,
        "evaluation": {key: value for key, value in evaluation.items() if value is not None},
        "calibration": state_of(spec.primary.benchmark),
        "problems": problems,
        "answers": answers,
        "level": stats.LEVEL,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": _rows(spec, lines),
        "runs": [_run(record) for record in records],
        "curves": {name: _curves(line) for name, line in lines.items() if name != BASE_RUN},
        "samples": _samples(lines),
    }


def _rows(spec: BoardSpec, lines: dict[str, list[RunRecord]]) -> list[dict[str, Any]]:
    arms = {name: arm for name, line in lines.items() if (arm := _arm(name, line)) is not None}
    differences = _differences(spec, arms)
    rows = []
    for name, line in lines.items():
        rows.append(
            {
                "name": name,
                "method": line[0].run.method.method if line[0].run.method else None,
                "baseline": name == spec.baseline,
                "runs": [record.run.name for record in line],
                "finished": sum(record.counts for record in line),
                "planned": len(line),
                "accuracy": asdict(stats.accuracy(arms[name])) if name in arms else None,
                "difference": asdict(differences[name]) if name in differences else None,
                "truncated": _mean([record.metrics.get("truncated_rate") for record in line if record.counts]),
                "cost": {key: _mean([record.training.get(key) for record in line if record.counts]) for key in COSTS},
            }
        )
    return rows


def _arm(name: str, line: list[RunRecord]) -> stats.Arm | None:
    tables = [record.correct for record in line if record.counts]
    return stats.Arm(np.stack(tables), trained=name != BASE_RUN) if tables else None


def _differences(spec: BoardSpec, arms: dict[str, stats.Arm]) -> dict[str, stats.Difference]:
    """Of each line to the baseline; Holm's correction is over the methods, which leaves the untrained base out."""
    if spec.baseline not in arms:
        return {}
    found = {name: stats.difference(arm, arms[spec.baseline]) for name, arm in arms.items() if name != spec.baseline}
    family = [name for name in found if name != BASE_RUN]
    for plain, adjusted in (("p", "p_holm"), ("p_runs", "p_runs_holm")):
        tested = [name for name in family if getattr(found[name], plain) is not None]
        for name, p in zip(tested, stats.holm([getattr(found[name], plain) for name in tested]), strict=True):
            found[name] = replace(found[name], **{adjusted: p})
    return found


def _mean(values: list[float | None]) -> float | None:
    """Mean over the runs, None where a run does not tell."""
    if not values or None in values:
        return None
    return float(np.mean(values))


def _run(record: RunRecord) -> dict[str, Any]:
    accuracy = float(record.correct.mean()) if record.correct is not None else None
    return {
        "name": record.run.name,
        "line": record.run.method.name if record.run.method else BASE_RUN,
        "seed": record.run.seed,
        "status": record.status.state,
        "stage": record.status.stage,
        "error": record.status.error,
        "not_comparable": record.not_comparable,
        "accuracy": accuracy,
        "commands": [stage.command for stage in record.run.stages],
        "settings_hash": content_hash(record.run.identity),
        "overrides": record.run.method.overrides if record.run.method else {},
        "config": record.training.get("config", {}),
        "versions": record.training.get("versions", {}),
        "hardware": record.training.get("hardware"),
        "cost": {key: record.training.get(key) for key in COSTS},
        "evaluation": record.manifest.get("settings", {}),
        "metrics": record.metrics if record.status.state == FINISHED else {},
    }


def _curves(line: list[RunRecord]) -> list[dict[str, Any]]:
    """One entry for each seed that logged anything, columns instead of rows."""
    return [
        {"seed": record.run.seed} | {key: [_finite(row.get(key)) for row in record.log] for key in CURVE_COLUMNS}
        for record in line
        if record.log
    ]


def _finite(value: float | None) -> float | None:
    """JSON has no NaN; a step that logged one is shown as having logged nothing."""
    return value if value is not None and math.isfinite(value) else None


def _samples(lines: dict[str, list[RunRecord]]) -> list[dict[str, Any]]:
    """The first answers of each line's first finished run, on problems where the lines disagree before others."""
    shown = {name: next(r for r in line if r.counts) for name, line in lines.items() if any(r.counts for r in line)}
    if not shown:
        return []
    common = set.intersection(*(set(record.answers) for record in shown.values()))
    disagreeing = {
        problem for problem in common if len({record.answers[problem]["correct"] for record in shown.values()}) > 1
    }
    chosen = sorted(common, key=lambda problem: (problem not in disagreeing, problem))[:SAMPLE_PROBLEMS]
    return [
        {
            "problem_id": problem,
            "prompt": next(iter(shown.values())).answers[problem]["prompt"],
            "answers": [
                {"line": name, "run": record.run.name}
                | {key: value for key, value in record.answers[problem].items() if key != "prompt"}
                for name, record in shown.items()
            ],
        }
        for problem in chosen
    ]
