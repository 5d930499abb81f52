"""Sample-routed policy optimisation (SRPO, https://huggingface.co/papers/2604.02288; no official code is known).

A wrong rollout with something for the teacher to read is distilled as in SDPO; every other rollout feeds GRPO. Within
the distilled part a token weighs exp(-beta H), H being the teacher's entropy over the whole vocabulary, divided by the
mean of these weights over all distilled tokens of the rollout batch, on all processes. One denominator for both parts.

Differs from the paper: nothing by default. Its equation divides advantages by the group's standard deviation and its
inherited configuration does not; we follow the latter (`scale_rewards: group` gives the former). Advantages come from
all G rollouts, the distilled ones included, which the paper leaves open.
"""

import torch
from torch import Tensor

from trl_opd.errors import UserError
from trl_opd.hindsight import hindsight
from trl_opd.objectives.base import Objective, check_own_distribution, trust_region_rate
from trl_opd.objectives.divergence import Divergence
from trl_opd.rollouts import Rollouts, Scores, Signals


class SRPO(Objective):
    name = "srpo"
    needs_rewards = True
    needs_groups = True
    needs_scores = True
    uses_policy_gradient = True
    teacher = "self"

    def __init__(self, config):
        if config.entropy_beta < 0.0:
            raise UserError(
                f"entropy_beta is {config.entropy_beta}, but must not be negative; 0 weighs all tokens alike."
            )
        self.divergence = Divergence.of(config)
        self.trust_region_rate = trust_region_rate(config)
        check_own_distribution(self)
        self.context = hindsight(config)
        self.importance_cap = config.importance_cap
        self.threshold = config.success_threshold
        self.entropy_beta = config.entropy_beta

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        signals = Signals.none(rollouts)
        # A rollout that no reward function scored (nan) is neither right nor wrong: GRPO gives it no advantage.
        distilled = (rollouts.rewards < self.threshold) & has_context
        signals.kl = distilled.float()
        signals.pg = (~distilled).float()
        return signals

    def weigh(self, rollouts: Rollouts, signals: Signals, scores: Scores) -> Signals:
        distilled = signals.kl[:, None] * rollouts.mask
        weights = entropy_weights(scores.entropy, distilled, self.entropy_beta, rollouts.gather)
        signals.kl = distilled * weights
        return signals


def entropy_weights(entropy_BT: Tensor, distilled_BT: Tensor, beta: float, gather=lambda rows: rows) -> Tensor:
    """exp(-beta H) over its mean on the distilled tokens of all processes, `[B, T]`; 1 if there is none.

    Args:
        entropy_BT (`torch.Tensor`): The teacher's entropy in nats, `[B, T]`.
        distilled_BT (`torch.Tensor`): 1 on distilled tokens, `[B, T]`.
        beta (`float`): Strength; 0 gives weight 1 everywhere.
        gather (`Callable`): Rows of all processes from this one's.
    """
    raw = torch.exp(-beta * entropy_BT)
    local = torch.stack([(raw * distilled_BT).sum(), distilled_BT.sum()])
    total, number = gather(local[None]).sum(0)
    return torch.where(number > 0, raw / (total / number.clamp(min=1.0)), torch.ones_like(raw))
