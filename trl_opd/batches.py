"""Rollout batches and micro-batches: dictionaries of tensors and lists with the rows in front, as TRL has them."""

from typing import Any

import torch
from torch import Tensor

from trl_opd.loss import Tokens
from trl_opd.packing import Row, chunks
from trl_opd.rollouts import Scores, Signals

#: Tensors and lists of one length, one entry a row, and 0-dim tensors that belong to all rows.
Batch = dict[str, Any]


def prompt_ids(batch: Batch) -> list[list[int]]:
    """The student's prompts without their padding."""
    pairs = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def loss_mask(batch: Batch) -> Tensor:
    """1 on tokens that the model generated: no padding, no tool output, `[B, T]`."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def signal_tensors(signals: Signals, scores: Scores, mask: Tensor) -> Batch:
    """The signals and scores with the rows in front, which TRL shuffles and splits with the batch."""
    per_token = {
        name: (weight if weight.dim() == 2 else weight[:, None]) * mask
        for name, weight in (("pg", signals.pg), ("kl", signals.kl), ("ce", signals.ce))
    }
    tensors = {f"{name}_weight": weight for name, weight in per_token.items()}
    tensors["counted"] = mask * signals.counted[:, None]
    tensors |= {f"scorer_logps_{i}": logps for i, logps in enumerate(scores.logps)}
    if scores.support_ids is not None:
        tensors |= {"support_ids": scores.support_ids, "support_logps": scores.support_logps}
    return tensors | {f"scorer_states_{i}": states for i, states in enumerate(scores.states)}


def pack(micro_batches: list[Batch], per_step: int, share_prompts: bool) -> list[Batch]:
    """The same rows in micro-batches that take the fewest tokens; each row stays in its optimizer step.

    TRL has shuffled the rows of the rollout batch, so every step is a random sample of them; which rows of a step share
    a micro-batch changes neither loss nor gradient, since token weights refer to the whole step.

    Args:
        micro_batches (`list[dict]`): Those of a rollout batch, of one size.
        per_step (`int`): Micro-batches of an optimizer step.
        share_prompts (`bool`): Whether prompts that rows of a micro-batch have in common are encoded once.
    """
    packed = []
    for start in range(0, len(micro_batches), per_step):
        step = _joined(micro_batches[start : start + per_step])
        lengths, prompts = step["completion_mask"].sum(-1).tolist(), prompt_ids(step)
        rows = [Row(row, (), 0, 0) for row in range(len(prompts))]  # idle rows are not forwarded: they cost nothing
        for row in working_rows(step):
            rows[row] = Row(row, tuple(prompts[row]), len(prompts[row]), lengths[row])
        packed += [picked(step, chosen) for chosen in chunks(rows, len(rows) // per_step, share_prompts)]
    return packed


def _joined(batches: list[Batch]) -> Batch:
    def join(parts: list) -> Any:
        if isinstance(parts[0], list):
            return [entry for part in parts for entry in part]
        return torch.cat(parts) if isinstance(parts[0], Tensor) and parts[0].dim() else parts[0]

    return {name: join([batch[name] for batch in batches]) for name in batches[0]}


def working_rows(batch: Batch) -> list[int]:
    """Rows with a weight in the loss."""
    weighted = (batch["pg_weight"] != 0) | (batch["kl_weight"] != 0) | (batch["ce_weight"] != 0)
    return weighted.any(-1).nonzero().squeeze(-1).tolist()


def picked(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch."""

    def pick(value: Any) -> Any:
        if isinstance(value, list):
            return [value[row] for row in rows]
        return value[rows] if isinstance(value, Tensor) and value.dim() else value

    return {name: pick(value) for name, value in batch.items()}


def trimmed(batch: Batch) -> Batch:
    """The micro-batch without the columns that are padding in all of its rows."""
    prompt = int(batch["prompt_mask"].sum(-1).max())
    width = batch["completion_ids"].shape[1]
    completion = max(int(batch["completion_mask"].sum(-1).max()), 1)
    kept = dict(batch)
    for name, tensor in batch.items():
        if name.startswith("prompt_"):
            kept[name] = tensor[:, -prompt:]
        elif isinstance(tensor, Tensor) and tensor.dim() >= 2 and tensor.shape[1] == width:
            kept[name] = tensor[:, :completion]
    return kept


def compact(batch: Batch, mask: Tensor, weights: Tensor, scorer_hidden: list[Tensor]) -> Tokens:
    """The micro-batch's unmasked tokens.

    Args:
        batch (`dict`): The micro-batch.
        mask (`torch.Tensor`): Which tokens, bool `[B, T]`.
        weights (`torch.Tensor`): Weight of each token's loss in the step, `[B, T]`.
        scorer_hidden (`list[torch.Tensor]`): Hidden states of the scorers at these tokens, `[N, H]` each.
    """
    # The engine correction multiplies every component's token loss; as in TRL, not the penalty towards the reference.
    corrected = weights * batch["importance_sampling_ratio"] if "importance_sampling_ratio" in batch else weights
    scorer_logps = [tensor[mask] for name, tensor in batch.items() if name.startswith("scorer_logps_")]

    def unmasked(name: str) -> Tensor | None:
        return batch[name][mask] if name in batch else None

    advantages = batch["advantages"]
    advantages = advantages[:, None].expand(mask.shape) if advantages.dim() == 1 else advantages
    return Tokens(
        ids=batch["completion_ids"][mask],
        pg=(batch["pg_weight"] * corrected)[mask],
        kl=(batch["kl_weight"] * corrected)[mask],
        ce=(batch["ce_weight"] * corrected)[mask],
        penalty=(batch["pg_weight"] * weights)[mask],
        advantages=advantages[mask],
        old_logps=unmasked("old_per_token_logps"),
        ref_logps=unmasked("ref_per_token_logps"),
        scorer_logps=scorer_logps,
        scorer_hidden=scorer_hidden,
        scorer_support=(unmasked("support_ids").long(), unmasked("support_logps")) if "support_ids" in batch else None,
    )
