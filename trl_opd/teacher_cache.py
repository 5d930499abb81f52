"""A teacher's scores of a fixed set of rollouts, kept on disk: training then needs no teacher.

    folder/manifest.json                   what was scored by whom: hashes, temperature, kind
    folder/rollouts.parquet                the dataset's rows with their completions, to train on
    folder/scores-00000.safetensors ...    the scores of some hundred completions each, memory-mapped when read
    folder/head.safetensors                the teacher's LM head, where hidden states are kept

A completion's scores are found by a hash of what was scored, the teacher's prompt ids and the completion ids: a row
that is rendered or tokenized otherwise than when the cache was made is not found, and refused before training.

Training on them is off-policy: the setting of Lightning OPD (https://huggingface.co/papers/2604.13010), where the
rollouts are those of the student's start. No importance weight towards that start is applied, as there.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trl_opd.errors import UserError
from trl_opd.objectives.divergence import Divergence
from trl_opd.scoring import Answer, Oracle, Reading
from trl_opd.tiled import Head

MANIFEST, ROLLOUTS, HEAD = "manifest.json", "rollouts.parquet", "head.safetensors"
SHARD = "scores-{:05d}.safetensors"

#: Of the layout of a cache; another one is refused.
FORMAT = 1

#: What a cache holds for each token.
KINDS = ("sampled", "topk", "hidden")

#: Bytes of a row's hash.
KEY_BYTES = 16


@dataclass
class Manifest:
    """What a cache holds, and by what it is recognised.

    Attributes:
        teacher: The teacher's name as it was given; a server's address.
        teacher_sha256: Hash of its weights and configuration; of a served teacher the name alone is known.
        dtype: Precision of its weights, or "server".
        autocast: Whether it ran in mixed bfloat16 precision.
        tokenizer_sha256: Hash of the student's vocabulary and end of turn.
        rows_sha256: Hash of everything that was scored, in order.
        temperature: Of its distribution.
        kind: One of `KINDS`.
        support_size: K of kind "topk".
        vocabulary: Tokens that the distribution covers.
        rows_per_shard: Completions in a shard.
        completions: Completions in all.
        max_length: Longest input that the teacher takes; longer ones were not scored.
        scale, softcap: Of the head, for kind "hidden".
        tokens: Completion tokens, once complete.
        teacher_tokens: Tokens that the teacher read, prompts included, once complete.
        complete: Whether every completion has been scored.
        format: `FORMAT`.
    """

    teacher: str
    teacher_sha256: str
    dtype: str
    autocast: bool
    tokenizer_sha256: str
    rows_sha256: str
    temperature: float
    kind: str
    support_size: int | None
    vocabulary: int
    rows_per_shard: int
    completions: int
    max_length: int | None
    scale: float = 1.0
    softcap: float | None = None
    tokens: int = 0
    teacher_tokens: int = 0
    complete: bool = False
    format: int = FORMAT

    #: What differs between a cache that is being made and the same one when it is done.
    PROGRESS = ("tokens", "teacher_tokens", "complete")

    def save(self, folder: Path) -> None:
        """Writes it, at once or not at all."""
        partial = folder / f"{MANIFEST}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1))
        partial.replace(folder / MANIFEST)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads a cache's manifest.

        Raises:
            `UserError`: If there is none, or one of another format, or one that cannot be read.
        """
        try:
            values = json.loads((folder / MANIFEST).read_text())
        except FileNotFoundError as error:
            raise UserError(f"There is no teacher cache in {folder}; make one with trl-opd cache.") from error
        except json.JSONDecodeError as error:
            raise _damaged(folder, MANIFEST) from error
        if values.get("format") != FORMAT:
            raise UserError(f"{folder} is a teacher cache of format {values.get('format')}; make it again.")
        return cls(**values)

    def differences(self, other: "Manifest") -> list[str]:
        """Names of the fields in which two caches differ, progress aside."""
        mine, theirs = asdict(self), asdict(other)
        return [name for name in mine if name not in self.PROGRESS and mine[name] != theirs[name]]


def _damaged(folder: Path, name: str) -> UserError:
    return UserError(f"The teacher cache {folder} is damaged: {name} is missing or cut short; make the cache again.")


def tokenizer_sha256(tokenizer) -> str:
    """Hash of what decides the meaning of token ids: the vocabulary and the end of a turn."""
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def row_key(prompt_ids: list[int], completion_ids: list[int]) -> bytes:
    """Hash of what the teacher reads and scores."""
    content = array("q", [len(prompt_ids), *prompt_ids, *completion_ids]).tobytes()
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def rows_sha256(pairs: Iterable[tuple[list[int], list[int]]]) -> str:
    """Hash of everything that is scored, in order."""
    return hashlib.sha256(b"".join(row_key(*pair) for pair in pairs)).hexdigest()


def kind_for(divergence: Divergence) -> str:
    """What a cache must hold for a divergence, the least of it."""
    if divergence.sampled:
        return "sampled"
    return "topk" if divergence.estimator == "topk" and divergence.support_owner == "teacher" else "hidden"


class CachedTeacher(Oracle):
    """The teacher of a complete cache.

    Args:
        folder (`Path`): The cache.
        divergence (`Divergence`): What the scores are for.
        temperature (`float`): Of the training.

    Raises:
        `UserError`: If the cache is unfinished, of another temperature, or holds too little for the divergence.
    """

    def __init__(self, folder: Path, divergence: Divergence, temperature: float):
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self._check(divergence, temperature)
        # The least that serves: hidden states are not read where the sampled tokens or the support are enough.
        self.kind = "sampled" if divergence.sampled else self.manifest.kind
        self.support_size = divergence.support_size
        self.max_length = self.manifest.max_length
        self.temperature = temperature
        self.name = f"The teacher cache {folder}"
        self._device = torch.device("cpu")

    def _check(self, divergence: Divergence, temperature: float) -> None:
        found = self.manifest
        if not found.complete:
            raise UserError(f"The teacher cache {self.folder} is unfinished; run its trl-opd cache command again.")
        if found.temperature != temperature:
            raise UserError(
                f"The teacher cache {self.folder} was made at temperature {found.temperature}, and the training has "
                f"{temperature}; set that temperature, or make the cache again."
            )
        wanted = kind_for(divergence)
        too_small = found.kind == wanted == "topk" and found.support_size < divergence.support_size
        if KINDS.index(found.kind) < KINDS.index(wanted) or too_small:
            held = f"{found.support_size} likeliest tokens" if found.kind == "topk" else f"kind {found.kind!r}"
            raise UserError(
                f"The teacher cache {self.folder} holds {held}, which does not suffice for estimator: "
                f"{divergence.estimator}; make it again with this recipe, or change the estimator."
            )

    def check_teacher(self, name: str, sha256: str | None) -> None:
        """Refuses a cache that another teacher made.

        Args:
            name (`str`): The teacher that the training names.
            sha256 (`str`, *optional*): Hash of its files; None where they are not here and the names must do.

        Raises:
            `UserError`: If the hashes differ, or the names.
        """
        if name != self.manifest.teacher if sha256 is None else sha256 != self.manifest.teacher_sha256:
            raise UserError(
                f"The teacher cache {self.folder} was made by {self.manifest.teacher}, which is not {name}; make it "
                "again, or leave teacher_model_name_or_path out."
            )

    def check_tokenizer(self, tokenizer) -> None:
        """Refuses a cache that was made for another tokenizer.

        Raises:
            `UserError`: If the hashes differ.
        """
        if tokenizer_sha256(tokenizer) != self.manifest.tokenizer_sha256:
            raise UserError(
                f"The teacher cache {self.folder} was made for another tokenizer than the student's; make it again for "
                "this student."
            )

    def check_rows(self, pairs: Iterable[tuple[list[int], list[int]]]) -> None:
        """Refuses rows that were not scored, or were rendered otherwise.

        Args:
            pairs (`Iterable[tuple[list[int], list[int]]]`): The teacher's prompt ids and the completion ids.

        Raises:
            `UserError`: With how many there are.
        """
        missing = number = 0
        for prompt_ids, completion_ids in pairs:
            if self.max_length is None or len(prompt_ids) + len(completion_ids) <= self.max_length:
                number += 1
                missing += row_key(prompt_ids, completion_ids) not in self._places
        if missing:
            raise UserError(
                f"The teacher cache {self.folder} lacks {missing} of the {number} completions to train on: they are "
                "other rows, or their prompts are rendered otherwise; train on its own rollouts with the chat template "
                "that it was made with, or make it again."
            )

    @cached_property
    def _shards(self) -> list:
        number = -(-self.manifest.completions // self.manifest.rows_per_shard)
        return [self._opened(SHARD.format(index)) for index in range(number)]

    def _opened(self, name: str) -> Any:
        try:
            return safe_open(self.folder / name, "pt")
        except (FileNotFoundError, SafetensorError) as error:
            raise _damaged(self.folder, name) from error

    @cached_property
    def _places(self) -> dict[bytes, tuple[int, int, int]]:
        """Hash of a row -> its shard, and the first and the last of its tokens there."""
        places = {}
        for index, shard in enumerate(self._shards):
            keys = shard.get_tensor("keys").numpy()
            ends = shard.get_tensor("lengths").cumsum(0).tolist()
            for key, start, end in zip(keys, [0, *ends], ends, strict=False):
                if end > start:
                    places[key.tobytes()] = (index, start, end)
        return places

    @cached_property
    def head(self) -> Head | None:
        if self.kind != "hidden":
            return None
        opened = self._opened(HEAD)
        tensors = {name: opened.get_tensor(name).to(self._device) for name in opened.keys()}  # noqa: SIM118
        return Head(
            tensors["weight"], tensors.get("bias"), self.temperature, self.manifest.scale, self.manifest.softcap
        )

    def place(self, accelerator: Accelerator) -> "CachedTeacher":
        self._device = accelerator.device
        return self

    def answer(self, reading: Reading) -> Answer:
        shape, device = reading.completion_mask.shape, reading.completion_mask.device
        found = Answer(
            logps=torch.zeros(shape, device=device), missing=torch.zeros(shape[0], dtype=torch.bool, device=device)
        )
        if self.kind == "hidden":
            found.states = [None] * shape[0]
        elif self.kind == "topk":
            found.support_ids = torch.zeros(*shape, self.support_size, dtype=torch.int32, device=device)
            found.support_logps = torch.zeros(*shape, self.support_size, device=device)
        for row in reading.rows:
            live = reading.completion_mask[row].bool()
            place = self._place(reading.prompts[row], reading.completion_ids[row][live].tolist())
            found.logps[row, live] = self._tokens("logps", place).to(device)
            if self.kind == "hidden":
                found.states[row] = self._tokens("hidden", place)
            elif self.kind == "topk":
                found.support_ids[row, live] = self._tokens("support_ids", place, self.support_size).to(device)
                found.support_logps[row, live] = self._tokens("support_logps", place, self.support_size).to(device)
        return found

    def _place(self, prompt_ids: list[int], completion_ids: list[int]) -> tuple[int, int, int]:
        key = row_key(prompt_ids, completion_ids)
        if key not in self._places:
            raise UserError(
                f"The teacher cache {self.folder} lacks a completion that was drawn; train on its own rollouts alone."
            )
        return self._places[key]

    def _tokens(self, name: str, place: tuple[int, int, int], columns: int | None = None) -> Tensor:
        index, start, end = place
        stored = self._shards[index].get_slice(name)
        return stored[start:end] if columns is None else stored[start:end, :columns]


def save_head(folder: Path, head: Head) -> None:
    """Writes the teacher's head, which turns its hidden states into log-probabilities."""
    tensors = {"weight": head.weight} if head.bias is None else {"weight": head.weight, "bias": head.bias}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / HEAD)


def load_rollouts(folder: str | Path):
    """The rows of a cache with their completions, as a `datasets.Dataset`.

    Raises:
        `UserError`: If there is no cache, or its rows are missing.
    """
    from datasets import load_dataset

    folder = Path(folder)
    Manifest.load(folder)
    if not (folder / ROLLOUTS).exists():
        raise _damaged(folder, ROLLOUTS)
    return load_dataset("parquet", data_files=str(folder / ROLLOUTS), split="train")
