"""Named ways to reduce per-token losses to the scalar of one optimizer step, exact across micro-batches and processes.

Every mode is linear in the token losses, so each is written as a weight per token that is known before the forward:
loss = sum of weight x token loss. The weights contain everything that the training loop will do to the loss later:
gradient accumulation sums the micro-batches, and data parallelism averages over processes.

    token-global   sum of all counted tokens' losses / number of counted tokens, over the whole optimizer-step batch
    token-micro    the same within each micro-batch, then averaged over micro-batches (verl's token-mean)
    seq-mean       mean over rows of the row's token mean; a row without counted tokens counts in the mean over rows
    seq-mean-live  the same, but only rows with a counted token count, over the whole optimizer-step batch
    dr             sum / (rows x longest allowed completion), as in Dr.GRPO
    prompt-sum     sum / number of prompts: a row's tokens are summed, whatever its length, as in SCOPE
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MODES = ("token-global", "token-micro", "seq-mean", "seq-mean-live", "dr", "prompt-sum")

#: Modes whose value depends on which rows share a micro-batch; for them rows stay in random order.
COMPOSITION_DEPENDENT = ("token-micro",)


@dataclass(frozen=True)
class Window:
    """What one optimizer step spans.

    Attributes:
        tokens (`torch.Tensor`): Counted tokens over all processes and micro-batches of the step, 0-dim.
        live_rows (`torch.Tensor`): Rows with at least one counted token, likewise, 0-dim.
        micro_batches (`int`): Gradient-accumulation steps.
        processes (`int`): Data-parallel processes, whose gradients are averaged.
        max_completion_length (`int`): Longest allowed completion, in tokens.
        group_size (`int`): Rollouts per prompt.
    """

    tokens: Tensor
    live_rows: Tensor
    micro_batches: int
    processes: int
    max_completion_length: int
    group_size: int = 1


def token_weights(counted_BT: Tensor, mode: str, window: Window) -> Tensor:
    """Weight of each token's loss in this micro-batch's share of the step, `[B, T]`; 0 where a token is not counted.

    Args:
        counted_BT (`torch.Tensor`): 1 on the completion tokens in the denominator, `[B, T]`.
        mode (`str`): One of `MODES`.
        window (`Window`): The optimizer step that this micro-batch belongs to.
    """
    counted_BT = counted_BT.to(torch.promote_types(counted_BT.dtype, torch.float32))
    rows = counted_BT.shape[0]
    row_tokens = counted_BT.sum(-1, keepdim=True).clamp(min=1.0)
    if mode == "token-global":
        return counted_BT * window.processes / window.tokens.clamp(min=1.0)
    if mode == "token-micro":
        return counted_BT / counted_BT.sum().clamp(min=1.0) / window.micro_batches
    if mode == "seq-mean":
        return counted_BT / row_tokens / rows / window.micro_batches
    if mode == "seq-mean-live":
        return counted_BT / row_tokens * window.processes / window.live_rows.clamp(min=1.0)
    if mode == "dr":
        return counted_BT / (rows * window.max_completion_length) / window.micro_batches
    if mode == "prompt-sum":
        return counted_BT * window.group_size / rows / window.micro_batches
    raise ValueError(f"Unknown aggregation {mode!r}: choose one of {', '.join(MODES)}.")


def count(counted_BT: Tensor) -> Tensor:
    """Counted tokens and live rows of one micro-batch, `[2]`, to be summed over micro-batches and processes."""
    per_row = counted_BT.sum(-1)
    return torch.stack([per_row.sum(), (per_row > 0).sum()]).float()
