"""Letting the scorers read rollouts: no gradient, once per rollout batch, only the rows that need it."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from trl_opd.compat import pad
from trl_opd.rollouts import Scores
from trl_opd.teachers import ByDomain, Scorer
from trl_opd.tiled import sampled_logps_and_entropy


@dataclass
class Reading:
    """What the scorers are to read.

    Attributes:
        completion_ids, completion_mask (`torch.Tensor`): The student's completions, right-padded, `[B, T]`.
        prompts (`list[list[int] | None]`): Token ids in front of each completion, length B.
        rows (`list[int]`): The rows to read; others stay 0 in the scores.
        examples (`list[dict]`): Dataset rows, by which a domain's teacher is chosen.
        vocabulary (`int`): Rows of the student's head: a scorer's rows beyond them are padding.
        pad_token_id (`int`): Padding.
        batch_size (`int`): Rows of one forward.
        autocast (`Callable`): Makes the context manager for mixed precision.
    """

    completion_ids: Tensor
    completion_mask: Tensor
    prompts: list[list[int] | None]
    rows: list[int]
    examples: list[dict]
    vocabulary: int
    pad_token_id: int
    batch_size: int
    autocast: type[AbstractContextManager]


@torch.no_grad()
def score(scorers: list[Scorer | ByDomain], reading: Reading, keep_hidden: bool) -> Scores:
    """The scores of all scorers, in their order.

    Args:
        scorers (`list`): Teacher first, then reference.
        reading (`Reading`): What they read.
        keep_hidden (`bool`): Whether hidden states are kept for the loss, `[B, T, H]` per scorer.
    """
    scores = Scores()
    for scorer in scorers:
        logps, entropy, hidden = _by_one(scorer, reading, keep_hidden)
        scores.logps.append(logps)
        scores.entropy = entropy if scores.entropy is None else scores.entropy
        if keep_hidden:
            scores.hidden.append(hidden)
    lengths = reading.completion_mask.sum(-1).tolist()
    scores.tokens = len(scorers) * sum(len(reading.prompts[row]) + lengths[row] for row in reading.rows)
    return scores


def _by_one(scorer: Scorer | ByDomain, reading: Reading, keep_hidden: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    shape, device = reading.completion_mask.shape, reading.completion_mask.device
    logps, entropy = (torch.zeros(shape, device=device) for _ in range(2))
    hidden = torch.zeros(*shape, scorer.hidden_size, dtype=scorer.dtype, device=device) if keep_hidden else None
    for reader, rows in scorer.assign(reading.rows, reading.examples):
        # Rows of like length share a forward, so that little of it is padding.
        ordered = sorted(rows, key=lambda row: len(reading.prompts[row]))
        for start in range(0, len(ordered), reading.batch_size):
            chunk = ordered[start : start + reading.batch_size]
            states, chunk_logps, chunk_entropy = _read(reader, reading, chunk)
            width = states.shape[1]
            logps[chunk, :width], entropy[chunk, :width] = chunk_logps, chunk_entropy
            if keep_hidden:
                hidden[chunk, :width] = states.to(hidden.dtype)
    return logps, entropy, hidden


def _read(scorer: Scorer, reading: Reading, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, sampled log-probabilities and entropies of some rows' completions, `[b, t, ...]`."""
    device = reading.completion_ids.device
    width = max(int(reading.completion_mask[rows].sum(-1).max()), 1)
    completion, completion_mask = reading.completion_ids[rows, :width], reading.completion_mask[rows, :width]
    prompts = [torch.tensor(reading.prompts[row]) for row in rows]
    prompt = pad(prompts, reading.pad_token_id, "left").to(device)
    prompt_mask = pad([torch.ones_like(ids) for ids in prompts], 0, "left").to(device)
    with reading.autocast():
        states = scorer.read(torch.cat([prompt, completion], 1), torch.cat([prompt_mask, completion_mask], 1), width)
        live = completion_mask.bool()
        logps, entropy = (torch.zeros(live.shape, device=device) for _ in range(2))
        found = sampled_logps_and_entropy(states[live], scorer.head, completion[live], reading.vocabulary)
        logps[live], entropy[live] = (values.float() for values in found)
    return states, logps, entropy
