"""The configurations: TRL's `GRPOConfig` plus what on-policy distillation adds.

A default is written here and nowhere else.

Each method's paper defaults are the field defaults of its class; the sources are named beside them. Batch sizes, steps
and the model are left to recipes.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import trl

from trl_opd.errors import UserError

REFERENCE_TEMPLATE = """{prompt}

A reference solution to this problem is given between the two lines below.
=== reference solution ===
{solution}
=== end of the reference solution ===

Make sure that you see why each of its steps holds. Then put it aside and solve the problem yourself, in your own \
words and with your own reasoning: explore, doubt and go back where you need to, but do not copy or paraphrase it. \
You should arrive at the same final answer. Answer in the form that the problem asks for."""

DEMONSTRATION_SECTION = """

=== a correct solution ===
{demonstration}
=== end of the correct solution ==="""

ATTEMPT_SECTION = """

=== an earlier attempt ===
{attempt}
=== end of the attempt ==="""

FEEDBACK_SECTION = """

=== feedback on an earlier attempt that failed ===
{feedback}
=== end of the feedback ==="""

TEACHER_TEMPLATE = """{prompt}{sections}

Now solve the original problem correctly."""


@dataclass
class RunConfig:
    """
    What every method's configuration adds to TRL's.

    > Parameters that control evaluation during training

    Parameters:
        eval_suite (`str`, *optional*):
            A benchmark or a suite of the harness (`trl-opd eval list`) that is run on the current weights.
        eval_suite_steps (`int`, *optional*):
            Steps between two such runs.
        eval_suite_n (`int`, *optional*):
            Samples for each problem; the benchmark's protocol by default.
        eval_suite_limit (`int`, *optional*):
            The first problems only.
        eval_suite_max_new_tokens (`int`, *optional*):
            Longest completion; the benchmark's protocol by default.
        eval_suite_data_dir (`str`, *optional*):
            Folder with local copies of the data.

    > Parameters that control the end of the run

    Parameters:
        max_train_seconds (`float`, *optional*):
            Seconds of training, without evaluation, after which it ends with the step.
    """

    eval_suite: str | None = field(
        default=None,
        metadata={"help": "A benchmark or a suite of trl-opd eval that is run on the current weights during training."},
    )
    eval_suite_steps: int | None = field(default=None, metadata={"help": "Steps between two runs of eval_suite."})
    eval_suite_n: int | None = field(
        default=None, metadata={"help": "Samples for each problem of eval_suite. None for the benchmark's own."}
    )
    eval_suite_limit: int | None = field(default=None, metadata={"help": "The first problems of eval_suite only."})
    eval_suite_max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest completion in eval_suite, in tokens. None for the benchmark's own."}
    )
    eval_suite_data_dir: str | None = field(
        default=None, metadata={"help": "Folder with local copies of the data of eval_suite."}
    )
    max_train_seconds: float | None = field(
        default=None, metadata={"help": "Seconds of training, without evaluation, after which it ends with the step."}
    )


@dataclass
class GRPOConfig(RunConfig, trl.GRPOConfig):
    """
    Configuration of [`GRPOTrainer`], and the base of every other configuration here.

    It takes every parameter of TRL's `GRPOConfig`; those that the pipeline cannot honour are refused when the trainer
    is made. One rollout per prompt is allowed where the objective needs no group.

    > Parameters that control the reduction of the loss

    Parameters:
        aggregation (`str`, *optional*):
            How token losses become one number: `"token-global"`, `"token-micro"`, `"seq-mean"`, `"seq-mean-live"`,
            `"dr"` or `"prompt-sum"`, all exact under gradient accumulation and several processes. `None` follows
            `loss_type`.

    > Parameters that control speed and memory

    Parameters:
        shared_prefix (`bool`, *optional*, defaults to `True`):
            Whether a prompt that several rows of a forward have in common (a group's, or its teacher's context) is
            encoded once. It acts where it saves tokens and the model's cache allows it; dropout masks are then shared
            as well.
        loss_kernel (`str`, *optional*, defaults to `"auto"`):
            `"tiled"`: the package's own, for every objective; `"trl"`: TRL's chunked kernels, for a policy gradient
            alone and for whole-vocabulary divergences without clips. `"auto"` is `"tiled"`, everywhere: on a CPU it is
            the faster one, and on a GPU, where TRL's are written in Triton, the two were not measured.

    > Parameters that control the end of the run

    Parameters:
        max_generated_tokens (`int`, *optional*):
            Generated tokens, over all processes, after which training ends with the step.

    > Parameters that control rollouts by vLLM

    Parameters:
        vllm_sync_tolerance (`float`, *optional*):
            After each copy of the weights into vLLM, its log-probabilities of a few tokens are held against the
            trainer's; the largest mean difference in nats that does not stop the run. `None` for what rounding explains
            in the precisions at work, `float("inf")` to measure only.
    """

    aggregation: str | None = field(
        default=None,
        metadata={"help": "How token losses become one number, see trl_opd.aggregation. None follows loss_type."},
    )
    shared_prefix: bool = field(
        default=True,
        metadata={"help": "Whether a prompt that rows of a forward have in common is encoded once, where that saves."},
    )
    loss_kernel: str = field(
        default="auto",
        metadata={"help": "What computes the loss: tiled, trl (TRL's kernels, where they apply) or auto (tiled)."},
    )
    vllm_sync_tolerance: float | None = field(
        default=None,
        metadata={
            "help": "Largest mean difference in nats of vLLM's log-probabilities from the trainer's after a weight "
            "sync. None for what rounding explains."
        },
    )

    max_generated_tokens: int | None = field(
        default=None, metadata={"help": "Generated tokens after which training ends, over all processes."}
    )

    def __post_init__(self):
        if self.num_generations is None or self.num_generations < 1:
            raise UserError(f"num_generations is {self.num_generations}, but a prompt needs at least one rollout.")
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
class DrGRPOConfig(GRPOConfig):
    """
    Configuration of [`DrGRPOTrainer`]: GRPO without the division by the group's standard deviation and by the rollout's
    length.

    Defaults from the paper (https://huggingface.co/papers/2503.20783, section 3), by TRL's options: advantages are
    centred alone, and token losses are divided by the longest completion, for every rollout alike.
    """

    loss_type: str = field(default="dr_grpo", metadata={"help": "Surrogate and reduction of the policy gradient."})
    scale_rewards: str = field(default="none", metadata={"help": "Scaling of advantages: group, batch or none."})


@dataclass
class DAPOConfig(GRPOConfig):
    """
    Configuration of [`DAPOTrainer`]: GRPO with DAPO's clip, reduction and overlong filtering.

    Defaults from the paper (https://huggingface.co/papers/2503.14476, sections 3 and 4.1), by TRL's options: a higher
    upper clip, a mean over all tokens of the step, no loss on rollouts that were cut. Its dynamic sampling is not in
    TRL; its soft punishment of long rollouts is TRL's reward function `trl.rewards.get_soft_overlong_punishment`.
    """

    loss_type: str = field(default="dapo", metadata={"help": "Surrogate and reduction of the policy gradient."})
    epsilon_high: float | None = field(default=0.28, metadata={"help": "Upper clip of the probability ratio."})
    mask_truncated_completions: bool = field(
        default=True, metadata={"help": "Whether rollouts that hit the length limit are left out of the loss."}
    )


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
            `"full"` sums over the vocabulary, `"topk"` over a part of it; `"k1"`, `"k2"` and `"k3"` use the sampled
            tokens only (k1 as a policy gradient). Which has which gradient: docs/estimators.md.
        estimator_use (`str`, *optional*):
            `"backprop"` or `"policy"`. `None` for the use that is right; a wrong one is refused with the reason.
        support_size (`int`, *optional*):
            Tokens in the support of `"topk"`.
        support_owner (`str`, *optional*, defaults to `"student"`):
            Whose likeliest tokens they are: `"student"` or `"teacher"`.
        support_tail (`bool`, *optional*, defaults to `True`):
            Whether the rest of the vocabulary is one more category; if not, both sides are renormalised.
        entry_clip (`float`, *optional*):
            OPSD's cap on each vocabulary entry's summand of the forward KL, in nats. `None` for no cap.
        advantage_clip (`float`, *optional*):
            SDPO's clip on the log-ratios of the reverse KL, in nats. `None` for no clip.

    > Parameters that control the teacher

    Parameters:
        teacher_chat_template_kwargs (`dict[str, Any]`, *optional*):
            Arguments of the chat template on the teacher's side, e.g. its thinking flag. `None` for the student's.
        max_teacher_length (`int`, *optional*):
            Longest teacher input in tokens, context and completion together. A demonstration is shortened to fit, any
            other context that is longer is dropped; both are counted.
            `None` for the longest that the teacher model takes.
        teacher_states (`str`, *optional*, defaults to `"keep"`):
            Where the teacher's hidden states are until a micro-batch's loss needs them: `"keep"` on the device,
            `"offload"` in host memory, or `"recompute"`, which reads the rows again instead. A teacher (and a
            reference) takes distilled tokens of the rollout batch x hidden size x bytes per number, e.g. 65,536 x
            4,096 x 2 (bf16) = 512 MiB a process; `"recompute"` takes none and a second forward of the teacher where
            the method weighs tokens by its scores.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "teacher_chat_template_kwargs"]

    divergence: str = field(
        default="reverse_kl", metadata={"help": "Divergence from the teacher: forward_kl, reverse_kl or jsd."}
    )
    jsd_beta: float | None = field(
        default=None, metadata={"help": "The teacher's share in the mixture of divergence: jsd, between 0 and 1."}
    )
    estimator: str = field(
        default="full",
        metadata={"help": "full: whole vocabulary; topk: a part of it; k1, k2, k3: the sampled tokens only."},
    )
    estimator_use: str | None = field(
        default=None, metadata={"help": "backprop or policy. None for the use that is right."}
    )
    support_size: int | None = field(default=None, metadata={"help": "Tokens in the support of estimator: topk."})
    support_owner: str = field(
        default="student", metadata={"help": "Whose likeliest tokens the support is: student or teacher."}
    )
    support_tail: bool = field(
        default=True, metadata={"help": "Whether the rest of the vocabulary is one more category."}
    )
    entry_clip: float | None = field(
        default=None,
        metadata={"help": "Cap on each vocabulary entry's summand of the forward KL, in nats. None for no cap."},
    )
    advantage_clip: float | None = field(
        default=None, metadata={"help": "Clip on the log-ratios of the reverse KL, in nats. None for no clip."}
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
    teacher_states: str = field(
        default="keep",
        metadata={"help": "The teacher's hidden states until the loss: keep (on the device), offload or recompute."},
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
        use_teacher_template (`bool`, *optional*, defaults to `False`):
            Whether the teacher's prompts are rendered with its own chat template instead of the student's.

    > Parameters that control a teacher that is not loaded here, see docs/teachers.md

    Parameters:
        teacher_cache (`str`, *optional*):
            Folder made by `trl-opd cache`: its rollouts are trained on, and the teacher's scores are read from it.
        teacher_server (`str`, *optional*):
            Address of a vLLM server that scores, e.g. `"http://127.0.0.1:8000"`. A teacher that is named besides is
            loaded once to compare, and not used.
        teacher_server_model (`str`, *optional*):
            The served model's name; `None` where it serves one.
        teacher_server_timeout (`float`, *optional*, defaults to `120.0`):
            Seconds that one request may take.
        teacher_server_retries (`int`, *optional*, defaults to `6`):
            Further attempts for a request that failed, with back-off; a row that has none left is not distilled.
        teacher_server_concurrency (`int`, *optional*, defaults to `16`):
            Requests under way at a time, in each process.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*DistillationConfig._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]

    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The teacher, if it is not passed to the trainer as a model."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Arguments of AutoModelForCausalLM.from_pretrained for the teacher. None for the student's."},
    )

    use_teacher_template: bool = field(
        default=False, metadata={"help": "Whether the teacher's prompts are rendered with its own chat template."}
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder made by trl-opd cache: train on its rollouts, with its scores, without a teacher."},
    )
    teacher_server: str | None = field(
        default=None, metadata={"help": "Address of a vLLM server that scores, e.g. http://127.0.0.1:8000."}
    )
    teacher_server_model: str | None = field(
        default=None, metadata={"help": "The served model's name. None where the server has one."}
    )
    teacher_server_timeout: float = field(
        default=120.0, metadata={"help": "Seconds that one request to the teacher server may take."}
    )
    teacher_server_retries: int = field(
        default=6, metadata={"help": "Further attempts, with back-off; a row that has none left is not distilled."}
    )
    teacher_server_concurrency: int = field(
        default=16, metadata={"help": "Requests to the teacher server under way at a time, in each process."}
    )


@dataclass
class OPDConfig(ExternalTeacherConfig):
    """
    Configuration of [`OPDTrainer`]: on-policy distillation from an external teacher.

    Defaults from G-OPD (https://huggingface.co/papers/2602.12125, table of hyper-parameters), whose OPD arm it is.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    num_generations: int | None = field(default=1, metadata={"help": "Rollouts per prompt."})
    max_completion_length: int | None = field(default=16384, metadata={"help": "Longest completion, in tokens."})
    vllm_importance_sampling_mode: str = field(
        default="token_truncate", metadata={"help": "How the correction for vLLM's probabilities is applied."}
    )
    vllm_importance_sampling_clip_max: float | None = field(
        default=5.0, metadata={"help": "Cap on the correction for vLLM's probabilities."}
    )


@dataclass
class SelfTeacherConfig(DistillationConfig):
    """
    What every method whose teacher is the student itself has in common.

    Parameters:
        teacher_weights (`str`, *optional*, defaults to `"frozen"`):
            `"frozen"` step-0 weights, `"ema"` a moving average, `"trust-region"` the step-0 and the live distributions'
            geometric mean, or `"live"` the student's own of the rollout batch (reported unstable).
        teacher_update_rate (`float`, *optional*):
            The student's share in each update of `"ema"` (once per rollout batch), or in the mean of
            `"trust-region"`.
    """

    teacher_weights: str = field(
        default="frozen", metadata={"help": "The teacher's weights: frozen, ema, trust-region or live."}
    )
    teacher_update_rate: float | None = field(
        default=None, metadata={"help": "The student's share in each ema update, or in the trust-region mean."}
    )


@dataclass
class GRPOEMAConfig(SelfTeacherConfig):
    """
    Configuration of [`GRPOEMATrainer`]: GRPO with a KL penalty towards a moving average of the policy.

    The rate is SDPO's (https://huggingface.co/papers/2601.20802, table 12), the weight of the penalty GRPO's
    (https://huggingface.co/papers/2402.03300, section 4.2), its gradient that of TRL's reference policy.

    Parameters:
        anchor_beta (`float`, *optional*, defaults to `0.04`):
            Weight of the penalty, beside a policy gradient of weight 1.
    """

    estimator: str = field(
        default="k1",
        metadata={"help": "full: whole vocabulary; topk: a part of it; k1, k2, k3: the sampled tokens only."},
    )
    teacher_weights: str = field(
        default="ema", metadata={"help": "The anchor's weights: frozen, ema, trust-region or live."}
    )
    teacher_update_rate: float | None = field(
        default=0.05, metadata={"help": "The policy's share in each ema update, or in the trust-region mean."}
    )
    anchor_beta: float = field(default=0.04, metadata={"help": "Weight of the penalty towards the average."})


@dataclass
class OPSDConfig(SelfTeacherConfig):
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
        metadata={"help": "How token losses become one number, see trl_opd.aggregation."},
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


@dataclass
class HindsightConfig(SelfTeacherConfig):
    """
    What the methods share whose teacher reads a successful sibling and/or feedback: SDPO's setting without feedback.

    Defaults from SDPO (https://huggingface.co/papers/2601.20802, table 12, and its shipped configuration).

    > Parameters that control what the teacher reads

    Parameters:
        success_threshold (`float`, *optional*, defaults to `0.5`):
            Reward from which a rollout is a success, and so may be a demonstration.
        use_demonstrations (`bool`, *optional*, defaults to `True`):
            Whether the teacher reads a successful sibling.
        use_feedback (`bool`, *optional*, defaults to `False`):
            Whether it reads what a reward function reported through `log_extra("feedback", [...])`.
        exclude_self (`bool`, *optional*, defaults to `True`):
            Whether a success is never its own demonstration.
        feedback_only_without_demonstration (`bool`, *optional*, defaults to `True`):
            Whether feedback is left out where there is a demonstration.
        include_attempt (`bool`, *optional*, defaults to `False`):
            Whether the rollout itself is shown before its feedback.
        strip_thinking (`bool`, *optional*, defaults to `True`):
            Whether thinking blocks are cut out of what is shown.
        teacher_template (`str`, *optional*):
            The teacher's user turn, with the placeholders {prompt} and {sections}.
        demonstration_section, feedback_section, attempt_section (`str`, *optional*):
            The sections that apply, with the placeholders {demonstration}, {feedback} and {attempt}.
        importance_cap (`float`, *optional*, defaults to `2.0`):
            Cap on the detached ratio p / p_old that weighs the divergence in later updates of a rollout batch.
    """

    divergence: str = field(
        default="jsd", metadata={"help": "Divergence from the teacher: forward_kl, reverse_kl or jsd."}
    )
    jsd_beta: float | None = field(
        default=0.5, metadata={"help": "The teacher's share in the mixture of divergence: jsd, between 0 and 1."}
    )
    estimator: str = field(
        default="topk",
        metadata={"help": "full: whole vocabulary; topk: a part of it; k1, k2, k3: the sampled tokens only."},
    )
    support_size: int | None = field(default=100, metadata={"help": "Tokens in the support of estimator: topk."})
    teacher_weights: str = field(
        default="ema", metadata={"help": "The teacher's weights: frozen, ema, trust-region or live."}
    )
    teacher_update_rate: float | None = field(
        default=0.05, metadata={"help": "The student's share in each ema update, or in the trust-region mean."}
    )
    aggregation: str | None = field(
        default="token-global", metadata={"help": "How token losses become one number, see trl_opd.aggregation."}
    )
    scale_rewards: str = field(default="none", metadata={"help": "Scaling of advantages: group, batch or none."})
    epsilon_high: float | None = field(default=0.28, metadata={"help": "Upper clip of the probability ratio."})
    warmup_steps: float = field(default=10, metadata={"help": "Steps of linear warm-up."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "Learning-rate schedule."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    max_completion_length: int | None = field(default=8192, metadata={"help": "Longest completion, in tokens."})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"enable_thinking": False},
        metadata={"help": "Arguments of the chat template on the student's side."},
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate", metadata={"help": "How the correction for vLLM's probabilities is applied."}
    )
    vllm_importance_sampling_clip_max: float | None = field(
        default=2.0, metadata={"help": "Cap on the correction for vLLM's probabilities."}
    )
    importance_cap: float | None = field(
        default=2.0, metadata={"help": "Cap on the detached ratio p / p_old that weighs the divergence."}
    )
    success_threshold: float = field(default=0.5, metadata={"help": "Reward from which a rollout is a success."})
    use_demonstrations: bool = field(default=True, metadata={"help": "Whether the teacher reads a successful sibling."})
    use_feedback: bool = field(
        default=False, metadata={"help": "Whether the teacher reads the feedback that a reward function reported."}
    )
    exclude_self: bool = field(default=True, metadata={"help": "Whether a success is never its own demonstration."})
    feedback_only_without_demonstration: bool = field(
        default=True, metadata={"help": "Whether feedback is left out where there is a demonstration."}
    )
    include_attempt: bool = field(
        default=False, metadata={"help": "Whether the rollout itself is shown before its feedback."}
    )
    strip_thinking: bool = field(
        default=True, metadata={"help": "Whether thinking blocks are cut out of what is shown."}
    )
    teacher_template: str = field(
        default=TEACHER_TEMPLATE, metadata={"help": "The teacher's user turn, with {prompt} and {sections}."}
    )
    demonstration_section: str = field(
        default=DEMONSTRATION_SECTION, metadata={"help": "Text that shows a {demonstration}."}
    )
    feedback_section: str = field(default=FEEDBACK_SECTION, metadata={"help": "Text that shows {feedback}."})
    attempt_section: str = field(default=ATTEMPT_SECTION, metadata={"help": "Text that shows the {attempt}."})


@dataclass
class SDPOConfig(HindsightConfig):
    """
    Configuration of [`SDPOTrainer`]: self-distillation policy optimisation, see [`HindsightConfig`].

    Parameters:
        grpo_lambda (`float`, *optional*, defaults to `0.0`):
            GRPO's share in the advantage, in [0, 1]; the paper's mix has 0.9.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    grpo_lambda: float = field(default=0.0, metadata={"help": "GRPO's share in the advantage, in [0, 1]."})


@dataclass
class SRPOConfig(HindsightConfig):
    """
    Configuration of [`SRPOTrainer`]: wrong rollouts are distilled, the others feed GRPO, see [`HindsightConfig`].

    Learning rate and entropy weight from the paper (https://huggingface.co/papers/2604.02288, table 3).

    Parameters:
        entropy_beta (`float`, *optional*, defaults to `1.0`):
            How strongly a token's weight falls with the teacher's entropy; 0 weighs all alike.
    """

    learning_rate: float = field(default=5e-6, metadata={"help": "The initial learning rate for AdamW."})
    entropy_beta: float = field(
        default=1.0, metadata={"help": "How strongly a token's weight falls with the teacher's entropy."}
    )


@dataclass
class ExOPDConfig(OPDConfig):
    """
    Configuration of [`ExOPDTrainer`]: on-policy distillation with reward extrapolation.

    Defaults from the paper (https://huggingface.co/papers/2602.12125), those of [`OPDConfig`] included.

    Parameters:
        extrapolation (`float`, *optional*, defaults to `1.25`):
            lambda: 1 is plain OPD, above 1 goes beyond the teacher, between 0 and 1 stays between it and the reference.
        reference_model_name_or_path (`str`, *optional*):
            The reference, if it is not passed to the trainer as a model. `None` for the student's start.
        teacher_models (`dict[str, str]`, *optional*):
            Several teachers by domain, instead of one; needs `estimator: k1`.
        domain_column (`str`, *optional*, defaults to `"domain"`):
            Dataset column that names the row's domain.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*ExternalTeacherConfig._VALID_DICT_FIELDS, "teacher_models"]

    estimator: str = field(
        default="k1",
        metadata={"help": "full: whole vocabulary; k1: the sampled tokens, as a policy gradient."},
    )
    extrapolation: float = field(
        default=1.25, metadata={"help": "lambda: 1 is plain OPD, above 1 goes beyond the teacher."}
    )
    reference_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The reference. None for the student's start."}
    )
    teacher_models: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Several teachers by domain, as a JSON object {domain: model}."}
    )
    domain_column: str = field(default="domain", metadata={"help": "Dataset column that names the row's domain."})


@dataclass
class SCOPEConfig(ExternalTeacherConfig):
    """
    Configuration of [`SCOPETrainer`]: likelihood on right rollouts, an external teacher on wrong ones.

    Defaults from the paper (https://huggingface.co/papers/2604.10688, tables 3 and 4).

    Parameters:
        success_threshold (`float`, *optional*, defaults to `0.5`):
            Reward from which a rollout is right.
        weight_temperature (`float`, *optional*, defaults to `1.0`):
            tau: infinity weighs a branch's rollouts alike, 0 picks one.
        weight_norm (`str`, *optional*, defaults to `"sum1"`):
            `"sum1"`: a branch's weights sum to 1; `"mean1"`: they have mean 1, as in the released code.
        length_norm (`str`, *optional*, defaults to `"sum"`):
            `"sum"`: a rollout's token losses are summed; `"mean"`: averaged.
        student_direction (`str`, *optional*, defaults to `"perplexing"`):
            Which right rollouts weigh more; `"confident"` is the released code's.
        teacher_direction (`str`, *optional*, defaults to `"confident"`):
            Which wrong rollouts weigh more; `"perplexing"` is the released code's default YAML.
    """

    estimator: str = field(
        default="k1",
        metadata={"help": "full: whole vocabulary; topk: a part of it; k1, k2, k3: the sampled tokens only."},
    )
    aggregation: str | None = field(
        default="prompt-sum", metadata={"help": "How token losses become one number, see trl_opd.aggregation."}
    )
    learning_rate: float = field(default=5e-5, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Learning-rate schedule."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    temperature: float = field(default=0.6, metadata={"help": "Temperature of rollouts and of all distributions."})
    max_completion_length: int | None = field(default=12288, metadata={"help": "Longest completion, in tokens."})
    success_threshold: float = field(default=0.5, metadata={"help": "Reward from which a rollout is right."})
    weight_temperature: float = field(default=1.0, metadata={"help": "tau of the softmax over a branch."})
    weight_norm: str = field(default="sum1", metadata={"help": "Weights of a branch: sum1 or mean1."})
    length_norm: str = field(default="sum", metadata={"help": "Token losses of a rollout: sum or mean."})
    student_direction: str = field(
        default="perplexing", metadata={"help": "Which right rollouts weigh more: perplexing or confident."}
    )
    teacher_direction: str = field(
        default="confident", metadata={"help": "Which wrong rollouts weigh more: confident or perplexing."}
    )


@dataclass
class MixConfig(HindsightConfig, ExternalTeacherConfig):
    """
    Configuration of [`MixTrainer`]: every choice of the pipeline as an option. What is not named here has
    [`HindsightConfig`]'s default, SDPO's.

    An option that belongs to a choice not made is refused; the other methods' configurations say what each means.

    Parameters:
        teacher (`str`, *optional*, defaults to `"self"`):
            `"self"` or `"external"`.
        context (`str`, *optional*, defaults to `"reference"`):
            What the teacher reads: `"prompt"`, `"reference"` (solution) or `"hindsight"` (sibling, feedback).
        right, wrong (`str`, *optional*, defaults to `"kl"`):
            What right and wrong rollouts feed: `"pg"`, `"kl"`, `"ce"` or `"none"`.
        without_context (`str`, *optional*, defaults to `"none"`):
            What a rollout feeds that was routed to `"kl"` but has no context.
        weighting (`str`, *optional*, defaults to `"none"`):
            `"none"`, `"entropy"` (SRPO) or `"perplexity"` (SCOPE).
        entropy_beta, weight_temperature (`float`, *optional*, default to `1.0`):
            Strengths of the two weightings.
        solution_column, reference_template (`str`, *optional*):
            As in [`OPSDConfig`].
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = ExternalTeacherConfig._VALID_DICT_FIELDS

    divergence: str = field(
        default="reverse_kl", metadata={"help": "Divergence from the teacher: forward_kl, reverse_kl or jsd."}
    )
    jsd_beta: float | None = field(
        default=None, metadata={"help": "The teacher's share in the mixture of divergence: jsd, between 0 and 1."}
    )
    estimator: str = field(
        default="full",
        metadata={"help": "full: whole vocabulary; topk: a part of it; k1, k2, k3: the sampled tokens only."},
    )
    support_size: int | None = field(default=None, metadata={"help": "Tokens in the support of estimator: topk."})
    teacher_weights: str = field(
        default="frozen", metadata={"help": "The teacher's weights: frozen, ema, trust-region or live."}
    )
    teacher_update_rate: float | None = field(
        default=None, metadata={"help": "The student's share in each ema update, or in the trust-region mean."}
    )
    teacher: str = field(default="self", metadata={"help": "Whose weights score: self or external."})
    context: str = field(
        default="reference", metadata={"help": "What the teacher reads: prompt, reference, hindsight."}
    )
    right: str = field(default="kl", metadata={"help": "What right rollouts feed: pg, kl, ce or none."})
    wrong: str = field(default="kl", metadata={"help": "What wrong rollouts feed: pg, kl, ce or none."})
    without_context: str = field(
        default="none", metadata={"help": "What a rollout feeds that was routed to kl but has no context."}
    )
    weighting: str = field(default="none", metadata={"help": "none, entropy (SRPO) or perplexity (SCOPE)."})
    entropy_beta: float = field(default=1.0, metadata={"help": "Strength of weighting: entropy."})
    weight_temperature: float = field(default=1.0, metadata={"help": "tau of weighting: perplexity."})
    solution_column: str = field(
        default="solution", metadata={"help": "Dataset column that holds the reference solution."}
    )
    reference_template: str = field(
        default=REFERENCE_TEMPLATE, metadata={"help": "The teacher's user turn, with {prompt} and {solution}."}
    )
