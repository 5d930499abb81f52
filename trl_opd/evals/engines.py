"""What generates: the records that travel to and from an engine, and the protocol that every engine keeps."""

import hashlib
import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from trl_opd.errors import UserError

DTYPES = ("float32", "bfloat16")

Key = tuple[str, int]
"""A generation's identity in a run: the problem's id and which of its `n` samples it is."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Decoding settings; temperature 0 is greedy."""

    temperature: float
    top_p: float
    max_new_tokens: int

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):  # 1 and 1.0 are one setting and have one hash
            object.__setattr__(self, name, float(getattr(self, name)))
        if not self.temperature >= 0:
            raise UserError(f"temperature must be 0 (greedy) or more, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")


@dataclass(frozen=True)
class Request:
    """One completion to draw.

    Attributes:
        problem_id (`str`): The problem.
        index (`int`): Which of its samples, from 0.
        messages (`list[dict[str, str]]`): The conversation so far.
        seed (`int`): Seed of this completion alone.
    """

    problem_id: str
    index: int
    messages: list[dict[str, str]]
    seed: int

    @property
    def key(self) -> Key:
        """The identity in the run."""
        return self.problem_id, self.index


@dataclass(frozen=True)
class Generation:
    """One completion.

    Attributes:
        problem_id (`str`): The problem.
        index (`int`): Which of its samples, from 0.
        prompt (`str`): The text that the model read.
        completion (`str`): The text that it wrote, without special tokens.
        tokens (`int`): Tokens drawn, the stop token included.
        finish_reason (`str`): "stop", or "length" where the limit cut the completion.
    """

    problem_id: str
    index: int
    prompt: str
    completion: str
    tokens: int
    finish_reason: str

    @property
    def key(self) -> Key:
        """The identity in the run."""
        return self.problem_id, self.index


class Engine(Protocol):
    """Draws completions. What it draws for a request depends on neither the other requests nor on `done`."""

    def identity(self) -> dict[str, Any]:
        """The settings that decide the completions, with hashes of the model: a resumed run must have the same."""

    def details(self) -> dict[str, Any]:
        """The settings that may change between two sessions of one run: batch size, device."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: Set[Key] = frozenset()
    ) -> Iterator[Generation]:
        """The completions of those requests that are not done, in an order that `done` does not change.

        The done requests are passed too, so that an engine whose numbers depend on the batch can keep its batches.
        """


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is loaded and run.

    Attributes:
        adapter (`str`, *optional*): Folder of a PEFT adapter.
        dtype (`str`, *optional*): "float32" or "bfloat16"; by default float32 on a CPU and bfloat16 on a GPU.
        batch_size (`int`): Completions drawn at a time.
        chat_template_kwargs (`dict`): Variables for the chat template, such as `enable_thinking`.
    """

    adapter: str | None = None
    dtype: str | None = None
    batch_size: int = 16
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r} is unknown: choose one of {', '.join(DTYPES)}.")
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {self.batch_size}.")


def request_seed(run_seed: int, problem_id: str, index: int) -> int:
    """A stable 63-bit seed for one completion, the same on every machine and in every batch."""
    digest = hashlib.sha256(json.dumps([run_seed, problem_id, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
