"""Which learning rate and which checkpoint a board publishes: chosen by validation alone."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trl_opd.boards.files import content_hash, read_json, write_json
from trl_opd.boards.spec import BoardSpec, MethodSpec
from trl_opd.state import best_step

LAST, BEST = "last", "best"


@dataclass(frozen=True)
class Trial:
    """One learning-rate trial and what became of it.

    Args:
        run (`str`):
            Name of the run.
        learning_rate (`float`):
            Its rate.
        validation (`float`, *optional*):
            Validation accuracy of the checkpoint that the board's rule picks; None where the trial failed.
        status (`str`), error (`str`, *optional*):
            How it ended.
    """

    run: str
    learning_rate: float
    validation: float | None
    status: str
    error: str | None = None


@dataclass(frozen=True)
class Choice:
    """The rate that a method's trials chose, None where all of them failed, and the trials."""

    learning_rate: float | None
    trials: tuple[Trial, ...]


def judged(validation: Sequence[Sequence[float]], rule: str) -> float | None:
    """The accuracy of the checkpoint that the board's rule picks of `[step, accuracy]` pairs; None without any."""
    curve = {int(step): float(accuracy) for step, accuracy in validation}
    step = best_step(list(curve.items())) if rule == BEST else max(curve, default=None)
    return None if step is None else curve[step]


def chosen_rate(trials: Sequence[Trial]) -> float | None:
    """The rate of the best validated trial; of equally good ones the smaller, None where none was validated."""
    validated = [trial for trial in trials if trial.validation is not None]
    best = max(validated, key=lambda trial: (trial.validation, -trial.learning_rate), default=None)
    return best and best.learning_rate


def read_choice(spec: BoardSpec, method: MethodSpec, identity: dict[str, Any]) -> Choice | None:
    """The recorded choice for a method, None while its trials are not settled.

    Args:
        spec (`BoardSpec`), method (`MethodSpec`):
            Whose.
        identity (`dict`):
            What the trials are made with; a record of others does not count.
    """
    stored = (read_json(record_file(spec)) or {}).get(method.name)
    if stored is None or stored["settings_hash"] != content_hash(identity):
        return None
    return Choice(stored["learning_rate"], tuple(Trial(**trial) for trial in stored["trials"]))


def write_choice(spec: BoardSpec, method: MethodSpec, identity: dict[str, Any], choice: Choice) -> None:
    """Record a choice beside the others."""
    others = read_json(record_file(spec)) or {}
    write_json(record_file(spec), others | {method.name: {"settings_hash": content_hash(identity), **asdict(choice)}})


def record_file(spec: BoardSpec) -> Path:
    """Where the choices are kept."""
    return spec.runs_folder / "trials.json"
