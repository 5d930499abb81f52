"""The engine that draws through a backend of lm-evaluation-harness (hf, vllm, sglang, an API, ...).

A backend takes neither a seed for each request nor says why a completion ended. The engine therefore draws fixed
batches and seeds each batch as a whole, so that a resumed run draws what the undisturbed one would where the backend
follows torch's random state, and it calls a completion cut when it is as long as the limit.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import cached_property
from importlib.metadata import version
from typing import Any

from trl_opd.errors import UserError
from trl_opd.evals.engines import BATCH_SIZES, EngineOptions, Generation, Key, Request, Sampling, in_batches
from trl_opd.evals.models import resolve_model


class LmEvalEngine:
    """Draws completions through lm-eval.

    Args:
        model (`str`): A folder, `testbed/base`, `testbed/teacher` or a model id on the Hub with the backend `hf`; else
            what the backend takes as `pretrained`.
        options (`EngineOptions`, *optional*): The backend and its arguments, adapter, precision, batch size.

    Raises:
        UserError: lm-eval is not installed or has no such backend, or there is no such model.
    """

    def __init__(self, model: str, options: EngineOptions | None = None) -> None:
        self.name = model
        self.options = options or EngineOptions()
        self.batch_size = self.options.batch_size or BATCH_SIZES["lm-eval"]
        self._class = _backend(self.options.backend)
        hf = self.options.backend == EngineOptions.backend
        self._pretrained = str(resolve_model(model)) if hf else model

    def identity(self) -> dict[str, Any]:
        """The settings that decide the completions. The backend loads the model: it is known by its name alone."""
        return {
            "engine": f"lm-eval {self.options.backend}",
            "model": self.name,
            "adapter": self.options.adapter,
            "dtype": self.options.dtype,
            "chat_template_kwargs": self.options.chat_template_kwargs,
            "backend_args": self.options.backend_args,
            "batch_size": self.batch_size,  # the batch is what is seeded
        }

    def details(self) -> dict[str, Any]:
        """The settings that may change between two sessions of one run."""
        return {"model": self.name, "lm_eval": version("lm-eval")}

    def batches(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Request]]:
        """The requests in their order, in fixed batches."""
        return in_batches(requests, self.batch_size)

    def generate(
        self, batches: Iterable[list[Request]], sampling: Sampling, done: Set[Key] = frozenset()
    ) -> Iterator[Generation]:
        """The completions that are not done.

        A batch of which some rows are done is drawn again in full: its numbers are those of an undisturbed run.
        """
        for batch in batches:
            if all(request.key in done for request in batch):
                continue
            for generation in self._draw(batch, sampling):
                if generation.key not in done:
                    yield generation

    @cached_property
    def backend_model(self) -> Any:
        """lm-eval's model, loaded at first use."""
        import torch

        options = {"dtype": self.options.dtype, "peft": self.options.adapter, **self.options.chat_template_kwargs}
        arguments = {"pretrained": self._pretrained, **options, **self.options.backend_args}
        # Without a word lm-eval puts the model on a GPU, also where there is none.
        device = None if torch.cuda.is_available() else "cpu"
        try:
            return self._class.create_from_arg_obj(
                {name: value for name, value in arguments.items() if value is not None},
                {"batch_size": self.batch_size, "device": device},
            )
        except TypeError as error:
            raise UserError(
                f"lm-eval's backend {self.options.backend} does not take these arguments: {error}."
            ) from error

    def _draw(self, batch: Sequence[Request], sampling: Sampling) -> list[Generation]:
        import torch
        from lm_eval.api.instance import Instance

        prompts = [self.backend_model.apply_chat_template(request.messages) for request in batch]
        instances = [
            Instance("generate_until", {}, (prompt, self._decoding(sampling)), idx)
            for idx, prompt in enumerate(prompts)
        ]
        torch.manual_seed(_batch_seed(batch))
        texts = self.backend_model.generate_until(instances, disable_tqdm=True)
        return [
            self._generation(request, prompt, text, sampling)
            for request, prompt, text in zip(batch, prompts, texts, strict=True)
        ]

    def count_tokens(self, text: str) -> int:
        """Length of a completion in tokens, counted from its text."""
        return len(self.backend_model.tok_encode(text, add_special_tokens=False))

    def _decoding(self, sampling: Sampling) -> dict[str, Any]:
        decoding = {"until": [], "max_gen_toks": sampling.max_new_tokens, "do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            decoding |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        return decoding

    def _generation(self, request: Request, prompt: str, text: str, sampling: Sampling) -> Generation:
        tokens = self.count_tokens(text)
        return Generation(
            problem_id=request.problem_id,
            index=request.index,
            prompt=prompt,
            completion=text,
            tokens=tokens,
            finish_reason="length" if tokens >= sampling.max_new_tokens else "stop",
        )


def _backend(name: str) -> type:
    """The class of a backend."""
    try:
        from lm_eval.api.registry import get_model
    except ImportError as error:
        raise UserError("lm-eval is not installed: run `pip install 'trl-opd[lm-eval]'`.") from error
    try:
        return get_model(name)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"lm-eval has no backend {name!r}: `lm_eval run --help` and its documentation list them."
        ) from error


def _batch_seed(batch: Sequence[Request]) -> int:
    """A stable 63-bit seed for a batch, from the seeds of its requests."""
    digest = hashlib.sha256(json.dumps([request.seed for request in batch]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
