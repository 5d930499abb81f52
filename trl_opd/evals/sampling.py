"""Sampling that is seeded per row: what a row draws does not depend on the rows that it shares a batch with."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from trl_opd.evals.engines import Sampling


def sample_rows(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw one token for each row by inverting the row's cumulative distribution at a given number.

    The distribution is the softmax at `temperature`, cut to the smallest set of most likely tokens whose mass reaches
    `top_p`. The cumulative sum runs in the order of the vocabulary, not of the probabilities, so that a rounding
    difference in the logits moves its steps by as little and seldom changes the draw.

    Args:
        logits_BV (`torch.Tensor`): Logits, `[B, V]`.
        uniforms_B (`torch.Tensor`): One number in [0, 1) for each row, float64, `[B]`.
        temperature (`float`): Above 0.
        top_p (`float`): In (0, 1].

    Returns:
        `torch.Tensor`: Token ids, `[B]`.
    """
    probs_BV = torch.softmax(logits_BV.double() / temperature, dim=-1)
    if top_p < 1:
        ranked_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        outside_BV = ranked_BV.cumsum(dim=-1) - ranked_BV >= top_p
        outside_BV[:, 0] = False
        probs_BV = probs_BV.masked_fill(outside_BV.gather(1, order_BV.argsort(dim=-1)), 0)
    cumulative_BV = probs_BV.cumsum(dim=-1)
    targets_B1 = (uniforms_B * cumulative_BV[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative_BV, targets_B1, right=True).squeeze(1).clamp(max=logits_BV.shape[1] - 1)


class SeededSampling(LogitsProcessor):
    """Leaves one finite logit in each row, that of the token drawn, so that a greedy search samples.

    Args:
        seeds (`list[int]`): One seed for each row.
        sampling (`Sampling`): Temperature (above 0), top-p and the number of tokens.
        prompt_length (`int`): Tokens of the padded prompts.
        device (`torch.device`): Where the logits lie.
    """

    def __init__(self, seeds: list[int], sampling: Sampling, prompt_length: int, device: torch.device) -> None:
        self.sampling = sampling
        self.prompt_length = prompt_length
        rows = [
            torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
        self.uniforms_BT = torch.stack(rows).to(device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draw the next token, `[B, V]` to `[B, V]`."""
        uniforms_B = self.uniforms_BT[:, input_ids.shape[1] - self.prompt_length]
        tokens_B = sample_rows(scores, uniforms_B, self.sampling.temperature, self.sampling.top_p)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens_B.unsqueeze(1), 0)
