"""Per-token policy-gradient losses: the variants of TRL's GRPO that need nothing but the token itself.

Each takes log-probabilities of the sampled tokens `[N]` and the advantages that belong to them, and returns a loss per
token, to be minimised; nothing is masked or reduced here. With one update per rollout batch `old_logps_N` is the
detached current value: the ratio is 1 and no clip acts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: TRL's `loss_type` -> how its token losses are reduced (see `trl_opd.aggregation`).
AGGREGATION_OF_LOSS_TYPE = {
    "grpo": "seq-mean",
    "sapo": "seq-mean",
    "bnpo": "token-micro",
    "dr_grpo": "dr",
    "dapo": "token-global",
    "cispo": "token-global",
}


def clipped_surrogate(
    logps_N: Tensor,
    old_logps_N: Tensor,
    advantages_N: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None = None,
) -> Tensor:
    """-min(w A, clip(w, 1 - epsilon_low, 1 + epsilon_high) A) with w = p / p_old, `[N]`.

    `delta` caps the unclipped ratio from above (two-sided clipping, INTELLECT-2).
    Source: https://huggingface.co/papers/2402.03300, eq. 3.
    """
    ratio = torch.exp(logps_N - old_logps_N)
    clipped = ratio.clamp(1.0 - epsilon_low, 1.0 + epsilon_high)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    return -torch.min(ratio * advantages_N, clipped * advantages_N)


def cispo(logps_N: Tensor, old_logps_N: Tensor, advantages_N: Tensor, epsilon_high: float) -> Tensor:
    """-sg[min(w, epsilon_high)] A ln p, `[N]`: the ratio weighs the token but is not differentiated (MiniMax-M1)."""
    ratio = torch.exp(logps_N - old_logps_N).clamp(max=epsilon_high).detach()
    return -ratio * advantages_N * logps_N


def sapo(
    logps_N: Tensor, old_logps_N: Tensor, advantages_N: Tensor, temperature_pos: float, temperature_neg: float
) -> Tensor:
    """-(4 / t) sigmoid(t (w - 1)) A, `[N]`, with t by the sign of A: a soft gate instead of a clip (SAPO)."""
    temperature = torch.where(advantages_N > 0, temperature_pos, temperature_neg)
    ratio = torch.exp(logps_N - old_logps_N)
    return -torch.sigmoid(temperature * (ratio - 1.0)) * 4.0 / temperature * advantages_N


def k3(logps_N: Tensor, ref_logps_N: Tensor) -> Tensor:
    """r - ln r - 1 with r = p_ref / p, `[N]`: TRL's penalty towards its reference policy, before `beta`."""
    log_ratio = ref_logps_N - logps_N
    return log_ratio.exp() - log_ratio - 1.0


@dataclass(frozen=True)
class PolicyGradient:
    """The policy-gradient component, with the options that TRL's `GRPOConfig` has for it.

    Attributes:
        loss_type: One of `AGGREGATION_OF_LOSS_TYPE`.
        epsilon_low, epsilon_high, delta: Clips on the probability ratio, see `clipped_surrogate`.
        sapo_temperature_pos, sapo_temperature_neg: See `sapo`.
        beta: Weight of the KL penalty towards TRL's reference policy.
        bias_correct_kl: Whether the penalty is multiplied by the probability ratio.
    """

    loss_type: str
    epsilon_low: float
    epsilon_high: float
    delta: float | None
    sapo_temperature_pos: float
    sapo_temperature_neg: float
    beta: float
    bias_correct_kl: bool

    @classmethod
    def of(cls, config) -> "PolicyGradient":
        return cls(
            loss_type=config.loss_type,
            epsilon_low=config.epsilon,
            epsilon_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            delta=config.delta,
            sapo_temperature_pos=config.sapo_temperature_pos,
            sapo_temperature_neg=config.sapo_temperature_neg,
            beta=config.beta,
            bias_correct_kl=config.use_bias_correction_kl,
        )

    def surrogate(self, logps_N: Tensor, old_logps_N: Tensor, advantages_N: Tensor) -> Tensor:
        """The loss of each token before the KL penalty, `[N]`."""
        if self.loss_type == "cispo":
            return cispo(logps_N, old_logps_N, advantages_N, self.epsilon_high)
        if self.loss_type == "sapo":
            return sapo(logps_N, old_logps_N, advantages_N, self.sapo_temperature_pos, self.sapo_temperature_neg)
        return clipped_surrogate(logps_N, old_logps_N, advantages_N, self.epsilon_low, self.epsilon_high, self.delta)

    def penalty(self, logps_N: Tensor, old_logps_N: Tensor, ref_logps_N: Tensor) -> Tensor:
        """The KL penalty of each token, before `beta`, `[N]`."""
        kl = k3(logps_N, ref_logps_N)
        return kl * torch.exp(logps_N - old_logps_N) if self.bias_correct_kl else kl

    @torch.no_grad()
    def facts(self, logps_N: Tensor, old_logps_N: Tensor, advantages_N: Tensor) -> dict[str, Tensor]:
        """Which tokens the clip acts on, under TRL's names, `[N]` each."""
        ratio = torch.exp(logps_N - old_logps_N)
        if self.loss_type == "cispo":
            return {"cispo_clip_ratio": (ratio > self.epsilon_high) & (advantages_N > 0)}
        if self.loss_type == "sapo":
            return {}
        low = (ratio < 1.0 - self.epsilon_low) & (advantages_N < 0)
        high = (ratio > 1.0 + self.epsilon_high) & (advantages_N > 0)
        return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}
