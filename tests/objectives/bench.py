"""A step of any objective without a model: logits in, loss and gradient out, in float64.

The head is the identity, so that hidden states are logits and the gradient of the hidden states is that of the logits;
everything else is what the trainer runs: `route`, `weigh`, the reduction and the one loss.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import trl_opd
from tests.conftest import settings
from trl_opd.aggregation import Window, count, token_weights
from trl_opd.batches import compact, signal_tensors
from trl_opd.checks import resolve_aggregation
from trl_opd.divergences import entropy
from trl_opd.loss import token_loss
from trl_opd.methods import METHODS
from trl_opd.objectives import OBJECTIVES, Objective
from trl_opd.policy import PolicyGradient
from trl_opd.rollouts import Rollouts, Scores, Sibling, Signals
from trl_opd.tiled import Head

VOCABULARY = 7


@dataclass(frozen=True)
class Method:
    """An objective made from its real config."""

    objective: Objective
    config: Any


def make(name: str, folder: Path, **options) -> Method:
    config = getattr(trl_opd, METHODS[name].config)(**settings(folder, **options))
    return Method(OBJECTIVES[name](config), config)


@dataclass
class Batch:
    """Rollouts with the logits of the student and of the scorers at every completion position, `[B, T, V]`."""

    rollouts: Rollouts
    ids: Tensor
    student: Tensor
    scorers: list[Tensor]
    old_logps: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def sampled(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the sampled tokens, `[B, T]`."""
        return logits.log_softmax(-1).gather(-1, self.ids[..., None]).squeeze(-1)

    @property
    def mask(self) -> Tensor:
        return self.rollouts.mask

    def but(self, **changes) -> "Batch":
        return replace(self, **changes)


@dataclass
class Step:
    loss: float
    gradient: Tensor
    signals: Signals
    facts: dict[str, Tensor]


def group(
    rewards: list[float],
    lengths: list[int] | None = None,
    *,
    group_size: int | None = None,
    feedback: list[str | None] | None = None,
    truncated: list[bool] | None = None,
    texts: list[str] | None = None,
) -> Rollouts:
    """Rollouts with these rewards, in whole groups; advantages are the rewards less their group's mean."""
    number = len(rewards)
    size = group_size or number
    lengths = lengths or [4] * number
    own = [
        Sibling(text=text, reward=reward, truncated=cut)
        for text, reward, cut in zip(
            texts or [f"text {row}" for row in range(number)], rewards, truncated or [False] * number, strict=True
        )
    ]
    by_group = torch.tensor(rewards, dtype=torch.float64).view(-1, size)
    return Rollouts(
        examples=[{} for _ in own],
        prompts=[[{"role": "user", "content": f"question {row // size}"}] for row in range(number)],
        own=own,
        siblings=[own[row // size * size : (row // size + 1) * size] for row in range(number)],
        position=[row % size for row in range(number)],
        feedback=feedback or [None] * number,
        feedback_reported=feedback is not None,
        mask=(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long(),
        advantages=(by_group - by_group.mean(-1, keepdim=True)).flatten(),
        group_size=size,
    )


def batch(rollouts: Rollouts, *, scorers: int = 1, seed: int = 0, vocabulary: int = VOCABULARY) -> Batch:
    """Random logits and tokens for the rollouts."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*rollouts.mask.shape, vocabulary)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    ids = torch.randint(vocabulary, shape[:2], generator=generator)
    return Batch(rollouts, ids, student=normal(), scorers=[normal() for _ in range(scorers)])


def has_context(method: Method, rollouts: Rollouts) -> Tensor:
    """Rows for which the objective's context finds something to read."""
    context = method.objective.context
    prompts = rollouts.prompts if context is None else context.prompts(rollouts)
    return torch.tensor([prompt is not None for prompt in prompts])


def step(method: Method, made: Batch, readable: Tensor | None = None) -> Step:
    """One optimizer step's loss on the whole batch, and its gradient with respect to the student's logits."""
    objective, config, rollouts = method.objective, method.config, made.rollouts
    readable = has_context(method, rollouts) if readable is None else readable
    signals = objective.route(rollouts, readable)
    scores = _scores(made, signals)
    current = made.sampled(made.student).detach()
    rollouts = replace(rollouts, logps=current * (signals.ce != 0)[:, None])
    signals = objective.weigh(rollouts, signals, scores)

    inputs = signal_tensors(signals, scores, made.mask) | made.extra
    inputs |= {"completion_ids": made.ids, "advantages": rollouts.advantages}
    if made.old_logps is not None:
        inputs["old_per_token_logps"] = made.old_logps
    tokens, live_rows = count(inputs["counted"])
    window = Window(tokens, live_rows, 1, 1, made.mask.shape[1], rollouts.group_size)
    weights = token_weights(inputs["counted"], resolve_aggregation(config), window)
    logits = made.student.clone().requires_grad_()
    live = made.mask.bool()
    head = Head(weight=torch.eye(logits.shape[-1], dtype=torch.float64), bias=None, temperature=1.0)
    loss, facts = token_loss(
        logits[live],
        head,
        compact(inputs, live, weights, [scorer[live] for scorer in made.scorers]),
        objective,
        PolicyGradient.of(config) if objective.uses_policy_gradient else None,
        [head] * len(made.scorers),
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    return Step(loss.item(), gradient, signals, facts)


def _scores(made: Batch, signals: Signals) -> Scores:
    """What the scorers say of the rows that carry divergence weight; 0 elsewhere, as in the pipeline."""
    read = signals.scored_rows()[:, None] & made.mask.bool()
    entropies = entropy(made.scorers[0].log_softmax(-1)) if made.scorers else None
    return Scores(
        logps=[made.sampled(scorer) * read for scorer in made.scorers],
        entropy=None if entropies is None else entropies * read,
    )


def token_mean(values: Tensor, mask: Tensor) -> float:
    """Mean over the tokens of a mask, `[B, T]` each."""
    return ((values * mask).sum() / mask.sum()).item()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) from logits, `[..., V]` -> `[...]`, written out apart from the code under test."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def reverse_gradient(p: Tensor, q: Tensor) -> Tensor:
    """Gradient of KL(p || q) with respect to p's logits: p (ln p - ln q - KL)."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return p.exp() * (p - q - kl(p, q)[..., None])


def jsd(p: Tensor, q: Tensor, share: float) -> Tensor:
    """share KL(q || m) + (1 - share) KL(p || m) with m = share q + (1 - share) p, from logits."""
    mixture = (share * q.softmax(-1) + (1 - share) * p.softmax(-1)).log()
    return share * kl(q, mixture) + (1 - share) * kl(p, mixture)


def assert_same(first: Step, second: Step, rtol: float = 1e-6) -> None:
    """Equal loss and gradient; weights are float32, hence the tolerance."""
    torch.testing.assert_close(torch.tensor(first.loss), torch.tensor(second.loss), rtol=rtol, atol=1e-9)
    torch.testing.assert_close(first.gradient, second.gradient, rtol=rtol, atol=1e-9)
