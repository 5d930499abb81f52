"""What an objective is: a few declarations and two small methods.

The trainer runs the same stages for every objective and never asks which one it is running:

    rollouts -> contexts -> `route` -> the scorers read the rows that carry divergence weight -> `weigh` -> loss

An objective declares what it needs, says in `route` which component of the loss each rollout feeds, and may refine the
weights in `weigh` once the scorers have spoken. See `trl_opd.rollouts` for the records and their shapes.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from trl_opd.contexts import Context
from trl_opd.divergences import (
    entry_clip_fraction,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    sampled_reverse_kl,
)
from trl_opd.errors import UserError
from trl_opd.rollouts import Rollouts, Scores, Signals


@dataclass(frozen=True)
class Divergence:
    """A named divergence from the teacher, and how its gradient is estimated.

    Attributes:
        kind: "forward_kl" KL(teacher || student), "reverse_kl" KL(student || teacher), or "jsd".
        estimator: "full" sums over the vocabulary; "sampled" uses the sampled token only (reverse KL).
        jsd_beta: The teacher's share in the mixture, for "jsd".
        entry_clip: OPSD's cap on each vocabulary entry's summand, for "forward_kl", in nats.
    """

    kind: Literal["forward_kl", "reverse_kl", "jsd"]
    estimator: Literal["full", "sampled"] = "full"
    jsd_beta: float | None = None
    entry_clip: float | None = None

    @classmethod
    def of(cls, config) -> "Divergence":
        """The divergence that a config names."""
        return cls(config.divergence, config.estimator, config.jsd_beta, config.entry_clip)

    def __post_init__(self):
        if self.kind not in ("forward_kl", "reverse_kl", "jsd"):
            raise UserError(f"divergence is {self.kind!r}; choose forward_kl, reverse_kl or jsd.")
        if self.estimator not in ("full", "sampled"):
            raise UserError(f"estimator is {self.estimator!r}; choose full or sampled.")
        if self.estimator == "sampled" and self.kind != "reverse_kl":
            raise UserError(
                f"estimator: sampled draws tokens from the student, so it can only estimate the reverse KL, not "
                f"{self.kind}; set divergence: reverse_kl, or estimator: full."
            )
        if (self.kind == "jsd") != (self.jsd_beta is not None):
            raise UserError("jsd_beta belongs to divergence: jsd and to no other; set both, or leave jsd_beta out.")
        if self.jsd_beta is not None and not 0.0 < self.jsd_beta < 1.0:
            raise UserError(
                f"jsd_beta is {self.jsd_beta}, but must lie between 0 and 1, ends excluded; the ends are "
                "divergence: forward_kl (0) and divergence: reverse_kl (1)."
            )
        if self.entry_clip is not None and self.kind != "forward_kl":
            raise UserError(
                f"entry_clip caps the summands of the forward KL and would be ignored under divergence: {self.kind}; "
                "set entry_clip: null, or divergence: forward_kl."
            )
        if self.entry_clip is not None and not self.entry_clip > 0:
            raise UserError(f"entry_clip is {self.entry_clip}, but must be positive; use null for no clip.")

    def over_vocabulary(self, student_logps_NV: Tensor, target_logps_NV: Tensor) -> Tensor:
        """The divergence of each token from whole distributions, `[N, V]` -> `[N]`."""
        if self.kind == "forward_kl":
            return forward_kl(student_logps_NV, target_logps_NV, self.entry_clip)
        if self.kind == "reverse_kl":
            return reverse_kl(student_logps_NV, target_logps_NV)
        return generalized_jsd(student_logps_NV, target_logps_NV, self.jsd_beta)

    def on_sampled(self, student_logps_N: Tensor, target_logps_N: Tensor) -> Tensor:
        """The surrogate of each token from its own log-probabilities, `[N]` -> `[N]`."""
        return sampled_reverse_kl(student_logps_N, target_logps_N)

    @torch.no_grad()
    def facts(self, student_logps_NV: Tensor, target_logps_NV: Tensor) -> dict[str, Tensor]:
        """What is worth logging about the divergence of each token, `[N]` each."""
        if self.entry_clip is None:
            return {}
        return {"distill/entry_clip_mass": entry_clip_fraction(student_logps_NV, target_logps_NV, self.entry_clip)}


class Objective:
    """One method. Subclasses set the declarations in `__init__` from their config and override `route`.

    Attributes:
        name: The method's name in the registry, on the command line and in the docs.
        needs_rewards: Whether a reward function must be given.
        needs_groups: Whether the G rollouts of one prompt are looked at together.
        uses_policy_gradient: Whether any rollout may feed the policy gradient.
        needs_student_logps: Whether `weigh` reads the student's log-probabilities at rollout time.
        teacher: Whose weights score: nobody's, the student's own, or another model's.
        divergence: What the student is pulled towards its target by; None where no teacher is involved.
        context: Builds what the teacher reads; None where it reads the student's own prompt.
    """

    name: ClassVar[str]
    needs_rewards: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = False
    uses_policy_gradient: ClassVar[bool] = False
    needs_student_logps: ClassVar[bool] = False
    teacher: ClassVar[Literal["none", "self", "external"]] = "none"
    divergence: Divergence | None = None
    context: Context | None = None

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        """Which component each rollout feeds.

        Args:
            rollouts (`Rollouts`): This process's rollouts.
            has_context (`torch.Tensor`): Rows for which the teacher has something to read within its limit, bool `[B]`.
        """
        raise NotImplementedError

    def weigh(self, rollouts: Rollouts, signals: Signals, scores: Scores) -> Signals:
        """Refines the weights by what the scorers said; by default they stay."""
        return signals

    def target(self, scorer_logps: list[Tensor]) -> Tensor:
        """The log-probabilities that the student is pulled towards, from those of the scorers, any shape alike."""
        return scorer_logps[0]
