"""The board's YAML: read, checked whole before anything starts, and turned into dataclasses."""

import dataclasses
import difflib
import re
import types
import typing
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trl_opd.errors import UserError
from trl_opd.evals.suites import load_suite
from trl_opd.methods import method as find_method

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SET_BY_THE_BOARD = ("config", "output_dir", "seed")
BASE_RUN = "base"


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
    """

    name: str
    method: str
    recipe: Path
    overrides: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationSpec:
    """How every final model, and the untrained base, is evaluated; None leaves the harness's own default.

    Args:
        benchmark (`str`):
            Benchmark name, as `trl-opd eval` knows it.
        n (`int`, *optional*):
            Answers sampled for each problem.
        seed (`int`):
            Sampling seed of the evaluation, the same for all.
        limit (`int`, *optional*):
            Only the first problems.
        max_new_tokens (`int`, *optional*):
            Longest answer.
        data_dir (`Path`, *optional*):
            Folder of the benchmark's data, where it does not come with the package.
    """

    benchmark: str
    n: int | None = None
    seed: int = 0
    limit: int | None = None
    max_new_tokens: int | None = None
    data_dir: Path | None = None

    def arguments(self) -> list[str]:
        """The evaluation's command-line arguments, without the model and the folder."""
        given = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return [part for key, value in given.items() for part in (f"--{key}", str(value))]


@dataclass(frozen=True)
class BoardSpec:
    """A board.

    Args:
        name (`str`):
            Name of the board and of its folder.
        title (`str`), description (`str`):
            Heading and first paragraph of the page.
        base_model (`str`):
            The model that every recipe starts from; it is evaluated untrained.
        methods (`list[MethodSpec]`):
            Lines of the board.
        seeds (`list[int]`):
            Training seeds of every method.
        baseline (`str`):
            Name of the method that differences are taken to.
        evaluation (`EvaluationSpec`):
            How the final models are evaluated.
        workers (`int`):
            Runs at a time.
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
    methods: list[MethodSpec]
    seeds: list[int]
    baseline: str
    evaluation: EvaluationSpec
    workers: int = 1
    environment: dict[str, str] = field(default_factory=lambda: {"OMP_NUM_THREADS": "1"})
    output_dir: Path | None = None
    path: Path = Path()

    @property
    def folder(self) -> Path:
        return self.output_dir or self.path.parent / self.name

    @property
    def runs_folder(self) -> Path:
        return self.folder / "runs"


def load_spec(path: str | Path) -> BoardSpec:
    """Read and check a spec.

    Raises:
        UserError: on a missing or unreadable file, an unknown or missing key, a value of the wrong type, a name that
            is given twice, a recipe that is not there, or a recipe that starts from another model.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no board spec {path}: give the path of a YAML file such as leaderboards/arithmetic.yaml."
        )
    raw = read_yaml(path)
    if "path" in raw:
        raise UserError(f"{path}: unknown key `path`; a spec need not say where it lies.")
    raw["path"] = path.resolve()
    methods = raw.get("methods")
    if not isinstance(methods, list) or not methods:
        raise UserError(f"{path}: `methods` must list at least one method.")
    raw["methods"] = [_build(MethodSpec, method, f"{path}: methods[{i}]") for i, method in enumerate(methods)]
    if "evaluation" in raw:
        raw["evaluation"] = _build(EvaluationSpec, raw["evaluation"], f"{path}: evaluation")
    spec = _resolved(_build(BoardSpec, raw, str(path)))
    _check(spec)
    return spec


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: if it is not YAML or not a mapping.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold `key: value` lines.")
    return raw


def _build(cls: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise UserError(f"{where} must hold `key: value` lines.")
    hints = typing.get_type_hints(cls)
    fields = {one.name: one for one in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(sorted(fields))}."
            raise UserError(f"{where}: unknown key `{key}`; {hint}")
    for name, one in fields.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise UserError(f"{where}: the key `{name}` is missing.")
    return cls(**{key: _typed(value, hints[key], f"{where}: `{key}`") for key, value in raw.items()})


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` wants it; a YAML integer is not taken for a truth value, nor the other way round."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list and isinstance(value, list):
        return [_typed(item, arguments[0], where) for item in value]
    if origin is dict and isinstance(value, dict):
        return {_typed(k, arguments[0], where): _typed(v, arguments[1], where) for k, v in value.items()}
    allowed = arguments if origin is types.UnionType else (origin or hint,)
    if type(value) in allowed:
        return value
    if Path in allowed and isinstance(value, str | Path):
        return Path(value)
    names = " or ".join("nothing" if one is type(None) else one.__name__ for one in allowed)
    raise UserError(f"{where} must be {names}, not {value!r}.")


def _resolved(spec: BoardSpec) -> BoardSpec:
    folder = spec.path.parent
    methods = [dataclasses.replace(one, recipe=_found(one.recipe, folder, one.name)) for one in spec.methods]
    evaluation = spec.evaluation
    if evaluation.data_dir is not None:
        evaluation = dataclasses.replace(evaluation, data_dir=_found(evaluation.data_dir, folder, "evaluation"))
    output_dir = spec.output_dir and (folder / spec.output_dir).resolve()
    return dataclasses.replace(spec, methods=methods, evaluation=evaluation, output_dir=output_dir)


def _found(path: Path, folder: Path, owner: str) -> Path:
    """`path` beside the spec or in the nearest folder above it that has it."""
    for parent in (folder, *folder.parents):
        if (parent / path).exists():
            return (parent / path).resolve()
    raise UserError(f"{owner}: there is no {path}, neither beside the spec in {folder} nor in a folder above it.")


def _check(spec: BoardSpec) -> None:
    where = spec.path.name
    names = [method.name for method in spec.methods]
    for name in (spec.name, spec.evaluation.benchmark, *names):
        if not NAME.fullmatch(name):
            raise UserError(f"{where}: the name {name!r} becomes a folder: use letters, digits, `.`, `_` and `-`.")
    _check_unique(names, f"{where}: the method name", "give each line of the board its own `name`")
    _check_unique(spec.seeds, f"{where}: the seed", "a seed that is run twice is one result, not two")
    if BASE_RUN in names:
        raise UserError(f"{where}: the name `{BASE_RUN}` stands for the untrained model: give the method another one.")
    if not spec.seeds:
        raise UserError(f"{where}: `seeds` is empty: list at least one, better three.")
    if spec.workers < 1:
        raise UserError(f"{where}: `workers` is {spec.workers}: with fewer than one nothing would ever run.")
    if spec.evaluation.n is not None and spec.evaluation.n < 1:
        raise UserError(f"{where}: evaluation `n` is {spec.evaluation.n}: sample at least one answer for each problem.")
    if spec.evaluation.limit is not None and spec.evaluation.limit < 2:
        raise UserError(f"{where}: evaluation `limit` is {spec.evaluation.limit}: statistics need two.")
    load_suite(spec.evaluation.benchmark)
    if spec.baseline not in names:
        near = difflib.get_close_matches(spec.baseline, names, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"methods are {', '.join(names)}."
        raise UserError(f"{where}: the baseline `{spec.baseline}` is none of the methods; {hint}")
    for method in spec.methods:
        _check_method(spec, method)


def _check_method(spec: BoardSpec, method: MethodSpec) -> None:
    find_method(method.method)
    if not method.recipe.is_file():
        raise UserError(f"{method.name}: the recipe {method.recipe} is a folder, not a YAML file.")
    for key in SET_BY_THE_BOARD:
        if key in method.overrides:
            raise UserError(f"{method.name}: `{key}` is set by the board for each run: take it out of `overrides`.")
    settings = read_yaml(method.recipe) | method.overrides
    model = settings.get("model_name_or_path", spec.base_model)
    if model != spec.base_model:
        raise UserError(
            f"{method.name} would train {model}, but the board compares methods on {spec.base_model}: "
            "use a recipe for that model, or another board."
        )


def _check_unique(values: list, what: str, remedy: str) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise UserError(f"{what} {value} is given {count} times: {remedy}.")
