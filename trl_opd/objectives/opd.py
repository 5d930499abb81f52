"""On-policy distillation from an external teacher (OPD), the plain case of G-OPD
(https://huggingface.co/papers/2602.12125, eq. 2-6 with lambda = 1).

Every rollout is pulled towards the teacher at every token by the reverse KL; the teacher reads the prompt that the
student read. `estimator: k1` is the policy gradient of the papers, sg[ln p - ln q] ln p on the sampled tokens;
`estimator: full` is the same gradient in expectation, summed over the vocabulary instead of sampled.

Differs from the paper: the estimator over the full vocabulary is the default, for its lower variance at no extra
forward. Differs from the released code (RUCBM/G-OPD): one denominator for the whole step (`aggregation`), where the
code averages over micro-batches of one row; `aggregation: token-micro` with a batch size of 1 reproduces it.
"""

from torch import Tensor

from trl_opd.contexts import teacher_reads
from trl_opd.objectives.base import Objective
from trl_opd.objectives.divergence import Divergence
from trl_opd.rollouts import Rollouts, Signals


class OPD(Objective):
    name = "opd"
    teacher = "external"
    importance_cap = float("inf")

    def __init__(self, config):
        self.divergence = Divergence.of(config)
        self.context = teacher_reads(config)

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        signals = Signals.none(rollouts)
        signals.kl = has_context.float()
        signals.counted = has_context
        return signals
