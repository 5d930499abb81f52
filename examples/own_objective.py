"""A method of one's own in one file: distillation by total variation, wrong rollouts first.

The student is pulled towards an external teacher by the total variation distance, (1/2) sum_v |p(v) - q(v)|, whose
gradient no single token can dominate. Rollouts that the reward calls right weigh `right_weight`, the others 1.

In the folder of this file:

    trl-opd train own_objective:TotalVariationTrainer --config own_objective.yaml --output_dir runs/own_objective
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trl_opd import Objective, OnPolicyTrainer, OPDConfig, UserError
from trl_opd.contexts import teacher_reads
from trl_opd.objectives import Divergence
from trl_opd.rollouts import Rollouts, Signals


@dataclass
class TotalVariationConfig(OPDConfig):
    """OPD's options, and how much right rollouts weigh."""

    right_weight: float = field(default=0.1, metadata={"help": "Weight of rollouts with a reward above 0."})


class TotalVariation(Divergence):
    """Differentiated by autograd, some rows at a time."""

    def over_vocabulary(self, student_logps_NV: Tensor, target_logps_NV: Tensor) -> Tensor:
        return 0.5 * (student_logps_NV.exp() - target_logps_NV.exp()).abs().sum(-1)


class TotalVariationDistillation(Objective):
    name = "total_variation"
    needs_rewards = True
    teacher = "external"

    def __init__(self, config: TotalVariationConfig):
        if not 0.0 <= config.right_weight <= 1.0:
            raise UserError(f"right_weight is {config.right_weight}, but must lie in [0, 1].")
        self.right_weight = config.right_weight
        self.divergence = TotalVariation.of(config)
        self.context = teacher_reads(config)

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        signals = Signals.none(rollouts)
        weight = torch.where(rollouts.rewards > 0.0, self.right_weight, 1.0)
        signals.kl = weight * has_context
        signals.counted = has_context
        return signals


class TotalVariationTrainer(OnPolicyTrainer):
    """total variation from an external teacher, wrong rollouts first"""

    objective_class = TotalVariationDistillation
    config_class = TotalVariationConfig
