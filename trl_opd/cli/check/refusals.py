"""What the run would be refused for, and which of its options act."""

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from typing import Any

from trl_opd.cli import train
from trl_opd.cli.check.plan import Plan, model_config_of
from trl_opd.cli.check.report import Section
from trl_opd.defaults import changed, default_of
from trl_opd.errors import UserError

#: Options that say where a run is kept and how it is watched; they never change what is trained.
NOT_SHOWN = ("output_dir", "logging_steps", "report_to", "save_strategy", "save_steps", "save_total_limit")


def refusals(plan: Plan) -> Section:
    """Everything that the run would be refused for before a model is loaded, at once."""
    found = []
    for ask in _questions(plan):
        try:
            ask()
        except (UserError, OSError) as error:  # what is not on this machine and not to be had from the hub
            told = " ".join(str(error).split())
            if told not in found:
                found.append(told)
    return Section("Refusals", [] if found else ["none"], {"refused": found}, refused=found)


def _questions(plan: Plan) -> Iterator[Callable[[], Any]]:
    """What is asked, in the trainer's order."""
    from trl import get_peft_config

    from trl_opd import checks, loss_trl, offsite
    from trl_opd.eval_callback import suite_of

    config, data = plan.config, plan.data
    yield lambda: plan.student
    yield lambda: train.named_functions(data)
    yield lambda: train.check_ignored(plan.named, data, config, plan.model)
    if plan.off_policy:
        yield lambda: plan.trainer_class.check_settings(config, data.reward_funcs)
        yield lambda: plan.dataset
        return
    yield lambda: plan.objective
    try:
        objective, student = plan.objective, plan.student
    except UserError:
        return
    yield lambda: train.settle_models(config, plan.model)
    try:
        train.settle_models(config, plan.model)
    except UserError:
        return
    yield lambda: checks.check_config(config, objective)
    yield lambda: loss_trl.check_kernel(config.loss_kernel, objective)
    yield lambda: checks.check_adapter(get_peft_config(plan.model))
    yield lambda: offsite.check_settings(config, objective)
    yield lambda: checks.check_rewards(data.reward_funcs, objective)
    yield lambda: checks.check_teacher(None, None, config, objective)
    yield lambda: checks.check_vocabularies(student, None, None, config)
    yield lambda: _check_support(plan)
    yield lambda: suite_of(config)
    if plan.options.strategy == "zero3":
        adapter = get_peft_config(plan.model) is not None
        yield lambda: checks.check_zero3(config, objective, adapter, False)
    yield lambda: checks.check_data(plan.dataset, objective)
    try:
        dataset = plan.dataset
    except UserError:
        return
    yield lambda: checks.check_size(dataset, config)
    yield lambda: checks.check_domains(dataset, config)


def _check_support(plan: Plan) -> None:
    size = getattr(plan.objective.divergence, "support_size", None)
    vocabulary = model_config_of(plan.student).get_text_config().vocab_size
    if size is not None and size > vocabulary:
        raise UserError(
            f"support_size is {size}, but the vocabulary has {vocabulary} tokens; make it smaller, or use estimator: "
            "full."
        )


def options(plan: Plan) -> Section:
    """The options that were set to something else than the method's defaults; all act, the others are refused."""
    acting = {
        field.name: (getattr(record, field.name), default_of(field))
        for record in (plan.data, plan.config, plan.model)
        for field in fields(record)
        if field.name in plan.named & changed(record)
    }
    shown = [
        f"{name} {_short(value)}" + ("" if default in (None, MISSING) else f" (not {_short(default)})")
        for name, (value, default) in acting.items()
        if name not in NOT_SHOWN
    ]
    return Section(
        "Options that differ from the method's defaults and act",
        [", ".join(shown) or "none"],
        {"set": {name: value for name, (value, _) in acting.items()}},
    )


def _short(value: Any, most: int = 40) -> str:
    text = " ".join(str(getattr(value, "value", value)).split())
    return text if len(text) <= most else f"{text[:most]}..."
