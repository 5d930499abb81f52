"""GRPO with a KL penalty towards a moving average of the policy: SDPO's teacher weights without SDPO's context.

Every rollout feeds the policy gradient, and every token is pulled towards the averaged weights by the gradient of
KL(policy || average), estimated on the sampled token. What SDPO gains over GRPO and this baseline gains as well, SDPO
owes to the anchor and not to what its teacher reads. The anchor: https://huggingface.co/papers/2602.04417.

Differs from TRL's `GRPOTrainer` with `beta`, `sync_ref_model=True`, `ref_model_sync_steps=1` and the rate as
`ref_model_mixup_alpha`: nothing in the gradient (a test holds the two equal); the logged loss has k1's surrogate, whose
value means nothing, in place of k3. `estimator: k3` with `divergence: forward_kl` is TRL's penalty with
`use_bias_correction_kl=False`, that of GRPO's paper, in the logged loss too. The average is SDPO's: kept in float32,
saved with every checkpoint, without a second model in memory, and of B A with LoRA, where TRL refuses.
"""

import math

import torch
from torch import Tensor

from trl_opd.errors import UserError
from trl_opd.objectives.base import Objective, trust_region_rate
from trl_opd.objectives.divergence import Divergence
from trl_opd.rollouts import Rollouts, Signals


class GRPOEMA(Objective):
    name = "grpo_ema"
    needs_rewards = True
    uses_policy_gradient = True
    teacher = "self"

    def __init__(self, config):
        if config.beta != 0.0 or config.sync_ref_model:
            raise UserError(
                "beta and sync_ref_model are TRL's reference policy, and grpo_ema has one of its own; set anchor_beta "
                "instead, or train with grpo."
            )
        if not config.anchor_beta > 0.0:
            raise UserError(
                f"anchor_beta is {config.anchor_beta}, which leaves no anchor; make it positive, or use grpo."
            )
        self.divergence = Divergence.of(config)
        self.trust_region_rate = trust_region_rate(config)
        # Of later updates of a rollout batch a policy-gradient estimate needs p / p_old, uncapped as in TRL.
        self.importance_cap = math.inf if config.estimator == "k1" else None
        self.anchor_beta = config.anchor_beta

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        signals = Signals.none(rollouts)
        signals.pg = torch.ones_like(signals.pg)
        signals.kl = self.anchor_beta * has_context.float()
        return signals
