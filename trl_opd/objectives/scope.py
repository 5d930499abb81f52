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
    needs_scores = True
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
        # The sign with which a rollout's mean log-probability enters the softmax: perplexing means a low one.
        student = -1.0 if self.config.student_direction == "perplexing" else 1.0
        teacher = 1.0 if self.config.teacher_direction == "confident" else -1.0
        tau, mean1 = self.config.weight_temperature, self.config.weight_norm == "mean1"
        signals.ce = calibrated(rollouts, signals.ce, rollouts.logps, tau, student, mean1)
        signals.kl = calibrated(rollouts, signals.kl, scores.logps[0], tau, teacher, mean1)
        if self.config.length_norm == "mean":
            lengths = rollouts.mask.sum(-1).clamp(min=1)
            signals.ce, signals.kl = signals.ce / lengths, signals.kl / lengths
        return signals


def calibrated(
    rollouts: Rollouts, member: Tensor, logps_BT: Tensor, temperature: float, sign: float, mean1: bool = False
) -> Tensor:
    """Weights of a branch's rollouts by their perplexities, within their groups on all processes, `[B]`.

    Args:
        rollouts (`Rollouts`): This process's rollouts.
        member (`torch.Tensor`): Non-zero on the rollouts of the branch, `[B]`.
        logps_BT (`torch.Tensor`): Log-probabilities whose mean over a rollout is minus its log-perplexity, `[B, T]`.
        temperature (`float`): tau.
        sign (`float`): -1 for more weight on perplexing rollouts, 1 for less.
        mean1 (`bool`): Whether the weights of a branch have mean 1 instead of sum 1.
    """
    means = (logps_BT * rollouts.mask).sum(-1) / rollouts.mask.sum(-1).clamp(min=1)
    everyone = rollouts.gather(torch.stack([(member != 0).float(), sign * means], -1))
    members, scores = everyone.view(-1, rollouts.group_size, 2).unbind(-1)
    weights = branch_weights(scores, members > 0, temperature)
    if mean1:
        weights = weights * members.sum(-1, keepdim=True)
    return weights.flatten()[rollouts.first : rollouts.first + len(rollouts)]


def branch_weights(scores_PG: Tensor, member_PG: Tensor, temperature: float) -> Tensor:
    """Softmax of scores / temperature over the members of each group, 0 elsewhere and in empty branches, `[P, G]`."""
    logits = (scores_PG / temperature).masked_fill(~member_PG, -torch.inf)
    return torch.where(member_PG.any(-1, keepdim=True), logits.softmax(-1), 0.0).nan_to_num(0.0)
