"""Signal-calibrated on-policy distillation (SCOPE, https://huggingface.co/papers/2604.10688, version 2).

Right rollouts: likelihood, weighted within the prompt's group by student perplexity^(1/tau).
Wrong rollouts: reverse KL to an external teacher on the sampled tokens, weighted by teacher perplexity^(-1/tau).
Weights sum to 1 in each branch of a group; a rollout's token losses are summed, and groups are averaged.

Differs from the paper: nothing by default.
Differs from the released code (machine981/SCOPE): its right branch gives less perplexing rollouts more weight
(`student_direction: confident`), and its default YAML inverts the wrong branch too (`teacher_direction: perplexing`,
not set in its scripts); its weights have mean 1 (`weight_norm: mean1`); its losses are token means
(`length_norm: mean` divides by each rollout's own length); its teacher scores at temperature 1, ours at the student's.
"""

import torch
from torch import Tensor

from trl_opd.contexts import teacher_reads
from trl_opd.errors import UserError
from trl_opd.objectives.base import Objective
from trl_opd.objectives.divergence import Divergence
from trl_opd.rollouts import Rollouts, Scores, Signals

CHOICES = {
    "weight_norm": ("sum1", "mean1"),
    "length_norm": ("sum", "mean"),
    "student_direction": ("perplexing", "confident"),
    "teacher_direction": ("confident", "perplexing"),
}


class SCOPE(Objective):
    name = "scope"
    needs_rewards = True
    needs_groups = True
    needs_student_logps = True
    teacher = "external"

    def __init__(self, config):
        for option, choices in CHOICES.items():
            if getattr(config, option) not in choices:
                raise UserError(f"{option} is {getattr(config, option)!r}; choose {' or '.join(choices)}.")
        if not config.weight_temperature > 0.0:
            raise UserError(f"weight_temperature is {config.weight_temperature}, but must be positive.")
        self.divergence = Divergence.of(config)
        self.config = config
        self.context = teacher_reads(config)
        self.importance_cap = float("inf")

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        signals = Signals.none(rollouts)
        right = rollouts.rewards >= self.config.success_threshold
        signals.ce = right.float()
        signals.kl = ((rollouts.rewards < self.config.success_threshold) & has_context).float()
        return signals

    def weigh(self, rollouts: Rollouts, signals: Signals, scores: Scores) -> Signals:
        lengths = rollouts.mask.sum(-1).clamp(min=1)
        student_nll = -(rollouts.logps * rollouts.mask).sum(-1) / lengths
        teacher_nll = -(scores.logps[0] * rollouts.mask).sum(-1) / lengths
        sign = 1.0 if self.config.student_direction == "perplexing" else -1.0
        signals.ce = self._branch(rollouts, signals.ce, sign * student_nll)
        sign = -1.0 if self.config.teacher_direction == "confident" else 1.0
        signals.kl = self._branch(rollouts, signals.kl, sign * teacher_nll)
        if self.config.length_norm == "mean":
            signals.ce, signals.kl = signals.ce / lengths, signals.kl / lengths
        return signals

    def _branch(self, rollouts: Rollouts, member: Tensor, scores: Tensor) -> Tensor:
        everyone = rollouts.gather(torch.stack([member, scores], -1))
        groups = everyone.view(-1, rollouts.group_size, 2)
        weights = branch_weights(groups[..., 1], groups[..., 0] > 0, self.config.weight_temperature)
        if self.config.weight_norm == "mean1":
            weights = weights * (groups[..., 0] > 0).sum(-1, keepdim=True)
        return weights.flatten()[rollouts.first : rollouts.first + len(rollouts)]


def branch_weights(scores_PG: Tensor, member_PG: Tensor, temperature: float) -> Tensor:
    """Softmax of scores / temperature over the members of each group, 0 elsewhere and in empty branches, `[P, G]`."""
    logits = (scores_PG / temperature).masked_fill(~member_PG, -torch.inf)
    return torch.where(member_PG.any(-1, keepdim=True), logits.softmax(-1), 0.0).nan_to_num(0.0)
