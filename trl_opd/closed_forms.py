"""Divergences over a whole vocabulary together with their gradients, written out, in few passes over `[n, V]`.

`trl_opd.divergences` says what is computed; here are the same values with the gradients that its docstring states,
without a graph. Log-probabilities must be finite (an impossible token has a very low one). The student's are
normalised; the target's need not be.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distribution:
    """Log-probabilities and their exponentials, `[n, V]` each."""

    logps: Tensor
    probs: Tensor

    @classmethod
    def of(cls, logps_nV: Tensor) -> "Distribution":
        """From normalised log-probabilities."""
        return cls(logps_nV, logps_nV.softmax(-1))  # a softmax takes two thirds of the time of an exponential

    def entropy(self) -> Tensor:
        """In nats, `[n]`."""
        return -(self.probs * self.logps).sum(-1)


@dataclass(frozen=True)
class ClosedForm:
    """What a divergence comes to.

    Attributes:
        value (`torch.Tensor`): In nats, `[n]`.
        gradient (`torch.Tensor`): With respect to the student's logits, `[n, V]`.
        facts (`dict[str, torch.Tensor]`): What is worth logging, `[n]` each.
    """

    value: Tensor
    gradient: Tensor
    facts: dict[str, Tensor] = field(default_factory=dict)


def forward_kl(student: Distribution, target: Distribution, entry_clip: float | None = None) -> ClosedForm:
    """KL(target || student); with `entry_clip`, U being the entries below it: p Q_U - q [U]."""
    summands = (target.logps - student.logps).mul_(target.probs)
    if entry_clip is None:
        pulled, facts = target.probs, {}
    else:
        pulled = target.probs.masked_fill(summands > entry_clip, 0.0)
        facts = {"distill/entry_clip_mass": target.probs.sum(-1) - pulled.sum(-1)}
        summands.clamp_(max=entry_clip)
    gradient = (student.probs * pulled.sum(-1, keepdim=True)).sub_(pulled)
    return ClosedForm(summands.sum(-1), gradient, facts)


def reverse_kl(student: Distribution, target: Distribution, advantage_clip: float | None = None) -> ClosedForm:
    """KL(student || target): p (c - sum p c) with c = ln p - ln q, clipped to +-`advantage_clip` if that is given."""
    costs, facts = student.logps - target.logps, {}
    if advantage_clip is not None:
        outside = costs.abs() > advantage_clip
        facts = {"distill/advantage_clip_mass": (student.probs * outside).sum(-1)}
        costs.clamp_(-advantage_clip, advantage_clip)
    return _costed(student, costs, facts)


def jsd(student: Distribution, target: Distribution, beta: float) -> ClosedForm:
    """D_beta: (1 - b) p (c - sum p c) with c = ln p - ln m and m = b q + (1 - b) p."""
    mixture = torch.lerp(student.probs, target.probs, beta)
    # Where both underflow the mixture is 0 and its weight as well: any finite logarithm will do.
    mixture.clamp_(min=torch.finfo(mixture.dtype).tiny).log_()
    from_target = (target.logps - mixture).mul_(target.probs).sum(-1)
    from_student = _costed(student, torch.sub(student.logps, mixture, out=mixture), {})
    value = beta * from_target + (1.0 - beta) * from_student.value
    return ClosedForm(value, from_student.gradient.mul_(1.0 - beta))


def _costed(student: Distribution, costs: Tensor, facts: dict[str, Tensor]) -> ClosedForm:
    """sum p c, with c held fixed: a policy gradient over the whole vocabulary. Overwrites the costs."""
    value = (student.probs * costs).sum(-1)
    return ClosedForm(value, costs.sub_(value[:, None]).mul_(student.probs), facts)
