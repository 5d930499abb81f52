"""The one loss: pg x policy gradient + kl x divergence + ce x negative log-likelihood, on one student forward.

Every part of it reads the student's distribution in one of two ways, and its gradient with respect to the logits z is
written accordingly, with no graph over the vocabulary:

    a few entries l_j = ln p_j of it (the sampled token, a support): [j kept] dL/dl_j - p_j sum_k dL/dl_k,
                                      where autograd gives dL/dl on the kept entries alone;
    the whole of it (a divergence over the vocabulary): `trl_opd.closed_forms`, or autograd on some rows at a time
                                      for a divergence that has no closed form there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trl_opd.closed_forms import ClosedForm, Distribution
from trl_opd.divergences import entropy
from trl_opd.objectives.base import Objective
from trl_opd.policy import PolicyGradient
from trl_opd.tiled import Head, log_softmax_, row_blocks, tiled_sum

#: Bound on ln(p / p_old) before it is exponentiated, as in SDPO's released code: e^20 is far above any cap.
LOG_RATIO_LIMIT = 20.0

Facts = dict[str, Tensor]


@dataclass
class Tokens:
    """The unmasked tokens of a micro-batch in compact form; every weight already holds the reduction.

    Attributes:
        ids (`torch.Tensor`): Sampled token ids, `[N]`.
        pg, kl, ce (`torch.Tensor`): Weights of the three components, `[N]`.
        penalty (`torch.Tensor`): Weight of the KL penalty towards TRL's reference policy, before `beta`, `[N]`.
        advantages (`torch.Tensor`): `[N]`.
        old_logps (`torch.Tensor`, *optional*): Log-probabilities at rollout time, `[N]`; None means the current ones.
        ref_logps (`torch.Tensor`, *optional*): Those of TRL's reference policy, `[N]`.
        scorer_logps (`list[torch.Tensor]`): Those of the scorers, `[N]` each.
        scorer_hidden (`list[torch.Tensor]`): Hidden states of the scorers, `[N, H]` each; empty where the
            divergence needs the sampled tokens only.
        scorer_support (`tuple[torch.Tensor, torch.Tensor]`, *optional*): Token ids and log-probabilities `[N, K]` of
            the teacher's likeliest tokens, where nothing more of it is known: `scorer_hidden` is then not read.
    """

    ids: Tensor
    pg: Tensor
    kl: Tensor
    ce: Tensor
    penalty: Tensor
    advantages: Tensor
    old_logps: Tensor | None
    ref_logps: Tensor | None
    scorer_logps: list[Tensor]
    scorer_hidden: list[Tensor]
    scorer_support: tuple[Tensor, Tensor] | None = None


def token_loss(
    hidden_NH: Tensor,
    head: Head,
    tokens: Tokens,
    objective: Objective,
    policy: PolicyGradient | None,
    scorer_heads: list[Head],
    vocabulary: int | None = None,
) -> tuple[Tensor, Facts]:
    """The weighted sum of the three components over all tokens, and per-token facts for the log.

    Args:
        hidden_NH (`torch.Tensor`): The student's hidden states, `[N, H]`.
        head (`Head`): The student's head.
        tokens (`Tokens`): What belongs to the tokens.
        objective (`Objective`): Divergence and target.
        policy (`PolicyGradient`, *optional*): The policy-gradient component; None where no token ever feeds it.
        scorer_heads (`list[Head]`): Heads of the scorers, in the order of the hidden states.
        vocabulary (`int`, *optional*): Rows that the heads of all sides have; those beyond are padding, and the
            divergence is that of the distributions renormalised without it. None: the smallest of the heads here.

    Returns:
        `tuple`: The scalar loss, and facts `[N]`; those named `distill/...` are 0 on tokens without divergence weight.
    """
    sizes = [head.vocabulary, *(scorer.vocabulary for scorer in scorer_heads)]
    common = min(sizes) if vocabulary is None else min(vocabulary, *sizes)
    scorers = []
    if objective.divergence is not None and not objective.divergence.sampled:
        sides = zip(scorer_heads, tokens.scorer_hidden, strict=True)
        scorers = [_ScorerTiles(scorer, hidden, common) for scorer, hidden in sides]
    tile_loss = _TileLoss(tokens, objective, policy, scorers, common)
    # Tokens that need the scorers come first: they fill few tiles, and the scorers' heads are read for those alone.
    order = torch.argsort((tokens.kl == 0).int(), stable=True)
    return tiled_sum(hidden_NH, head, tile_loss, order)


class _ScorerTiles:
    """Log-probabilities of a scorer over the common vocabulary, a tile at a time in the same memory."""

    def __init__(self, head: Head, hidden_NH: Tensor, vocabulary: int):
        self.head = head.for_products()
        self.hidden = hidden_NH
        self.vocabulary = vocabulary
        self.memory: Tensor | None = None

    def read(self, rows: Tensor) -> Tensor:
        """`[n, V]` for some rows."""
        if self.memory is None or len(self.memory) < len(rows):
            self.memory = self.head.tile(len(rows))
        raw = self.head.project(self.hidden[rows], out=self.memory[: len(rows)])
        return log_softmax_(self.head.to_logits_(raw)[:, : self.vocabulary])


@dataclass
class _Kept:
    """A part of the loss that reads a few entries of each row.

    Attributes:
        loss (`torch.Tensor`): Its weighted sum.
        facts (`dict`): Per row.
        ids (`torch.Tensor`): The entries, `[n, K]`.
        gradient (`torch.Tensor`): With respect to their log-probabilities, `[n, K]`.
    """

    loss: Tensor
    facts: Facts
    ids: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, ids_nK: Tensor, logps_nK: Tensor, loss: Callable[[Tensor], tuple[Tensor, Facts]]) -> "_Kept":
        """Differentiates a function of the kept log-probabilities."""
        with torch.enable_grad():
            leaf = logps_nK.detach().requires_grad_()
            value, facts = loss(leaf)
            (gradient,) = torch.autograd.grad(value, leaf)
        return cls(value.detach(), {name: fact.detach() for name, fact in facts.items()}, ids_nK, gradient)


@dataclass
class _Tile:
    """One tile of the student; its first `live` rows carry divergence weight.

    Attributes:
        logps (`torch.Tensor`): `[n, V]`.
        rows (`torch.Tensor`): Where they are among the tokens, `[n]`.
        own (`torch.Tensor`): Of the sampled tokens, `[n]`.
        importance (`torch.Tensor`): min(p / p_old, cap), `[n]`.
        live (`int`): Number of rows with divergence weight.
        weights (`torch.Tensor`): Weight of the divergence times importance, `[live]`.
        log_mass (`torch.Tensor`, *optional*): ln of the mass on the common vocabulary, `[live]`; None where that is
            all of it.
    """

    logps: Tensor
    rows: Tensor
    own: Tensor
    importance: Tensor
    live: int
    weights: Tensor
    log_mass: Tensor | None

    def inside(self, logps: Tensor, rows: slice = slice(None)) -> Tensor:
        """Log-probabilities of live rows, `[n]` or `[n, K]`, renormalised on the common vocabulary."""
        if self.log_mass is None:
            return logps
        mass = self.log_mass[rows]
        return logps - (mass if logps.dim() == 1 else mass[:, None])


class _TileLoss:
    """The `TileLoss` of one micro-batch."""

    def __init__(
        self,
        tokens: Tokens,
        objective: Objective,
        policy: PolicyGradient | None,
        scorers: list[_ScorerTiles],
        vocabulary: int,
    ):
        self.tokens = tokens
        self.objective = objective
        self.divergence = objective.divergence
        self.policy = policy
        self.scorers = scorers
        self.vocabulary = vocabulary

    def __call__(self, logps_nV: Tensor, rows: Tensor, wants_gradient: bool) -> tuple[Tensor, Facts]:
        tile = self._tile(logps_nV, rows)
        tokens = picked(self.tokens, rows)
        kept = _Kept.of(
            tokens.ids[:, None],
            tile.own[:, None],
            lambda own: on_own(own.squeeze(-1), tokens, tile.importance, self.policy),
        )
        loss, facts, on_live, scorers = kept.loss, kept.facts, None, []
        if self.divergence is not None:
            if self.divergence.sampled:
                on_live = self._sampled(tile)
            else:
                scorers = [scorer.read(rows[: tile.live]) for scorer in self.scorers]
                if getattr(self.divergence, "truncated", False):
                    on_live, scorers = self._on_support(tile, scorers), []
            if on_live is not None:
                loss = loss + on_live.loss
                facts |= _widened(on_live.facts, len(rows))
            facts |= _widened(capped(tile.importance[: tile.live], self.objective), len(rows))
        whole_loss, whole_facts = self._finish(tile, scorers, kept, on_live, wants_gradient)
        return loss + whole_loss, facts | whole_facts

    def _tile(self, logps_nV: Tensor, rows: Tensor) -> _Tile:
        own = _at(logps_nV, self.tokens.ids[rows])
        old_logps = None if self.tokens.old_logps is None else self.tokens.old_logps[rows]
        importance = importance_of(own, old_logps, self.objective)
        weights = self.tokens.kl[rows]
        live = int((weights != 0).sum())
        cut = self.divergence is not None and self.vocabulary < logps_nV.shape[-1]
        return _Tile(
            logps=logps_nV,
            rows=rows,
            own=own,
            importance=importance,
            live=live,
            weights=(weights * importance)[:live],
            log_mass=logps_nV[:live, : self.vocabulary].logsumexp(-1) if cut else None,
        )

    # Parts that read a few entries of each row

    def _sampled(self, tile: _Tile) -> _Kept:
        """A sampled estimator of the divergence."""
        rows = tile.rows[: tile.live]
        target = self.objective.target([logps[rows] for logps in self.tokens.scorer_logps])

        def loss(own_n1: Tensor) -> tuple[Tensor, Facts]:
            value = self.divergence.on_sampled(own_n1.squeeze(-1), target)
            return (tile.weights * value).sum(), {"distill/log_ratio": own_n1.squeeze(-1) - target}

        return _Kept.of(self.tokens.ids[rows, None], tile.inside(tile.own[: tile.live])[:, None], loss)

    def _on_support(self, tile: _Tile, scorers: list[Tensor]) -> _Kept:
        """The divergence over a support of few tokens."""
        if self.tokens.scorer_support is None:
            support, target, known = self._support(tile, scorers)
        else:
            rows = tile.rows[: tile.live]
            support, target = (side[rows] for side in self.tokens.scorer_support)
            known = {"distill/log_ratio": self._log_ratio(tile, self.tokens.scorer_logps[0][rows])}

        def loss(student_nK: Tensor) -> tuple[Tensor, Facts]:
            value = self.divergence.over_support(student_nK, target)
            facts = {"distill/divergence": value} | self.divergence.support_facts(student_nK, target)
            return (tile.weights * value).sum(), known | facts

        return _Kept.of(support, tile.inside(tile.logps[: tile.live].gather(-1, support)), loss)

    def _support(self, tile: _Tile, scorers: list[Tensor]) -> tuple[Tensor, Tensor, Facts]:
        """Tokens of the support and the target's log-probabilities of them, `[live, K]` each, and facts."""
        found: list[tuple[Tensor, ...]] = []
        for block in row_blocks(scorers[0]):
            student = tile.logps[: tile.live, : self.vocabulary][block]
            target, target_entropy = self._target([scorer[block] for scorer in scorers])
            support = self.divergence.support(student, target.logps)
            sampled = _at(target.logps, self.tokens.ids[tile.rows[: tile.live][block]])
            found.append((support, target.logps.gather(-1, support), target_entropy, sampled))
        support, kept, target_entropy, sampled = (torch.cat(parts) for parts in zip(*found, strict=True))
        log_ratio = self._log_ratio(tile, sampled)
        return support, kept, {"distill/teacher_entropy": target_entropy, "distill/log_ratio": log_ratio}

    # The part over the whole vocabulary, and the gradient of everything

    def _finish(
        self, tile: _Tile, scorers: list[Tensor], kept: _Kept, on_live: _Kept | None, wants_gradient: bool
    ) -> tuple[Tensor, Facts]:
        """Loss and facts over the vocabulary; overwrites the tile with the gradient with respect to its logits."""
        pulls = kept.gradient.sum(-1)
        inside = None if on_live is None else on_live.gradient.sum(-1)
        if inside is not None and tile.log_mass is None:
            pulls[: tile.live] += inside
        loss, entropies, found = torch.zeros_like(tile.own[:1].sum()), [], []
        for block in row_blocks(tile.logps):
            student = Distribution.of(tile.logps[block])
            entropies.append(student.entropy())
            live = slice(block.start, min(block.stop, tile.live))
            count, gradient = max(live.stop - live.start, 0), None
            if scorers and (count or not found):
                part, facts = self._over_vocabulary(tile, live, student, scorers)
                loss = loss + (tile.weights[live] * part.value).sum()
                gradient = part.gradient.mul_(tile.weights[live][:, None])
                found.append(facts)
            if not wants_gradient:
                continue
            torch.mul(student.probs, -pulls[block][:, None], out=tile.logps[block])
            common = tile.logps[block][:count, : self.vocabulary]
            if inside is not None and tile.log_mass is not None:
                scale = inside[live] * (-tile.log_mass[live]).exp()
                common -= student.probs[:count, : self.vocabulary] * scale[:, None]
            if gradient is not None:
                common += gradient
        if wants_gradient:
            tile.logps.scatter_add_(-1, kept.ids, kept.gradient)
            if on_live is not None:
                tile.logps[: tile.live].scatter_add_(-1, on_live.ids, on_live.gradient)
        facts = {name: torch.cat([part[name] for part in found]) for name in (found[0] if found else ())}
        return loss, {"entropy": torch.cat(entropies)} | _widened(facts, len(tile.rows))

    def _over_vocabulary(
        self, tile: _Tile, live: slice, student: Distribution, scorers: list[Tensor]
    ) -> tuple[ClosedForm, Facts]:
        """The divergence of some live rows over the common vocabulary, before its weight, and facts."""
        count = max(live.stop - live.start, 0)
        student = Distribution(*(side[:count, : self.vocabulary] for side in (student.logps, student.probs)))
        if tile.log_mass is not None:
            student = Distribution.of(tile.inside(student.logps, live))
        target, target_entropy = self._target([scorer[live] for scorer in scorers])
        sampled = _at(target.logps, self.tokens.ids[tile.rows[live]])
        if getattr(self.divergence, "has_closed_form", False):
            part = self.divergence.closed_form(student, target)
        else:
            part = _by_autograd(self.divergence, student, target)
        return part, part.facts | {
            "distill/divergence": part.value,
            "distill/teacher_entropy": target_entropy,
            "distill/log_ratio": self._log_ratio(tile, sampled, live),
        }

    def _target(self, scorers: list[Tensor]) -> tuple[Distribution, Tensor]:
        """What the student is pulled towards on some rows, and its entropy."""
        made = self.objective.target(scorers)
        if made is scorers[0]:
            target = Distribution.of(made)
            return target, target.entropy()
        return Distribution(made, made.exp()), entropy(made.log_softmax(-1))  # it need not be normalised

    # Facts

    def _log_ratio(self, tile: _Tile, target: Tensor, rows: slice | None = None) -> Tensor:
        rows = slice(tile.live) if rows is None else rows
        return tile.inside(tile.own[rows], rows) - target


def picked(tokens: Tokens, rows: Tensor) -> Tokens:
    """Some of the tokens, in what concerns the student alone."""
    own = {name: value[rows] for name, value in vars(tokens).items() if isinstance(value, Tensor)}
    return replace(tokens, **own)


def _at(logps_nV: Tensor, ids_n: Tensor) -> Tensor:
    """Each token's own entry, `[n]`."""
    return logps_nV.gather(-1, ids_n[:, None]).squeeze(-1)


def importance_of(logps: Tensor, old_logps: Tensor | None, objective: Objective) -> Tensor:
    """min(p / p_old, cap), detached, `[n]`: 1 where the rollout batch serves one update."""
    logps = logps.detach()
    if objective.importance_cap is None or old_logps is None:
        return torch.ones_like(logps)
    log_ratio = (logps - old_logps).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio.exp().clamp(max=objective.importance_cap)


def capped(importance: Tensor, objective: Objective) -> Facts:
    """Which tokens the cap on the importance weight acts on, where there is one."""
    cap = objective.importance_cap
    if cap is None or not math.isfinite(cap):
        return {}
    return {"distill/importance_capped": (importance >= cap).to(importance.dtype)}


def on_own(logps: Tensor, tokens: Tokens, importance: Tensor, policy: PolicyGradient | None) -> tuple[Tensor, Facts]:
    """Likelihood and policy gradient from the sampled tokens' log-probabilities `[n]`: weighted sum, and facts."""
    loss = -(tokens.ce * importance * logps).sum()
    if policy is None:
        return loss, {}
    old_logps = logps.detach() if tokens.old_logps is None else tokens.old_logps
    loss = loss + (tokens.pg * policy.surrogate(logps, old_logps, tokens.advantages)).sum()
    facts = policy.facts(logps, old_logps, tokens.advantages)
    if tokens.ref_logps is not None:
        penalty = policy.penalty(logps, old_logps, tokens.ref_logps)
        loss = loss + policy.beta * (tokens.penalty * penalty).sum()
        facts["kl"] = penalty
    return loss, facts


def _by_autograd(divergence, student: Distribution, target: Distribution) -> ClosedForm:
    """The same from a divergence that offers its value alone."""
    with torch.enable_grad():
        logits = student.logps.detach().clone().requires_grad_()
        value = divergence.over_vocabulary(logits.log_softmax(-1), target.logps)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
    return ClosedForm(value.detach(), gradient, divergence.facts(student.logps, target.logps))


def _widened(facts: Facts, rows: int) -> Facts:
    """Facts of the first rows, with 0 for the others."""
    return {
        name: torch.cat([fact.float() if fact.dtype == torch.bool else fact, fact.new_zeros(rows - len(fact))])
        for name, fact in facts.items()
    }
