"""The board's YAML: read, checked whole before anything starts, and turned into dataclasses.

What only the trainer's own configurations can tell (an option that a method does not have, a method without its
teacher, unequal batches) is checked by `trl_opd.cli.board_check`, since boards know training by its command line alone.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_opd.boards.launch.settings import LaunchSpec
from trl_opd.boards.records import build
from trl_opd.errors import UserError
from trl_opd.evals.files import read_yaml
from trl_opd.recipes import recipes
from trl_opd.suggest import suggest

BASE_RUN = "base"

PURPOSES = ("primary", "secondary", "pass_at_k", "forgetting")
KINDS = ("method", "baseline", "reference")
UNITS = ("steps", "generated_tokens", "seconds")
RULES = ("last", "best")
ENGINES = ("transformers", "vllm")

Scalar = str | int | float | bool


@dataclass(frozen=True)
class MethodSpec:
    """One line of the board.

    Args:
        name (`str`):
            Name on the board and of the run folders; two lines may train the same method with other settings.
        method (`str`):
            The method that `trl-opd train` is called with.
        recipe (`Path`):
            Recipe file; looked for beside the spec and then in each folder above it.
        overrides (`dict`):
            Settings laid over the recipe, passed as `--key value`.
        kind (`str`):
            `method`, `baseline`, or `reference` for what is shown but is no on-policy method.
        label (`str`, *optional*):
            What the page calls it; default: the name.
        learning_rates (`list[float]`, *optional*):
            The line's own rates for the board's trials, as many as the other lines have.
    """

    name: str
    method: str
    recipe: Path
    overrides: dict[str, Scalar] = field(default_factory=dict)
    kind: str = "method"
    label: str | None = None
    learning_rates: list[float] | None = None

    def settings(self) -> dict[str, Any]:
        """The recipe with the overrides laid over it."""
        return read_yaml(self.recipe) | self.overrides

    @property
    def trains_an_adapter(self) -> bool:
        """Whether a run's model is an adapter of the base model."""
        return self.settings().get("use_peft") is True


@dataclass(frozen=True)
class BudgetSpec:
    """What every run may spend, the same for all.

    Args:
        unit (`str`):
            `steps` of the optimizer, `generated_tokens`, or `seconds` of training without validation.
        value (`int` or `float`):
            How many.
    """

    unit: str
    value: int | float


@dataclass(frozen=True)
class TrialsSpec:
    """Learning-rate trials: one run for each method and rate, judged by validation alone.

    Args:
        learning_rates (`list[float]`):
            The rates.
        seed (`int`):
            Their training seed; none of the board's own, so that no published run was chosen by its luck.
    """

    learning_rates: list[float]
    seed: int = 100


@dataclass(frozen=True)
class ValidationSpec:
    """Held-out problems for the choice of learning rates and checkpoints; None leaves the harness's own default. They
    are sampled with the training run's seed.

    Args:
        benchmark (`str`):
            Benchmark name, as `trl-opd eval` knows it; none of the evaluation suite.
        n (`int`, *optional*):
            Answers sampled for each problem.
        limit (`int`, *optional*):
            Only the first problems.
        max_new_tokens (`int`, *optional*):
            Longest answer.
        data_dir (`Path`, *optional*):
            Folder of the benchmark's data, where it does not come with the package.
    """

    benchmark: str
    n: int | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    data_dir: Path | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the result: all but where the data lie and what the result is for."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in ("data_dir", "purpose")}


@dataclass(frozen=True)
class EvaluationSpec(ValidationSpec):
    """One entry of the suite that every final model, and the untrained base, is evaluated on.

    Args:
        seed (`int`):
            Sampling seed, the same for all models.
        purpose (`str`):
            `primary` (what the board compares by, exactly one), `secondary`, `pass_at_k` or `forgetting`.
        chat_template_kwargs (`dict`, *optional*):
            Variables for the chat template, such as `enable_thinking: false`; validation has those of the training.
    """

    seed: int = 0
    purpose: str = "primary"
    chat_template_kwargs: dict[str, Scalar] | None = None

    def settings(self) -> dict[str, Any]:
        """As its base has it."""
        found = super().settings()
        if self.chat_template_kwargs is None:
            del found["chat_template_kwargs"]
        return found


@dataclass(frozen=True)
class CheckpointSpec:
    """Which checkpoint of a run is published.

    Args:
        rule (`str`):
            `last`, or `best` by validation.
        every (`int`, *optional*):
            Steps between checkpoints that are saved and validated; needed where there is a validation set.
    """

    rule: str = "last"
    every: int | None = None


@dataclass(frozen=True)
class BoardSpec:
    """A board.

    Args:
        name (`str`):
            Name of the board and of its folder.
        title (`str`), description (`str`):
            Heading and first paragraph of the page.
        base_model (`str`):
            The model that every run starts from; it is evaluated untrained.
        data (`dict`):
            The training rows, as keys of `trl_opd.data.DataArguments`: the same for every method.
        budget (`BudgetSpec`):
            What every run may spend.
        methods (`list[MethodSpec]`):
            Lines of the board.
        baseline (`str`):
            Name of the method that differences are taken to.
        seeds (`list[int]`):
            Training seeds of every method.
        evaluation (`list[EvaluationSpec]`):
            The suite.
        trials (`TrialsSpec`, *optional*):
            Learning-rate trials; without them the rates are those of the recipes.
        validation (`ValidationSpec`, *optional*):
            The held-out problems, needed by the trials and by the checkpoint rule `best`.
        checkpoint (`CheckpointSpec`):
            Which checkpoint is published.
        notes (`list[str]`):
            Caveats, printed with the table and on the page.
        engine (`str`):
            What draws the answers of the evaluations: `transformers` or `vllm`.
        dtype (`str`, *optional*):
            Precision of the evaluations; None leaves the engine's own.
        launch (`LaunchSpec`):
            Where the runs are launched, and how many at a time.
        environment (`dict[str, str]`):
            Environment variables of every run, beside the caller's own.
        output_dir (`Path`, *optional*):
            Folder of the runs and of the page; default: beside the spec, under the board's name.
        path (`Path`):
            The spec file itself (not a key of it).
    """

    name: str
    title: str
    description: str
    base_model: str
    data: dict[str, Any]
    budget: BudgetSpec
    methods: list[MethodSpec]
    baseline: str
    seeds: list[int]
    evaluation: list[EvaluationSpec]
    trials: TrialsSpec | None = None
    validation: ValidationSpec | None = None
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    notes: list[str] = field(default_factory=list)
    engine: str = "transformers"
    dtype: str | None = None
    launch: LaunchSpec = field(default_factory=LaunchSpec)
    environment: dict[str, str] = field(default_factory=lambda: {"OMP_NUM_THREADS": "1"})
    output_dir: Path | None = None
    path: Path = Path()

    @property
    def drawing(self) -> dict[str, str]:
        """How the answers of the evaluations are drawn: the same for all of the board."""
        return {"engine": self.engine} | ({} if self.dtype is None else {"dtype": self.dtype})

    @property
    def folder(self) -> Path:
        return self.output_dir or self.path.parent / self.name

    @property
    def runs_folder(self) -> Path:
        return self.folder / "runs"

    @property
    def primary(self) -> EvaluationSpec:
        """The entry of the suite that the board compares by."""
        return next(entry for entry in self.evaluation if entry.purpose == "primary")

    def benchmark_key(self, entry: ValidationSpec) -> str:
        """How results name an entry: its benchmark, with the purpose where the suite holds the benchmark twice."""
        same = [one for one in self.evaluation if one.benchmark == entry.benchmark]
        if len(same) < 2 or entry.purpose == "primary":
            return entry.benchmark
        return f"{entry.benchmark}/{entry.purpose}"

    def learning_rates(self, method: MethodSpec) -> list[float]:
        """The rates that are tried for a method; none where the board has no trials."""
        return [] if self.trials is None else method.learning_rates or self.trials.learning_rates


def load_spec(path: str | Path) -> BoardSpec:
    """Read and check a spec.

    Raises:
        UserError: on a missing or unreadable file, an unknown or missing key, a value of the wrong type, a name that
            is given twice, a recipe that is not there, or settings that make the comparison unfair.
    """
    from trl_opd.boards.spec_checks import check_spec  # which reads the records above

    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no board spec {path}: give the path of a YAML file such as leaderboards/arithmetic.yaml."
        )
    raw = read_yaml(path)
    if "path" in raw:
        raise UserError(f"{path}: unknown key `path`; a spec need not say where it lies.")
    spec = _resolved(build(BoardSpec, raw | {"path": path.resolve()}, str(path)))
    check_spec(spec)
    return spec


def _resolved(spec: BoardSpec) -> BoardSpec:
    folder = spec.path.parent
    methods = [dataclasses.replace(one, recipe=_recipe(one.recipe, folder, one.name)) for one in spec.methods]
    evaluation = [_with_data(entry, folder) for entry in spec.evaluation]
    validation = spec.validation and _with_data(spec.validation, folder)
    output_dir = spec.output_dir and (folder / spec.output_dir).resolve()
    return dataclasses.replace(
        spec, methods=methods, evaluation=evaluation, validation=validation, output_dir=output_dir
    )


def _with_data(entry: ValidationSpec, folder: Path) -> ValidationSpec:
    """A folder that is not there stays as it is written: a board is reported and verified where its data are not."""
    return dataclasses.replace(entry, data_dir=entry.data_dir and (_nearest(entry.data_dir, folder) or entry.data_dir))


def _recipe(path: Path, folder: Path, owner: str) -> Path:
    """A file, or what ships under that name, such as `testbed/sdpo`; a file comes first, as after `--config`."""
    shipped = {recipe.name: recipe.path for recipe in recipes()}
    found = _nearest(path, folder) or shipped.get(str(path))
    if found is None:
        raise UserError(f"{owner}: there is no {path}, {_nowhere(folder)}{suggest(str(path), shipped)}.")
    return found


def check_data_folders(spec: BoardSpec) -> None:
    """Refuse a board whose evaluations could not find their problems; to be called before anything is run.

    Raises:
        UserError: naming the folder that is not there.
    """
    for owner, entry in [("validation", spec.validation), *(("evaluation", one) for one in spec.evaluation)]:
        if entry is not None and entry.data_dir is not None and not entry.data_dir.is_dir():
            raise UserError(f"{owner}: there is no folder {entry.data_dir}, {_nowhere(spec.path.parent)}.")


def _nearest(path: Path, folder: Path) -> Path | None:
    """`path` beside the spec, or in the nearest folder above it that has it."""
    return next(((parent / path).resolve() for parent in (folder, *folder.parents) if (parent / path).exists()), None)


def _nowhere(folder: Path) -> str:
    return f"neither beside the spec in {folder} nor in a folder above it"
