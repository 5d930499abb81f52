"""What training cost and whether it was healthy, from `run.json` and the log of a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trl_opd.boards.archive import RunRecord
from trl_opd.boards.schema import Curve, Training
from trl_opd.health import EDGE, findings

COSTS = ("generated_tokens", "teacher_tokens", "seconds", "peak_memory_bytes", "steps")
#: Our name -> the log's, as a mean over the last fifth of the logged steps.
AT_THE_END = {
    "completion_length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "entropy": "entropy",
    "active_fraction": "signal/active_fraction",
}
ZERO_VARIANCE = "frac_reward_zero_std"
#: Share of rows with a group-relative advantage: where it is 0, it is no matter whether groups vary.
POLICY_GRADIENT = "signal/pg_fraction"
CURVE_COLUMNS = ("generated_tokens", "seconds", "reward", "loss", "entropy")


def training_of(record: RunRecord) -> Training:
    """Costs and signs of health of one run."""
    stored, log = record.training, record.log
    last = log[-max(round(EDGE * len(log)), 1) :]
    gpus, seconds = stored.get("gpus"), stored.get("seconds")
    return {
        **{name: _number(stored.get(name)) for name in COSTS},
        "gpu_hours": gpus * seconds / 3600 if gpus and seconds is not None else None,
        **{name: _mean_of([row.get(logged) for row in last]) for name, logged in AT_THE_END.items()},
        "zero_variance": _mean_of([row.get(ZERO_VARIANCE) for row in log if row.get(POLICY_GRADIENT)]),
    }


def mean_training(records: Sequence[RunRecord]) -> Training:
    """Means over runs; None where a run does not tell."""
    every = [training_of(record) for record in records]
    return {name: mean([one[name] for one in every]) for name in Training.__annotations__}


def mean(values: Sequence[float | None]) -> float | None:
    """Mean over runs, None where there is none or a run does not tell."""
    if not values or None in values:
        return None
    return float(np.mean(values))


def validation_of(record: RunRecord) -> list[list[float]]:
    """`[step, accuracy]` pairs."""
    return [[int(step), float(accuracy)] for step, accuracy in record.training.get("validation", [])]


def curve_of(record: RunRecord) -> Curve:
    """What a run logged, columns instead of rows."""
    return {
        "seed": record.seed,
        "step": [row["step"] for row in record.log],
        **{name: [row.get(name) for row in record.log] for name in CURVE_COLUMNS},
        "validation": validation_of(record),
    }


def training_warnings(records: Sequence[RunRecord]) -> list[str]:
    """A sentence for each sign of trouble in the logs of a line's runs, with the first run's numbers."""
    found: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        for finding in findings(record.log):
            found.setdefault(finding.sign, []).append((record.name, finding.sentence))
    return [
        f"{sentence} ({seen[0][0]})" if len(records) == 1 else f"{len(seen)} of {len(records)} runs: {sentence} ({run})"
        for seen in found.values()
        for run, sentence in seen[:1]
    ]


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _mean_of(values: Sequence[float | None]) -> float | None:
    """Mean over logged steps; a step that logged no value is left out."""
    logged = [value for value in values if value is not None]
    return float(np.mean(logged)) if logged else None
