"""The configurations: TRL's `GRPOConfig` plus what on-policy distillation adds.

A default is written here and nowhere else.

Each method's paper defaults are the field defaults of its class; the sources are named beside them. Batch sizes, steps
and the model are left to recipes.
"""

from dataclasses import dataclass, field
from typing import Any

import trl

REFERENCE_TEMPLATE = """{prompt}

A reference solution to this problem is given between the two lines below.
=== reference solution ===
{solution}
=== end of the reference solution ===

Make sure that you see why each of its steps holds. Then put it aside and solve the problem yourself, in your own \
words and with your own reasoning: explore, doubt and go back where you need to, but do not copy or paraphrase it. \
You should arrive at the same final answer. Answer in the form that the problem asks for."""


@dataclass
class GRPOConfig(trl.GRPOConfig):
    """
    Configuration of [`GRPOTrainer`], and the base of every other configuration here.

    It takes every parameter of TRL's `GRPOConfig`; those that the pipeline cannot honour are refused when the trainer
    is made. One rollout per prompt is allowed where the objective needs no group.

    > Parameters that control the reduction of the loss

    Parameters:
        aggregation (`str`, *optional*):
            How token losses become one number: `"token-global"`, `"token-micro"`, `"seq-mean"`, `"seq-mean-live"` or
            `"dr"`, all exact under gradient accumulation and several processes. `None` follows `loss_type`.
    """

    aggregation: str | None = field(
        default=None,
        metadata={
            "help": "How token losses become one number: token-global, token-micro, seq-mean, seq-mean-live or dr. "
            "None follows loss_type."
        },
    )

    def __post_init__(self):
        if self.num_generations != 1:
            super().__post_init__()
            return
        # TRL refuses a single rollout per prompt outright. Its check passes on a batch twice as large with two, and
        # every divisibility condition holds for the doubled sizes exactly if it holds for the real ones.
        eval_rollouts = self.num_generations_eval
        self.num_generations, self.num_generations_eval = 2, eval_rollouts or 1
        self.per_device_train_batch_size *= 2
        if self.generation_batch_size is not None:
            self.generation_batch_size *= 2
        super().__post_init__()
        self.num_generations, self.num_generations_eval = 1, eval_rollouts
        self.per_device_train_batch_size //= 2
        self.generation_batch_size //= 2


@dataclass
class DistillationConfig(GRPOConfig):
    """
    What every method with a teacher has in common; see the methods' own configurations for their defaults.

    > Parameters that control the divergence

    Parameters:
        divergence (`str`, *optional*, defaults to `"reverse_kl"`):
            `"forward_kl"` KL(teacher || student), `"reverse_kl"` KL(student || teacher) or `"jsd"`.
        jsd_beta (`float`, *optional*):
            The teacher's share in the mixture of `"jsd"`, between 0 and 1.
        estimator (`str`, *optional*, defaults to `"full"`):
            `"full"` sums over the vocabulary; `"sampled"` is the policy gradient on the sampled tokens (reverse KL).
        entry_clip (`float`, *optional*):
            OPSD's cap on each vocabulary entry's summand of the forward KL, in nats. `None` for no cap.

    > Parameters that control the teacher

    Parameters:
        teacher_chat_template_kwargs (`dict[str, Any]`, *optional*):
            Arguments of the chat template on the teacher's side, e.g. its thinking flag. `None` for the student's.
        max_teacher_length (`int`, *optional*):
            Longest teacher input in tokens, context and completion together; a longer context is dropped and counted.
            `None` for the longest that the teacher model takes.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "teacher_chat_template_kwargs"]

    divergence: str = field(
        default="reverse_kl", metadata={"help": "Divergence from the teacher: forward_kl, reverse_kl or jsd."}
    )
    jsd_beta: float | None = field(
        default=None, metadata={"help": "The teacher's share in the mixture of divergence: jsd, between 0 and 1."}
    )
    estimator: str = field(
        default="full",
        metadata={"help": "full sums over the vocabulary; sampled is the policy gradient on the sampled tokens."},
    )
    entry_clip: float | None = field(
        default=None,
        metadata={"help": "Cap on each vocabulary entry's summand of the forward KL, in nats. None for no cap."},
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Arguments of the chat template on the teacher's side. None for the student's."},
    )
    max_teacher_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest teacher input in tokens, context and completion together; a longer context is dropped "
            "and counted. None for the longest that the teacher model takes."
        },
    )


@dataclass
class ExternalTeacherConfig(DistillationConfig):
    """
    What every method with an external teacher has in common.

    Parameters:
        teacher_model_name_or_path (`str`, *optional*):
            The teacher, if it is not passed to the trainer as a model.
        teacher_model_init_kwargs (`dict[str, Any]`, *optional*):
            Arguments of `AutoModelForCausalLM.from_pretrained` for the teacher. `None` for the student's.
    """

    _VALID_DICT_FIELDS = [*DistillationConfig._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]

    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The teacher, if it is not passed to the trainer as a model."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Arguments of AutoModelForCausalLM.from_pretrained for the teacher. None for the student's."},
    )


@dataclass
class OPDConfig(ExternalTeacherConfig):
    """
    Configuration of [`OPDTrainer`]: on-policy distillation from an external teacher.

    Learning rate and one rollout per prompt from G-OPD (https://huggingface.co/papers/2602.12125, table of
    hyper-parameters), whose OPD arm it is.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    num_generations: int | None = field(default=1, metadata={"help": "Rollouts per prompt."})


@dataclass
class OPSDConfig(DistillationConfig):
    """
    Configuration of [`OPSDTrainer`]: on-policy self-distillation from a reference solution.

    Defaults from version 3 of the paper (https://huggingface.co/papers/2601.18734, table of hyper-parameters; the cap
    is that of its 1.7B and 4B models, 0.06 for 8B). LoRA with r = 64 and alpha = 128 on all linear projections, 32
    prompts per step and 100 steps complete its setting.

    Parameters:
        solution_column (`str`, *optional*, defaults to `"solution"`):
            Dataset column that holds the reference solution.
        reference_template (`str`, *optional*):
            The teacher's user turn, with the placeholders {prompt} and {solution}.
    """

    divergence: str = field(
        default="forward_kl", metadata={"help": "Divergence from the teacher: forward_kl, reverse_kl or jsd."}
    )
    entry_clip: float | None = field(
        default=0.05,
        metadata={"help": "Cap on each vocabulary entry's summand of the forward KL, in nats. None for no cap."},
    )
    aggregation: str | None = field(
        default="seq-mean",
        metadata={
            "help": "How token losses become one number: token-global, token-micro, seq-mean, seq-mean-live or dr."
        },
    )
    learning_rate: float = field(default=5e-6, metadata={"help": "The initial learning rate for AdamW."})
    max_grad_norm: float = field(default=0.1, metadata={"help": "Largest norm of the gradient."})
    num_generations: int | None = field(default=1, metadata={"help": "Rollouts per prompt."})
    max_completion_length: int | None = field(default=1024, metadata={"help": "Longest completion, in tokens."})
    temperature: float = field(default=1.1, metadata={"help": "Temperature of rollouts and of both distributions."})
    top_p: float = field(default=0.95, metadata={"help": "Nucleus of rollouts."})
    top_k: int = field(default=20, metadata={"help": "Top-k of rollouts."})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"enable_thinking": False},
        metadata={"help": "Arguments of the chat template on the student's side."},
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"enable_thinking": True},
        metadata={"help": "Arguments of the chat template on the teacher's side. None for the student's."},
    )
    max_teacher_length: int | None = field(
        default=20000,
        metadata={
            "help": "Longest teacher input in tokens, context and completion together; a longer context is dropped "
            "and counted. None for the longest that the teacher model takes."
        },
    )
    vllm_importance_sampling_correction: bool = field(
        default=False,
        metadata={
            "help": "Whether to correct for the difference between vLLM's and the trainer's probabilities. Off, as "
            "the ratio is biased when top_p and top_k cut the sampling distribution."
        },
    )
    solution_column: str = field(
        default="solution", metadata={"help": "Dataset column that holds the reference solution."}
    )
    reference_template: str = field(
        default=REFERENCE_TEMPLATE,
        metadata={"help": "The teacher's user turn, with the placeholders {prompt} and {solution}."},
    )
