"""What a board is refused for before anything starts, as far as only the trainer's configurations and data can tell."""

import argparse
import json
from typing import Any

from trl_opd.boards.commands import train_arguments
from trl_opd.boards.files import read_json
from trl_opd.boards.launch.local import VISIBLE
from trl_opd.boards.launch.settings import LOCAL
from trl_opd.boards.runs import TRAIN, Run, Stage, plan_runs, write_identity
from trl_opd.boards.spec import BoardSpec, MethodSpec
from trl_opd.boards.training_rows import check_held_out, fingerprint, local_rows
from trl_opd.cli import train
from trl_opd.cli.check.plan import Plan
from trl_opd.errors import UserError

#: Schedules that do not depend on the number of steps, which a budget of tokens or seconds leaves open.
OPEN_ENDED_SCHEDULES = ("constant", "constant_with_warmup")


def check_training(spec: BoardSpec, to_run: bool = True) -> list[str]:
    """Parse every method's command as `trl-opd train` does, and refuse what it would refuse, before the first run.

    Beside options, that is a method without its teacher, a model that is not there, batches that make the same number
    of steps another budget, and held-out problems that are trained on. A folder with a run that was trained by hand
    with the very same settings is taken over.

    Args:
        spec (`BoardSpec`):
            The board.
        to_run (`bool`):
            Whether it is about to be run; a board is also planned where its training file is not.

    Returns:
        `list[str]`: What could not be checked, in words.

    Raises:
        UserError: naming the line of the board.
    """
    if to_run:
        _check_devices(spec)
    sizes = {}
    rows = local_rows(spec.data)
    if to_run and fingerprint(spec.data).get("sha256", "") is None:
        raise UserError(f"There is no data file {spec.data['dataset_name']}: check `dataset_name` in `data`.")
    for method in spec.methods:
        data, config, model = _parsed(spec, method)
        _check_settings(method, data, config, model, rows)
        _check_schedule(spec, method, config)
        sizes[method.name] = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if spec.budget.unit == "steps" and len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(
            f"{spec.path.name}: with a budget of steps every method must take as many rollouts (or examples) a step, "
            f"but they take {shown}: mend per_device_train_batch_size and gradient_accumulation_steps, or set a budget "
            "of generated_tokens or seconds."
        )
    unchecked = check_held_out(spec, rows)
    _take_over(plan_runs(spec))
    return unchecked


def _check_devices(spec: BoardSpec) -> None:
    """A training that sees several devices in one process spreads its batch over them, which no method is made for."""
    import torch

    if spec.launch.executor != LOCAL or spec.launch.gpus_per_run or VISIBLE in spec.environment:
        return
    if (count := torch.cuda.device_count()) > 1:
        raise UserError(
            f"{spec.path.name}: launch: {count} GPUs are visible and `gpus_per_run` is 0, so that every run would take "
            f"all of them: set it to 1, or name one of them in {VISIBLE}."
        )


def _parsed(spec: BoardSpec, method: MethodSpec) -> tuple[Any, Any, Any]:
    """Data arguments, configuration and model arguments of a line."""
    import torch

    folder = spec.runs_folder / method.name / "train"
    options = list(train_arguments(spec, method, folder, spec.seeds[0], None))[2:]
    if not torch.cuda.is_available():  # a board for GPUs is planned on a machine without one
        options += ["--use_cpu", "true"]
    try:
        train.check_recipe(options, method.method)
        return train.parse(train.method(method.method).config, options)
    except UserError as error:
        raise UserError(f"{method.name}: {error}") from error


def _check_settings(method: MethodSpec, data: Any, config: Any, model: Any, rows: Any) -> None:
    """What `trl-opd check` refuses, but for what has to be fetched: a board is also planned where it cannot run."""
    from trl_opd import checks

    plan = Plan(method.method, data, config, model, argparse.Namespace())
    try:
        train.resolve_model(model.model_name_or_path)
        if plan.off_policy:
            plan.trainer_class.check_settings(config, data.reward_funcs)
            return
        train.settle_models(config, model)
        checks.check_config(config, plan.objective)
        checks.check_rewards(data.reward_funcs, plan.objective)
        checks.check_teacher(None, None, config, plan.objective)
        if rows is not None:
            checks.check_data(rows, plan.objective)
            checks.check_size(rows, config)
    except UserError as error:
        raise UserError(f"{method.name}: {error}") from error


def _check_schedule(spec: BoardSpec, method: MethodSpec, config: Any) -> None:
    schedule = str(getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type))
    if spec.budget.unit != "steps" and schedule not in OPEN_ENDED_SCHEDULES:
        raise UserError(
            f"{method.name}: lr_scheduler_type {schedule} follows a number of steps, which a budget of "
            f"{spec.budget.unit} leaves open: use {' or '.join(OPEN_ENDED_SCHEDULES)}."
        )


def _take_over(runs: list[Run]) -> None:
    """Runs that no board made become the board's where their record holds the settings that it would give them."""
    for run in runs:
        stages = [stage for stage in run.stages if stage.kind == TRAIN]
        record = read_json(run.train_folder / "run.json")
        if stages and record is not None and not (run.folder / "identity.json").exists() and _same(stages[0], record):
            write_identity(run)


def _same(stage: Stage, record: dict[str, Any]) -> bool:
    from trl_opd.run_log import CIRCUMSTANCES, differences

    name, options = stage.arguments[1], list(stage.arguments[2:])
    wanted = differences(*train.parse(train.method(name).config, options))
    wanted = {key: value for key, value in wanted.items() if key not in CIRCUMSTANCES}
    return (record["method"], record["config"]) == (name, json.loads(json.dumps(wanted, default=str)))
