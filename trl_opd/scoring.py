"""Letting the scorers read rollouts: no gradient, once per rollout batch, only the rows that need it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_opd.compat import pad
from trl_opd.encoding import find_prefixes, prefix_obstacle
from trl_opd.packing import Row, chunks
from trl_opd.rollouts import Scores
from trl_opd.sharding import whole_head
from trl_opd.teachers import ByDomain, Scorer, causal_lm
from trl_opd.tiled import Head, sampled_logps_and_entropy


@dataclass
class Reading:
    """What the scorers are to read.

    Attributes:
        completion_ids, completion_mask (`torch.Tensor`): The student's completions, right-padded, `[B, T]`.
        prompts (`list[list[int] | None]`): Token ids in front of each completion, length B.
        rows (`list[int]`): The rows to read; others stay 0 in the scores.
        examples (`list[dict]`): Dataset rows, by which a domain's teacher is chosen.
        vocabulary (`int`): Rows that the heads of all sides have: those beyond are padding.
        pad_token_id (`int`): Padding.
        batch_size (`int`): Rows of one forward.
        share_prompts (`bool`): Whether prompts that rows of a forward have in common are encoded once.
        autocast (`Callable`): Makes the context manager for mixed precision.
        most (`Callable`): The largest of all processes' numbers where models are spread over them: a process with
            fewer forwards of its own then joins in the others'.
    """

    completion_ids: Tensor
    completion_mask: Tensor
    prompts: list[list[int] | None]
    rows: list[int]
    examples: list[dict]
    vocabulary: int
    pad_token_id: int
    batch_size: int
    share_prompts: bool
    autocast: type[AbstractContextManager]
    most: Callable[[int], int] = lambda count: count

    def chunks(self, rows: list[int], scorer: Scorer) -> list[list[int]]:
        """Which rows share a forward: those of like length, or of the same prompt, by what takes fewer tokens."""
        lengths = self.completion_mask.sum(-1).tolist()
        described = [Row(row, tuple(self.prompts[row]), len(self.prompts[row]), lengths[row]) for row in rows]
        share = self.share_prompts and prefix_obstacle(causal_lm(scorer.model), training=False) is None
        return chunks(described, self.batch_size, share)


@dataclass
class _Chunk:
    """What a scorer said of some rows.

    Attributes:
        states: Hidden states of each row's completion, `[t, H]`, in compact form.
        logps, entropy: `[b, t]`.
        tokens: Tokens that were read.
    """

    states: Tensor
    logps: Tensor
    entropy: Tensor
    tokens: int


@dataclass
class Answer:
    """What an oracle says about a reading; 0 on rows that it was not asked about or has no answer for.

    Attributes:
        logps (`torch.Tensor`): Log-probability of each sampled token, `[B, T]`.
        missing (`torch.Tensor`): Rows of the reading that it has no answer for, bool `[B]`.
        states (`list[torch.Tensor | None]`, *optional*): Hidden states of each row's completion, `[t, H]`, on the host.
        support_ids, support_logps (`torch.Tensor`, *optional*): Its likeliest tokens, likeliest first, `[B, T, K]`.
        tokens (`int`): Tokens that it read for this, prompts included.
    """

    logps: Tensor
    missing: Tensor
    states: list[Tensor | None] | None = None
    support_ids: Tensor | None = None
    support_logps: Tensor | None = None
    tokens: int = 0


class Oracle:
    """A teacher whose weights are not in this process: it answers for the rows of a reading, if it can.

    Attributes:
        max_length (`int`, *optional*): Longest input in tokens, prompt and completion together.
        vocabulary (`int`, *optional*): Rows of its head; None where what it says is of the student's vocabulary.
        head (`Head`, *optional*): What its hidden states are projected by; None where it gives none.
        name (`str`): What messages call it.
    """

    max_length: int | None = None
    vocabulary: int | None = None
    head: Head | None = None
    name: str

    @property
    def hidden_size(self) -> int:
        return self.head.weight.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    def answer(self, reading: Reading) -> Answer:
        """The scores of the reading's rows."""
        raise NotImplementedError

    def begin(self) -> None:
        """Nothing: its weights never move."""

    def update(self, step: int) -> None:
        """Nothing, likewise."""

    def state(self, keep: bool = True) -> dict[str, Tensor]:
        """Nothing to remember."""
        return {}

    def load(self, path: Path) -> None:
        """Nothing, likewise."""

    def place(self, accelerator: Accelerator) -> "Oracle":
        """Itself: it answers on the device of the reading, and nothing of it is spread over the processes."""
        return self


@torch.no_grad()
def score(
    scorers: list[Scorer | ByDomain | Oracle], reading: Reading, keep: Callable[[Tensor], Tensor] | None = None
) -> Scores:
    """The scores of all scorers, in their order.

    Args:
        scorers (`list`): Teacher first, then reference.
        reading (`Reading`): What they read.
        keep (`Callable`, *optional*): Where hidden states `[n, H]` are kept for the loss; None drops them.
    """
    scores = Scores()
    for scorer in scorers:
        if isinstance(scorer, Oracle):
            _take(scores, scorer.answer(reading))
        else:
            _add(scores, scorer, reading, keep)
    return scores


def _take(scores: Scores, answer: Answer) -> None:
    scores.logps.append(answer.logps)
    if answer.states is not None:
        scores.states.append(answer.states)
    scores.support_ids, scores.support_logps = answer.support_ids, answer.support_logps
    scores.missing = answer.missing
    scores.tokens += answer.tokens


def _add(scores: Scores, scorer: Scorer | ByDomain, reading: Reading, keep) -> None:
    """Adds what one scorer says."""
    shape, device = reading.completion_mask.shape, reading.completion_mask.device
    logps, entropy = (torch.zeros(shape, device=device) for _ in range(2))
    states: list[Tensor | None] = [None] * shape[0]
    for reader, rows in scorer.assign(reading.rows, reading.examples):
        own = reading.chunks(rows, reader)
        for _ in range(reading.most(len(own)) - len(own)):
            _join(reader, reading)
        for chunk in own:
            found = _read(reader, reading, chunk)
            width = found.logps.shape[1]
            logps[chunk, :width], entropy[chunk, :width] = found.logps, found.entropy
            scores.tokens += found.tokens
            if keep is not None:
                lengths = reading.completion_mask[chunk].sum(-1).tolist()
                for row, kept in zip(chunk, keep(found.states.to(reader.dtype)).split(lengths), strict=True):
                    states[row] = kept
    scores.logps.append(logps)
    scores.entropy = entropy if scores.entropy is None else scores.entropy
    if keep is not None:
        scores.states.append(states)


def _join(scorer: Scorer, reading: Reading) -> None:
    """Takes part in a forward of other processes, with a token that nobody asked about."""
    token = torch.full((1, 1), reading.pad_token_id, device=reading.completion_ids.device)
    with reading.autocast():
        scorer.read(token, torch.ones_like(token), 1)
        whole_head(scorer.head)


def _read(scorer: Scorer, reading: Reading, rows: list[int]) -> _Chunk:
    """One forward."""
    device = reading.completion_ids.device
    width = max(int(reading.completion_mask[rows].sum(-1).max()), 1)
    completion, completion_mask = reading.completion_ids[rows, :width], reading.completion_mask[rows, :width]
    prompts = [torch.tensor(reading.prompts[row]) for row in rows]
    prompt = pad(prompts, reading.pad_token_id, "left").to(device)
    prompt_mask = pad([torch.ones_like(ids) for ids in prompts], 0, "left").to(device)
    live = completion_mask.bool()
    logps, entropy = (torch.zeros(live.shape, device=device) for _ in range(2))
    prefixes = None
    if reading.share_prompts:
        prefixes = find_prefixes(causal_lm(scorer.model), prompt, prompt_mask, width, training=False)
    with reading.autocast():
        ids, mask = torch.cat([prompt, completion], 1), torch.cat([prompt_mask, completion_mask], 1)
        states = scorer.read(ids, mask, width, prefixes)[live]
        found = sampled_logps_and_entropy(states, whole_head(scorer.head), completion[live], reading.vocabulary)
        logps[live], entropy[live] = (values.float() for values in found)
    tokens = int(prompt_mask.sum()) if prefixes is None else prefixes.tokens
    return _Chunk(states, logps, entropy, tokens + int(completion_mask.sum()))
