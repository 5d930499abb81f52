"""`trl-opd check METHOD --config RECIPE`: what is refused and what it would take, without loading a weight."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trl_opd.cli import train
from trl_opd.errors import UserError
from trl_opd.methods import METHODS
from trl_opd.recipes import with_paths

USAGE = """usage: trl-opd check [METHOD] --config RECIPE.yaml [--option value ...]

Say what is refused and how much memory each device would take, from configurations alone. METHOD may be left out where
the recipe's file is named after it. All options of 'trl-opd train METHOD' apply. Exit status 2 if anything is refused.

options:
  --processes N              devices, all strategies side by side (default: 1)
  --strategy NAME            single, ddp, fsdp2, zero2 or zero3 alone
  --device_gib SIZE          memory of a device, for vLLM's share and to say what fits (default: 80)
  --prompt_tokens N          length of prompts (default: 512)
  --teacher_prompt_tokens N  length of what the teacher reads before a completion (default: as prompts, and as long as
                             a completion more where the method adds a context)
  --json FILE                write the report there as well"""


NO_MODEL = "model_name_or_path is missing; set it to testbed/base, a folder, or a model on the hub."


@dataclass(frozen=True)
class Plan:
    """What is checked: a method with its parsed options on some devices."""

    method: str
    data: Any
    config: Any
    model: Any
    options: argparse.Namespace


@dataclass
class Section:
    """A part of the report.

    Attributes:
        title: Its heading.
        lines: What is printed.
        facts: The same for machines.
        refused: Whether the run would be refused for it.
    """

    title: str
    lines: list[str]
    facts: dict[str, Any]
    refused: bool = False


def main(argv: list[str]) -> int:
    """Prints the report; returns the exit status, 2 if anything is refused."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0 if argv else 2
    plan = _plan(argv)
    report = [section(plan) for section in SECTIONS]
    for section in report:
        print("\n".join([section.title, *(f"  {line}" for line in section.lines), ""]))
    if plan.options.json is not None:
        Path(plan.options.json).write_text(json.dumps([asdict(section) for section in report], indent=1))
    return 2 if any(section.refused for section in report) else 0


def _plan(argv: list[str]) -> Plan:
    import torch

    from trl_opd.memory import STRATEGIES

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = train._refuse
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", choices=STRATEGIES)
    parser.add_argument("--device_gib", type=float, default=80.0)
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--teacher_prompt_tokens", type=int)
    parser.add_argument("--json")
    named = argv[0] if not argv[0].startswith("-") else None
    options, rest = parser.parse_known_args(argv[1:] if named else argv)
    if options.processes < 1:
        raise UserError(f"--processes is {options.processes}, but must be at least 1.")
    if named is None:
        named = Path(rest[rest.index("--config") + 1]).stem if "--config" in rest[:-1] else None
        if named not in METHODS:
            raise UserError("The method is not known from the recipe's name; put it before the options.")
    entry = METHODS[named] if named in METHODS else train.method(named)
    rest = with_paths(rest)
    train.check_recipe(rest, named)
    if not torch.cuda.is_available():  # a recipe for GPUs is checked on a machine without one
        rest = [*rest, "--use_cpu", "true"]
    if "--output_dir" not in rest:
        rest = [*rest, "--output_dir", "unused"]
    return Plan(named, *train.parse(entry.config, rest), options)


def refusals(plan: Plan) -> Section:
    """What the run would be refused for, before anything is loaded."""
    if train.method(plan.method).kind == "off-policy":
        return _off_policy_refusals(plan)
    from trl import get_peft_config

    from trl_opd import checks
    from trl_opd.objectives import OBJECTIVES

    try:
        if not plan.model.model_name_or_path:
            raise UserError(NO_MODEL)
        objective = OBJECTIVES[plan.method](plan.config)
    except UserError as error:
        return Section("Refused", [str(error)], {"refused": [str(error)]}, refused=True)
    asked: list[Callable[[], None]] = [
        lambda: checks.check_config(plan.config, objective),
        lambda: checks.check_rewards(plan.data.reward_funcs, objective),
        lambda: checks.check_teacher(None, None, plan.config, objective),
    ]
    if plan.options.strategy == "zero3":
        adapter = get_peft_config(plan.model) is not None
        asked.append(lambda: checks.check_zero3(plan.config, objective, adapter, False))
    found = []
    for ask in asked:
        try:
            ask()
        except UserError as error:
            found.append(str(error))
    return Section("Refused", found or ["nothing"], {"refused": found}, refused=bool(found))


def _off_policy_refusals(plan: Plan) -> Section:
    import trl_opd

    found = [] if plan.model.model_name_or_path else [NO_MODEL]
    try:
        getattr(trl_opd, train.method(plan.method).trainer).check_settings(plan.config, plan.data.reward_funcs)
    except UserError as error:
        found.append(str(error))
    return Section("Refused", found or ["nothing"], {"refused": found}, refused=bool(found))


def memory(plan: Plan) -> Section:
    """What a device holds throughout, what each phase takes on top, and the peak, by strategy."""
    from trl_opd.memory import GIB, STRATEGIES, estimate

    title = "Memory of one device, GiB (estimated from shapes)"
    if not plan.model.model_name_or_path:
        return Section(title, ["not known without a model"], {})
    if train.method(plan.method).kind == "off-policy":
        return Section(title, [f"not estimated for {plan.method}, whose loss and batches are TRL's SFTTrainer's"], {})
    several = [plan.options.strategy] if plan.options.strategy else list(STRATEGIES[1:])
    strategies = several if plan.options.processes > 1 else [plan.options.strategy or "single"]
    run = run_of(plan)
    found = {strategy: estimate(run(strategy)) for strategy in strategies}
    names = list(dict.fromkeys(name for made in found.values() for name in made.lasting))
    phases = list(dict.fromkeys(name for made in found.values() for name in made.phases))
    rows = [(name, [made.lasting[name] for made in found.values()]) for name in names]
    rows += [(f"+ {phase}", [sum(made.phases[phase].values()) for made in found.values()]) for phase in phases]
    rows.append(("peak", [made.peak for made in found.values()]))
    lines = [f"{'':<22}" + "".join(f"{strategy:>10}" for strategy in strategies)]
    lines += [f"{name:<22}" + "".join(f"{value / GIB:>10.2f}" for value in values) for name, values in rows]
    limit = plan.options.device_gib
    fits = [strategy for strategy, made in found.items() if made.peak < 0.9 * limit * GIB]
    assumed = run(strategies[0])
    lines += [
        f"fits into {limit:g} GiB with a tenth to spare: {', '.join(fits) or 'none of them'}",
        f"devices {assumed.devices}, rows {assumed.rows} of {assumed.rollouts} a device, tokens: prompt "
        f"{assumed.prompt}, teacher's prompt {assumed.teacher_prompt}, completion {assumed.completion}",
    ]
    facts = {strategy: asdict(made) | {"peak": made.peak} for strategy, made in found.items()}
    return Section(title, lines, facts | {"assumed": asdict(assumed)})


def run_of(plan: Plan) -> Callable[[str], Any]:
    """The run that a plan describes, by strategy."""
    import torch
    from transformers import AutoConfig
    from trl import get_peft_config

    from trl_opd.memory import GIB, Run, Shape
    from trl_opd.objectives import OBJECTIVES

    config, options = plan.config, plan.options
    objective = OBJECTIVES[plan.method](config)

    def shape(name: str, adapter: Any = None) -> Shape:
        found = AutoConfig.from_pretrained(train.resolve_model(name))
        wanted = plan.model.dtype
        dtype = getattr(found, "dtype", None) if wanted == "auto" else getattr(torch, wanted)
        return Shape.of(found, dtype or torch.float32, adapter)

    adapter = get_peft_config(plan.model)
    student = shape(plan.model.model_name_or_path, adapter)
    elsewhere = getattr(config, "teacher_cache", None) or getattr(config, "teacher_server", None)
    names = [] if elsewhere else [getattr(config, "teacher_model_name_or_path", None)]
    names += (getattr(config, "teacher_models", None) or {}).values()
    names.append(getattr(config, "reference_model_name_or_path", None) if objective.uses_reference else None)
    scorers = [shape(name) for name in names if name is not None]
    weights = config.teacher_weights if objective.teacher == "self" else None
    copied = weights in ("frozen", "trust-region") or (objective.uses_reference and names[-1] is None)
    if copied and adapter is None:
        scorers.append(student)
    reads = objective.divergence is not None and not objective.divergence.sampled and not elsewhere
    readers = (objective.teacher != "none") + objective.uses_reference + (weights == "trust-region")
    longer = config.max_completion_length if objective.context is not None else 0
    colocated = config.use_vllm and config.vllm_mode == "colocate"

    def run(strategy: str) -> Run:
        sixteen = bool(config.bf16) or student.bytes_per == 2
        return Run(
            student=student,
            scorers=scorers,
            average=weights == "ema",
            states=readers if reads and config.teacher_states == "keep" else 0,
            strategy=strategy,
            devices=options.processes,
            rows=config.per_device_train_batch_size,
            rollouts=config.per_device_train_batch_size * config.steps_per_generation,
            prompt=options.prompt_tokens,
            teacher_prompt=options.teacher_prompt_tokens or options.prompt_tokens + longer,
            completion=config.max_completion_length,
            checkpointing=bool(config.gradient_checkpointing),
            compute_bytes=2 if sixteen else 4,
            master_copy=strategy.startswith("zero") and bool(config.bf16),
            vllm_bytes=config.vllm_gpu_memory_utilization * options.device_gib * GIB if colocated else None,
            own_rollouts=not config.use_vllm,
        )

    return run


#: The parts of the report, in order.
SECTIONS: tuple[Callable[[Plan], Section], ...] = (refusals, memory)
