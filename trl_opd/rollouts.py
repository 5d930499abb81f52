"""The records that travel through the pipeline.

Shape legend, used throughout: B rows of this process, G rollouts of one prompt, T completion positions, P prompt
positions, N compact tokens (unmasked positions only), V vocabulary, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: A conversation in the chat format, or a plain string.
Prompt = list[dict[str, Any]] | str


def text_of(completion: Prompt) -> str:
    """The text of a completion, or of a single turn in the chat format."""
    return completion if isinstance(completion, str) else completion[0]["content"] or ""


@dataclass(frozen=True)
class Sibling:
    """One rollout of a group, as any process may see it.

    Attributes:
        text (`str`): Decoded completion.
        reward (`float`): Weighted sum of its rewards; nan where no reward function scored it.
        truncated (`bool`): Whether it hit the length limit instead of ending by itself.
    """

    text: str
    reward: float
    truncated: bool


@dataclass
class Rollouts:
    """What is known about this process's rollouts once they have been scored.

    Attributes:
        examples (`list[dict]`): The dataset row behind each rollout, length B.
        prompts (`list`): What the student read, as messages or text, length B.
        own (`list[Sibling]`): Each rollout itself, length B.
        siblings (`list[list[Sibling]]`): All G rollouts of the row's prompt, in order, gathered over processes; empty
            lists unless the objective asks for groups.
        position (`list[int]`): Index of the row within its group.
        feedback (`list[str | None]`): What the reward functions reported through `log_extra("feedback", ...)`.
        feedback_reported (`bool`): Whether one of them reports feedback at all.
        mask (`torch.Tensor`): 1 on model-generated completion tokens, `[B, T]`.
        advantages (`torch.Tensor`): Group-relative advantages, `[B]`.
        logps (`torch.Tensor`, *optional*): The student's log-probabilities of its tokens at rollout time, `[B, T]`;
            only where the objective asks for them.
        gather (`Callable`): Rows of all processes from those of this one, `[B, ...]` -> `[processes x B, ...]`; to be
            called on every process or on none.
        first (`int`): Index of this process's first row among the gathered.
        group_size (`int`): G.
    """

    examples: list[dict[str, Any]]
    prompts: list[Prompt]
    own: list[Sibling]
    siblings: list[list[Sibling]]
    position: list[int]
    feedback: list[str | None]
    feedback_reported: bool
    mask: Tensor
    advantages: Tensor
    logps: Tensor | None = None
    gather: Callable[[Tensor], Tensor] = lambda rows: rows
    first: int = 0
    group_size: int = 1

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def rewards(self) -> Tensor:
        """Reward of each row, `[B]`."""
        return torch.tensor([rollout.reward for rollout in self.own], device=self.mask.device)


@dataclass
class Signals:
    """Which component of the loss each row feeds, and how strongly.

    The loss of a token is pg x policy gradient + kl x divergence + ce x negative log-likelihood.

    Attributes:
        pg, kl, ce (`torch.Tensor`): Weights, `[B]` or `[B, T]`; constants, never differentiated.
        counted (`torch.Tensor`): Whether the row's tokens are in the loss's denominator, bool `[B]`.
    """

    pg: Tensor
    kl: Tensor
    ce: Tensor
    counted: Tensor

    @classmethod
    def none(cls, rollouts: Rollouts) -> "Signals":
        """No signal for any row, all rows counted: what an objective starts from."""
        zero = torch.zeros(len(rollouts), device=rollouts.mask.device)
        return cls(pg=zero, kl=zero.clone(), ce=zero.clone(), counted=torch.ones_like(zero, dtype=torch.bool))

    def per_row(self, name: str) -> Tensor:
        """Whether a component acts on each row, bool `[B]`."""
        weight = getattr(self, name)
        return weight != 0 if weight.dim() == 1 else (weight != 0).any(-1)

    def scored_rows(self) -> Tensor:
        """Rows that carry divergence weight, and so need the teacher, bool `[B]`."""
        return self.per_row("kl")


@dataclass
class Scores:
    """What the scorers (teacher first, then reference) said about the rollouts; no gradient anywhere.

    Attributes:
        logps (`list[torch.Tensor]`): Log-probability of each sampled token, `[B, T]` per scorer; 0 on rows not scored.
        states (`list[list[torch.Tensor | None]]`): Last hidden states of each row's completion, `[t, H]` without
            padding, per scorer and row; None for rows not scored, empty where they are not kept.
        entropy (`torch.Tensor`, *optional*): The teacher's entropy over the full vocabulary, `[B, T]`.
        support_ids, support_logps (`torch.Tensor`, *optional*): The teacher's likeliest tokens and their
            log-probabilities, likeliest first, `[B, T, K]`; from a teacher that gives these instead of hidden states.
        missing (`torch.Tensor`, *optional*): Rows that were to be scored and that the teacher has no answer for, bool
            `[B]`; None where every teacher is here and answers always.
        tokens (`int`): Tokens that the scorers read, prompts included; a prompt that was encoded once counts once.
    """

    logps: list[Tensor] = field(default_factory=list)
    states: list[list[Tensor | None]] = field(default_factory=list)
    entropy: Tensor | None = None
    support_ids: Tensor | None = None
    support_logps: Tensor | None = None
    missing: Tensor | None = None
    tokens: int = 0
