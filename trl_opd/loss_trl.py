"""The same loss through TRL's own kernels, where they compute it: Triton on a GPU, plain torch elsewhere.

`trl.kernels` has two: log-probabilities of the sampled tokens, and a divergence over the whole vocabulary (forward or
reverse KL, JSD). Each projects twice, forward and backward, where `trl_opd.tiled` projects once. They compute in
float32 at most, and say nothing of the teacher's entropy: that fact is missing from the log.
"""

from torch import Tensor

from trl_opd.compat import chunked_divergence, chunked_logps
from trl_opd.errors import UserError
from trl_opd.loss import Facts, Tokens, capped, importance_of, on_own
from trl_opd.objectives.base import Objective
from trl_opd.objectives.divergence import Divergence
from trl_opd.policy import PolicyGradient
from trl_opd.tiled import Head

KERNELS = ("auto", "tiled", "trl")

#: Divergence -> the number that TRL gives it.
BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0}


def check_kernel(kernel: str, objective: Objective) -> None:
    """Refuses a `loss_kernel` that does not exist, or TRL's for an objective that they do not compute.

    Raises:
        `UserError`: Saying what they lack.
    """
    if kernel not in KERNELS:
        raise UserError(f"loss_kernel is {kernel!r}; choose auto, tiled or trl.")
    divergence = objective.divergence
    if kernel != "trl" or divergence is None:
        return
    lacking = None
    if not isinstance(divergence, Divergence) or not divergence.has_closed_form:
        lacking = "divergence over a part of the vocabulary, on the sampled tokens, or of one's own"
    elif divergence.entry_clip is not None or divergence.advantage_clip is not None:
        lacking = "clips"
    elif objective.uses_reference or objective.trust_region_rate is not None:
        lacking = "target made from two models"
    if lacking is not None:
        raise UserError(f"loss_kernel: trl computes no {objective.name} here: it has no {lacking}; use tiled or auto.")


def token_loss(
    hidden_NH: Tensor,
    head: Head,
    tokens: Tokens,
    objective: Objective,
    policy: PolicyGradient | None,
    scorer_heads: list[Head],
    vocabulary: int | None = None,
) -> tuple[Tensor, Facts]:
    """As `trl_opd.loss.token_loss`, for objectives that pass `check_kernel`.

    Raises:
        `UserError`: If the heads have different sizes.
    """
    logps, entropy = chunked_logps(hidden_NH, head, tokens.ids)
    importance = importance_of(logps, tokens.old_logps, objective)
    loss, facts = on_own(logps, tokens, importance, policy)
    facts = {name: fact.detach() for name, fact in facts.items()} | {"entropy": entropy}
    if objective.divergence is None:
        return loss, facts
    (scorer,), (states,) = scorer_heads, tokens.scorer_hidden
    if scorer.vocabulary != head.vocabulary:
        raise UserError(
            f"loss_kernel: trl needs heads of one size, but the student's has {head.vocabulary} rows and the "
            f"teacher's {scorer.vocabulary}; use loss_kernel: tiled."
        )
    live = (tokens.kl != 0).nonzero().squeeze(-1)
    beta = BETAS.get(objective.divergence.kind, objective.divergence.jsd_beta)
    value = chunked_divergence(hidden_NH[live], head, states[live], scorer, beta)
    loss = loss + (tokens.kl[live] * importance[live] * value).sum()
    found = capped(importance[live], objective) | {"distill/divergence": value.detach()}
    found["distill/log_ratio"] = logps.detach()[live] - tokens.scorer_logps[0][live]
    return loss, facts | {name: logps.new_zeros(len(logps)).index_put((live,), fact) for name, fact in found.items()}
