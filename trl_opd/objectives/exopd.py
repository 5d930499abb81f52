"""Generalised on-policy distillation with reward extrapolation (G-OPD / ExOPD, https://huggingface.co/papers/2602.12125).

The student is pulled towards ref + lambda (teacher - ref) in log space: lambda 1 is plain OPD, above 1 it goes beyond
the teacher, and the optimum is proportional to teacher^lambda ref^(1-lambda). The reference is the student's start, or
any model (`reference_model_name_or_path`; the teacher's own start gives the paper's reward correction).

`estimator: k1`, the default, is the paper's: the sampled tokens' advantage, as a policy gradient.
`estimator: full` has the same gradient in expectation, KL(p || q_lambda) - ln Z_lambda, not in the paper.
Differs from the paper: its equations 14 and 22 print the advantage without its minus sign; the code has it, as here.
Differs from the released code (RUCBM/G-OPD): lambda is ignored there unless two paths are set, and an unknown domain
silently gets the maths teacher; here a reference always exists and an unknown domain is refused.
"""

import math

from torch import Tensor

from trl_opd.contexts import teacher_reads
from trl_opd.errors import UserError
from trl_opd.objectives.base import Objective
from trl_opd.objectives.divergence import Divergence
from trl_opd.rollouts import Rollouts, Signals


class ExOPD(Objective):
    name = "exopd"
    teacher = "external"

    def __init__(self, config):
        if not math.isfinite(config.extrapolation):
            raise UserError(
                f"extrapolation is {config.extrapolation}, but must be a finite number; the paper's is 1.25."
            )
        self.divergence = Divergence.of(config)
        if self.divergence.kind != "reverse_kl" or self.divergence.estimator == "topk":
            raise UserError(
                f"ExOPD is a reverse KL on the sampled tokens or the whole vocabulary; {self.divergence.kind} with "
                f"estimator: {self.divergence.estimator} has no extrapolated form; use divergence: reverse_kl with "
                "estimator: k1 or full."
            )
        if self.divergence.estimator == "k2":
            raise UserError("estimator: k2 needs a normalised target, which extrapolation has not; use k1 or full.")
        self.extrapolation = config.extrapolation
        self.uses_reference = config.extrapolation != 1.0
        self.context = teacher_reads(config)
        # The ratio p / p_old weighs the advantage, as in the paper's surrogate; without a cap it is exact.
        self.importance_cap = float("inf")

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        signals = Signals.none(rollouts)
        signals.kl = has_context.float()
        signals.counted = has_context
        return signals

    def target(self, scorer_logps: list[Tensor]) -> Tensor:
        if not self.uses_reference:
            return scorer_logps[0]
        teacher, reference = scorer_logps
        return reference + self.extrapolation * (teacher - reference)
