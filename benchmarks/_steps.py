"""Whole optimizer steps of real trainers on given completions: TRL's SDPO trainer and the pipeline, on the same work.

Generation is replaced by the given completions. What is measured is everything else of a step: rewards, contexts, the
teacher's reading, losses and backward passes of all micro-batches. Every rollout is a success, so every row has a
teacher, which reads another rollout of its group; both sides average over rows of token means, so losses are equal.
"""

import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import trl
import trl.experimental.sdpo
from datasets import Dataset
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

import trl_opd
from trl_opd.testbed.tokenizer import build_tokenizer

VOCABULARY = 151_936
GROUP = 8
PROMPT = [{"role": "user", "content": "12+34=?"}]


@dataclass(frozen=True)
class Shape:
    """A Qwen3 with random weights.

    Attributes:
        hidden, intermediate, layers, heads, kv_heads, head_dim: As in its configuration.
        vocabulary: Rows of its head.
        dtype: Of its weights.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = VOCABULARY
    dtype: torch.dtype = torch.float32

    def build(self, seed: int = 0) -> Qwen3ForCausalLM:
        """The model; far from uniform, so that teacher and student differ by more than rounding."""
        config = Qwen3Config(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim, tie_word_embeddings=True, initializer_range=0.1, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).to(self.dtype)


TINY = Shape(hidden=64, intermediate=128, layers=2, heads=2, kv_heads=2, head_dim=32)


@dataclass(frozen=True)
class Step:
    """The work of one optimizer step.

    Attributes:
        lengths: Of the completions, in tokens; a whole number of groups.
        micro_batches: Gradient-accumulation steps.
        seed: Of the completions' tokens.
    """

    lengths: tuple[int, ...]
    micro_batches: int = 1
    seed: int = 1

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def completions(self) -> list[list[int]]:
        """Random printable tokens, so that they survive being shown to the teacher as text."""
        tokenizer, generator = build_tokenizer(), random.Random(self.seed)
        letters = tokenizer("abcdefghij0123456789", add_special_tokens=False)["input_ids"]
        return [[*generator.choices(letters, k=n - 1), tokenizer.eos_token_id] for n in self.lengths]


def ragged(rows: int, mean: float, cap: int, seed: int = 0) -> tuple[int, ...]:
    """Lengths as rollouts have them: lognormal (sigma 0.9) with this mean, cut at `cap`."""
    generator = random.Random(seed)
    scale = torch.tensor(mean).log().item() - 0.9**2 / 2
    return tuple(max(2, min(cap, int(generator.lognormvariate(scale, 0.9)))) for _ in range(rows))


def common(step: Step, folder: str, device: str) -> dict[str, Any]:
    """Options that both sides have."""
    return {
        "output_dir": folder, "use_cpu": device == "cpu", "bf16": device == "cuda", "report_to": "none",
        "per_device_train_batch_size": len(step.lengths) // step.micro_batches,
        "gradient_accumulation_steps": step.micro_batches, "num_generations": min(GROUP, len(step.lengths)),
        "max_completion_length": max(step.lengths),
        "gradient_checkpointing": device == "cuda", "shuffle_dataset": False, "temperature": 1.0,
    }  # fmt: skip


def success(completions: list, **_: Any) -> list[float]:
    """The reward of every rollout."""
    return [1.0] * len(completions)


def sdpo(ours: bool, shape: Shape, step: Step, device: str) -> Callable[[], Tensor]:
    """A step of SDPO, top-100 with tail, JSD 0.5, averaged teacher; returns its loss after the backward passes."""
    tokenizer, completions = build_tokenizer(), step.completions()
    data = Dataset.from_list([{"prompt": PROMPT}] * len(step.lengths))
    # The teacher's weights are loaded again by TRL: it needs a path.
    with tempfile.TemporaryDirectory() as folder:
        shape.build().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        options = common(step, folder, device)
        dtype = {"model_init_kwargs": {"dtype": str(shape.dtype).removeprefix("torch.")}}
        if ours:
            config = trl_opd.SDPOConfig(
                **options, **dtype, aggregation="seq-mean", teacher_template="{prompt}{sections}",
                demonstration_section="={demonstration}", chat_template_kwargs={}, strip_thinking=False,
            )  # fmt: skip
            trainer = trl_opd.SDPOTrainer(
                folder, success, config, data, processing_class=tokenizer,
                rollout_func=lambda prompts, trainer: rollouts(trainer, prompts, completions),
            )  # fmt: skip
        else:
            config = trl.experimental.sdpo.SDPOConfig(
                **options, **dtype, distillation_mode="topk_logits", distillation_topk=100, distillation_alpha=0.5,
                distillation_add_tail=True, distillation_weight=1.0, reprompt_template="{prompt}{solution}",
                solution_template="={successful_previous_attempt}", dont_reprompt_on_self_success=True,
            )  # fmt: skip
            trainer = trl.experimental.sdpo.SDPOTrainer(folder, success, config, data, processing_class=tokenizer)
            trainer._generate = lambda prompt_ids: (prompt_ids, completions)
    return whole_step(trainer, data.to_list(), step)


def rollouts(trainer: Any, prompts: list, completions: list[list[int]]) -> dict[str, list]:
    """What a rollout function returns."""
    ids = trainer.processing_class.apply_chat_template(
        prompts, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": [[0.0] * len(row) for row in completions]}


def whole_step(trainer: Any, rows: list[dict], step: Step) -> Callable[[], Tensor]:
    """All micro-batches of an optimizer step, as the training loop runs them, without the optimizer."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = step.micro_batches

    def run() -> Tensor:
        total = torch.zeros(())
        for _ in range(step.micro_batches):
            inputs = trainer._prepare_inputs(rows)
            loss = trainer.compute_loss(trainer.model, inputs)
            loss.backward()
            trainer._step += 1
            total += loss.detach().cpu()
        return total

    return run


def shrunk(step: Step) -> Step:
    """A quarter of the rows and lengths up to a quarter, for a quick look."""
    return replace(step, lengths=tuple(max(2, n // 4) for n in step.lengths[: GROUP * 2]), micro_batches=2)
