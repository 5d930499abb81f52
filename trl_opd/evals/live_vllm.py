"""An engine around a vLLM engine that runs already, such as the one that draws a trainer's rollouts."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from trl_opd.errors import UserError
from trl_opd.evals.engines import EngineOptions, Request, Sampling, in_batches
from trl_opd.evals.live_model import LiveModel
from trl_opd.evals.vllm_engine import Message, VLLMEngine
from trl_opd.evals.vllm_worker import add, step


class LiveVLLMEngine(VLLMEngine):
    """Draws with vLLM in this process, from the weights that it holds now. Nobody else may use it meanwhile.

    Requests, seeds and stop tokens are those of `VLLMEngine`, of which it is one without processes of its own.

    Args:
        llm (`vllm.LLM`): The engine, awake.
        model (`PreTrainedModel`): The model whose weights it holds, for their fingerprint and the stop tokens.
        tokenizer (`PreTrainedTokenizer`): The model's tokenizer, with a chat template.
        name (`str`): What the run's manifest calls the model, such as the training run and the step.
        options (`EngineOptions`, *optional*): Completions at a time and variables of the chat template.
    """

    def __init__(self, llm: Any, model: Any, tokenizer: Any, name: str, options: EngineOptions | None = None) -> None:
        engine = llm.llm_engine
        self._config = engine.vllm_config
        self.options = options or EngineOptions()
        self.local = LiveModel(model, tokenizer, name, self.options)
        self.local.dtype = str(engine.model_config.dtype).removeprefix("torch.")
        self.batch_size = self.options.batch_size or self._config.scheduler_config.max_num_seqs
        self.shards = [{}]
        self._length = engine.model_config.max_model_len
        worker = _InThisProcess(engine, self._length)
        self._workers = [worker]
        self._answers = worker

    def details(self) -> dict[str, Any]:
        """The settings that may change between two sessions of one run."""
        return {**super().details(), "gpu_memory_utilization": self._config.cache_config.gpu_memory_utilization}

    def batches(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Request]]:
        """Portions of a quarter of what the engine draws at a time, each request with its prompt rendered.

        Raises:
            UserError: A prompt and `max_new_tokens` do not fit into the engine or into the model's context.
        """
        prompts = self.local.prompts(requests, sampling)
        longest = prompts[-1]
        if len(longest.ids) + sampling.max_new_tokens > self._length:
            raise UserError(
                f"max_new_tokens={sampling.max_new_tokens} and the {len(longest.ids)} tokens of the prompt of "
                f"{longest.problem_id} exceed the {self._length} tokens that the running vLLM engine has room for: "
                "lower max_new_tokens (eval_suite_max_new_tokens), or start the engine with more "
                "(vllm_max_model_length)."
            )
        return in_batches(prompts, max(1, self.batch_size // 4))

    def close(self) -> None:
        """Take back what is not drawn yet; the engine goes on running."""
        self._answers.close()


class _InThisProcess:
    """vLLM's engine in the place of a worker and of the queue of its answers."""

    def __init__(self, engine: Any, length: int) -> None:
        self.length = length
        self.load = 0
        self._engine = engine
        self._open: set[str] = set()
        self._finished: deque[Message] = deque()

    def send(self, request: Message) -> None:
        """Hand over a request."""
        self.load += 1
        self._open.add(request["id"])
        add(self._engine, request)

    def get(self) -> tuple["_InThisProcess", Message]:
        """The next completion, drawn now."""
        while not self._finished:
            self._finished.extend(step(self._engine))
        answer = self._finished.popleft()
        self._open.remove(answer["id"])
        return self, answer

    def close(self) -> None:
        """Forget all requests."""
        self._engine.abort_request(list(self._open))
        self._open.clear()
        self._finished.clear()
        self.load = 0
