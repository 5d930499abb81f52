"""What generates: the records that travel to and from an engine, and the protocol that every engine keeps."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

from trl_opd.errors import UserError

DTYPES = ("float32", "bfloat16")

RequestT = TypeVar("RequestT", bound="Request")

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
        prompt (`str` or `None`): The text that the model read, where it is known.
        completion (`str`): The text that it wrote, without special tokens.
        tokens (`int` or `None`): Tokens drawn, the stop token included, where they were counted.
        finish_reason (`str` or `None`): "stop", or "length" where the limit cut the completion, if that is known.
    """

    problem_id: str
    index: int
    prompt: str | None
    completion: str
    tokens: int | None
    finish_reason: str | None

    @property
    def key(self) -> Key:
        """The identity in the run."""
        return self.problem_id, self.index


class Engine(Protocol):
    """Draws completions. What it draws for a request depends on neither the other batches nor on `done`."""

    def identity(self) -> dict[str, Any]:
        """The settings that decide the completions, with hashes of the model: a resumed run must have the same."""

    def details(self) -> dict[str, Any]:
        """The settings that may change between two sessions of one run: batch size, device."""

    def batches(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Request]]:
        """The requests in portions, in the order to draw them: the same portions for the same requests, always.

        One process draws the whole of a portion. An engine whose numbers depend on what shares a batch returns its
        batches; any other returns `in_batches(requests, size)` with a size that is worth a lock.

        Raises:
            UserError: A prompt and the longest completion do not fit into the model's context.
        """

    def generate(
        self, batches: Iterable[list[Request]], sampling: Sampling, done: Set[Key] = frozenset()
    ) -> Iterator[Generation]:
        """The completions of those requests that are not done, each as soon as it is there, in any order.

        A batch is taken from `batches` only when there is room to draw it: those that are left may be drawn by another
        process, and taking one may wait for the disk. `done` is read when a batch is taken. Its done requests are
        passed too, so that an engine whose numbers depend on the batch can draw it as it was.
        """


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is run. Each engine has options of its own; `make_engine` refuses one that its engine would ignore.

    Attributes:
        adapter (`str`, *optional*): Folder of a PEFT adapter.
        dtype (`str`, *optional*): "float32" or "bfloat16"; by default float32 on a CPU and bfloat16 on a GPU.
        batch_size (`int`, *optional*): Completions drawn at a time, by each vLLM engine or by the server; by default
            what the engine is good at.
        chat_template_kwargs (`dict`): Variables for the chat template, such as `enable_thinking`.
        data_parallel (`int`, *optional*): vLLM engines, each with GPUs of its own; by default as many as there is
            room for.
        tensor_parallel (`int`): GPUs over which each vLLM engine spreads the model.
        gpu_memory_utilization (`float`, *optional*): Share of a GPU's memory that a vLLM engine takes; by default
            vLLM's own.
        base_url (`str`, *optional*): Address of an OpenAI-compatible server, such as http://localhost:8000/v1.
        api_key_env (`str`, *optional*): Environment variable that holds the server's API key.
        request_timeout (`float`): Seconds after which a completion that the server has not sent is asked for again.
        backend (`str`): lm-eval's name of its backend.
        backend_args (`dict`): More arguments of that backend, as in lm-eval's `--model_args`.
    """

    adapter: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    data_parallel: int | None = None
    tensor_parallel: int = 1
    gpu_memory_utilization: float | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    request_timeout: float = 1800.0
    backend: str = "hf"
    backend_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r} is unknown: choose one of {', '.join(DTYPES)}.")
        for name in ("batch_size", "data_parallel", "tensor_parallel"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise UserError(f"gpu_memory_utilization must be above 0 and at most 1, not {self.gpu_memory_utilization}.")
        if not self.request_timeout > 0:
            raise UserError(f"request_timeout must be above 0 seconds, not {self.request_timeout}.")


#: Engine -> the options that act on it.
ENGINES = {
    "transformers": ("adapter", "dtype", "batch_size", "chat_template_kwargs"),
    "vllm": (
        "adapter",
        "dtype",
        "batch_size",
        "chat_template_kwargs",
        "data_parallel",
        "tensor_parallel",
        "gpu_memory_utilization",
    ),
    "server": ("batch_size", "chat_template_kwargs", "base_url", "api_key_env", "request_timeout"),
    "lm-eval": ("adapter", "dtype", "batch_size", "chat_template_kwargs", "backend", "backend_args"),
}


#: Completions drawn at a time where nothing else is asked for.
BATCH_SIZES = {"transformers": 16, "vllm": 256, "vllm on a CPU": 32, "server": 32, "lm-eval": 16}


def make_engine(name: str, model: str, options: EngineOptions | None = None) -> Engine:
    """An engine by its name; no weights are loaded yet.

    Args:
        name (`str`): One of `ENGINES`.
        model (`str`): A folder, a model id on the Hub or a testbed model; for `server`, the name it serves;
            for `lm-eval`, what its backend takes as `pretrained`.
        options (`EngineOptions`, *optional*): How to run the model.

    Raises:
        UserError: There is no such engine, an option would be ignored, the model does not exist, vLLM is not
            installed, or the server does not answer.
    """
    options = options or EngineOptions()
    if name not in ENGINES:
        raise UserError(f"There is no engine {name!r}: choose one of {', '.join(ENGINES)}.")
    defaults = EngineOptions()
    for option in fields(EngineOptions):
        value = getattr(options, option.name)
        if value != getattr(defaults, option.name) and option.name not in ENGINES[name]:
            raise UserError(f"{option.name}={value!r} does not act on the {name} engine and would be ignored: drop it.")
    return _engine_class(name)(model, options)


def _engine_class(name: str) -> Callable[[str, EngineOptions], Engine]:
    """What each engine needs is slow to import or not installed everywhere."""
    if name == "server":
        from trl_opd.evals.server_engine import ServerEngine

        return ServerEngine
    if name == "lm-eval":
        from trl_opd.evals.lm_eval_engine import LmEvalEngine

        return LmEvalEngine
    if name == "vllm":
        from trl_opd.evals.vllm_engine import VLLMEngine

        return VLLMEngine
    from trl_opd.evals.transformers_engine import TransformersEngine

    return TransformersEngine


def request_seed(run_seed: int, problem_id: str, index: int) -> int:
    """A stable 63-bit seed for one completion, the same on every machine and in every batch."""
    digest = hashlib.sha256(json.dumps([run_seed, problem_id, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def in_batches(requests: Sequence[RequestT], size: int) -> list[list[RequestT]]:
    """The requests in portions of `size`; the last may be shorter."""
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]
