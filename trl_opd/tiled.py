"""Losses from hidden states and LM heads, a tile of rows at a time: no `[B, T, V]` tensor is ever built.

For some unmasked positions at a time the student's (and the scorers') hidden states are projected onto their heads,
the per-token losses are evaluated on that small `[n, V]` block, and the block's gradient is taken at once and
multiplied into the gradients of the hidden states and of the head. That is valid because the loss is linear in the
per-token values, with weights known beforehand; the backward pass then only scales two saved tensors. Four matrix
products a step, masked positions never projected, one code path for every objective.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trl_opd.divergences import entropy

#: Rows of a tile: small enough that the tile of a 150k vocabulary stays in cache on a CPU (about 40 MB).
ROWS_PER_TILE = 64

#: Tile of log-probabilities `[n, V]` and the indices of its rows `[n]` -> (sum of weighted losses, per-token facts).
TileLoss = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Head:
    """An LM head and everything between a hidden state and its log-probabilities.

    Attributes:
        weight, bias (`torch.Tensor`): `[V, H]` and `[V]` or None.
        temperature (`float`): Divides the logits.
        scale (`float`): The architecture's own multiplier of the logits.
        softcap (`float`, *optional*): The architecture's own bound on the logits, c tanh(z / c).
    """

    weight: Tensor
    bias: Tensor | None
    temperature: float
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: nn.Module, temperature: float) -> "Head":
        """The head of a causal language model of transformers."""
        config = model.config.get_text_config()
        linear = model.get_output_embeddings()
        return cls(
            weight=linear.weight,
            bias=linear.bias,
            temperature=temperature,
            scale=_logit_scale(config),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    def detached(self) -> "Head":
        """The same head, cut off from the graph."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)

    def cloned(self) -> "Head":
        """A copy with tensors of its own."""
        return replace(self, weight=self.weight.clone(), bias=None if self.bias is None else self.bias.clone())

    def project(self, hidden_NH: Tensor) -> Tensor:
        """Raw logits, in float32 at least, `[N, V]`."""
        raw = nn.functional.linear(hidden_NH.to(self.weight.dtype), self.weight, self.bias)
        return raw if raw.dtype == torch.float64 else raw.float()

    def logps(self, raw_NV: Tensor) -> Tensor:
        """Log-probabilities from raw logits, `[N, V]`."""
        logits = raw_NV if self.scale == 1.0 else raw_NV * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits.log_softmax(-1)


def _logit_scale(config) -> float:
    """The multiplier that some architectures apply to their logits (Cohere, Falcon-H1, Granite and their kin)."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return divisor if config.model_type == "hyperclovax" else 1.0 / divisor


def tiled_sum(
    hidden_NH: Tensor, head: Head, tile_loss: TileLoss, order: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of `tile_loss` over all N tokens, differentiable in the hidden states and the head.

    Args:
        hidden_NH (`torch.Tensor`): Hidden states of the N unmasked tokens, `[N, H]`.
        head (`Head`): The student's head.
        tile_loss (`Callable`): Loss of a tile, see `TileLoss`. Facts must have the same keys in every tile.
        order (`torch.Tensor`, *optional*): The order in which rows are put into tiles, `[N]`.

    Returns:
        `tuple`: The scalar sum, and the per-token facts, `[N]` each, detached, in the order of the rows.
    """
    order = torch.arange(len(hidden_NH), device=hidden_NH.device) if order is None else order
    facts: dict[str, Tensor] = {}
    if not torch.is_grad_enabled():  # a custom function does not see the grad mode: evaluation would pay the backward
        hidden_NH, head = hidden_NH.detach(), head.detached()
    loss = _TiledSum.apply(hidden_NH, head.weight, head.bias, head, tile_loss, order, facts)
    return loss, facts


class _TiledSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, head, tile_loss, order, facts):
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wants_any = wants_hidden or wants_weight or wants_bias
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        precise = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=precise) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=precise) if wants_bias else None
        total = torch.zeros((), device=hidden.device, dtype=precise)
        for rows in order.split(ROWS_PER_TILE):
            tile = hidden[rows]
            raw = head.project(tile).detach().requires_grad_(wants_any)
            with torch.set_grad_enabled(wants_any):
                loss, tile_facts = tile_loss(head.logps(raw), rows)
            total += loss.detach()
            for name, values in tile_facts.items():
                if name not in facts:
                    facts[name] = torch.zeros(len(hidden), device=hidden.device, dtype=precise)
                facts[name][rows] = values.detach().to(precise)
            if wants_any:
                (grad_raw,) = torch.autograd.grad(loss, raw)
                low = grad_raw.to(weight.dtype)
                if wants_hidden:
                    grad_hidden[rows] = (low @ weight).to(hidden.dtype)
                if wants_weight:
                    grad_weight += low.T @ tile.to(weight.dtype)
                if wants_bias:
                    grad_bias += grad_raw.sum(0)
        ctx.grads = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    def backward(ctx, upstream):
        grads, ctx.grads = ctx.grads, None
        return *(None if grad is None else grad * upstream.to(grad.dtype) for grad in grads), None, None, None, None


@torch.no_grad()
def sampled_logps_and_entropy(
    hidden_NH: Tensor, head: Head, token_ids_N: Tensor, vocabulary: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each sampled token and the entropy of its distribution, `[N]` each, without gradient.

    Rows of the head beyond `vocabulary` are padding: they are cut and the rest is renormalised.
    """
    precise = torch.promote_types(head.weight.dtype, torch.float32)
    logps = torch.zeros(len(hidden_NH), device=hidden_NH.device, dtype=precise)
    entropies = torch.zeros_like(logps)
    for rows in torch.arange(len(hidden_NH), device=hidden_NH.device).split(ROWS_PER_TILE):
        tile = head.logps(head.project(hidden_NH[rows]))
        if vocabulary is not None and vocabulary < tile.shape[-1]:
            tile = tile[:, :vocabulary].log_softmax(-1)
        logps[rows] = tile.gather(-1, token_ids_N[rows, None]).squeeze(-1)
        entropies[rows] = entropy(tile)
    return logps, entropies
