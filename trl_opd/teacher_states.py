"""Where the scorers' hidden states are between the scoring of a rollout batch and the loss of its micro-batches.

    keep        on the device, until the rollout batch is used up
    offload     in host memory (pinned, if the device is a GPU); a micro-batch's share comes back for its loss
    recompute   nowhere: the scorers read each micro-batch's rows just before its loss

Only rows that carry divergence weight have states, and only their own tokens: a scorer takes
tokens x hidden size x bytes per number, e.g. 65,536 distilled tokens x 4,096 x 2 (bf16) = 512 MiB.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MODES = ("keep", "offload", "recompute")


def to_host(states: Tensor) -> Tensor:
    """A copy in host memory, pinned if it comes from a GPU."""
    kept = torch.empty(states.shape, dtype=states.dtype, device="cpu", pin_memory=states.is_cuda)
    return kept.copy_(states)


#: What becomes of the states of one forward, `[n, H]`, when they are computed; None where they are not kept.
KEEPERS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "keep": lambda states: states,
    "offload": to_host,
    "recompute": None,
}


def compact_states(rows: list[Tensor | None], mask: Tensor, hidden_size: int, dtype: torch.dtype) -> Tensor:
    """A scorer's states at the unmasked tokens of a micro-batch, on its device, `[N, H]`; 0 where there are none.

    Args:
        rows (`list[torch.Tensor | None]`): States of each row's completion, `[t, H]`, from its first token on.
        mask (`torch.Tensor`): The tokens of the loss, bool `[B, T]`.
        hidden_size (`int`): H.
        dtype (`torch.dtype`): That of the states.
    """
    counts = mask.sum(-1).tolist()
    states = torch.zeros(sum(counts), hidden_size, dtype=dtype, device=mask.device)
    for row, row_mask, place in zip(rows, mask, states.split(counts), strict=True):
        if row is not None:
            row = row.to(mask.device, non_blocking=True)
            place.copy_(row if len(place) == len(row) else row[row_mask[: len(row)]])
    return states
