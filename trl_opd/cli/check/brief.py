"""The short form that `trl-opd train` prints before its first step, from what the trainer holds already."""

import argparse
from typing import Any

from trl_opd.cli.check.estimator import estimator
from trl_opd.cli.check.plan import SIBLING, Plan
from trl_opd.cli.check.reading import lengths
from trl_opd.cli.check.resources import run_of

#: Rows that are rendered: few, so that it costs nothing beside the first step.
ROWS = 64


def brief(method: str, trainer: Any, data: Any, config: Any, model: Any) -> list[str]:
    """A few lines: what the gradient is, what the teacher reads, which lengths do not fit, and the memory of a device.

    Args:
        method (`str`): Name of the method.
        trainer (`OnPolicyTrainer`): The trainer, made.
        data, config, model: Its options.
    """
    from trl_opd.memory import GIB, estimate

    options = argparse.Namespace(
        rows=ROWS,
        processes=trainer.accelerator.num_processes,
        device_gib=80.0,
        prompt_tokens=None,
        teacher_prompt_tokens=None,
    )
    held = {"tokenizer": trainer.processing_class, "dataset": trainer.train_dataset}
    plan = Plan(method, data, config, model, options, given=held)
    rows = lengths(plan)
    lines = [*estimator(plan).lines, *_reading(plan), *rows.lines, *(f"warning: {told}" for told in rows.warnings)]
    strategy = "single" if options.processes == 1 else "ddp"
    peak = estimate(run_of(plan)(strategy)).peak / GIB
    return [*lines, f"memory of a device, estimated from shapes: {peak:.2f} GiB ({strategy})"]


def _reading(plan: Plan) -> list[str]:
    if plan.objective.teacher == "none":
        return []
    ids = plan.teacher_prompts(SIBLING)[0]
    if ids is None:
        return ["row 0: the teacher has nothing to read"]
    student = plan.student_prompts[0]
    same = "what the student reads" if ids == student else f"{len(ids)} tokens, the student {len(student)}"
    text = " ".join(plan.tokenizer.decode(ids).split())
    shown = text if len(text) <= 200 else f"{text[:100]} ... {text[-100:]}"
    return [f"row 0: the teacher reads {same}: {''.join(c if c.isprintable() else '?' for c in shown)}"]
