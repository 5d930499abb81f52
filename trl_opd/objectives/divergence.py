"""The divergence that a config names: which one, over which support, and how its gradient is estimated.

Every estimator has exactly one use that is right; the others have no gradient or that of something else, and are
refused (the tests compute these expectations exactly):

| estimator | backprop                         | policy gradient |
|-----------|----------------------------------|-----------------|
| full      | the divergence itself            | zero            |
| topk      | a lower bound of it (with tail)  | zero            |
| k1        | zero                             | reverse KL      |
| k2        | reverse KL                       | neither KL      |
| k3        | forward KL                       | neither KL      |
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trl_opd import closed_forms
from trl_opd.closed_forms import ClosedForm, Distribution
from trl_opd.divergences import (
    clipped_reverse_kl,
    entropy,
    entry_clip_fraction,
    forward_kl,
    generalized_jsd,
    k2,
    k3,
    proper,
    reverse_kl,
    sampled_reverse_kl,
)
from trl_opd.errors import UserError

KINDS = ("forward_kl", "reverse_kl", "jsd")
OWNERS = ("student", "teacher")

#: Estimator -> the use that is right.
USES = {"full": "backprop", "topk": "backprop", "k1": "policy", "k2": "backprop", "k3": "backprop"}

#: Estimator that needs the sampled tokens only -> the divergence whose gradient it estimates.
SAMPLED = {"k1": "reverse_kl", "k2": "reverse_kl", "k3": "forward_kl"}

#: (estimator, wrong use) -> why it is refused.
WHY_NOT = {
    ("full", "policy"): "a sum over the vocabulary does not depend on the sampled token, so its gradient is zero",
    ("topk", "policy"): "a sum over the top-k does not depend on the sampled token, so its gradient is zero",
    ("k1", "backprop"): "E[grad log p] = 0, so its gradient is zero",
    ("k2", "policy"): "its gradient is that of neither KL",
    ("k3", "policy"): "its gradient is that of neither KL",
}


@dataclass(frozen=True)
class Divergence:
    """A divergence from the teacher.

    Attributes:
        kind: "forward_kl" KL(teacher || student), "reverse_kl" KL(student || teacher), or "jsd".
        estimator: "full" sums over the vocabulary, "topk" over a part of it; "k1", "k2" and "k3" use the sampled token.
        estimator_use: "backprop" or "policy"; None for the one that is right.
        jsd_beta: The teacher's share in the mixture, for "jsd".
        entry_clip: OPSD's cap on each entry's summand, for the forward KL, in nats.
        advantage_clip: SDPO's clip on ln q(v) - ln p(v), for the reverse KL, in nats.
        support_size, support_owner, support_tail: See `trl_opd.divergences.truncated_support`, for "topk".

    A divergence of one's own is a subclass with another `over_vocabulary`, or any class with `sampled`,
    `over_vocabulary` (or `on_sampled`) and `facts`; autograd then differentiates it, tile by tile.
    """

    kind: str
    estimator: str = "full"
    estimator_use: str | None = None
    jsd_beta: float | None = None
    entry_clip: float | None = None
    advantage_clip: float | None = None
    support_size: int | None = None
    support_owner: str = "student"
    support_tail: bool = True

    @classmethod
    def of(cls, config) -> "Divergence":
        """The divergence that a config names."""
        return cls(
            kind=config.divergence,
            estimator=config.estimator,
            estimator_use=config.estimator_use,
            jsd_beta=config.jsd_beta,
            entry_clip=config.entry_clip,
            advantage_clip=config.advantage_clip,
            support_size=config.support_size,
            support_owner=config.support_owner,
            support_tail=config.support_tail,
        )

    def __post_init__(self):
        _one_of("divergence", self.kind, KINDS)
        _one_of("estimator", self.estimator, tuple(USES))
        _one_of("support_owner", self.support_owner, OWNERS)
        self._check_estimator()
        self._check_parameters()

    def _check_estimator(self) -> None:
        right = USES[self.estimator]
        if self.estimator_use not in (None, right):
            reason = WHY_NOT.get((self.estimator, self.estimator_use))
            if reason is None:
                raise UserError(f"estimator_use is {self.estimator_use!r}; choose backprop or policy.")
            raise UserError(
                f"estimator: {self.estimator} with estimator_use: {self.estimator_use} cannot train: {reason}; use "
                f"estimator_use: {right}."
            )
        if self.sampled and self.kind != SAMPLED[self.estimator]:
            raise UserError(
                f"estimator: {self.estimator} has the gradient of divergence: {SAMPLED[self.estimator]}, not of "
                f"{self.kind}; set that divergence, or estimator: full."
            )
        if (self.estimator == "topk") != (self.support_size is not None):
            raise UserError("support_size belongs to estimator: topk and to no other; set both, or leave it out.")
        if self.support_size is not None and self.support_size < 1:
            raise UserError(f"support_size is {self.support_size}, but the support needs at least one token.")
        if self.support_size == 1 and not self.support_tail:
            raise UserError(
                "support_size: 1 without the tail leaves both sides a single token of probability 1, whose divergence "
                "is always zero; set support_tail: true, or a larger support_size."
            )

    def _check_parameters(self) -> None:
        if (self.kind == "jsd") != (self.jsd_beta is not None):
            raise UserError("jsd_beta belongs to divergence: jsd and to no other; set both, or leave jsd_beta out.")
        if self.jsd_beta is not None and not 0.0 < self.jsd_beta < 1.0:
            raise UserError(
                f"jsd_beta is {self.jsd_beta}, but must lie between 0 and 1, ends excluded; the ends are "
                "divergence: forward_kl (0) and divergence: reverse_kl (1)."
            )
        for name, kind in (("entry_clip", "forward_kl"), ("advantage_clip", "reverse_kl")):
            value = getattr(self, name)
            if value is None:
                continue
            if self.kind != kind or self.sampled:
                raise UserError(
                    f"{name} acts on divergence: {kind} over a vocabulary and would be ignored under {self.kind} with "
                    f"estimator: {self.estimator}; set {name}: null, or that divergence."
                )
            if not value > 0:
                raise UserError(f"{name} is {value}, but must be positive; use null for no clip.")

    @property
    def sampled(self) -> bool:
        """Whether the sampled tokens' log-probabilities are all that it needs."""
        return self.estimator in SAMPLED

    @property
    def truncated(self) -> bool:
        """Whether it is taken over a support of few tokens: `over_support` and `support` are then all of it."""
        return self.estimator == "topk" and self._is_ours

    @property
    def has_closed_form(self) -> bool:
        """Whether `closed_form` computes it; a subclass with another `over_vocabulary` is left to autograd."""
        return self.estimator == "full" and self._is_ours

    @property
    def _is_ours(self) -> bool:
        return type(self).over_vocabulary is Divergence.over_vocabulary

    def over_vocabulary(self, student_logps_NV: Tensor, target_logps_NV: Tensor) -> Tensor:
        """The divergence of each token from whole distributions, `[N, V]` -> `[N]`, in nats.

        Raises:
            `UserError`: If the vocabulary is smaller than the support.
        """
        if self.estimator != "topk":
            return self._between(student_logps_NV, target_logps_NV)
        support = self.support(student_logps_NV, target_logps_NV)
        return self.over_support(student_logps_NV.gather(-1, support), target_logps_NV.gather(-1, support))

    def support(self, student_logps_NV: Tensor, target_logps_NV: Tensor) -> Tensor:
        """The tokens over which the divergence is taken, the likeliest of `support_owner`, `[N, K]`.

        Raises:
            `UserError`: If the vocabulary is smaller than the support.
        """
        owned = student_logps_NV if self.support_owner == "student" else target_logps_NV
        if self.support_size > owned.shape[-1]:
            raise UserError(
                f"support_size is {self.support_size}, but the vocabulary has {owned.shape[-1]} tokens; "
                "make it smaller, or use estimator: full."
            )
        return owned.detach().topk(self.support_size, dim=-1).indices

    def over_support(self, student_logps_NK: Tensor, target_logps_NK: Tensor) -> Tensor:
        """The divergence of each token from log-probabilities on its support, `[N, K]` -> `[N]`, in nats."""
        return self._between(*self._proper(student_logps_NK, target_logps_NK))

    def closed_form(self, student: Distribution, target: Distribution) -> ClosedForm:
        """Value, gradient and facts over the whole vocabulary, where `has_closed_form`."""
        if self.kind == "forward_kl":
            return closed_forms.forward_kl(student, target, self.entry_clip)
        if self.kind == "jsd":
            return closed_forms.jsd(student, target, self.jsd_beta)
        return closed_forms.reverse_kl(student, target, self.advantage_clip)

    def on_sampled(self, student_logps_N: Tensor, target_logps_N: Tensor) -> Tensor:
        """The surrogate of each token from its own log-probabilities, `[N]` -> `[N]`."""
        estimate = {"k1": sampled_reverse_kl, "k2": k2, "k3": k3}[self.estimator]
        return estimate(student_logps_N, target_logps_N)

    @torch.no_grad()
    def facts(self, student_logps_NV: Tensor, target_logps_NV: Tensor) -> dict[str, Tensor]:
        """What is worth logging about the divergence of each token from whole distributions, `[N]` each."""
        facts = {"distill/teacher_entropy": entropy(target_logps_NV.log_softmax(-1))}
        if self.estimator != "topk":
            return facts | self._clip_facts(student_logps_NV, target_logps_NV)
        support = self.support(student_logps_NV, target_logps_NV)
        kept = (side.gather(-1, support) for side in (student_logps_NV, target_logps_NV))
        return facts | self.support_facts(*kept)

    @torch.no_grad()
    def support_facts(self, student_logps_NK: Tensor, target_logps_NK: Tensor) -> dict[str, Tensor]:
        """The same from log-probabilities on the support: both sides' mass there, and what is clipped."""
        masses = {
            "distill/student_mass": student_logps_NK.exp().sum(-1),
            "distill/teacher_mass": target_logps_NK.exp().sum(-1),
        }
        return masses | self._clip_facts(*self._proper(student_logps_NK, target_logps_NK))

    def _between(self, student: Tensor, target: Tensor) -> Tensor:
        if self.kind == "forward_kl":
            return forward_kl(student, target, self.entry_clip)
        if self.kind == "jsd":
            return generalized_jsd(student, target, self.jsd_beta)
        if self.advantage_clip is not None:
            return clipped_reverse_kl(student, target, self.advantage_clip)
        return reverse_kl(student, target)

    def _proper(self, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return proper(student, self.support_tail), proper(target, self.support_tail)

    def _clip_facts(self, student: Tensor, target: Tensor) -> dict[str, Tensor]:
        facts = {}
        if self.entry_clip is not None:
            facts["distill/entry_clip_mass"] = entry_clip_fraction(student, target, self.entry_clip)
        if self.advantage_clip is not None:
            clipped = (target - student).abs() > self.advantage_clip
            facts["distill/advantage_clip_mass"] = (student.exp() * clipped).sum(-1)
        return facts


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{option} is {value!r}; choose {', '.join(choices[:-1])} or {choices[-1]}.")
