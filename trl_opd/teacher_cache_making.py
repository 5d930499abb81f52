"""Making a teacher cache: a fixed set of rollouts is scored once, shard by shard, and can be taken up after a kill.

A shard is written to its end before it gets its name, so that one that has it is whole: it is never scored again, and
one that was cut short is. See `trl_opd.teacher_cache` for what lies where.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trl_opd.compat import pad, render_prompts
from trl_opd.errors import UserError
from trl_opd.objectives.base import Objective
from trl_opd.offsite import COMPLETION_IDS
from trl_opd.scoring import Oracle, Reading, score
from trl_opd.teacher_cache import MANIFEST, ROLLOUTS, SHARD, Manifest, row_key, save_head
from trl_opd.teachers import Scorer
from trl_opd.tiled import Head, log_softmax_, rows_per_tile

#: Completions in a shard, by kind: hidden states are large, and a shard is held in memory until it is written.
ROWS_PER_SHARD = {"sampled": 256, "topk": 256, "hidden": 32}

#: The teacher's prompt ids and the completion ids.
Pair = tuple[list[int], list[int]]


@dataclass
class Scoring:
    """How the completions are scored.

    Attributes:
        scorer (`Scorer` or `Oracle`): The teacher.
        batch_size (`int`): Completions of one forward.
        pad_token_id (`int`): Padding.
        share_prompts (`bool`): Whether prompts that completions of a forward have in common are encoded once.
        autocast (`Callable`): Makes the context manager for mixed precision.
        device (`torch.device`): Where the teacher is.
    """

    scorer: Scorer | Oracle
    batch_size: int
    pad_token_id: int
    share_prompts: bool
    autocast: Callable[[], AbstractContextManager]
    device: torch.device

    def reading(self, pairs: list[Pair], vocabulary: int) -> Reading:
        """What the teacher is to read, every row of it."""
        completions = [torch.tensor(completion, device=self.device) for _, completion in pairs]
        return Reading(
            completion_ids=pad(completions, self.pad_token_id, "right"),
            completion_mask=pad([torch.ones_like(ids) for ids in completions], 0, "right"),
            prompts=[prompt for prompt, _ in pairs],
            rows=list(range(len(pairs))),
            examples=[{} for _ in pairs],
            vocabulary=vocabulary,
            pad_token_id=self.pad_token_id,
            batch_size=self.batch_size,
            share_prompts=self.share_prompts,
            autocast=self.autocast,
        )


def make_cache(
    folder: Path,
    manifest: Manifest,
    rollouts: Dataset,
    pairs: list[Pair],
    scoring: Scoring,
    report: Callable[[str], None] = print,
) -> Manifest:
    """Scores all completions that no finished shard holds.

    Args:
        folder (`Path`): Where the cache is or will be.
        manifest (`Manifest`): What it is to hold; `complete` and the counts are filled in.
        rollouts (`Dataset`): The rows with their completions.
        pairs (`list`): The teacher's prompt ids and the completion ids, all completions of a row after one another.
        scoring (`Scoring`): How.
        report (`Callable`): Gets a line after each shard.

    Raises:
        `UserError`: If the folder holds another cache, another process works in it, or the teacher does not answer.
    """
    with _locked(folder):
        _check_same(folder, manifest)
        manifest.save(folder)
        _write_rollouts(folder, rollouts)
        if manifest.kind == "hidden":
            save_head(folder, scoring.scorer.head)
        starts = range(0, len(pairs), manifest.rows_per_shard)
        for index, start in enumerate(starts):
            chosen = pairs[start : start + manifest.rows_per_shard]
            path = folder / SHARD.format(index)
            again = path.exists()
            if not again:
                _write_shard(path, chosen, manifest, scoring)
            tokens, read = _sizes(path)
            manifest.tokens, manifest.teacher_tokens = manifest.tokens + tokens, manifest.teacher_tokens + read
            done = "was scored before" if again else "is scored"
            report(f"shard {index + 1}/{len(starts)} {done}: {manifest.tokens:,} tokens in all")
        manifest.complete = True
        manifest.save(folder)
    return manifest


@contextmanager
def _locked(folder: Path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"Another process makes the cache {folder}; wait for it, or choose another folder.") from error
    except FileExistsError as error:
        raise UserError(f"{folder} is no folder; choose another --output.") from error


def _check_same(folder: Path, manifest: Manifest) -> None:
    if not (folder / MANIFEST).exists():
        return
    differences = Manifest.load(folder).differences(manifest)
    if differences:
        raise UserError(
            f"{folder} holds a teacher cache that differs in {', '.join(differences)}; choose another folder, or "
            "remove that one."
        )


def _write_rollouts(folder: Path, rollouts: Dataset) -> None:
    if not (folder / ROLLOUTS).exists():
        partial = folder / f"{ROLLOUTS}.partial"
        rollouts.to_parquet(str(partial))
        partial.replace(folder / ROLLOUTS)


def _sizes(shard: Path) -> tuple[int, int]:
    with safe_open(shard, "pt") as opened:
        return int(opened.get_tensor("lengths").sum()), int(opened.get_tensor("teacher_tokens"))


def _write_shard(path: Path, pairs: list[Pair], manifest: Manifest, scoring: Scoring) -> None:
    fits = [manifest.max_length is None or len(p) + len(c) <= manifest.max_length for p, c in pairs]
    tensors = {
        "keys": torch.tensor([list(row_key(*pair)) for pair in pairs], dtype=torch.uint8),
        "lengths": torch.tensor([len(c) if fit else 0 for (_, c), fit in zip(pairs, fits, strict=True)]),
        "teacher_tokens": torch.tensor(0),
    }
    readable = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
    if readable:
        tensors |= _scores(readable, manifest, scoring)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def _scores(pairs: list[Pair], manifest: Manifest, scoring: Scoring) -> dict[str, Tensor]:
    """What a shard keeps of some completions' tokens, in their order."""
    reading = scoring.reading(pairs, manifest.vocabulary)
    scores = score([scoring.scorer], reading, _keeper(manifest, scoring.scorer))
    if scores.missing is not None and scores.missing.any():
        raise UserError(
            f"{scoring.scorer.name} did not answer for {int(scores.missing.sum())} of {len(pairs)} completions; see to "
            "it and give the same command again: finished shards are kept."
        )
    live = reading.completion_mask.bool()
    found = {"logps": scores.logps[0][live], "teacher_tokens": torch.tensor(scores.tokens)}
    if manifest.kind == "topk" and scores.support_ids is not None:
        found |= {"support_ids": scores.support_ids[live].int(), "support_logps": scores.support_logps[live]}
    elif manifest.kind == "topk":
        ids, logps = torch.cat(scores.states[0]).chunk(2, -1)
        found |= {"support_ids": ids.int(), "support_logps": logps}
    elif manifest.kind == "hidden":
        found["hidden"] = torch.cat(scores.states[0])
    return {name: tensor.cpu().contiguous() for name, tensor in found.items()}


def _keeper(manifest: Manifest, scorer: Scorer | Oracle) -> Callable[[Tensor], Tensor] | None:
    """What is kept of the hidden states of one forward."""
    if manifest.kind == "sampled" or isinstance(scorer, Oracle):
        return None
    if manifest.kind == "hidden":
        return lambda states: states.cpu()
    # Ids below 2^24 are exact in float32, so that both travel in one tensor.
    return lambda states: torch.cat(likeliest(states, scorer.head, manifest.support_size, manifest.vocabulary), -1)


@torch.no_grad()
def likeliest(hidden_NH: Tensor, head: Head, k: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens of each distribution and their log-probabilities, `[N, k]` on the host.

    Rows of the head beyond `vocabulary` are padding: they are cut and the rest is renormalised.
    """
    head = head.for_products()
    found = []
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for tile in hidden_NH.split(rows_per_tile(head)):
            logps = log_softmax_(head.to_logits_(head.project(tile))[:, :vocabulary])
            found.append(logps.topk(k, dim=-1))
    ids, logps = (torch.cat(parts).float().cpu() for parts in ([f.indices for f in found], [f.values for f in found]))
    return ids, logps


def with_completion_ids(rows: Dataset, tokenizer: Any) -> Dataset:
    """Rollouts with their completions as token ids, one list for each rollout of the row's prompt.

    A row has `completion_ids` (one list of ids, or several), or `completions` (texts), or `completion` (a text). Texts
    are tokenized and closed by the end of the turn, so that only ids give back rollouts that were cut off.

    Raises:
        `UserError`: If there are none, one is empty, or holds ids that the tokenizer lacks.
    """
    if "prompt" not in rows.column_names:
        raise UserError(f"The rollouts have no column 'prompt' (they have: {', '.join(rows.column_names)}); add it.")
    source = next((name for name in (COMPLETION_IDS, "completions", "completion") if name in rows.column_names), None)
    if source is None:
        raise UserError(
            f"The rollouts have no column {COMPLETION_IDS!r}, 'completions' or 'completion' (they have: "
            f"{', '.join(rows.column_names)}); add one."
        )
    size = len(tokenizer)

    def ids_of(value: Any) -> list[int]:
        return [*tokenizer(value, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    def convert(row: dict[str, Any]) -> dict[str, list[list[int]]]:
        value = row[source]
        if source == COMPLETION_IDS:
            completions = [value] if value and isinstance(value[0], int) else value
        else:
            completions = [ids_of(text) for text in ([value] if source == "completion" else value)]
        if not completions or not all(completions):
            raise UserError("A rollout is empty, and there is nothing to score in it; drop such rows.")
        if max(map(max, completions)) >= size or min(map(min, completions)) < 0:
            raise UserError(f"A rollout holds a token id outside the student's {size} tokens; it is another model's.")
        return {COMPLETION_IDS: completions}

    others = [name for name in ("completions", "completion") if name in rows.column_names]
    return rows.map(convert, remove_columns=[*others, *([COMPLETION_IDS] if source == COMPLETION_IDS else [])])


def pairs_of(
    rollouts: Dataset, tokenizer: Any, teacher_template: str | None, config: Any, objective: Objective
) -> list[Pair]:
    """What the teacher is to read and score, rendered as the trainer renders it.

    Args:
        rollouts (`Dataset`): Rows with `completion_ids`.
        tokenizer: The student's.
        teacher_template (`str`, *optional*): The chat template on the teacher's side, if the objective renders anew.
        config: The trainer's configuration.
        objective (`Objective`): Which says whether the teacher's prompts are rendered anew.
    """
    kwargs, template = config.chat_template_kwargs or {}, None
    if objective.context is not None:
        own = config.teacher_chat_template_kwargs
        kwargs, template = kwargs if own is None else own, teacher_template
    prompts = render_prompts(tokenizer, list(rollouts["prompt"]), template, kwargs)
    return [
        (prompt, list(completion))
        for prompt, completions in zip(prompts, rollouts[COMPLETION_IDS], strict=True)
        for completion in completions
    ]
