"""The engine that runs on transformers alone: any machine, any model, one process."""

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessorList

from trl_opd.errors import UserError
from trl_opd.evals import models
from trl_opd.evals.engines import EngineOptions, Generation, Key, Request, Sampling, in_batches
from trl_opd.evals.sampling import SeededSampling


@dataclass(frozen=True)
class _Prompt(Request):
    """A request with its prompt as the model reads it."""

    text: str
    ids: list[int]


class TransformersEngine:
    """Draws completions with `model.generate`, in fixed batches of prompts of like length.

    Sampling is seeded per request. The weights are loaded at the first batch that has something to draw.

    Args:
        model (`str`): A folder, `testbed/base`, `testbed/teacher` or a model id on the Hub.
        options (`EngineOptions`, *optional*): Adapter, precision, batch size and variables of the chat template.

    Raises:
        UserError: The model or the adapter does not exist, or the tokenizer has no chat template.
    """

    def __init__(self, model: str, options: EngineOptions | None = None) -> None:
        self.name = model
        self.options = options or EngineOptions()
        self.folder = models.resolve_model(model)
        self.adapter = None if self.options.adapter is None else models.resolve_adapter(self.options.adapter)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = self.options.dtype or ("bfloat16" if self.device.type == "cuda" else "float32")
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        if not self.tokenizer.chat_template:
            raise UserError(f"The tokenizer of {model} has no chat template: add chat_template.jinja to its folder.")
        self.stop_ids = self._stop_ids()
        self.pad_id = self.stop_ids[0] if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    def identity(self) -> dict[str, Any]:
        """The settings that decide the completions, with hashes of the model."""
        return {
            "engine": "transformers",
            "model": models.model_sha256(self.folder),
            "adapter": None if self.adapter is None else models.adapter_sha256(self.adapter),
            "tokenizer": models.tokenizer_sha256(self.folder),
            "chat_template_kwargs": self.options.chat_template_kwargs,
            "dtype": self.dtype,
        }

    def details(self) -> dict[str, Any]:
        """The settings that may change between two sessions of one run."""
        return {
            "model": self.name,
            "adapter": self.options.adapter,
            "batch_size": self.options.batch_size,
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name() if self.device.type == "cuda" else None,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def batches(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Request]]:
        """Batches of prompts of like length, shortest first, each with its prompt rendered.

        Raises:
            UserError: A prompt and `max_new_tokens` do not fit into the model's context.
        """
        prompts = sorted(map(self._prompt, requests), key=lambda prompt: len(prompt.ids))
        self._check_length(prompts[-1], sampling)
        return in_batches(prompts, self.options.batch_size)

    def generate(
        self, batches: Iterable[list[Request]], sampling: Sampling, done: Set[Key] = frozenset()
    ) -> Iterator[Generation]:
        """The completions that are not done, batch by batch.

        A batch of which some rows are done is drawn again in full: its numbers are those of an undisturbed run.

        Args:
            batches (`Iterable[list[Request]]`): Batches as `batches` made them.
        """
        for batch in batches:
            if all(prompt.key in done for prompt in batch):
                continue
            for generation in self._draw(batch, sampling):
                if generation.key not in done:
                    yield generation

    @cached_property
    def _model(self) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype)
        if self.adapter is not None:
            from peft import PeftModel  # an adapter is the exception

            model = PeftModel.from_pretrained(model, self.adapter)
        # What the model's author recommends for sampling (penalties, top-k) would otherwise slip in unrecorded.
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.stop_ids, pad_token_id=self.pad_id
        )
        return model.to(self.device).eval()

    def _stop_ids(self) -> list[int]:
        """The ids that end a completion: those of the generation configuration and the tokenizer's own."""
        configured = []
        if (self.folder / "generation_config.json").is_file():
            configured = GenerationConfig.from_pretrained(self.folder).eos_token_id or []
        ids = {*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id} - {None}
        if not ids:
            raise UserError(f"{self.name} names no stop token: set eos_token_id in its generation_config.json.")
        return sorted(ids)

    def _prompt(self, request: Request) -> _Prompt:
        text = self.tokenizer.apply_chat_template(
            request.messages, tokenize=False, add_generation_prompt=True, **self.options.chat_template_kwargs
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return _Prompt(request.problem_id, request.index, request.messages, request.seed, text, ids)

    def _check_length(self, longest: _Prompt, sampling: Sampling) -> None:
        config = AutoConfig.from_pretrained(self.folder).get_text_config()
        context = getattr(config, "max_position_embeddings", None)  # models without position limits name none
        if context is not None and len(longest.ids) + sampling.max_new_tokens > context:
            raise UserError(
                f"max_new_tokens={sampling.max_new_tokens} and the {len(longest.ids)} tokens of the prompt of "
                f"{longest.problem_id} exceed the model's context of {context}: lower max_new_tokens."
            )

    @torch.inference_mode()
    def _draw(self, batch: list[_Prompt], sampling: Sampling) -> list[Generation]:
        length = max(len(prompt.ids) for prompt in batch)
        padding = [length - len(prompt.ids) for prompt in batch]
        ids = [[self.pad_id] * pad + prompt.ids for pad, prompt in zip(padding, batch, strict=True)]
        mask = [[0] * pad + [1] * (length - pad) for pad in padding]
        processors = LogitsProcessorList()
        if sampling.temperature > 0:
            seeds = [prompt.seed for prompt in batch]
            processors.append(SeededSampling(seeds, sampling, length, self.device))
        output = self._model.generate(
            input_ids=torch.tensor(ids, device=self.device),
            attention_mask=torch.tensor(mask, device=self.device),
            max_new_tokens=sampling.max_new_tokens,
            logits_processor=processors,
        )
        drawn = output[:, length:].tolist()
        return [self._generation(prompt, row) for prompt, row in zip(batch, drawn, strict=True)]

    def _generation(self, prompt: _Prompt, ids: list[int]) -> Generation:
        stop = next((position for position, token in enumerate(ids) if token in self.stop_ids), None)
        ids = ids if stop is None else ids[: stop + 1]
        return Generation(
            problem_id=prompt.problem_id,
            index=prompt.index,
            prompt=prompt.text,
            completion=self.tokenizer.decode(ids, skip_special_tokens=True),
            tokens=len(ids),
            finish_reason="length" if stop is None else "stop",
        )
