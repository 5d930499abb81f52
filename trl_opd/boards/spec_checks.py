"""What a spec is refused for by itself: names, settings that would make the comparison unfair, missing halves."""

import dataclasses
import math
import re
import typing
from collections import Counter
from typing import Any

from trl_opd.boards.commands import BUDGET_OPTIONS, board_options
from trl_opd.boards.records import nearest, typed
from trl_opd.boards.spec import (
    BASE_RUN,
    ENGINES,
    KINDS,
    PURPOSES,
    RULES,
    UNITS,
    BoardSpec,
    EvaluationSpec,
    MethodSpec,
    ValidationSpec,
)
from trl_opd.data import DataArguments
from trl_opd.defaults import default_of
from trl_opd.errors import UserError
from trl_opd.evals.engines import DTYPES
from trl_opd.evals.suites import load_suite
from trl_opd.methods import method as find_method

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: What the board sets for each run, so that an override of it would do nothing.
SET_FOR_EACH_RUN = ("config", "output_dir", "seed", "resume_from_checkpoint")

#: What the options of a run's own validation begin with.
VALIDATION_OPTIONS = "eval_suite"
MAIN_REVISION = "main"

#: Keys of `DataArguments` in which methods may differ: they say what is learned from, not which rows.
FREE_OF_DATA = ("reward_funcs",)


def check_spec(spec: BoardSpec) -> None:
    """Refuse a spec that cannot work, or that would not compare like with like.

    Raises:
        UserError: naming the key and the remedy.
    """
    _check_names(spec)
    _check_choices(spec)
    _check_data(spec)
    _check_budget(spec)
    _check_suite(spec)
    _check_validation(spec)
    _check_trials(spec)
    for method in spec.methods:
        _check_method(spec, method)


def _check_names(spec: BoardSpec) -> None:
    where = spec.path.name
    if not spec.methods:
        raise UserError(f"{where}: `methods` must list at least one method.")
    names = [method.name for method in spec.methods]
    for name in (spec.name, *names):
        if not NAME.fullmatch(name):
            raise UserError(f"{where}: the name {name!r} becomes a folder: use letters, digits, `.`, `_` and `-`.")
    _check_unique(names, f"{where}: the method name", "give each line of the board its own `name`")
    _check_unique(spec.seeds, f"{where}: the seed", "a seed that is run twice is one result, not two")
    if BASE_RUN in names:
        raise UserError(f"{where}: the name `{BASE_RUN}` stands for the untrained model: give the method another one.")
    if not spec.seeds:
        raise UserError(f"{where}: `seeds` is empty: list at least one, better three.")
    if spec.baseline not in names:
        raise UserError(
            f"{where}: the baseline `{spec.baseline}` is none of the methods; "
            f"{nearest(spec.baseline, names, 'methods are')}"
        )


def _check_choices(spec: BoardSpec) -> None:
    for what, value, known in (
        ("engine", spec.engine, ENGINES),
        ("dtype", spec.dtype, (None, *DTYPES)),
        ("budget: `unit`", spec.budget.unit, UNITS),
        ("checkpoint: `rule`", spec.checkpoint.rule, RULES),
        *((f"{method.name}: `kind`", method.kind, KINDS) for method in spec.methods),
        *((f"evaluation: `purpose` of {entry.benchmark}", entry.purpose, PURPOSES) for entry in spec.evaluation),
    ):
        if value not in known:
            raise UserError(f"{spec.path.name}: {what} is {value!r}; {nearest(str(value), known, 'choose one of')}")


def _check_data(spec: BoardSpec) -> None:
    where = f"{spec.path.name}: data"
    hints = typing.get_type_hints(DataArguments)
    for key, value in spec.data.items():
        if key not in hints:
            raise UserError(f"{where}: unknown key `{key}`; {nearest(key, hints, 'known are')}")
        typed(value, hints[key], f"{where}: `{key}`")
    if not spec.data.get("dataset_name"):
        raise UserError(f"{where}: `dataset_name` is missing: name the rows that every method is trained on.")


def _check_budget(spec: BoardSpec) -> None:
    where, budget, every = spec.path.name, spec.budget, spec.checkpoint.every
    if not (budget.value > 0 and math.isfinite(budget.value)):
        raise UserError(f"{where}: budget: `value` is {budget.value}: a run needs more than nothing.")
    if budget.unit != "seconds" and budget.value != int(budget.value):
        raise UserError(f"{where}: budget: `value` is {budget.value}: give a whole number of {budget.unit}.")
    if every is not None and every < 1:
        raise UserError(f"{where}: checkpoint: `every` is {every}: at least one step lies between two checkpoints.")
    if every is not None and budget.unit == "steps" and budget.value % every:
        raise UserError(
            f"{where}: checkpoint: `every` is {every}, which does not divide the budget of {budget.value} steps: the "
            "last checkpoint would not be validated; make it a divisor."
        )


def _check_suite(spec: BoardSpec) -> None:
    where = f"{spec.path.name}: evaluation"
    if not spec.evaluation:
        raise UserError(f"{where} is empty: list at least one benchmark.")
    for entry in spec.evaluation:
        _check_entry(entry, where)
    primary = [entry.benchmark for entry in spec.evaluation if entry.purpose == "primary"]
    if len(primary) != 1:
        raise UserError(
            f"{where}: {len(primary)} entries have `purpose: primary`{', the default' if primary else ''}: exactly one "
            "is what the board compares by; give the others secondary, pass_at_k or forgetting."
        )
    pairs = [(entry.benchmark, entry.purpose) for entry in spec.evaluation]
    for (benchmark, purpose), count in Counter(pairs).items():
        if count > 1:
            raise UserError(
                f"{where}: {benchmark} is listed {count} times as {purpose}: give the entries different purposes."
            )


def _check_entry(entry: ValidationSpec, where: str) -> None:
    if not NAME.fullmatch(entry.benchmark):
        raise UserError(f"{where}: `benchmark` is {entry.benchmark!r}: give a name that `trl-opd eval list` shows.")
    benchmarks = load_suite(entry.benchmark)
    if [one.name for one in benchmarks] != [entry.benchmark]:
        members = ", ".join(one.name for one in benchmarks)
        raise UserError(f"{where}: {entry.benchmark} is a suite: list its benchmarks one by one ({members}).")
    if entry.n is not None and entry.n < 1:
        raise UserError(f"{where}: `n` is {entry.n}: sample at least one answer for each problem.")
    if entry.limit is not None and entry.limit < 2:
        raise UserError(f"{where}: `limit` is {entry.limit}: statistics need two.")
    protocol = benchmarks[0].protocol
    if (entry.n or protocol.n) > 1 and protocol.temperature == 0:
        raise UserError(
            f"{where}: `n` is {entry.n}, but {entry.benchmark} decodes greedily and all answers would be the same: "
            "leave `n` at 1."
        )
    if entry.n is None and isinstance(entry, EvaluationSpec) and entry.purpose == "pass_at_k" and protocol.n < 2:
        raise UserError(f"{where}: {entry.benchmark} for pass_at_k needs `n`, more than 1.")


def _check_validation(spec: BoardSpec) -> None:
    where = spec.path.name
    if spec.validation is None:
        if spec.checkpoint.rule == "best":
            raise UserError(
                f"{where}: checkpoint: the rule `best` chooses by validation: name a held-out benchmark in "
                "`validation`, or use the rule `last`."
            )
        if spec.checkpoint.every is not None:
            raise UserError(f"{where}: checkpoint: `every` does nothing without `validation`: name one, or drop it.")
        if spec.trials is not None:
            raise UserError(
                f"{where}: `trials` are judged by validation: name a held-out benchmark in `validation`, or drop them."
            )
        return
    _check_entry(spec.validation, f"{where}: validation")
    if spec.checkpoint.every is None:
        raise UserError(
            f"{where}: checkpoint: set `every`, the steps between two checkpoints that are validated, since the last "
            "and the best are both reported where there is a validation set."
        )
    if spec.validation.benchmark in [entry.benchmark for entry in spec.evaluation]:
        raise UserError(
            f"{where}: {spec.validation.benchmark} is both `validation` and part of `evaluation`: what chooses must "
            "not be what is reported; validate on other problems."
        )


def _check_trials(spec: BoardSpec) -> None:
    where = f"{spec.path.name}: trials"
    own = [method.name for method in spec.methods if method.learning_rates is not None]
    if spec.trials is None:
        if own:
            raise UserError(f"{own[0]}: `learning_rates` do nothing on a board without `trials`: add them, or drop it.")
        return
    if spec.trials.seed in spec.seeds:
        raise UserError(
            f"{where}: `seed` {spec.trials.seed} is also one of the board's: a published run would have been chosen by "
            "its luck; use another seed."
        )
    count = len(spec.trials.learning_rates)
    for owner, rates in [(where, spec.trials.learning_rates)] + [
        (method.name, method.learning_rates) for method in spec.methods if method.learning_rates is not None
    ]:
        if len(rates) != count or not rates:
            raise UserError(
                f"{owner}: `learning_rates` has {len(rates)} values where the board tries {count} for each method: "
                "give every method as many, and at least one."
            )
        if not all(rate > 0 and math.isfinite(rate) for rate in rates):
            raise UserError(f"{owner}: `learning_rates` must all be positive, and are {rates}.")
        _check_unique([f"{rate:g}" for rate in rates], f"{owner}: the learning rate", "try each once")


def _check_method(spec: BoardSpec, method: MethodSpec) -> None:
    find_method(method.method)
    if not method.recipe.is_file():
        raise UserError(f"{method.name}: the recipe {method.recipe} is a folder, not a YAML file.")
    for key in SET_FOR_EACH_RUN:
        if key in method.overrides:
            raise UserError(f"{method.name}: `{key}` is set by the board for each run: take it out of `overrides`.")
    if spec.trials is not None and "learning_rate" in method.overrides:
        raise UserError(f"{method.name}: `learning_rate` is chosen by the trials: take it out of `overrides`.")
    _check_agreement(spec, method)


def _check_agreement(spec: BoardSpec, method: MethodSpec) -> None:
    """What a recipe or an override says of model, rows and budget must be what the board says, or nothing."""
    settings = method.settings()
    model = settings.get("model_name_or_path", spec.base_model)
    if model != spec.base_model:
        raise UserError(
            f"{method.name} would train {model}, but the board compares methods on {spec.base_model}: use a recipe for "
            "that model, or another board."
        )
    if settings.get("model_revision", MAIN_REVISION) != MAIN_REVISION:
        raise UserError(
            f"{method.name} would start from `model_revision: {settings['model_revision']}`, which the base and the "
            "other lines do not: download that revision, and name its folder as `base_model`."
        )
    _check_validating(spec, method, settings)
    for field in dataclasses.fields(DataArguments):
        key, board = field.name, spec.data.get(field.name, default_of(field))
        if (key in FREE_OF_DATA and key not in spec.data) or settings.get(key, board) == board:
            continue
        raise UserError(
            f"{method.name} would train with `{key}: {settings[key]}` where the board's `data` has "
            f"{'none' if board is None else repr(board)}: all methods are trained on the same rows; mend the recipe or "
            "`data`."
        )
    _check_spending(spec, method, settings)
    for key, value in board_options(spec).items():
        found = method.overrides.get(key, value)
        if found != value and not _leaves_steps_open(key, found):
            raise UserError(f"{method.name}: `{key}` is set by the board, to {value}: take it out of `overrides`.")


def _check_validating(spec: BoardSpec, method: MethodSpec, settings: dict[str, Any]) -> None:
    board = board_options(spec)
    for key in settings:
        if key.startswith(VALIDATION_OPTIONS) and settings[key] != board.get(key):
            raise UserError(
                f"{method.name} would validate with `{key}: {settings[key]}` where the board has "
                f"{'none' if board.get(key) is None else repr(board[key])}: what chooses is the same for all; take it "
                "out of the recipe, and set `validation`."
            )


def _check_spending(spec: BoardSpec, method: MethodSpec, settings: dict[str, Any]) -> None:
    for unit, key in BUDGET_OPTIONS.items():
        found = settings.get(key)
        if found is None or _leaves_steps_open(key, found) or (unit, found) == (spec.budget.unit, spec.budget.value):
            continue
        remedy = f"`{key}: {spec.budget.value}`" if unit == spec.budget.unit else "`max_steps: -1`, which sets none"
        raise UserError(
            f"{method.name} would stop at `{key}: {found}` where the board's budget is {spec.budget.value} "
            f"{spec.budget.unit} for all: mend the recipe, or override it with {remedy}."
        )


def _leaves_steps_open(key: str, value: Any) -> bool:
    return key == "max_steps" and value == -1


def _check_unique(values: list, what: str, remedy: str) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise UserError(f"{what} {value} is given {count} times: {remedy}.")
