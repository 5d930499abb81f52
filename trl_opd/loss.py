"""The one loss: pg x policy gradient + kl x divergence + ce x negative log-likelihood, on one student forward."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trl_opd.divergences import entropy
from trl_opd.objectives.base import Objective
from trl_opd.policy import PolicyGradient
from trl_opd.tiled import Head, tiled_sum

#: Bound on ln(p / p_old) before it is exponentiated, as in SDPO's released code: e^20 is far above any cap.
LOG_RATIO_LIMIT = 20.0


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


def token_loss(
    hidden_NH: Tensor,
    head: Head,
    tokens: Tokens,
    objective: Objective,
    policy: PolicyGradient | None,
    scorer_heads: list[Head],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the three components over all tokens, and per-token facts for the log.

    Args:
        hidden_NH (`torch.Tensor`): The student's hidden states, `[N, H]`.
        head (`Head`): The student's head.
        tokens (`Tokens`): What belongs to the tokens.
        objective (`Objective`): Divergence and target.
        policy (`PolicyGradient`, *optional*): The policy-gradient component; None where no token ever feeds it.
        scorer_heads (`list[Head]`): Heads of the scorers, in the order of the hidden states.

    Returns:
        `tuple`: The scalar loss, and facts `[N]`; those named `distill/...` are 0 on tokens without divergence weight.
    """

    def tile_loss(logps_nV: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logps = _at(logps_nV, tokens.ids[rows])
        importance = _importance(logps, rows, tokens, objective)
        loss = -(tokens.ce[rows] * importance * logps).sum()
        facts = {"entropy": entropy(logps_nV.detach())}
        pg_loss, pg_facts = _policy_part(logps, rows, tokens, policy)
        kl_loss, kl_facts = _divergence_part(logps_nV, logps, importance, rows, tokens, objective, scorer_heads)
        return loss + pg_loss + kl_loss, facts | pg_facts | kl_facts

    # Tokens that need the scorers come first: they fill few tiles, and the scorers' heads are read for those alone.
    order = torch.argsort((tokens.kl == 0).int(), stable=True)
    return tiled_sum(hidden_NH, head, tile_loss, order)


def _at(logps_nV: Tensor, ids_n: Tensor) -> Tensor:
    """Each token's own entry, `[n]`."""
    return logps_nV.gather(-1, ids_n[:, None]).squeeze(-1)


def _importance(logps: Tensor, rows: Tensor, tokens: Tokens, objective: Objective) -> Tensor:
    """min(p / p_old, cap), detached: 1 where the rollout batch serves one update."""
    if objective.importance_cap is None or tokens.old_logps is None:
        return torch.ones_like(logps)
    log_ratio = (logps.detach() - tokens.old_logps[rows]).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio.exp().clamp(max=objective.importance_cap)


def _policy_part(logps, rows, tokens: Tokens, policy: PolicyGradient | None):
    if policy is None:
        return 0.0, {}
    advantages = tokens.advantages[rows]
    old_logps = logps.detach() if tokens.old_logps is None else tokens.old_logps[rows]
    loss = (tokens.pg[rows] * policy.surrogate(logps, old_logps, advantages)).sum()
    facts = policy.facts(logps, old_logps, advantages)
    if tokens.ref_logps is not None:
        penalty = policy.penalty(logps, old_logps, tokens.ref_logps[rows])
        loss = loss + policy.beta * (tokens.penalty[rows] * penalty).sum()
        facts["kl"] = penalty
    return loss, facts


def _divergence_part(logps_nV, logps, importance, rows, tokens: Tokens, objective: Objective, scorer_heads: list[Head]):
    if objective.divergence is None:
        return 0.0, {}
    live = (tokens.kl[rows] != 0).nonzero().squeeze(-1)
    live_rows = rows[live]
    if objective.divergence.sampled:
        target = objective.target([scorer[live_rows] for scorer in tokens.scorer_logps])
        value = objective.divergence.on_sampled(logps[live], target)
        extra = {"distill/log_ratio": logps[live].detach() - target}
    else:
        student, target = _same_vocabulary(
            logps_nV[live],
            [
                head.logps(head.project(hidden[live_rows]))
                for head, hidden in zip(scorer_heads, tokens.scorer_hidden, strict=True)
            ],
            objective,
        )
        value = objective.divergence.over_vocabulary(student, target)
        extra = {"distill/divergence": value.detach()} | objective.divergence.facts(student, target)
        extra["distill/log_ratio"] = _at(student.detach(), tokens.ids[live_rows]) - _at(target, tokens.ids[live_rows])
    loss = (tokens.kl[live_rows] * importance[live] * value).sum()
    if objective.importance_cap is not None and math.isfinite(objective.importance_cap):
        extra["distill/importance_capped"] = (importance[live] >= objective.importance_cap).to(logps.dtype)
    return loss, {name: torch.zeros_like(logps).index_put((live,), fact) for name, fact in extra.items()}


def _same_vocabulary(student_NV: Tensor, scorers: list[Tensor], objective: Objective) -> tuple[Tensor, Tensor]:
    """Both sides over the tokens that all heads have: heads padded to different sizes are cut and renormalised."""
    size = min(student_NV.shape[-1], *(scorer.shape[-1] for scorer in scorers))
    cut = [side if side.shape[-1] == size else side[:, :size].log_softmax(-1) for side in (student_NV, *scorers)]
    return cut[0], objective.target(cut[1:])
