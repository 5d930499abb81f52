"""Losses from hidden states and LM heads, a tile of rows at a time: no `[B, T, V]` tensor is ever built.

For some unmasked positions at a time the student's (and the scorers') hidden states are projected onto their heads,
the per-token losses are evaluated on that small `[n, V]` tile, and the tile is overwritten by the gradient of its
logits and multiplied at once into the gradients of the hidden states and of the head. That is valid because the loss is
linear in the per-token values, with weights known beforehand; the backward pass then only scales two saved tensors.
Four matrix products a step, masked positions never projected, one code path for every objective.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from packaging.version import Version
from torch import Tensor, nn

from trl_opd.closed_forms import Distribution
from trl_opd.errors import UserError

#: Bytes of a tile of logits, by kind of device. On a CPU 64 rows of a 150k vocabulary were the fastest of those tried;
#: for GPUs it is a guess (a few hundred rows fill one), and was not measured.
TILE_BYTES = {"cpu": 40 * 2**20, "cuda": 256 * 2**20}

#: Bytes of the part of a tile that a CPU works on at a time, so that all that is made of it stays in its caches.
BLOCK_BYTES = 2**20

#: Log-probabilities `[n, V]`, the indices of their rows `[n]`, and whether the gradient is wanted -> sum of weighted
#: losses, and facts `[n]`. The log-probabilities may be overwritten; with the gradient wanted they must be, by the
#: gradient of the loss with respect to the logits.
TileLoss = Callable[[Tensor, Tensor, bool], tuple[Tensor, dict[str, Tensor]]]

#: Whether products of 16-bit matrices may be left in float32 (on CUDA).
_HAS_OUT_DTYPE = Version(torch.__version__) >= Version("2.8.0")


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

    @property
    def vocabulary(self) -> int:
        """Rows of the head, padding included."""
        return self.weight.shape[0]

    @property
    def precise(self) -> torch.dtype:
        """What logits and all that follows are computed in: float32 at least."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    def detached(self) -> "Head":
        """The same head, cut off from the graph."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)

    def cloned(self) -> "Head":
        """A copy with tensors of its own."""
        return replace(self, weight=self.weight.clone(), bias=None if self.bias is None else self.bias.clone())

    def for_products(self) -> "Head":
        """The same head, detached, in the number format of matrix products: autocast's inside its region."""
        head, device = self.detached(), self.weight.device.type
        if self.weight.dtype == torch.float64 or not torch.is_autocast_enabled(device):
            return head
        return replace(head, weight=head.weight.to(torch.get_autocast_dtype(device)))

    def tile(self, rows: int) -> Tensor:
        """Memory for the logits of some rows, `[rows, V]`."""
        return torch.empty(rows, self.vocabulary, dtype=self.precise, device=self.weight.device)

    @torch.no_grad()
    def project(self, hidden_NH: Tensor, out: Tensor | None = None) -> Tensor:
        """Raw logits, in float32 at least, `[N, V]`, without a graph."""
        out = self.tile(len(hidden_NH)) if out is None else out
        hidden = hidden_NH.to(self.weight.dtype)
        if out.dtype == hidden.dtype:
            torch.mm(hidden, self.weight.t(), out=out)
        elif out.is_cuda and _HAS_OUT_DTYPE:
            torch.mm(hidden, self.weight.t(), out_dtype=out.dtype, out=out)
        else:
            out.copy_(hidden @ self.weight.t())
        if self.bias is not None:
            # A head may exclude tokens by a bias of -inf; a finite bound keeps 0 ln 0 = 0 in all that follows.
            out.add_(self.bias.to(out.dtype).clamp(min=-1e30))
        return out

    def to_logits_(self, raw_NV: Tensor) -> Tensor:
        """Raw logits become the logits of the distribution, in place."""
        if self.scale != 1.0:
            raw_NV.mul_(self.scale)
        if self.softcap is not None:
            raw_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1.0:
            raw_NV.div_(self.temperature)
        return raw_NV

    def to_raw_gradient_(self, gradient_NV: Tensor, logits_NV: Tensor | None) -> Tensor:
        """The gradient of `to_logits_`'s result becomes that of its input, in place; logits for a softcap only."""
        if self.softcap is not None:
            tanh = logits_NV.mul_(self.temperature / self.softcap)
            gradient_NV.mul_(tanh.square_().neg_().add_(1.0))
        factor = self.scale / self.temperature
        return gradient_NV if factor == 1.0 else gradient_NV.mul_(factor)

    def logps(self, raw_NV: Tensor) -> Tensor:
        """Log-probabilities from raw logits, `[N, V]`."""
        return self.to_logits_(raw_NV.clone()).log_softmax(-1)


def _logit_scale(config) -> float:
    """The multiplier that some architectures apply to their logits (Cohere, Falcon-H1, Granite and their kin)."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return divisor if config.model_type == "hyperclovax" else 1.0 / divisor


def rows_per_tile(head: Head) -> int:
    """How many rows are projected at a time: as many as `TILE_BYTES` holds."""
    budget = TILE_BYTES["cpu" if head.weight.device.type == "cpu" else "cuda"]
    rows = budget // (head.vocabulary * head.precise.itemsize)
    return max(rows // 16 * 16, 1)  # whole vectors for the matrix products


def row_blocks(tile_nV: Tensor) -> Iterator[slice]:
    """The rows of a tile in parts for element-wise work; at least one part, if an empty one."""
    rows = max(len(tile_nV), 1)
    if tile_nV.device.type == "cpu":
        in_cache = BLOCK_BYTES // (tile_nV.shape[-1] * tile_nV.dtype.itemsize)
        rows = max(min(in_cache, rows), torch.get_num_threads())  # a softmax runs its rows in parallel
    for start in range(0, max(len(tile_nV), 1), rows):
        yield slice(start, start + rows)


def log_softmax_(logits_nV: Tensor) -> Tensor:
    """Logits become log-probabilities, in place."""
    for block in row_blocks(logits_nV):
        logits_nV[block] = logits_nV[block].log_softmax(-1)
    return logits_nV


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
        low, precise = head.for_products(), head.precise
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wants_any = wants_hidden or wants_weight or wants_bias
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=precise) if wants_bias else None
        total = torch.zeros((), device=hidden.device, dtype=precise)
        size = rows_per_tile(head)
        memory = head.tile(min(size, len(order)))
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in order.split(size):
                tile = hidden[rows].to(low.weight.dtype)
                logits = head.to_logits_(low.project(tile, out=memory[: len(rows)]))
                kept = logits.clone() if head.softcap is not None and wants_any else None
                loss, tile_facts = tile_loss(log_softmax_(logits), rows, wants_any)
                total += loss
                for name, values in tile_facts.items():
                    if name not in facts:
                        facts[name] = torch.zeros(len(hidden), device=hidden.device, dtype=precise)
                    facts[name][rows] = values.to(precise)
                if not wants_any:
                    continue
                gradient = head.to_raw_gradient_(logits, kept)
                if wants_bias:
                    grad_bias += gradient.sum(0)
                if wants_hidden:
                    grad_hidden[rows] = (gradient.to(low.weight.dtype) @ low.weight).to(hidden.dtype)
                if wants_weight:
                    _add_product(grad_weight, gradient, tile)
        ctx.grads = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    def backward(ctx, upstream):
        if ctx.grads is None:
            raise RuntimeError("The gradient of a tiled loss can be taken once; compute the loss again.")
        grads, ctx.grads = ctx.grads, None  # scaled in place: a second copy of [V, H] would be the peak
        return *(None if grad is None else grad.mul_(upstream) for grad in grads), None, None, None, None


def _add_product(total_VH: Tensor, gradient_nV: Tensor, tile_nH: Tensor) -> None:
    """total += gradient^T tile, without rounding the product to 16 bits before it is added."""
    if tile_nH.dtype != total_VH.dtype and total_VH.is_cuda and _HAS_OUT_DTYPE:
        gradient = gradient_nV.to(tile_nH.dtype)
        torch.addmm(total_VH, gradient.t(), tile_nH, out_dtype=total_VH.dtype, out=total_VH)
    else:
        total_VH.addmm_(gradient_nV.t(), tile_nH.to(total_VH.dtype))


def by_autograd(loss: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]) -> TileLoss:
    """A `TileLoss` from a differentiable function of log-probabilities `[n, V]` and rows `[n]`."""

    def tile_loss(logps_nV: Tensor, rows: Tensor, wants_gradient: bool) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.set_grad_enabled(wants_gradient):
            leaf = logps_nV.detach().clone().requires_grad_(wants_gradient)
            value, facts = loss(leaf.log_softmax(-1), rows)
            if wants_gradient:
                logps_nV.copy_(torch.autograd.grad(value, leaf)[0])
        return value.detach(), {name: fact.detach() for name, fact in facts.items()}

    return tile_loss


@torch.no_grad()
def sampled_logps_and_entropy(
    hidden_NH: Tensor, head: Head, token_ids_N: Tensor, vocabulary: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each sampled token and the entropy of its distribution, `[N]` each, without gradient.

    Rows of the head beyond `vocabulary` are padding: they are cut and the rest is renormalised.

    Raises:
        `UserError`: If a sampled token is among what is cut.
    """
    head = head.for_products()
    known = head.vocabulary if vocabulary is None else min(vocabulary, head.vocabulary)
    if len(token_ids_N) and (largest := int(token_ids_N.max())) >= known:
        raise UserError(
            f"A completion holds the token {largest}, but student and scorers have only {known} tokens in common: "
            "the student samples the padding of its vocabulary; train it before, or choose a teacher of its size."
        )
    logps = torch.zeros(len(hidden_NH), device=hidden_NH.device, dtype=head.precise)
    entropies = torch.zeros_like(logps)
    size = rows_per_tile(head)
    memory = head.tile(min(size, len(hidden_NH)))
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for start in range(0, len(hidden_NH), size):
            hidden = hidden_NH[start : start + size]
            tile = log_softmax_(head.to_logits_(head.project(hidden, out=memory[: len(hidden)]))[:, :known])
            for block in row_blocks(tile):
                rows = slice(start + block.start, min(start + block.stop, start + len(tile)))
                logps[rows] = tile[block].gather(-1, token_ids_N[rows, None]).squeeze(-1)
                entropies[rows] = Distribution.of(tile[block]).entropy()
    return logps, entropies
