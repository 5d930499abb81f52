"""The engine that runs vLLM on this machine: one engine per GPU, each in a process of its own.

The requests are handed out in portions to whichever engine has room, and every completion comes back when it is
finished. Sampling is seeded per request. Whether the same seed draws the same completion beside other requests is a
question of rounding: in float32 on a CPU it did in every trial, in bfloat16 it does where vLLM runs with
VLLM_BATCH_INVARIANT=1.
"""

import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence, Set
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from trl_opd.errors import UserError
from trl_opd.evals.engines import BATCH_SIZES, EngineOptions, Generation, Key, Request, Sampling, in_batches
from trl_opd.evals.local_model import LocalModel, Prompt

#: The ranks that vLLM makes room for.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: Tokens of a block of vLLM's key-value cache on a CPU.
CPU_BLOCK = 128

#: Unless the environment says otherwise: no chatter in the log, and nothing reported to vLLM's makers.
QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
#: The engine runs in the process that we start, not in one more.
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

Message = dict[str, Any]


class VLLMEngine:
    """Draws completions with vLLM, offline.

    The engines are started at the first batch that has something to draw, and again where a later benchmark needs
    longer sequences.

    Args:
        model (`str`): A folder, `testbed/base`, `testbed/teacher` or a model id on the Hub.
        options (`EngineOptions`, *optional*): Adapter (by vLLM's LoRA; merged on a CPU), precision, completions at a
            time, variables of the chat template, GPUs.

    Raises:
        UserError: vLLM is not installed, the model or the adapter does not exist, the tokenizer has no chat template,
            or there are fewer GPUs than asked for.
    """

    def __init__(self, model: str, options: EngineOptions | None = None) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise UserError(
                "vLLM is not installed here: pip install 'trl-opd[vllm]' in an environment of its own (docs/vllm.md), "
                "or use --engine transformers."
            )
        self.options = options or EngineOptions()
        self.local = LocalModel(model, self.options)
        self.batch_size = (
            self.options.batch_size or BATCH_SIZES["vllm on a CPU" if self.local.device == "cpu" else "vllm"]
        )
        self.shards = _shards(self.options, self.local.device)
        self._length = 0
        self._workers: list[_Worker] = []
        self._answers: queue.Queue[tuple[_Worker, Message]] = queue.Queue()

    def identity(self) -> dict[str, Any]:
        """The settings that decide the completions, with hashes of the model."""
        return {
            "engine": "vllm",
            **self.local.identity(),
            "tensor_parallel": self.options.tensor_parallel,
            "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1",
        }

    def details(self) -> dict[str, Any]:
        """The settings that may change between two sessions of one run."""
        return {
            **self.local.details(),
            "vllm": version(packages_distributions()["vllm"][0]),
            "batch_size": self.batch_size,
            "data_parallel": len(self.shards),
            "gpu_memory_utilization": self.options.gpu_memory_utilization,
        }

    def batches(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Request]]:
        """Portions of a quarter of what an engine draws at a time, each request with its prompt rendered.

        Raises:
            UserError: A prompt and `max_new_tokens` do not fit into the model's context.
        """
        prompts = self.local.prompts(requests, sampling)
        self._length = max(self._length, len(prompts[-1].ids) + sampling.max_new_tokens)
        return in_batches(prompts, max(1, self.batch_size // 4))

    def generate(
        self, batches: Iterable[list[Request]], sampling: Sampling, done: Set[Key] = frozenset()
    ) -> Iterator[Generation]:
        """The completions that are not done, each as soon as it is there.

        Args:
            batches (`Iterable[list[Request]]`): Batches as `batches` made them.

        Raises:
            UserError: vLLM cannot run the model, or one of its processes died.
        """
        portions = iter(batches)
        settings = self._sampling(sampling)
        running: dict[str, Prompt] = {}
        try:
            while True:
                self._hand_out(portions, settings, running, done)
                if not running:
                    return
                worker, message = self._answers.get()
                if "error" in message:
                    raise worker.failure(message)
                worker.load -= 1
                yield self.local.generation(running.pop(message["id"]), message["tokens"])
        finally:
            if running:  # an error, or the caller has stopped reading: what the engines still draw is for nobody
                self.close()

    def close(self) -> None:
        """End the engines; they start again when they are needed."""
        for worker in self._workers:
            worker.close()
        self._workers = []
        self._answers = queue.Queue()

    def _hand_out(
        self, portions: Iterator[list[Prompt]], settings: Message, running: dict[str, Prompt], done: Set[Key]
    ) -> None:
        """Give portions to the engine with the least to do, as long as one has room."""
        while not self._workers or min(worker.load for worker in self._workers) < self.batch_size:
            portion = next(portions, None)
            if portion is None:
                return
            missing = [prompt for prompt in portion if prompt.key not in done]
            if not missing:
                continue
            self._start()
            worker = min(self._workers, key=lambda worker: worker.load)
            for prompt in missing:
                name = json.dumps(prompt.key)
                running[name] = prompt
                worker.send({"id": name, "ids": prompt.ids, "sampling": settings | {"seed": prompt.seed}})

    def _start(self) -> None:
        """Start the engines, if there are none yet or they are too short."""
        if self._workers and self._workers[0].length >= self._length:
            return
        self.close()
        for shard in self.shards:
            worker = _Worker(self._settings(), shard, self._answers)
            weakref.finalize(self, worker.close)
            self._workers.append(worker)
        for _ in self._workers:
            worker, message = self._answers.get()
            if "error" in message:
                error = worker.failure(message)
                self.close()
                raise error

    def _settings(self) -> Message:
        """The arguments of `vllm.LLM`."""
        local = self.local
        settings: Message = {
            "model": str(local.folder),
            "dtype": local.dtype,
            "adapter": None if local.adapter is None else str(local.adapter),
            "max_model_len": self._length,
            "max_num_seqs": self.batch_size,
            "tensor_parallel_size": self.options.tensor_parallel,
            # What the model's author recommends for sampling would otherwise slip in unrecorded.
            "generation_config": "vllm",
            "disable_log_stats": True,
        }
        if self.options.gpu_memory_utilization is not None:
            settings["gpu_memory_utilization"] = self.options.gpu_memory_utilization
        if local.adapter is not None:
            room = _lora_room(local.adapter)
            # vLLM's LoRA on a CPU draws several times slower than the merged weights.
            settings |= {"merge": True} if local.device == "cpu" else {"enable_lora": True, "max_lora_rank": room}
        if local.device == "cpu":
            # Compiling takes longer than it saves, and vLLM would take most of the machine's memory.
            settings |= {"enforce_eager": True, "kv_cache_memory_bytes": self._cache_bytes()}
        return settings

    def _cache_bytes(self) -> int:
        """A key-value cache for as many of the longest sequences as are drawn at a time."""
        config = self.local.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token = 2 * config.num_hidden_layers * heads * width * torch.finfo(getattr(torch, self.local.dtype)).bits // 8
        blocks = -(-self._length // CPU_BLOCK) + 1
        return token * CPU_BLOCK * blocks * self.batch_size

    def _sampling(self, sampling: Sampling) -> Message:
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": self.local.stop_ids,
        }


class _Worker:
    """A process with one engine, and a thread that reads what it answers into a queue."""

    def __init__(self, settings: Message, environment: dict[str, str], answers: "queue.Queue") -> None:
        self.length: int = settings["max_model_len"]
        self.load = 0
        self._log = Path(tempfile.mkstemp(prefix="trl-opd-vllm-", suffix=".log")[1])
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trl_opd.evals.vllm_worker", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=QUIET | os.environ | environment | IN_PROCESS,
                start_new_session=True,  # an interrupt is for the parent, which then ends this process
            )
        threading.Thread(target=self._read, args=(answers,), daemon=True).start()

    def send(self, request: Message) -> None:
        """Hand over a request; the process reads it at once."""
        self.load += 1
        with contextlib.suppress(BrokenPipeError):  # its death is in the queue of answers
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.unlink(missing_ok=True)

    def _read(self, answers: "queue.Queue") -> None:
        for line in self._process.stdout:
            answers.put((self, json.loads(line)))
        status = self._process.wait()
        answers.put((self, {"error": f"its process ended with status {status}"}))

    def failure(self, message: Message) -> UserError:
        """What an error of the process says, with its log, which is kept."""
        kept = self._log.with_suffix(".failed.log")
        self._log.rename(kept)
        return UserError(f"vLLM failed ({message['error'].splitlines()[0][:300]}): see its log, {kept}.")


def _shards(options: EngineOptions, device: str) -> list[dict[str, str]]:
    """The environment of each engine: which GPUs, or how many threads."""
    if device == "cpu":
        if options.gpu_memory_utilization is not None:
            raise UserError("gpu_memory_utilization acts on GPUs, and there is none here: drop it.")
        if options.tensor_parallel > 1:
            raise UserError("tensor_parallel spreads the model over GPUs, and there is none here: drop it.")
        count = options.data_parallel or 1
        threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // count))}
        return [threads] * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    size = options.tensor_parallel
    count = options.data_parallel or len(gpus) // size
    if not 0 < count * size <= len(gpus):
        raise UserError(
            f"{max(count, 1)} vLLM engines of {size} GPUs each need more than the {len(gpus)} there are: lower "
            "data_parallel or tensor_parallel."
        )
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[index * size : (index + 1) * size])} for index in range(count)]


def _lora_room(adapter: Path) -> int:
    """The smallest rank that vLLM can make room for and that holds the adapter's.

    Raises:
        UserError: The adapter is no LoRA, or its rank is beyond all of them.
    """
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = [config.get("r") or 0, *config.get("rank_pattern", {}).values()]
    room = next((rank for rank in LORA_RANKS if rank >= max(ranks)), None)
    if config.get("peft_type") != "LORA" or room is None:
        raise UserError(
            f"vLLM cannot apply the adapter {adapter} ({config.get('peft_type')}, rank {max(ranks)}): merge it into "
            "the model, or use --engine transformers."
        )
    return room
