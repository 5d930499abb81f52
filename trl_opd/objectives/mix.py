"""Any combination of teacher, context, divergence, routing and weighting, written in YAML without code.

Right rollouts feed the component `right`, wrong ones `wrong`: "pg" (policy gradient), "kl" (divergence from the
teacher), "ce" (likelihood) or "none". A rollout that is routed to the divergence while its teacher has nothing to read
feeds `without_context` instead. `weighting` refines the weights as SRPO does ("entropy") or as SCOPE does
("perplexity"). The named methods are points of this space; docs/mixing.md shows two others.
"""

from torch import Tensor

from trl_opd.contexts import Context, ReferenceSolution, teacher_reads
from trl_opd.defaults import changed
from trl_opd.errors import UserError
from trl_opd.hindsight import OPTIONS as HINDSIGHT_OPTIONS
from trl_opd.hindsight import hindsight
from trl_opd.objectives.base import Objective, check_own_distribution, trust_region_rate
from trl_opd.objectives.divergence import Divergence
from trl_opd.objectives.scope import calibrated
from trl_opd.objectives.srpo import entropy_weights
from trl_opd.rollouts import Rollouts, Scores, Signals

COMPONENTS = ("pg", "kl", "ce", "none")
CHOICES = {
    "teacher": ("self", "external"),
    "context": ("prompt", "reference", "hindsight"),
    "right": COMPONENTS,
    "wrong": COMPONENTS,
    "without_context": ("pg", "ce", "none"),
    "weighting": ("none", "entropy", "perplexity"),
}

#: Choice -> the options that act only where it is made.
OPTIONS = {
    ("teacher", "self"): ("teacher_weights", "teacher_update_rate"),
    ("teacher", "external"): (
        "teacher_model_init_kwargs",
        "use_teacher_template",
        "teacher_server_model",
        "teacher_server_timeout",
        "teacher_server_retries",
        "teacher_server_concurrency",
    ),
    ("context", "reference"): ("solution_column", "reference_template"),
    ("context", "hindsight"): ("use_demonstrations", *HINDSIGHT_OPTIONS),
    ("weighting", "entropy"): ("entropy_beta",),
    ("weighting", "perplexity"): ("weight_temperature",),
}


class Mix(Objective):
    name = "mix"

    def __init__(self, config):
        for option, choices in CHOICES.items():
            if getattr(config, option) not in choices:
                raise UserError(f"{option} is {getattr(config, option)!r}; choose one of {', '.join(choices)}.")
        _check_options(config)
        self.config = config
        self.components = {config.right, config.wrong} | ({config.without_context} if self._may_lack_context else set())
        if "kl" not in self.components:
            raise UserError(
                "Neither right nor wrong rollouts are routed to kl, so there is no teacher; use method grpo."
            )
        self.teacher = config.teacher
        self.divergence = Divergence.of(config)
        self.context = self._context()
        self.importance_cap = config.importance_cap
        self.trust_region_rate = trust_region_rate(config) if config.teacher == "self" else None
        if config.weighting != "none":
            check_own_distribution(self)
        self.uses_policy_gradient = "pg" in self.components
        self.needs_scores = config.weighting != "none"
        self.needs_student_logps = config.weighting == "perplexity"
        self.needs_groups = config.context == "hindsight" or config.weighting == "perplexity"
        self.needs_rewards = config.right != config.wrong or self.uses_policy_gradient or config.context == "hindsight"

    @property
    def _may_lack_context(self) -> bool:
        # A prompt that is longer than the teacher takes has no context either.
        return "kl" in (self.config.right, self.config.wrong)

    def _context(self) -> Context | None:
        if self.config.context == "reference":
            return ReferenceSolution(self.config.solution_column, self.config.reference_template)
        return hindsight(self.config) if self.config.context == "hindsight" else teacher_reads(self.config)

    def route(self, rollouts: Rollouts, has_context: Tensor) -> Signals:
        right = rollouts.rewards >= self.config.success_threshold
        # A rollout that no reward function scored (nan) is neither right nor wrong, unless both are treated alike.
        wrong = rollouts.rewards < self.config.success_threshold if self.config.right != self.config.wrong else ~right
        signals = Signals.none(rollouts)
        for rows, component in ((right, self.config.right), (wrong, self.config.wrong)):
            if component == "kl":
                signals.kl += (rows & has_context).float()
                rows, component = rows & ~has_context, self.config.without_context
            if component != "none":
                getattr(signals, component).add_(rows.float())
        signals.counted = (signals.pg + signals.kl + signals.ce) > 0
        return signals

    def weigh(self, rollouts: Rollouts, signals: Signals, scores: Scores) -> Signals:
        if self.config.weighting == "entropy":
            distilled = signals.kl[:, None] * rollouts.mask
            signals.kl = distilled * entropy_weights(
                scores.entropy, distilled, self.config.entropy_beta, rollouts.gather
            )
        elif self.config.weighting == "perplexity":
            signals.ce = calibrated(rollouts, signals.ce, rollouts.logps, self.config.weight_temperature, -1.0)
            signals.kl = calibrated(rollouts, signals.kl, scores.logps[0], self.config.weight_temperature, 1.0)
        return signals


def _check_options(config) -> None:
    """Refuses an option that was set although the choice it belongs to was not made."""
    set_by_user = changed(config)
    for (choice, value), options in OPTIONS.items():
        ignored = [name for name in options if name in set_by_user]
        if ignored and getattr(config, choice) != value:
            raise UserError(
                f"{ignored[0]} acts with {choice}: {value} only and would be ignored with {choice}: "
                f"{getattr(config, choice)}; remove it, or set {choice}: {value}."
            )
