"""Which rows share a forward, so that little of it is padding and prompts that they have in common are encoded once.

A chunk of b rows costs b (P + T) tokens, P and T being its longest prompt and completion, and u P + b T if its u
distinct prompts are encoded apart.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What the cost of a row depends on.

    Attributes:
        index (`int`): Its place in the batch.
        prompt (`Hashable`): Equal for rows with the same prompt.
        prompt_length, completion_length (`int`): In tokens.
    """

    index: int
    prompt: Hashable
    prompt_length: int
    completion_length: int


#: Orders in which rows may be cut into chunks.
ORDERS = (
    lambda row: (row.completion_length, row.prompt_length),
    lambda row: (row.completion_length + row.prompt_length, row.completion_length),
    lambda row: (row.prompt_length, row.prompt, row.completion_length),
)


def chunks(rows: Sequence[Row], size: int, share: bool) -> list[list[int]]:
    """Cuts rows into chunks of `size` (the last may be smaller), in the order that forwards the fewest tokens.

    Args:
        rows (`Sequence[Row]`): The rows; their prompts must be comparable.
        size (`int`): Rows of a chunk.
        share (`bool`): Whether prompts that rows of a chunk have in common are encoded once.

    Returns:
        `list[list[int]]`: The rows' indices, each once; the costliest chunk first, so that what does not fit in memory
        fails at once.
    """
    ordered = [sorted(rows, key=order, reverse=True) for order in ORDERS]
    cuts = [[order[start : start + size] for start in range(0, len(order), size)] for order in ordered]
    best = min(cuts, key=lambda cut: sum(cost(chunk, share) for chunk in cut))
    return [[row.index for row in chunk] for chunk in sorted(best, key=lambda chunk: -cost(chunk, share))]


def cost(chunk: Sequence[Row], share: bool) -> int:
    """Tokens that a forward of these rows takes, padding included."""
    prompt, completion = max(row.prompt_length for row in chunk), max(row.completion_length for row in chunk)
    encoded = len({row.prompt for row in chunk}) if share else len(chunk)
    return encoded * prompt + len(chunk) * completion
