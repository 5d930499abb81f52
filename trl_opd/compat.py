"""The one module that imports TRL's private names, and the contracts that the pipeline relies on.

`CONTRACTS` is checked by a test against the installed TRL, so that a release that changes a signature fails loudly in
one place.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

from torch import Tensor
from transformers import is_wandb_available
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.models import prepare_deepspeed
from trl.models.utils import _ForwardRedirection
from trl.trainer.utils import get_comet_experiment_url, get_trackio_space_url, pad
from trl.trainer.utils import maybe_gather_lm_head_ctx as gathered_parameters

if is_wandb_available():
    import wandb

try:
    from peft import PeftModel
except ImportError:  # PEFT is optional, as it is in TRL
    PeftModel = ()

__all__ = [
    "CONTRACTS",
    "ENGINE_CONTRACTS",
    "chunked_divergence",
    "chunked_logps",
    "end_engine",
    "gathered_parameters",
    "is_peft_model",
    "pad",
    "prepare_deepspeed",
    "probe_engine",
    "redirect_forward",
    "reload_engine",
    "render_prompts",
    "synced_engine",
    "tokenize_prompts",
    "tracker_links",
]

#: Overridden or called methods of `GRPOTrainer` -> the parameters that they must have.
CONTRACTS = {
    "_generate_and_score_completions": ("self", "inputs"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("self", "model", "inputs"),
    "_prepare_inputs": ("self", "generation_batch"),
    "_tokenize_prompts": ("self", "prompts"),
    "_save_checkpoint": ("self", "model", "trial"),
}

#: The same for `VLLMGeneration`, TRL's hold on a vLLM engine.
ENGINE_CONTRACTS = {
    "sync_weights": ("self",),
    "generate": ("self", "prompts", "images", "num_generations", "profiler"),
    "_iter_named_params": ("self",),
}


#: Vocabulary entries that TRL's log-probability kernel projects at a time, as TRL sets it.
_CHUNK_SIZE = 32768


def chunked_logps(hidden_NH: Tensor, head, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """TRL's kernel: log-probabilities of the sampled tokens, and entropies without gradient, `[N]` each."""
    logps, entropy, *_ = ChunkedLogProbFunction.apply(
        hidden_NH, head.weight, head.bias, ids_N, head.temperature, _CHUNK_SIZE, head.softcap, head.scale, ("entropy",)
    )
    return logps, entropy.detach()


def chunked_divergence(student_NH: Tensor, student_head, teacher_NH: Tensor, teacher_head, beta: float) -> Tensor:
    """TRL's kernel: the divergence of each token over the whole vocabulary, `[N]`; 0 forward KL, 1 reverse KL."""
    value, _ = ChunkedDivergenceFunction.apply(
        student_NH, student_head.weight, student_head.bias, teacher_NH, teacher_head.weight, teacher_head.bias, beta,
        student_head.temperature, student_head.scale, student_head.softcap, teacher_head.scale, teacher_head.softcap,
    )  # fmt: skip
    return value


def is_peft_model(model) -> bool:
    """Whether the model is wrapped by PEFT."""
    return isinstance(model, PeftModel)


def tracker_links() -> dict[str, str]:
    """Addresses of the current run in the trackers that `report_to` names, by tracker."""
    run = wandb.run if is_wandb_available() else None
    found = {
        "Weights & Biases": run and run.url,
        "Trackio": get_trackio_space_url(),
        "Comet": get_comet_experiment_url(),
    }
    return {name: url for name, url in found.items() if url}


def redirect_forward(wrapper, module, method, *args):
    """Calls `method(*args)` inside the forward of `wrapper`, so that DDP, FSDP and ZeRO see one ordinary forward."""
    return _ForwardRedirection()(wrapper, module, method, *args)


def tokenize_prompts(
    trainer: GRPOTrainer, prompts: list, chat_template: str | None, chat_template_kwargs: dict
) -> list[list[int]]:
    """Renders prompts by the very function that rendered the student's, under another template or other arguments."""
    template = _attribute(trainer, "chat_template", chat_template)
    with template, _attribute(trainer, "chat_template_kwargs", chat_template_kwargs):
        ids, _, _ = trainer._tokenize_prompts(prompts)
    return [list(row) for row in ids]


def render_prompts(tokenizer, prompts: list, chat_template: str | None, chat_template_kwargs: dict) -> list[list[int]]:
    """Renders prompts by the function that a trainer renders them by, where there is no trainer."""
    stand_in = SimpleNamespace(
        processing_class=tokenizer,
        chat_template=chat_template,
        chat_template_kwargs=chat_template_kwargs,
        tools=None,
        environment_factories=None,
        _is_vlm=False,
    )
    ids, _, _ = GRPOTrainer._tokenize_prompts(stand_in, prompts)
    return [list(row) for row in ids]


def reload_engine(generation: VLLMGeneration) -> None:
    """Copies the trainer's weights into a colocated engine by vLLM's own reloading.

    `VLLMGeneration.sync_weights` writes into the engine's parameters, and on a CPU vLLM has packed these for its
    kernels: only vLLM can unpack them.
    """
    runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner
    # The names and tensors are read one after the other, and an adapter is merged only until the last is read.
    runner.reload_weights(weights_iterator=((name, p.detach().clone()) for name, p in generation._iter_named_params()))
    generation.llm.reset_prefix_cache()


@contextmanager
def synced_engine(trainer: GRPOTrainer) -> Iterator[None]:
    """Inside, a trainer's colocated vLLM engine is awake and has the weights of the step at hand.

    The weights are copied at most once for a step, by TRL's own bookkeeping: rollouts of the same step find them there,
    and nothing that was drawn in between. Every process has to enter and to leave.
    """
    generation = trainer.vllm_generation
    step = trainer.state.global_step
    if step != trainer._last_loaded_step or generation._llm_weights_sleeping:
        generation.sync_weights()
        trainer._last_loaded_step = step
    if generation.enable_sleep_mode:
        generation.llm.wake_up(tags=["kv_cache"])
    try:
        yield
    finally:
        generation.llm.reset_prefix_cache()
        if generation.enable_sleep_mode:
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True


def end_engine(generation: VLLMGeneration) -> None:
    """Ends a colocated engine, which would otherwise look for its process groups after they are gone."""
    if generation.mode == "colocate":
        generation.llm.llm_engine.engine_core.shutdown()


def probe_engine(
    generation: VLLMGeneration, prompts: list[list[int]], tokens: int
) -> tuple[list[list[int]], list[list[float]]]:
    """What the engine draws at temperature 1 from the whole vocabulary, always with the same seed.

    Every process has to ask, with the same prompts.

    Returns:
        `tuple[list[list[int]], list[list[float]]]`: For each prompt the tokens, and the engine's log-probability of
        each of them; NaN where it gives none.
    """
    plain = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_completion_length": tokens,
        "logprobs": 0,
        "structured_outputs_regex": None,
        "generation_kwargs": {"seed": 0},
        "enable_sleep_mode": False,  # it would fall asleep after this, and lose the weights
    }
    if generation.mode == "colocate" and generation.enable_sleep_mode:
        generation.llm.wake_up(tags=["kv_cache"])
    with ExitStack() as stack:
        for name, value in plain.items():
            stack.enter_context(_attribute(generation, name, value))
        _, completions, logprobs, _ = generation.generate(prompts, None, 1)
    values = [[float("nan") if token[0] is None else token[0] for token in row] for row in logprobs]
    return [list(row) for row in completions], values


@contextmanager
def _attribute(owner, name: str, value):
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)
