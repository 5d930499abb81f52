"""What is left of a board and what it will cost, judged by what its finished stages took."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from trl_opd.boards.attempts import attempts_of
from trl_opd.boards.files import read_json
from trl_opd.boards.runs import EVAL, TRAIN, Run, Stage
from trl_opd.boards.spec import BoardSpec


@dataclass(frozen=True)
class Need:
    """A stage that is left, or one that has been done: what it is, for the comparison of costs.

    Args:
        kind (`str`):
            "train" or "eval".
        line (`str`, *optional*):
            Name of the method's line; None for the untrained base.
        benchmark (`str`, *optional*):
            Key of the benchmark of an evaluation.
    """

    kind: str
    line: str | None
    benchmark: str | None = None


@dataclass(frozen=True)
class Estimate:
    """What is left.

    Args:
        trainings (`int`), evaluations (`int`):
            Stages that are left, those of runs that still wait for their trials included.
        seconds (`float`, *optional*):
            Their time one after another; None where some kind of them was never run here.
        unknown (`tuple[str, ...]`):
            In words, the kinds of stages that were never run here.
        measured (`int`):
            Finished stages that this rests on.
    """

    trainings: int
    evaluations: int
    seconds: float | None
    unknown: tuple[str, ...]
    measured: int


def estimate_rest(spec: BoardSpec, runs: Sequence[Run]) -> Estimate:
    """Judge each stage that is left by the mean of the finished ones of its method, or else of all methods.

    An evaluation of the best checkpoint beside the last is counted once it is known that there is one; a training that
    is half done counts whole.
    """
    taken: dict[Need, list[float]] = {}
    for run in runs:
        for stage in run.stages:
            if stage.is_finished() and (seconds := seconds_of(run, stage)) is not None:
                taken.setdefault(_need(spec, run, stage), []).append(seconds)
    left = [need for run in runs for need in _left(spec, run)]
    costs = [_cost(need, taken) for need in left]
    unknown = {_words(need) for need, cost in zip(left, costs, strict=True) if cost is None}
    return Estimate(
        trainings=sum(need.kind == TRAIN for need in left),
        evaluations=sum(need.kind == EVAL for need in left),
        seconds=None if unknown else sum(costs),
        unknown=tuple(sorted(unknown)),
        measured=sum(map(len, taken.values())),
    )


def seconds_of(run: Run, stage: Stage) -> float | None:
    """What a finished stage took, in all its attempts; of a training without them, what its own record says."""
    attempts = [one["seconds"] for one in attempts_of(run.folder) if one["log"] == stage.log.name]
    if attempts and None not in attempts:
        return sum(attempts)
    record = read_json(stage.folder / "run.json") or {}
    return record.get("seconds") if stage.kind == TRAIN else None


def _left(spec: BoardSpec, run: Run) -> list[Need]:
    if run.blocked is not None:
        return []
    if run.waiting_for:
        evaluations = [Need(EVAL, run.method.name, spec.benchmark_key(entry)) for entry in spec.evaluation]
        return [Need(TRAIN, run.method.name), *evaluations]
    return [_need(spec, run, stage) for stage in run.stages if not stage.is_finished()]


def _need(spec: BoardSpec, run: Run, stage: Stage) -> Need:
    line = run.method.name if run.method else None
    return Need(stage.kind, line, None if stage.entry is None else spec.benchmark_key(stage.entry))


def _cost(need: Need, taken: dict[Need, list[float]]) -> float | None:
    same_kind = [
        seconds
        for other, found in taken.items()
        if (other.kind, other.benchmark) == (need.kind, need.benchmark)
        for seconds in found
    ]
    found = taken.get(need) or same_kind
    return mean(found) if found else None


def _words(need: Need) -> str:
    return "training" if need.kind == TRAIN else f"evaluation on {need.benchmark}"
