"""On-policy self-distillation (OPSD, https://huggingface.co/papers/2601.18734, version 3, section 3).

The student answers; the same model with its step-0 weights, having read the reference solution, scores the student's
tokens; the student is pulled towards it by the forward KL, each vocabulary entry's summand capped at `entry_clip`.
No reward, one rollout per prompt.

Differs from the paper: nothing by default. The teacher's and the student's thinking flags are separate
(`teacher_chat_template_kwargs`, `chat_template_kwargs`), on and off as in the paper.
Differs from the released code: without PEFT its frozen teacher is silently the live student, ours is a copy; its
reduction is `aggregation: token-micro`; its first release used `divergence: jsd` with `jsd_beta: 0.5` and no clip.
"""

from torch import Tensor

from trl_opd.contexts import ReferenceSolution
from trl_opd.objectives.base import Objective, trust_region_rate
from trl_opd.objectives.divergence import Divergence
from trl_opd.rollouts import Rollouts, Signals


class OPSD(Objective):
    name = "opsd"
    teacher = "self"

    def __init__(self, config):
        self.divergence = Divergence.of(config)
        self.trust_region_rate = trust_region_rate(config)
        self.context = ReferenceSolution(column=config.solution_column, template=config.reference_template)

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        signals = Signals.none(rollouts)
        signals.kl = has_context.float()
        signals.counted = has_context
        return signals
