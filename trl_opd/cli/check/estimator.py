"""What the loss is made of and what its gradient is, in words."""

from trl_opd.cli.check.plan import Plan
from trl_opd.cli.check.report import Section

KINDS = {
    "forward_kl": "the forward KL, KL(teacher || student)",
    "reverse_kl": "the reverse KL, KL(student || teacher)",
    "jsd": "the JSD",
}

#: Estimator of a sampled token -> its value, and whose gradient it has in expectation.
SAMPLED = {
    "k1": "ln p - ln q of the sampled token as a policy gradient: in expectation the gradient of",
    "k2": "(ln p - ln q)^2 / 2 of the sampled token, differentiated: in expectation the gradient of",
    "k3": "q/p - ln(q/p) - 1 of the sampled token, differentiated: in expectation the gradient of",
}


def estimator(plan: Plan) -> Section:
    """The components of the loss, the divergence with its gradient, and the reduction."""
    from trl_opd.checks import resolve_aggregation

    if plan.off_policy:
        told = "negative log-likelihood of completions that are there before the first step: their exact gradient"
        return Section("Estimator", [told], {"estimator": None, "gradient": told})
    objective, config = plan.objective, plan.config
    aggregation = resolve_aggregation(config)
    facts = {
        "estimator": None,
        "gradient": None,
        "policy_gradient": objective.uses_policy_gradient,
        "aggregation": aggregation,
    }
    lines, warnings = [], []
    if objective.divergence is not None:
        divergence = objective.divergence
        facts |= {"divergence": divergence.kind, "estimator": divergence.estimator, "gradient": gradient(divergence)}
        lines.append(f"divergence: {facts['gradient']}")
        if divergence.sampled and (config.top_k or config.top_p < 1.0):
            warnings.append(
                f"top_p {config.top_p} and top_k {config.top_k} cut the distribution that tokens are drawn from, so "
                f"the expectation of {divergence.estimator} is not that of the loss's distribution; set top_p: 1.0 "
                "and top_k: 0, or use estimator: full."
            )
    if objective.uses_policy_gradient:
        lines.append(
            f"policy gradient: clipped ratio, advantages scaled by {config.scale_rewards}, loss_type {config.loss_type}"
        )
    lines.append(f"reduction: {aggregation}")
    return Section("Estimator", lines, facts, warnings)


def gradient(divergence) -> str:
    """A divergence, how it is estimated, and what its gradient is.

    Args:
        divergence (`Divergence`): The objective's.
    """
    kind = KINDS[divergence.kind]
    if divergence.kind == "jsd":
        kind += f" with beta {divergence.jsd_beta:g}"
    if divergence.sampled:
        return f"{SAMPLED[divergence.estimator]} {kind}"
    clip = ""
    if divergence.entry_clip is not None:
        clip = f", each entry's summand capped at {divergence.entry_clip:g} nats"
    if divergence.advantage_clip is not None:
        clip = f", log-ratios clipped at {divergence.advantage_clip:g} nats"
    if divergence.estimator == "full":
        return f"{kind} over the whole vocabulary{clip}, differentiated: its exact gradient at each token"
    rest = "and the rest as one category" if divergence.support_tail else "renormalised, the rest left out"
    what = "a lower bound of it" if divergence.support_tail else "the renormalised divergence"
    return (
        f"{kind} over the {divergence.support_owner}'s {divergence.support_size} likeliest tokens {rest}{clip}, "
        f"differentiated: the gradient of {what}"
    )
