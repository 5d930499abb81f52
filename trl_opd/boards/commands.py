"""The command lines of a board's runs: what the board itself sets, and how it is written."""

import json
import os
from pathlib import Path
from typing import Any

from trl_opd.boards.spec import BoardSpec, EvaluationSpec, MethodSpec, ValidationSpec

#: More steps than any run makes: where tokens or seconds are the budget, steps must not end it.
UNBOUNDED_STEPS = 1_000_000

#: The trainer's option that holds the budget, by its unit.
BUDGET_OPTIONS = {"steps": "max_steps", "generated_tokens": "max_generated_tokens", "seconds": "max_train_seconds"}


def board_options(spec: BoardSpec) -> dict[str, Any]:
    """What the board sets for every training run alike: model, rows, budget and validation.

    Checkpoints are validated by the training process itself (`eval_suite`), which costs seconds where a process for
    each would start, load a model and need every checkpoint kept on the disk. The trainer's clock stands still
    meanwhile, and the best checkpoint is kept besides the newest ones.
    """
    options = {"model_name_or_path": spec.base_model} | spec.data
    if spec.budget.unit != "steps":
        options["max_steps"] = UNBOUNDED_STEPS
    options[BUDGET_OPTIONS[spec.budget.unit]] = spec.budget.value
    if spec.validation is not None:
        options |= _validation_options(spec.validation, spec.checkpoint.every)
    return {key: value for key, value in options.items() if value is not None}


def _validation_options(validation: ValidationSpec, every: int) -> dict[str, Any]:
    return {
        "eval_suite": validation.benchmark,
        "eval_suite_steps": every,
        "eval_suite_n": validation.n,
        "eval_suite_limit": validation.limit,
        "eval_suite_max_new_tokens": validation.max_new_tokens,
        "eval_suite_data_dir": validation.data_dir and short(validation.data_dir),
        "save_strategy": "steps",
        "save_steps": every,
    }


def train_arguments(
    spec: BoardSpec, method: MethodSpec, folder: Path, seed: int, learning_rate: float | None
) -> tuple[str, ...]:
    """`train METHOD --config ... --output_dir ...`, without the program's name."""
    options = {"config": short(method.recipe), "output_dir": short(folder), "seed": seed}
    if learning_rate is not None:
        options["learning_rate"] = learning_rate
    return ("train", method.method, *_written(options | method.overrides | board_options(spec)))


def eval_arguments(spec: BoardSpec, entry: EvaluationSpec, model: dict[str, str], folder: Path) -> tuple[str, ...]:
    """`eval --model ... --output_dir ...`, without the program's name; `model` is what `model_options` gives."""
    options = model | {"output_dir": short(folder)} | spec.drawing | entry.settings()
    return ("eval", *_written(options | {"data_dir": entry.data_dir and short(entry.data_dir)}))


def model_options(spec: BoardSpec, method: MethodSpec, trained: Path) -> dict[str, str]:
    """The options that name a trained model: its folder, or the base model and the folder of its adapter."""
    if method.trains_an_adapter:
        return {"model": spec.base_model, "adapter": short(trained)}
    return {"model": short(trained)}


def short(path: Path) -> str:
    """Relative to the working folder where it lies below it or beside it: a published command names no machine."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd().parent) else str(path)


def _written(options: dict[str, Any]) -> list[str]:
    parts: list[str] = []
    for key, value in options.items():
        if value is not None:
            parts += [f"--{key}", *(_shown(item) for item in (value if isinstance(value, list) else [value]))]
    return parts


def _shown(value: str | int | float | bool | dict) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
