"""What is refused at launch: settings that cannot work, each with the way out, before a model is loaded."""

from typing import Any

from transformers import AutoTokenizer

from trl_opd.aggregation import MODES
from trl_opd.budget import check_budget
from trl_opd.defaults import changed
from trl_opd.errors import UserError
from trl_opd.hindsight import OPTIONS as HINDSIGHT_OPTIONS
from trl_opd.objectives.base import Objective
from trl_opd.offsite import place
from trl_opd.policy import AGGREGATION_OF_LOSS_TYPE
from trl_opd.suggest import suggest
from trl_opd.teacher_states import MODES as TEACHER_STATES
from trl_opd.teachers import check_same_vocabulary

#: Whose weights a self teacher may have.
SELF_WEIGHTS = ("frozen", "ema", "trust-region", "live")

#: Options of GRPO that need a statistic over whole sequences inside the loss, and the value that leaves them off.
UNSUPPORTED = {
    "importance_sampling_level": "token",
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "off_policy_mask_threshold": None,
    "cast_lm_head_to_fp32": False,
}

#: Sizes and counts, and the least that makes sense.
LEAST = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 1,
    "save_steps": 1,
    "logging_steps": 1,
    "num_iterations": 1,
    "seed": 0,
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


#: Dataset columns that TRL reads images from.
IMAGE_COLUMNS = ("image", "images")

#: Options that say what the teacher reads, and so would be ignored beside a function that says it.
CONTEXT_OPTIONS = ("reference_template", "solution_column", *HINDSIGHT_OPTIONS)


def check_context_function(config: Any, objective: Objective) -> None:
    """Refuses a context function where there is no teacher, or beside options that it makes idle.

    Raises:
        `UserError`: Naming what would be ignored.
    """
    if objective.teacher == "none":
        raise UserError(f"{objective.name} has no teacher, so teacher_context would be ignored; remove it.")
    if getattr(config, "teacher_cache", None):
        raise UserError("A teacher cache holds what the teacher read already; remove teacher_context, or the cache.")
    idle = [name for name in CONTEXT_OPTIONS if name in changed(config)]
    if idle:
        raise UserError(
            f"{', '.join(idle)} would be ignored beside teacher_context, which says what the teacher reads; remove "
            f"{'it' if len(idle) == 1 else 'them'}."
        )


def check_config(config: Any, objective: Objective) -> None:
    """Refuses options that the pipeline cannot honour or that the objective would ignore.

    Raises:
        `UserError`: With the option and the way out.
    """
    for name, least in LEAST.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"{name} is {value}, but must be at least {least}.")
    check_budget(config)
    if config.max_steps == 0:
        raise UserError("max_steps is 0, so nothing would be trained; set it, or leave it out to train whole epochs.")
    if not config.learning_rate >= 0.0:
        raise UserError(f"learning_rate is {config.learning_rate}, but must not be negative.")
    for name, off in UNSUPPORTED.items():
        if getattr(config, name) != off:
            raise UserError(
                f"{name}={getattr(config, name)!r} is not supported by trl_opd's token-local loss; leave it at "
                f"{off!r}, or train with TRL's own GRPOTrainer."
            )
    if config.loss_type not in AGGREGATION_OF_LOSS_TYPE:
        raise UserError(
            f"loss_type={config.loss_type!r} is not supported by trl_opd's token-local loss; choose one of "
            f"{', '.join(AGGREGATION_OF_LOSS_TYPE)}, or train with TRL's own GRPOTrainer."
        )
    if config.aggregation is not None and config.aggregation not in MODES:
        raise UserError(f"aggregation={config.aggregation!r} is unknown; choose one of {', '.join(MODES)}.")
    if config.fp16:
        raise UserError("fp16 is not supported: gradients are taken before the loss is scaled; use bf16 or float32.")
    if not config.temperature > 0.0:
        raise UserError(f"temperature is {config.temperature}, but it divides the logits and must be positive.")
    if resolve_aggregation(config) == "dr" and config.max_completion_length is None:
        raise UserError("aggregation dr divides by max_completion_length, which is unset; set it.")
    if objective.importance_cap is not None and not objective.importance_cap > 0.0:
        raise UserError(f"importance_cap is {objective.importance_cap}, but must be positive; use null for no weight.")
    limit = getattr(config, "max_teacher_length", None)
    if limit is not None and limit < 1:
        raise UserError(f"max_teacher_length is {limit}, which drops every context; make it positive or null.")
    if not objective.uses_policy_gradient:
        _check_ignored(config, objective)
    if (objective.needs_groups or objective.uses_policy_gradient) and config.num_generations < 2:
        raise UserError(
            f"{objective.name} compares the rollouts of one prompt, and num_generations={config.num_generations} "
            "leaves nothing to compare; set num_generations to 2 or more."
        )
    if objective.teacher == "self":
        _check_self_teacher(config, objective)
    if objective.teacher != "none":
        _check_teacher_states(config, objective)
    _check_windows(config)


def _check_ignored(config: Any, objective: Objective) -> None:
    for name in POLICY_ONLY:
        if name in changed(config):
            raise UserError(
                f"{name}={getattr(config, name)!r} acts on the policy gradient, which {objective.name} does not have: "
                "it would be ignored; remove it."
            )


def _check_self_teacher(config: Any, objective: Objective) -> None:
    if config.teacher_weights not in SELF_WEIGHTS:
        raise UserError(
            f"teacher_weights is {config.teacher_weights!r}{suggest(config.teacher_weights, SELF_WEIGHTS)}; choose "
            f"{', '.join(SELF_WEIGHTS)}."
        )
    rate = config.teacher_update_rate
    if config.teacher_weights in ("ema", "trust-region"):
        if rate is None or not 0.0 <= rate <= 1.0:
            raise UserError(
                f"teacher_update_rate is {rate}, but teacher_weights: {config.teacher_weights} needs one in [0, 1]; "
                "0 never moves the teacher, 1 makes it the student."
            )
    elif rate is not None and "teacher_update_rate" in changed(config):
        raise UserError(
            f"teacher_update_rate={rate} would be ignored with teacher_weights: {config.teacher_weights}; remove it, "
            "or set teacher_weights to ema or trust-region."
        )
    if config.teacher_weights == "trust-region" and objective.divergence.sampled:
        raise UserError(
            f"teacher_weights: trust-region is normalised over the vocabulary, which estimator: "
            f"{objective.divergence.estimator} never sees; use estimator: full or topk."
        )


def _check_teacher_states(config: Any, objective: Objective) -> None:
    mode = config.teacher_states
    if mode not in TEACHER_STATES:
        raise UserError(
            f"teacher_states is {mode!r}{suggest(mode, TEACHER_STATES)}; choose {', '.join(TEACHER_STATES)}."
        )
    elsewhere = place(config)
    if elsewhere is not None and "teacher_states" in changed(config):
        raise UserError(
            f"teacher_states={mode!r} would be ignored with {elsewhere}, whose scores stay where they are; remove it."
        )
    if objective.divergence.sampled and "teacher_states" in changed(config):
        raise UserError(
            f"teacher_states={mode!r} would be ignored: estimator: {objective.divergence.estimator} keeps the sampled "
            "tokens' log-probabilities and no hidden states; remove it."
        )
    moves = objective.teacher == "self" and config.teacher_weights in ("live", "trust-region")
    if mode == "recompute" and moves and _steps_per_rollout_batch(config) > 1:
        raise UserError(
            f"teacher_states: recompute reads the student's own weights (teacher_weights: {config.teacher_weights}) "
            "after they have moved, as a rollout batch serves several updates; use keep or offload."
        )


def _steps_per_rollout_batch(config: Any) -> int:
    return config.steps_per_generation * config.num_iterations // config.gradient_accumulation_steps


def _check_windows(config: Any) -> None:
    """The denominator of a step must be known when its first micro-batch is run."""
    if config.steps_per_generation % config.gradient_accumulation_steps != 0:
        raise UserError(
            f"steps_per_generation={config.steps_per_generation} is not a multiple of "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps}: an optimizer step would span two "
            "rollout batches and its denominator would not be known; make it a multiple, or leave it unset."
        )
    per_batch = _steps_per_rollout_batch(config)
    if config.save_strategy == "steps" and config.save_steps % per_batch != 0:
        raise UserError(
            f"save_steps={config.save_steps} is not a multiple of the {per_batch} optimizer steps that share a rollout "
            "batch: a run resumed from such a checkpoint would draw other rollouts; make it one."
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
            remedy = "rename the column" if column == "prompt" else "add it, or name yours with solution_column"
            raise UserError(
                f"{which} has no column {column!r}, which {objective.name} needs (it has: {', '.join(columns)}); "
                f"{remedy}."
            )
    for column in IMAGE_COLUMNS:
        if column in columns:
            raise UserError(
                f"{which} has a column {column!r}, and trl_opd trains text models only; remove the column, or train "
                "with TRL's own GRPOTrainer."
            )
    first = next(iter(dataset))["prompt"]
    if not isinstance(first, (str, list)):
        raise UserError(
            f"The prompts of {which} are {type(first).__name__} values; make them texts or lists of messages."
        )
    for column in wanted[1:]:
        kind = getattr(dataset.features[column], "dtype", None)
        if kind not in ("string", "large_string"):
            raise UserError(
                f"The column {column!r} of {which} holds {kind or 'structured'} values, and the teacher reads text; "
                "turn it into strings."
            )


def check_size(dataset: Any, config: Any) -> None:
    """Refuses a dataset that does not fill one rollout batch: TRL would train zero steps and call it done.

    Raises:
        `UserError`: With both sizes.
    """
    prompts = config.generation_batch_size // config.num_generations
    if hasattr(dataset, "__len__") and len(dataset) < prompts:
        raise UserError(
            f"train_dataset has {len(dataset)} rows, but one rollout batch takes {prompts} prompts: no step could be "
            "made; lower per_device_train_batch_size or gradient_accumulation_steps, or add rows."
        )


def evaluation_sets(eval_dataset: Any) -> dict[str, Any]:
    """The evaluation datasets by the names that messages use."""
    if eval_dataset is None or isinstance(eval_dataset, str):
        return {}
    if isinstance(eval_dataset, dict):
        return {f"eval_dataset[{name!r}]": dataset for name, dataset in eval_dataset.items()}
    return {"eval_dataset": eval_dataset}


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


def check_teacher(teacher_model: Any, reference_model: Any, config: Any, objective: Objective) -> None:
    """Refuses an external method without its teacher, and a teacher or reference that would be ignored.

    Raises:
        `UserError`: Naming the argument.
    """
    named = [
        name
        for name, given in (
            ("teacher_model", teacher_model),
            ("teacher_model_name_or_path", getattr(config, "teacher_model_name_or_path", None)),
            ("teacher_models", getattr(config, "teacher_models", None)),
            ("teacher_cache", getattr(config, "teacher_cache", None)),
            ("teacher_server", getattr(config, "teacher_server", None)),
        )
        if given is not None
    ]
    if {"teacher_cache", "teacher_server"} & {*named} and "teacher_model_name_or_path" in named:
        named.remove("teacher_model_name_or_path")  # a copy to compare with
    if objective.teacher == "external" and not named:
        raise UserError(
            f"{objective.name} distils an external teacher and none was given; pass teacher_model, or set "
            "teacher_model_name_or_path, teacher_cache or teacher_server."
        )
    if objective.teacher != "external" and named:
        raise UserError(f"{objective.name} has no external teacher, so {named[0]} would be ignored; remove it.")
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} name the teacher twice, and one would be ignored; keep one of them.")
    if named == ["teacher_models"] and not objective.divergence.sampled:
        raise UserError(
            f"teacher_models scores the sampled tokens only, which does not suffice for estimator: "
            f"{objective.divergence.estimator}; use estimator: k1."
        )
    if named == ["teacher_model"] and config.use_teacher_template:
        raise UserError("use_teacher_template reads the teacher's tokenizer; set teacher_model_name_or_path instead.")
    reference = reference_model or getattr(config, "reference_model_name_or_path", None)
    if reference is not None and not objective.uses_reference:
        raise UserError(
            f"A reference model was given, but {objective.name} does not use one here (extrapolation is 1, or the "
            "method has none): it would be ignored; remove it."
        )


def check_zero3(config: Any, objective: Objective, adapter_off: bool, reference_given: bool) -> None:
    """Refuses scorers that need weights of the student other than its own of the moment, or a copy of them.

    Args:
        config: The configuration.
        objective (`Objective`): The objective.
        adapter_off (`bool`): Whether the student without its adapter is the student at its start.
        reference_given (`bool`): Whether a reference model was given as a model.

    Raises:
        `UserError`: Saying what works instead.
    """
    own_teacher = objective.teacher == "self" and not (adapter_off and config.teacher_weights == "frozen")
    named = reference_given or getattr(config, "reference_model_name_or_path", None) is not None
    own_reference = objective.uses_reference and not named and not adapter_off
    if own_teacher or own_reference:
        raise UserError(
            "Under ZeRO-3 other weights than the student's own cannot be put into its place, so a frozen self teacher "
            "or reference needs a fresh LoRA adapter, which is switched off, and averaged or live weights are not "
            "supported; use FSDP2 or ZeRO-2."
        )


def check_domains(dataset: Any, config: Any) -> None:
    """Refuses rows whose domain has no teacher.

    Raises:
        `UserError`: With the unknown domains.
    """
    teachers = getattr(config, "teacher_models", None)
    columns = getattr(dataset, "column_names", None)
    if not teachers or columns is None:
        return
    column = config.domain_column
    if column not in columns:
        raise UserError(
            f"train_dataset has no column {column!r} to choose a teacher by; add it, or name yours with domain_column."
        )
    unknown = sorted(set(map(str, dataset[column])) - set(teachers))
    if unknown:
        raise UserError(
            f"No teacher is named for the domain {unknown[0]!r} (teacher_models has {', '.join(teachers)}); add it, or "
            "drop those rows."
        )


def tokenizer_before_loading(model: Any, processing_class: Any):
    """The student's tokenizer where it can be had without its model; None where TRL takes it from the model."""
    if processing_class is None and isinstance(model, str):
        return AutoTokenizer.from_pretrained(model)
    return processing_class


def check_vocabularies(model: Any, processing_class: Any, teacher_model: Any, config: Any) -> None:
    """Refuses a teacher of another vocabulary before either model is loaded, where both are given by name.

    Raises:
        `UserError`: With the first difference.
    """
    several = getattr(config, "teacher_models", None) or {}
    named = teacher_model if teacher_model is not None else getattr(config, "teacher_model_name_or_path", None)
    if getattr(config, "teacher_cache", None):
        named = None  # its manifest knows for which vocabulary it was made
    candidates = (named, getattr(config, "reference_model_name_or_path", None), *several.values())
    teachers = [name for name in candidates if isinstance(name, str)]
    student = tokenizer_before_loading(model, processing_class) if teachers else None
    if student is None:
        return
    for name in teachers:
        check_same_vocabulary(student, AutoTokenizer.from_pretrained(name), name)


def check_adapter(peft_config: Any) -> None:
    """Refuses an adapter on the LM head before the model is loaded; TRL refuses it after."""
    targets = getattr(peft_config, "target_modules", None) or ()
    named = [targets] if isinstance(targets, str) else list(targets)
    if any(name.split(".")[-1] == "lm_head" for name in named):
        raise UserError(
            "target_modules names lm_head, but log-probabilities are computed from the head's own weight, so that its "
            "adapter would never be trained; remove lm_head from target_modules."
        )
