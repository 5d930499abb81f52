"""What a run takes: memory and time of a step, and disk, from shapes and from what a rehearsal measured."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trl_opd.cli import train
from trl_opd.cli.check.plan import Plan, model_config_of
from trl_opd.cli.check.report import Section

#: Share of a device's speed in matrix products that training is taken to reach.
UTILISATION = 0.4

#: Side of the matrices that a device's speed is measured with.
SIDE = {"cpu": 512, "cuda": 8192}

TERA = 1e12


def memory(plan: Plan) -> Section:
    """What a device holds throughout, what each phase takes on top, and the peak, by strategy."""
    from trl_opd.memory import GIB, STRATEGIES, estimate

    title = "Memory of one device, GiB (estimated from shapes)"
    if plan.off_policy:
        return Section(title, [f"not estimated for {plan.method}, whose loss and batches are TRL's SFTTrainer's"])
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


def _shape(plan: Plan, name: str, adapter: Any = None) -> Any:
    """The shape of a model of a name, in the precision that it is loaded in."""
    import torch

    from trl_opd.memory import Shape

    found = model_config_of(train.resolve_model(name))
    wanted = plan.model.dtype
    dtype = getattr(found, "dtype", None) if wanted == "auto" else getattr(torch, wanted)
    return Shape.of(found, dtype or torch.float32, adapter)


def run_of(plan: Plan) -> Callable[[str], Any]:
    """The run that a plan describes, by strategy."""
    from trl import get_peft_config

    from trl_opd.memory import GIB, Run

    config, options, objective = plan.config, plan.options, plan.objective
    adapter = get_peft_config(plan.model)
    student = _shape(plan, plan.student, adapter)
    elsewhere = getattr(config, "teacher_cache", None) or getattr(config, "teacher_server", None)
    names = [] if elsewhere else [getattr(config, "teacher_model_name_or_path", None)]
    names += (getattr(config, "teacher_models", None) or {}).values()
    names.append(getattr(config, "reference_model_name_or_path", None) if objective.uses_reference else None)
    scorers = [_shape(plan, name) for name in names if name is not None]
    weights = config.teacher_weights if objective.teacher == "self" else None
    copied = weights in ("frozen", "trust-region") or (objective.uses_reference and names[-1] is None)
    if copied and adapter is None:
        scorers.append(student)
    reads = objective.divergence is not None and not objective.divergence.sampled and not elsewhere
    readers = (objective.teacher != "none") + objective.uses_reference + (weights == "trust-region")
    prompt, teacher_prompt = plan.longest_prompts
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
            prompt=options.prompt_tokens or prompt,
            teacher_prompt=options.teacher_prompt_tokens or teacher_prompt,
            completion=config.max_completion_length,
            checkpointing=bool(config.gradient_checkpointing),
            compute_bytes=2 if sixteen else 4,
            master_copy=strategy.startswith("zero") and bool(config.bf16),
            vllm_bytes=config.vllm_gpu_memory_utilization * options.device_gib * GIB if colocated else None,
            own_rollouts=not config.use_vllm,
        )

    return run


def step_time(plan: Plan) -> Section | None:
    """Floating-point operations of an optimizer step on each device, and seconds where a speed is known."""
    if plan.off_policy:
        return None
    run = run_of(plan)("single")
    rollouts = plan.config.per_device_train_batch_size * plan.config.gradient_accumulation_steps
    work = operations(run, rollouts)
    total = sum(work.values())
    facts: dict[str, Any] = {"rollouts": rollouts, "operations": work}
    parts = ", ".join(f"{name} {value / TERA:,.2f}" for name, value in work.items())
    lines = [f"TFLOP, completions of {run.completion} tokens: {parts}"]
    made = plan.rehearsal
    if made is not None:
        number = len(made.tokens)
        seconds = (made.drawing + made.learning) * rollouts / number
        facts |= {
            "measured": {"drawing": made.drawing, "learning": made.learning, "rollouts": number},
            "seconds": seconds,
        }
        lines.append(
            f"measured here: {number} rollouts drawn and scored in {made.drawing:.2f} s, loss and update "
            f"{made.learning:.2f} s; at that rate {seconds:.1f} s for the {rollouts} of a step, at most"
        )
    else:
        speed, source = _speed(plan)
        if speed is None:
            lines.append("in seconds with --device_tflops, the speed of a device's matrix products")
        else:
            facts |= {"tflops": speed, "seconds": total / TERA / speed / UTILISATION}
            lines.append(
                f"estimate: {facts['seconds']:,.1f} s at {UTILISATION:.0%} of {speed:,.1f} TFLOP/s ({source}); "
                "drawing rollouts without vLLM takes longer than its operations"
            )
    return Section("Time of a step", lines, facts)


def operations(run: Any, rollouts: int) -> dict[str, float]:
    """Floating-point operations for so many rollouts: two a parameter and token forward, four backward.

    Args:
        run (`Run`): Shapes and lengths.
        rollouts (`int`): Completions of full length.
    """
    student, length = run.student.parameters, run.prompt + run.completion
    readers = run.scorers or ([run.student] if run.average or run.states else [])
    forward = 2.0 * student * rollouts * length
    read = sum(2.0 * reader.parameters for reader in readers) * rollouts * (run.teacher_prompt + run.completion)
    # An adapter's backward pass needs no gradient of the weights, which is half of it; checkpointing reads once more.
    backward = forward * (2 if run.student.trainable == student else 1) + forward * run.checkpointing
    return {"rollouts": forward, "scoring": read, "loss and backward": forward + backward}


def _speed(plan: Plan) -> tuple[float | None, str]:
    """TFLOP/s of matrix products, and where that is from; None where the run is not for this machine."""
    import torch

    if plan.options.device_tflops is not None:
        return plan.options.device_tflops, "--device_tflops"
    device = plan.config.device.type
    if device not in SIDE or plan.options.elsewhere:
        return None, ""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    matrix = torch.rand(SIDE[device], SIDE[device], device=device, dtype=dtype)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE[device] ** 3 / best / TERA, "measured here"


def disk(plan: Plan) -> Section:
    """What checkpoints and the model will take, against what is free where they go."""
    from trl import get_peft_config

    from trl_opd.memory import GIB

    config = plan.config
    student = _shape(plan, plan.student, get_peft_config(plan.model))
    average = plan.objective.teacher == "self" and config.teacher_weights == "ema"
    one = checkpoint_bytes(student, average, config.save_only_model)
    number = _checkpoints(plan)
    saved = student.trainable * student.bytes_per
    needed = number * one + saved
    folder = Path(config.output_dir).absolute()
    present = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(present).free
    facts = {"checkpoint": one, "checkpoints": number, "needed": needed, "free": free, "folder": str(folder)}
    lines = [
        f"{number} checkpoints of {one / GIB:.2f} GiB and the model: {needed / GIB:.2f} GiB; free in {present}: "
        f"{free / GIB:.1f} GiB"
    ]
    warnings = []
    if needed > free:
        warnings.append(
            f"The checkpoints take {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free in {present}; set "
            "save_total_limit or save_only_model, or another output_dir."
        )
    return Section("Disk", lines, facts, warnings)


def checkpoint_bytes(student: Any, average: bool, weights_only: bool) -> float:
    """What one checkpoint takes.

    Args:
        student (`Shape`): What is trained.
        average (`bool`): Whether averaged weights are kept, in float32.
        weights_only (`bool`): Whether Adam's moments are left out.
    """
    trained = student.trainable * student.bytes_per
    averaged = 4 * (student.adapted or student.trainable) if average else 0
    return trained + (0 if weights_only else 2 * trained) + averaged


def _checkpoints(plan: Plan) -> int:
    """How many lie on the disk at once: an old one goes only when its successor is complete."""
    config = plan.config
    if str(getattr(config.save_strategy, "value", config.save_strategy)) == "no":
        return 0
    steps = config.max_steps if config.max_steps > 0 else _steps_of_epochs(plan)
    every = config.save_steps if config.save_steps >= 1 else math.ceil(config.save_steps * steps)
    made = max(1, math.ceil(steps / every))
    if str(getattr(config.save_strategy, "value", config.save_strategy)) == "epoch":
        made = math.ceil(config.num_train_epochs)
    limit = config.save_total_limit
    return made if limit is None else min(made, limit + 1)


def _steps_of_epochs(plan: Plan) -> int:
    """Optimizer steps of the epochs that are asked for."""
    config = plan.config
    if plan.off_policy:
        rows = config.per_device_train_batch_size * config.gradient_accumulation_steps * plan.options.processes
        return math.ceil(len(plan.dataset) * config.num_train_epochs / rows)
    batches = len(plan.dataset) * config.num_generations // (config.generation_batch_size * plan.options.processes)
    updates = config.steps_per_generation * config.num_iterations / config.gradient_accumulation_steps
    return math.ceil(batches * updates * config.num_train_epochs)
