"""What an objective is: a few declarations and two small methods.

The trainer runs the same stages for every objective and never asks which one it is running:

    rollouts -> contexts -> `route` -> the scorers read the rows that carry divergence weight -> `weigh` -> loss

An objective declares what it needs, says in `route` which component of the loss each rollout feeds, and may refine the
weights in `weigh` once the scorers have spoken. See `trl_opd.rollouts` for the records and their shapes.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from trl_opd.contexts import Context
from trl_opd.errors import UserError
from trl_opd.objectives.divergence import Divergence
from trl_opd.rollouts import Rollouts, Scores, Signals


def trust_region_rate(config) -> float | None:
    """The live student's share in the target that a self-taught method's config asks for."""
    return config.teacher_update_rate if config.teacher_weights == "trust-region" else None


class Objective:
    """One method. Subclasses set the declarations in `__init__` from their config and override `route`.

    Attributes:
        name: The method's name in the registry, on the command line and in the docs.
        needs_rewards: Whether a reward function must be given.
        needs_groups: Whether the G rollouts of one prompt are looked at together.
        uses_policy_gradient: Whether any rollout may feed the policy gradient.
        needs_student_logps: Whether `weigh` reads the student's log-probabilities at rollout time.
        needs_scores: Whether `weigh` reads the scores.
        teacher: Whose weights score: nobody's, the student's own, or another model's.
        uses_reference: Whether a reference model scores after the teacher.
        divergence: What the student is pulled towards its target by; None where no teacher is involved.
        context: Builds what the teacher reads; None where it reads the student's own prompt.
        importance_cap: Cap on the detached ratio p / p_old that weighs divergence and likelihood when a rollout batch
            serves several updates; None for no such weight.
        trust_region_rate: The live student's share in a trust-region teacher; None where there is no such teacher.
    """

    name: ClassVar[str]
    needs_rewards: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = False
    uses_policy_gradient: ClassVar[bool] = False
    needs_student_logps: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    teacher: ClassVar[Literal["none", "self", "external"]] = "none"
    uses_reference: bool = False
    divergence: Divergence | None = None
    context: Context | None = None
    importance_cap: float | None = None
    trust_region_rate: float | None = None

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
        """The log-probabilities that the student is pulled towards, `[N, V]` or `[N]`, from those of the scorers.

        With a trust-region teacher they are the start's and the live student's, and the target is their normalised
        geometric mean q_ref^(1-a) q_live^a (SDPO, https://huggingface.co/papers/2601.20802, eq. 10).
        """
        if self.trust_region_rate is None:
            return scorer_logps[0]
        start, live = scorer_logps
        return torch.lerp(start, live, self.trust_region_rate).log_softmax(-1)


def check_own_distribution(objective: Objective) -> None:
    """Refuses weights from the teacher's distribution where no single scorer has it.

    Raises:
        `UserError`: For a trust-region teacher, whose distribution is a mean of two scorers'.
    """
    if objective.trust_region_rate is not None:
        raise UserError(
            f"{objective.name} weighs tokens by the teacher's own distribution, which teacher_weights: trust-region "
            "mixes from two models only in the loss; use ema, frozen or live."
        )
