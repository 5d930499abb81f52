"""Rollouts by vLLM: does the engine hold the trainer's weights?

TRL copies the weights into the engine after an optimizer step. A copy that goes wrong is silent: the rollouts come from
another policy, most often from one without the adapter. So after each copy the engine draws a few tokens, and its
log-probabilities are held against those of the trainer's own forward. Two things stop the run:

- they differ by more than rounding explains;
- the engine gives bit for bit what it gave before, while the trainer's log-probabilities of the same tokens have moved.
  This finds a stale engine long before the first difference is larger than rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from trl_opd.compat import pad, probe_engine, reload_engine, tokenize_prompts
from trl_opd.defaults import changed
from trl_opd.errors import UserError
from trl_opd.offsite import kept_random_state
from trl_opd.scoring import score
from trl_opd.teachers import Scorer

#: Largest mean difference that rounding explains, in nats, by the coarser precision of engine and trainer.
TOLERANCES = {torch.float32: 0.02, torch.bfloat16: 0.1, torch.float16: 0.1}
#: Share of the tolerance by which the trainer has to move before an engine that stands still is called stale.
STANDSTILL = 0.01
#: The probe: the shortest of the first prompts, and so many tokens drawn after each.
PROMPTS, PROMPTS_LOOKED_AT, TOKENS = 2, 8, 16
METRIC = "vllm/sync_difference"
_REMEDY = "train without use_vllm, or with the versions of docs/vllm.md"


def check_settings(model: Any, config: Any) -> None:
    """Refuses what cannot work before anything is loaded.

    Raises:
        `UserError`: With the option and the way out.
    """
    tolerance = config.vllm_sync_tolerance
    if not config.use_vllm:
        if "vllm_sync_tolerance" in changed(config):
            raise UserError("vllm_sync_tolerance would be ignored without use_vllm; set that, or remove it.")
        return
    if tolerance is not None and not tolerance >= 0.0:
        raise UserError(f"vllm_sync_tolerance is {tolerance}, but a difference is never negative; use .inf for none.")
    if find_spec("vllm") is None:
        raise UserError(
            "use_vllm needs vLLM, which is not installed here; pip install 'trl-opd[vllm]' in an environment of its "
            "own (docs/vllm.md), or remove use_vllm."
        )
    if not isinstance(model, str) and not model.name_or_path:
        raise UserError("vLLM loads the model from its folder, and this one has none; pass the model by its path.")
    if config.device.type == "cpu":
        _check_cpu(config)


def _check_cpu(config: Any) -> None:
    if config.vllm_mode == "server":
        raise UserError(
            "vllm_mode: server copies weights from GPU to GPU, and this run is on a CPU; use vllm_mode: colocate."
        )
    if config.vllm_enable_sleep_mode:
        raise UserError("vllm_enable_sleep_mode frees GPU memory, and this run is on a CPU; remove it.")


def watch(trainer: Any) -> None:
    """Lets every weight sync of a trainer's vLLM engine be followed by a check.

    Args:
        trainer (`OnPolicyTrainer`): Made, with `use_vllm`.
    """
    generation = trainer.vllm_generation
    copy_weights = generation.sync_weights
    if generation.mode == "colocate" and trainer.accelerator.device.type == "cpu":

        def copy_weights() -> None:
            reload_engine(generation)

    prompts = _probe_prompts(trainer)
    check = SyncCheck(
        tolerance=_tolerance(trainer),
        draw=lambda: probe_engine(generation, prompts, min(TOKENS, trainer.max_completion_length)),
        score=lambda completions: _trainer_logps(trainer, prompts, completions),
        worst=lambda values: trainer.accelerator.gather(values[None]).amax(0),
    )

    def sync_weights() -> None:
        copy_weights()
        with kept_random_state():  # which vLLM moves on a CPU, also where requests have seeds
            difference = check(trainer.state.global_step)
        trainer._metrics["train" if trainer.model.training else "eval"][METRIC].append(difference)

    generation.sync_weights = sync_weights


@dataclass
class _Draw:
    """What the engine drew, and the trainer's log-probabilities of it when the engine first gave it."""

    completions: list[list[int]]
    engine: list[list[float]]
    trainer: Tensor


class SyncCheck:
    """The comparison, with what the engine gave before.

    Args:
        tolerance (`float`): Largest mean difference, in nats.
        draw (`Callable`): The engine's draw, always from the same prompts and seed: completions and the log-probability
            of each of their tokens.
        score (`Callable`): The trainer's log-probabilities of completions, `[B, T]`, 0 behind their ends.
        worst (`Callable`): The largest of all processes' values, `[n]` to `[n]`; NaN is the largest of all.
    """

    def __init__(
        self,
        tolerance: float,
        draw: Callable[[], tuple[list[list[int]], list[list[float]]]],
        score: Callable[[list[list[int]]], Tensor],
        worst: Callable[[Tensor], Tensor] = lambda values: values,
    ):
        self.tolerance = tolerance
        self._draw, self._score, self._worst = draw, score, worst
        self._last: _Draw | None = None

    def __call__(self, step: int) -> float:
        """Compares, after the sync before the rollouts of an optimizer step.

        Returns:
            `float`: The mean difference of the log-probabilities, the largest of all processes'.

        Raises:
            `UserError`: The engine does not hold the trainer's weights.
        """
        completions, engine = self._draw()
        trainer = self._score(completions)
        difference = _mean_difference(completions, _padded(engine, trainer), trainer)
        moved = trainer.new_zeros(())
        if self._last is not None and (completions, engine) == (self._last.completions, self._last.engine):
            moved = _mean_difference(completions, self._last.trainer, trainer)
        else:
            self._last = _Draw(completions, engine, trainer)
        difference, moved = self._worst(torch.stack([difference, moved])).tolist()
        if moved > STANDSTILL * self.tolerance:
            raise UserError(
                f"After the weight sync at step {step}, vLLM gives bit for bit what it gave before, and the trainer's "
                f"log-probabilities of the same tokens have moved by {moved:.3g}: vLLM still holds old weights (an "
                f"adapter that is not merged does this); {_REMEDY}."
            )
        if not difference <= self.tolerance:
            raise UserError(
                f"After the weight sync at step {step}, vLLM's log-probabilities of {sum(map(len, completions))} "
                f"tokens differ from the trainer's by {difference:.3g} on average, and rounding explains "
                f"{self.tolerance:.3g}: vLLM does not hold the trainer's weights; {_REMEDY}."
            )
        return difference


def _mean_difference(completions: list[list[int]], one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().sum() / sum(map(len, completions))


def _padded(rows: list[list[float]], like: Tensor) -> Tensor:
    """Rows of different length as a matrix of the given shape, 0 behind their ends."""
    padded = torch.zeros_like(like)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = torch.tensor(values)
    return padded


def _tolerance(trainer: Any) -> float:
    given = trainer.args.vllm_sync_tolerance
    if given is not None:
        return given
    generation = trainer.vllm_generation
    # What a server computes in is its own affair: taken to be coarse.
    engine = generation.llm.llm_engine.model_config.dtype if generation.mode == "colocate" else torch.bfloat16
    exact = engine == trainer.model.dtype == torch.float32 and trainer.accelerator.mixed_precision == "no"
    return TOLERANCES[torch.float32 if exact else torch.bfloat16]


def _probe_prompts(trainer: Any) -> list[list[int]]:
    """The same short prompts in every process and after every sync."""
    examples = list(islice(iter(trainer.train_dataset), PROMPTS_LOOKED_AT))
    prompts = [example["prompt"] for example in examples]
    rendered = tokenize_prompts(trainer, prompts, trainer.chat_template, trainer.chat_template_kwargs)
    return sorted(rendered, key=len)[:PROMPTS]


def _trainer_logps(trainer: Any, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
    """The trainer's own log-probabilities at temperature 1, `[B, T]`, 0 behind the completions' ends."""
    device = trainer.accelerator.device
    rows = [torch.tensor(ids, device=device) for ids in completions]
    batch = {
        "completion_ids": pad(rows, trainer._tokenizer.pad_token_id, "right"),
        "completion_mask": pad([torch.ones_like(row) for row in rows], 0, "right"),
    }
    everything = torch.ones(len(rows), dtype=torch.bool, device=device)
    reading = trainer._reading(batch, prompts, everything, [{}] * len(rows))
    return score([Scorer(trainer.model, temperature=1.0)], reading).logps[0]
