"""Self-distillation policy optimisation (SDPO, https://huggingface.co/papers/2601.20802).

Rollouts are scored; each is then scored again, token by token, by the model itself (with averaged weights) after it has
read a successful sibling and/or the environment's feedback; the student is pulled towards that teacher. Rollouts for
which there is nothing to read carry no signal. With `grpo_lambda` the advantage is lambda A_GRPO + (1 - lambda) A_SDPO.

Defaults: the paper's setting without feedback (JSD 0.5 on the student's top 100 and a tail bucket, EMA 0.05, caps 2).
Differs from the paper: nothing by default. The form of `advantage_clip` (test time) is our reading, see
`trl_opd.divergences.clipped_reverse_kl`. The lambda mix divides both parts by the tokens of all rows.
Differs from the released code (lasgroup/SDPO): its denominator is token-micro with one row per micro-batch, which is
`aggregation: seq-mean` (rows without signal dilute the step); over-long prompts are cut on the right there, here the
demonstration alone is shortened.
"""

import torch
from torch import Tensor

from trl_opd.errors import UserError
from trl_opd.hindsight import hindsight
from trl_opd.objectives.base import Objective, trust_region_rate
from trl_opd.objectives.divergence import Divergence
from trl_opd.rollouts import Rollouts, Signals


class SDPO(Objective):
    name = "sdpo"
    needs_rewards = True
    teacher = "self"

    def __init__(self, config):
        if not 0.0 <= config.grpo_lambda <= 1.0:
            raise UserError(
                f"grpo_lambda is {config.grpo_lambda}, but must lie in [0, 1]: 0 is SDPO alone, 1 GRPO alone."
            )
        self.divergence = Divergence.of(config)
        self.trust_region_rate = trust_region_rate(config)
        self.context = hindsight(config)
        self.importance_cap = config.importance_cap
        self.grpo_lambda = config.grpo_lambda
        self.uses_policy_gradient = config.grpo_lambda > 0.0
        self.needs_groups = config.use_demonstrations

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        signals = Signals.none(rollouts)
        signals.kl = (1.0 - self.grpo_lambda) * has_context.float()
        if self.uses_policy_gradient:
            signals.pg = torch.full_like(signals.pg, self.grpo_lambda)
        else:
            signals.counted = has_context
        return signals
