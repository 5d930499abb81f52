"""GRPO (https://huggingface.co/papers/2402.03300): the baseline, through the same pipeline as every other method.

Every rollout feeds the policy gradient with its group-relative advantage. Which surrogate, clip, KL penalty and
reduction act is decided by the options that TRL's `GRPOConfig` has for them (`loss_type`, `epsilon`, `beta`, ...).

Differs from TRL's `GRPOTrainer`: nothing in the mathematics (a test holds the two equal); padding is trimmed for each
micro-batch, and options that need a statistic over a whole sequence are refused (see `trl_opd.checks`).
"""

import torch
from torch import Tensor

from trl_opd.objectives.base import Objective
from trl_opd.rollouts import Rollouts, Signals


class GRPO(Objective):
    name = "grpo"
    needs_rewards = True
    uses_policy_gradient = True

    def __init__(self, config):
        """Nothing of its own: `trl_opd.policy.PolicyGradient` reads GRPO's options."""

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        signals = Signals.none(rollouts)
        signals.pg = torch.ones_like(signals.pg)
        return signals


class DrGRPO(GRPO):
    """Dr. GRPO (https://huggingface.co/papers/2503.20783): GRPO with the options of its configuration."""

    name = "dr_grpo"


class DAPO(GRPO):
    """DAPO (https://huggingface.co/papers/2503.14476) without dynamic sampling: GRPO with its options."""

    name = "dapo"
