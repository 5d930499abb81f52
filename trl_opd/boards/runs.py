"""The runs of a board: their folders, their commands, and what the stored files say about them.

    <board>/runs/<run>/identity.json              settings that the run was made with
    <board>/runs/<run>/state.json                 how its last attempt ended
    <board>/runs/<run>/lock                       held by whoever writes the folder
    <board>/runs/<run>/train/, train.log          the training run
    <board>/runs/<run>/evaluations/<key>/<benchmark>/, eval-<key>.log

The key of an evaluation is the benchmark and a hash of its settings: evaluating with other settings adds a folder
beside the old one. A training run with other settings is refused instead: it would resume from a foreign checkpoint.
"""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_opd.boards.files import content_hash, read_json, write_json
from trl_opd.boards.spec import BASE_RUN, BoardSpec, EvaluationSpec, MethodSpec, read_yaml
from trl_opd.errors import UserError

FINISHED, FAILED, UNFINISHED, MISSING = "finished", "failed", "unfinished", "missing"
TRAIN, EVAL = "train", "eval"


@dataclass(frozen=True)
class Stage:
    """One subprocess of a run: `trl-opd train` or `trl-opd eval`, writing `folder` and logging to `log`."""

    kind: str
    folder: Path
    log: Path
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command to copy."""
        return shlex.join(("trl-opd", *self.arguments))

    def is_finished(self) -> bool:
        if self.kind == EVAL:
            return read_json(self.folder / "summary.json") is not None
        stored = read_json(self.folder / "run.json") or {}
        return stored.get("status") == FINISHED and (self.folder / "model").is_dir()


@dataclass(frozen=True)
class Run:
    """One training run and its evaluation; the untrained base has no method, no seed and no training stage."""

    name: str
    method: MethodSpec | None
    seed: int | None
    folder: Path
    stages: tuple[Stage, ...]
    identity: dict[str, Any]

    def next_stage(self) -> Stage | None:
        """The first stage that is not finished."""
        return next((stage for stage in self.stages if not stage.is_finished()), None)

    @property
    def lock_file(self) -> Path:
        return self.folder / "lock"


@dataclass(frozen=True)
class Status:
    """What the stored files say: `state` is one of finished, failed, unfinished, missing."""

    state: str
    stage: str | None = None
    error: str | None = None


def plan_runs(spec: BoardSpec) -> list[Run]:
    """Every run of the board: the base, then seed by seed, so that a partial board already compares all methods."""
    base = spec.runs_folder / BASE_RUN
    stages = (_evaluation(base, spec.base_model, spec.evaluation),)
    runs = [Run(BASE_RUN, None, None, base, stages, {"base_model": spec.base_model})]
    return runs + [_training_run(spec, method, seed) for seed in spec.seeds for method in spec.methods]


def status_of(run: Run) -> Status:
    """State of a run from its files alone."""
    stage = run.next_stage()
    if stage is None:
        return Status(FINISHED)
    attempt = read_json(run.folder / "state.json")
    if attempt is None:
        return Status(UNFINISHED if stage.folder.exists() else MISSING, stage.kind)
    if attempt["status"] == FAILED:
        return Status(FAILED, attempt["stage"], attempt["error"])
    return Status(UNFINISHED, stage.kind)


def record_attempt(run: Run, status: str, stage: str, error: str | None = None) -> None:
    """Note beside the run how an attempt stands: running or failed."""
    write_json(run.folder / "state.json", {"status": status, "stage": stage, "error": error})


def check_identity(run: Run) -> None:
    """Refuse a folder that holds a run with other settings.

    Raises:
        UserError: naming the settings that differ.
    """
    stored = read_json(run.folder / "identity.json")
    if stored is None:
        if any(stage.kind == TRAIN and stage.folder.exists() for stage in run.stages):
            raise UserError(
                f"{run.folder} holds a run that no board made: move it away, or set another `output_dir` in the spec."
            )
        return
    if stored != run.identity:
        different = [key for key in sorted(stored.keys() | run.identity) if stored.get(key) != run.identity.get(key)]
        raise UserError(
            f"{run.folder} was made with other settings ({', '.join(different)}): move the folder away to run it "
            "again, or give the changed method another `name`, or set another `output_dir`."
        )


def write_identity(run: Run) -> None:
    write_json(run.folder / "identity.json", run.identity)


def _training_run(spec: BoardSpec, method: MethodSpec, seed: int) -> Run:
    name = f"{method.name}-seed{seed}"
    folder = spec.runs_folder / name
    overrides = [part for key, value in method.overrides.items() for part in (f"--{key}", _shown(value))]
    arguments = ("train", method.method, "--config", _short(method.recipe), "--output_dir", _short(folder / "train"))
    train = Stage(TRAIN, folder / "train", folder / "train.log", (*arguments, "--seed", str(seed), *overrides))
    identity = {
        "base_model": spec.base_model,
        "method": method.method,
        "seed": seed,
        "recipe": _plain(read_yaml(method.recipe)),
        "overrides": method.overrides,
    }
    evaluation = _evaluation(folder, _short(folder / "train" / "model"), spec.evaluation)
    return Run(name, method, seed, folder, (train, evaluation), identity)


def _evaluation(run_folder: Path, model: str, evaluation: EvaluationSpec) -> Stage:
    settings = dataclasses.asdict(dataclasses.replace(evaluation, data_dir=None))
    key = f"{evaluation.benchmark}-{content_hash(settings)[:8]}"
    output_dir = run_folder / "evaluations" / key
    arguments = ("eval", "--model", model, "--output_dir", _short(output_dir), *evaluation.arguments())
    return Stage(EVAL, output_dir / evaluation.benchmark, run_folder / f"eval-{key}.log", arguments)


def _short(path: Path) -> str:
    """Relative to the working folder where it lies below it: a published command names no machine."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _shown(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    """YAML dates and the like as text, so that a recipe read again equals the stored one."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
