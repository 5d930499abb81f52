"""The runs of a board: their folders, their commands, and what the stored files say about them.

    <board>/runs/trials.json                      learning rates that the trials chose
    <board>/runs/<run>/identity.json              settings that the run was made with
    <board>/runs/<run>/state.json                 its attempts and how they ended (`attempts`)
    <board>/runs/<run>/lock                       held by whoever writes the folder
    <board>/runs/<run>/train/, train.log          the training run, with its checkpoints and its validation
    <board>/runs/<run>/evaluations/<key>/<benchmark>/, eval-<key>.log
    <board>/runs/<run>/evaluations-best/<key>/<benchmark>/, eval-best-<key>.log

The key of an evaluation is the benchmark and a hash of its settings: evaluating with other settings adds a folder
beside the old one. A training run with other settings is refused instead: it would resume from a foreign checkpoint.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_opd.boards.choices import BEST, LAST, Choice, read_choice
from trl_opd.boards.commands import eval_arguments, model_options, train_arguments
from trl_opd.boards.files import content_hash, read_json, write_json
from trl_opd.boards.spec import BASE_RUN, BoardSpec, EvaluationSpec, MethodSpec
from trl_opd.boards.training_rows import fingerprint
from trl_opd.errors import UserError
from trl_opd.evals.files import read_yaml
from trl_opd.state import best_step

FINISHED, FAILED, UNFINISHED, MISSING, WAITING = "finished", "failed", "unfinished", "missing", "waiting"
TRAIN, EVAL = "train", "eval"
BASE, TRIAL, FINAL = "base", "trial", "final"


@dataclass(frozen=True)
class Stage:
    """One subprocess of a run: `trl-opd train` or `trl-opd eval`, writing `folder` and logging to `log`.

    Args:
        kind (`str`):
            "train" or "eval".
        folder (`Path`), log (`Path`), arguments (`tuple[str, ...]`):
            Where it writes, and how it is called.
        entry (`EvaluationSpec`, *optional*):
            What an evaluation evaluates.
        checkpoint (`str`):
            Which checkpoint it evaluates: "last" or "best".
        processes (`int`):
            How many processes train together, each on a device of its own.
    """

    kind: str
    folder: Path
    log: Path
    arguments: tuple[str, ...]
    entry: EvaluationSpec | None = None
    checkpoint: str = LAST
    processes: int = 1

    @property
    def command(self) -> str:
        """The command to copy."""
        torchrun = ("torchrun", "--standalone", "--nproc_per_node", str(self.processes), "--no-python")
        return shlex.join((*(torchrun if self.processes > 1 else ()), "trl-opd", *self.arguments))

    def is_finished(self) -> bool:
        if self.kind == EVAL:
            return read_json(self.folder / "summary.json") is not None
        stored = read_json(self.folder / "run.json") or {}
        return stored.get("status") == FINISHED and (self.folder / "model").is_dir()


@dataclass(frozen=True)
class Run:
    """A run of the board.

    Args:
        name (`str`):
            Its name, which is that of its folder.
        role (`str`):
            "base" (the untrained model: no method, no seed, no training), "trial" (a learning-rate trial: validated
            only) or "final".
        method (`MethodSpec`, *optional*), seed (`int`, *optional*), learning_rate (`float`, *optional*):
            What is trained; the rate is None where it is the recipe's, or not chosen yet.
        folder (`Path`), stages (`tuple[Stage, ...]`):
            Where, and in which subprocesses. A finished training may add stages: the best checkpoint's evaluations.
        identity (`dict`):
            What the run is made with; another run's folder is refused.
        waiting_for (`tuple[str, ...]`):
            Names of the trials that are to be settled first; there are no stages until then.
        blocked (`str`, *optional*):
            Why this run, which failed or could not begin, is not tried again.
    """

    name: str
    role: str
    method: MethodSpec | None
    seed: int | None
    learning_rate: float | None
    folder: Path
    stages: tuple[Stage, ...]
    identity: dict[str, Any]
    waiting_for: tuple[str, ...] = ()
    blocked: str | None = None

    def next_stage(self) -> Stage | None:
        """The first stage that is not finished; None where there is nothing to do, or nothing to do yet."""
        if self.blocked is not None or self.waiting_for:
            return None
        return next((stage for stage in self.stages if not stage.is_finished()), None)

    @property
    def lock_file(self) -> Path:
        return self.folder / "lock"

    @property
    def train_folder(self) -> Path:
        return self.folder / "train"


@dataclass(frozen=True)
class Status:
    """What the stored files say: `state` is one of finished, failed, unfinished, missing, waiting."""

    state: str
    stage: str | None = None
    error: str | None = None


def plan_runs(spec: BoardSpec) -> list[Run]:
    """Every run of the board as the files stand now: the base, the trials, then the final runs seed by seed, so that a
    partial board already compares all methods. Cheap: ask again after every stage.
    """
    base = spec.runs_folder / BASE_RUN
    stages = tuple(_evaluation(spec, entry, base, {"model": spec.base_model}) for entry in spec.evaluation)
    runs = [Run(BASE_RUN, BASE, None, None, None, base, stages, {"base_model": spec.base_model})]
    trials = {method.name: trial_runs(spec, method) for method in spec.methods}
    runs += [trial for line in trials.values() for trial in line]
    return runs + [
        _final_run(spec, method, seed, trials[method.name]) for seed in spec.seeds for method in spec.methods
    ]


def trial_runs(spec: BoardSpec, method: MethodSpec) -> list[Run]:
    """The learning-rate trials of a method; once its rate is chosen, a trial that failed stays so."""
    choice = choice_of(spec, method)
    settled = choice is not None and choice.learning_rate is not None
    errors = {trial.run: trial.error for trial in choice.trials if trial.status == FAILED} if settled else {}
    runs = []
    for rate in spec.learning_rates(method):
        name = f"trial-{method.name}-lr{rate:g}"
        folder = spec.runs_folder / name
        identity = _identity(spec, method, spec.trials.seed, rate)
        stages = (_training(spec, method, folder, spec.trials.seed, rate),)
        runs.append(
            Run(name, TRIAL, method, spec.trials.seed, rate, folder, stages, identity, blocked=errors.get(name))
        )
    return runs


def choice_of(spec: BoardSpec, method: MethodSpec) -> Choice | None:
    """What the method's trials chose; None while they are not settled, or where there are none."""
    return read_choice(spec, method, trials_identity(spec, method)) if spec.trials is not None else None


def trials_identity(spec: BoardSpec, method: MethodSpec) -> dict[str, Any]:
    """What a method's trials are made with, all of them together, and the rule that judges them."""
    identity = _identity(spec, method, spec.trials.seed, None)
    return identity | {"learning_rates": spec.learning_rates(method), "rule": spec.checkpoint.rule}


def status_of(run: Run) -> Status:
    """State of a run from its files alone."""
    if run.blocked is not None:
        return Status(FAILED, TRAIN, run.blocked)
    if run.waiting_for:
        return Status(WAITING)
    stage = run.next_stage()
    if stage is None:
        return Status(FINISHED)
    attempt = read_json(run.folder / "state.json")
    if attempt is None:
        return Status(UNFINISHED if stage.folder.exists() else MISSING, stage.kind)
    if attempt["status"] == FAILED:
        return Status(FAILED, attempt["stage"], attempt["error"])
    return Status(UNFINISHED, stage.kind)


def validation_of(run: Run) -> list[tuple[int, float]]:
    """Validation accuracy by step of a run whose training is finished; empty without a validation set."""
    stored = read_json(run.train_folder / "run.json") or {}
    return [(int(step), float(accuracy)) for step, accuracy in stored.get("validation", [])]


def check_identity(run: Run) -> None:
    """Refuse a folder that holds a run with other settings.

    Raises:
        UserError: naming the settings that differ.
    """
    if run.waiting_for:
        return
    stored = read_json(run.folder / "identity.json")
    if stored is None:
        if any(stage.kind == TRAIN and stage.folder.exists() for stage in run.stages):
            raise UserError(
                f"{run.folder} holds a run that no board made: move it away, or set another `output_dir` in the spec."
            )
        return
    different = [key for key in sorted(stored.keys() | run.identity) if stored.get(key) != run.identity.get(key)]
    if "rows" in different and run.identity["rows"].get("sha256", "") is None:
        different.remove("rows")  # the file is not at hand: nothing can be trained, and the run says on what it was
    if different:
        raise UserError(
            f"{run.folder} was made with other settings ({', '.join(different)}): move the folder away to run it "
            "again, or give the changed method another `name`, or set another `output_dir`."
        )


def write_identity(run: Run) -> None:
    write_json(run.folder / "identity.json", run.identity)


def _final_run(spec: BoardSpec, method: MethodSpec, seed: int, trials: list[Run]) -> Run:
    name = f"{method.name}-seed{seed}"
    folder = spec.runs_folder / name
    choice = choice_of(spec, method)
    rate = choice and choice.learning_rate
    identity = _identity(spec, method, seed, rate)
    if trials and rate is None:
        every = tuple(trial.name for trial in trials)
        failed = choice is not None and all(status_of(trial).state == FAILED for trial in trials)
        blocked = f"all its trials failed: {choice.trials[-1].error}" if failed else None
        return Run(name, FINAL, method, seed, None, folder, (), identity, every, blocked)
    train = _training(spec, method, folder, seed, rate)
    stages = (train, *_evaluations(spec, method, folder, train))
    return Run(name, FINAL, method, seed, rate, folder, stages, identity)


def _training(spec: BoardSpec, method: MethodSpec, folder: Path, seed: int, rate: float | None) -> Stage:
    arguments = train_arguments(spec, method, folder / "train", seed, rate)
    processes = max(spec.launch.gpus_per_run, 1)
    return Stage(TRAIN, folder / "train", folder / "train.log", arguments, processes=processes)


def _evaluations(spec: BoardSpec, method: MethodSpec, folder: Path, train: Stage) -> list[Stage]:
    """The suite on the checkpoint that the board's rule picks, and the primary benchmark on the other one.

    They are the same where the last checkpoint is the best. Which is the best is known once training is finished.
    """
    last, best = train.folder / "model", _best_model(spec, train)
    models = {LAST: model_options(spec, method, last)}
    if best is None:
        return [_evaluation(spec, entry, folder, models[LAST]) for entry in spec.evaluation]
    published, other = (BEST, LAST) if spec.checkpoint.rule == BEST else (LAST, BEST)
    models[BEST] = model_options(spec, method, best)
    stages = [_evaluation(spec, entry, folder, models[published], published) for entry in spec.evaluation]
    return [*stages, _evaluation(spec, spec.primary, folder, models[other], other)]


def _best_model(spec: BoardSpec, train: Stage) -> Path | None:
    """The best checkpoint of a finished training where it is not the last."""
    stored = read_json(train.folder / "run.json") or {}
    if spec.validation is None or not train.is_finished():
        return None
    best = best_step(stored.get("validation", []))
    return None if best in (None, stored["steps"]) else train.folder / f"checkpoint-{best}"


def _evaluation(
    spec: BoardSpec, entry: EvaluationSpec, run_folder: Path, model: dict[str, str], checkpoint: str = LAST
) -> Stage:
    key = f"{entry.benchmark}-{content_hash(entry.settings() | spec.drawing)[:8]}"
    output_dir = run_folder / ("evaluations" if checkpoint == LAST else f"evaluations-{checkpoint}") / key
    log = run_folder / (f"eval-{key}.log" if checkpoint == LAST else f"eval-{checkpoint}-{key}.log")
    arguments = eval_arguments(spec, entry, model, output_dir)
    return Stage(EVAL, output_dir / entry.benchmark, log, arguments, entry, checkpoint)


def _identity(spec: BoardSpec, method: MethodSpec, seed: int, rate: float | None) -> dict[str, Any]:
    """What a training run is made with; where the rows lie is not part of it, what they are is.

    Several processes take a batch each, so that their number is part of it where it is not 1.
    """
    processes = spec.launch.gpus_per_run
    validation = spec.validation and spec.validation.settings() | {"every": spec.checkpoint.every}
    return {
        "base_model": spec.base_model,
        "method": method.method,
        "seed": seed,
        "learning_rate": rate,
        "recipe": _plain(read_yaml(method.recipe)),
        "overrides": method.overrides,
        "data": {key: value for key, value in _plain(spec.data).items() if key != "dataset_name"},
        "rows": fingerprint(spec.data),
        "budget": {"unit": spec.budget.unit, "value": spec.budget.value},
        "validation": validation,
        **({"processes": processes} if processes > 1 else {}),
    }


def _plain(value: Any) -> Any:
    """YAML dates and the like as text, so that a recipe read again equals the stored one."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
