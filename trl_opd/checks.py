"""What is refused at launch: settings that cannot work, each with the way out, before a model is loaded."""

from dataclasses import MISSING, fields
from typing import Any

import trl

from trl_opd.aggregation import MODES
from trl_opd.errors import UserError
from trl_opd.objectives.base import Objective
from trl_opd.policy import AGGREGATION_OF_LOSS_TYPE

#: Options of GRPO that need a statistic over whole sequences inside the loss, and the value that leaves them off.
UNSUPPORTED = {
    "importance_sampling_level": "token",
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "off_policy_mask_threshold": None,
    "cast_lm_head_to_fp32": False,
}

#: Options that act on the policy gradient alone, and so would be ignored by an objective that has none.
POLICY_ONLY = (
    "beta",
    "epsilon",
    "epsilon_high",
    "delta",
    "loss_type",
    "sapo_temperature_neg",
    "sapo_temperature_pos",
    "scale_rewards",
    "sync_ref_model",
    "use_bias_correction_kl",
)


def check_config(config: Any, objective: Objective) -> None:
    """Refuses options that the pipeline cannot honour or that the objective would ignore.

    Raises:
        `UserError`: With the option and the way out.
    """
    for name, off in UNSUPPORTED.items():
        if getattr(config, name) != off:
            raise UserError(
                f"{name}={getattr(config, name)!r} is not supported by trl_opd's token-local loss; leave it at {off!r}, or "
                "train with TRL's own GRPOTrainer."
            )
    if config.loss_type not in AGGREGATION_OF_LOSS_TYPE:
        raise UserError(
            f"loss_type={config.loss_type!r} is not supported by trl_opd's token-local loss; choose one of "
            f"{', '.join(AGGREGATION_OF_LOSS_TYPE)}, or train with TRL's own GRPOTrainer."
        )
    if config.aggregation is not None and config.aggregation not in MODES:
        raise UserError(f"aggregation={config.aggregation!r} is unknown; choose one of {', '.join(MODES)}.")
    if not objective.uses_policy_gradient:
        _check_ignored(config, objective)
    if (objective.needs_groups or objective.uses_policy_gradient) and config.num_generations < 2:
        raise UserError(
            f"{objective.name} compares the rollouts of one prompt, and num_generations={config.num_generations} "
            "leaves nothing to compare; set num_generations to 2 or more."
        )
    _check_windows(config)


def _check_ignored(config: Any, objective: Objective) -> None:
    defaults = {f.name: f.default for f in fields(trl.GRPOConfig) if f.default is not MISSING}
    for name in POLICY_ONLY:
        if getattr(config, name) != defaults[name]:
            raise UserError(
                f"{name}={getattr(config, name)!r} acts on the policy gradient, which {objective.name} does not have: "
                "it would be ignored; remove it."
            )


def _check_windows(config: Any) -> None:
    """The denominator of a step must be known when its first micro-batch is run."""
    if config.steps_per_generation % config.gradient_accumulation_steps != 0:
        raise UserError(
            f"steps_per_generation={config.steps_per_generation} is not a multiple of "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps}: an optimizer step would span two "
            "rollout batches and its denominator would not be known; make it a multiple, or leave it unset."
        )


def resolve_aggregation(config: Any) -> str:
    """The aggregation that a config asks for: its own, or that of its `loss_type`."""
    return config.aggregation or AGGREGATION_OF_LOSS_TYPE[config.loss_type]


def check_data(dataset: Any, objective: Objective, which: str = "train_dataset") -> None:
    """Refuses an empty dataset, or one without the columns that the prompt and the teacher's context need.

    Raises:
        `UserError`: With the missing column and those that there are.
    """
    if dataset is None:
        raise UserError(f"{which} is missing; pass a dataset with a 'prompt' column.")
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise UserError(f"{which} is empty: there is nothing to train on; check its path, split and filters.")
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        return
    wanted = ("prompt", *(objective.context.columns if objective.context else ()))
    for column in wanted:
        if column not in columns:
            option = "rename the column" if column == "prompt" else "add it, or name yours with solution_column"
            raise UserError(
                f"{which} has no column {column!r}, which {objective.name} needs (it has: {', '.join(columns)}); "
                f"{option}."
            )


def check_rewards(reward_funcs: Any, objective: Objective) -> None:
    """Refuses an objective that lives on rewards without a reward function.

    Raises:
        `UserError`: Naming the argument.
    """
    if objective.needs_rewards and not reward_funcs:
        raise UserError(
            f"{objective.name} learns from rewards and no reward function was given; pass reward_funcs, for instance "
            "trl_opd.verify.math_reward with an 'answer' column."
        )


def check_teacher(teacher_model: Any, config: Any, objective: Objective) -> None:
    """Refuses an external method without its teacher, and a teacher that a self-taught method would ignore.

    Raises:
        `UserError`: Naming the argument.
    """
    named = teacher_model if teacher_model is not None else getattr(config, "teacher_model_name_or_path", None)
    if objective.teacher == "external" and named is None:
        raise UserError(
            f"{objective.name} distils an external teacher and none was given; pass teacher_model, or set "
            "teacher_model_name_or_path."
        )
    if objective.teacher != "external" and named is not None:
        raise UserError(f"{objective.name} has no external teacher, so teacher_model would be ignored; remove it.")
