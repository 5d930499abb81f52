"""What is logged: means over the tokens of an optimizer step, and shares of the rows of a rollout batch."""

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_opd.contexts import Context
from trl_opd.leakage import quotes
from trl_opd.rollouts import Rollouts, Signals, text_of


class TokenMeans:
    """Sums of per-token facts, from micro-batch to micro-batch; reduced over processes when the step is complete.

    Facts named `distill/...` are means over the tokens with divergence weight, the others over all tokens that
    were forwarded. Of the log-ratio the extremes are known as well.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._extremes: Tensor | None = None

    def add(self, facts: dict[str, Tensor], distilled: Tensor) -> None:
        """Takes up a micro-batch.

        Args:
            facts (`dict[str, torch.Tensor]`): One value a token, `[N]`, 0 where a fact does not apply.
            distilled (`torch.Tensor`): Tokens with divergence weight, bool `[N]`.
        """
        number = {True: distilled.sum(), False: torch.tensor(distilled.numel(), device=distilled.device)}
        for name, values in facts.items():
            sums = torch.stack([values.sum(), number[name.startswith("distill/")].to(values.dtype)])
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        if "distill/log_ratio" in facts:
            ratio = torch.cat([facts["distill/log_ratio"][distilled], facts["distill/log_ratio"].new_tensor([0.0])])
            extremes = torch.stack([-ratio.amin(), ratio.amax()])
            self._extremes = extremes if self._extremes is None else torch.maximum(self._extremes, extremes)

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes, which all must ask for together; sums start anew. nan without tokens."""
        names = sorted(self._sums)
        totals = accelerator.reduce(torch.stack([self._sums[name] for name in names]), reduction="sum").tolist()
        means = {name: total / n if n else float("nan") for name, (total, n) in zip(names, totals, strict=True)}
        if self._extremes is not None:
            low, high = accelerator.gather(self._extremes[None]).amax(0).tolist()
            means |= {"distill/log_ratio_min": -low, "distill/log_ratio_max": high}
        self._sums, self._extremes = {}, None
        return means


def signal_shares(signals: Signals, rollouts: Rollouts, context: Context | None) -> dict[str, tuple[float, float]]:
    """Which share of the rows feeds which component, how unequal the weights are, and what was quoted.

    Returns:
        `dict`: Name -> (part, whole), to be summed over processes.
    """
    rows = len(rollouts)
    feeds = {name: signals.per_row(name) for name in ("pg", "kl", "ce")}
    active = (feeds["pg"] & (rollouts.advantages != 0)) | feeds["kl"] | feeds["ce"]
    shares = {f"signal/{name}_fraction": (int(feed.sum()), rows) for name, feed in feeds.items()}
    shares["signal/active_fraction"] = (int(active.sum()), rows)
    for name in ("kl", "ce"):
        weights = getattr(signals, name)
        weights = weights[weights != 0]
        spread = float(weights.std(correction=0) / weights.mean()) if len(weights) else 0.0
        shares[f"signal/{name}_weight_spread"] = (spread * len(weights), len(weights))
    if context is not None:
        quoted = [_quotes(rollouts, row, context) for row in range(rows)]
        shares["context/leakage_fraction"] = (sum(quoted), rows)
    return shares


def _quotes(rollouts: Rollouts, row: int, context: Context) -> bool:
    prompt = rollouts.prompts[row]
    prompt = prompt if isinstance(prompt, str) else "\n".join(text_of([turn]) for turn in prompt)
    return quotes(rollouts.own[row].text, context.privileged(rollouts, row), prompt)
