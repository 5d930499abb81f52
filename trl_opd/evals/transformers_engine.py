"""The engine that runs on transformers alone: any machine, any model, one process."""

from collections.abc import Iterable, Iterator, Sequence, Set
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList

from trl_opd.evals.engines import BATCH_SIZES, EngineOptions, Generation, Key, Request, Sampling, in_batches
from trl_opd.evals.local_model import LocalModel, Prompt
from trl_opd.evals.sampling import SeededSampling


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
        self.options = options or EngineOptions()
        self.local = LocalModel(model, self.options)
        self.batch_size = self.options.batch_size or BATCH_SIZES["transformers"]
        pad = self.local.tokenizer.pad_token_id
        self.pad_id = self.local.stop_ids[0] if pad is None else pad

    def identity(self) -> dict[str, Any]:
        """The settings that decide the completions, with hashes of the model."""
        return {"engine": "transformers", **self.local.identity()}

    def details(self) -> dict[str, Any]:
        """The settings that may change between two sessions of one run."""
        return {**self.local.details(), "batch_size": self.batch_size}

    def batches(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Request]]:
        """Batches of prompts of like length, shortest first, each with its prompt rendered.

        Raises:
            UserError: A prompt and `max_new_tokens` do not fit into the model's context.
        """
        return in_batches(self.local.prompts(requests, sampling), self.batch_size)

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
        local = self.local
        model = AutoModelForCausalLM.from_pretrained(local.folder, dtype=local.dtype)
        if local.adapter is not None:
            from peft import PeftModel  # an adapter is the exception

            model = PeftModel.from_pretrained(model, local.adapter)
        # What the model's author recommends for sampling (penalties, top-k) would otherwise slip in unrecorded.
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=local.stop_ids, pad_token_id=self.pad_id
        )
        return model.to(local.device).eval()

    @torch.no_grad()  # not inference mode: a model in training is drawn from, too
    def _draw(self, batch: list[Prompt], sampling: Sampling) -> list[Generation]:
        device = torch.device(self.local.device)
        length = max(len(prompt.ids) for prompt in batch)
        padding = [length - len(prompt.ids) for prompt in batch]
        ids = [[self.pad_id] * pad + prompt.ids for pad, prompt in zip(padding, batch, strict=True)]
        mask = [[0] * pad + [1] * (length - pad) for pad in padding]
        processors = LogitsProcessorList()
        if sampling.temperature > 0:
            seeds = [prompt.seed for prompt in batch]
            processors.append(SeededSampling(seeds, sampling, length, device))
        output = self._model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=sampling.max_new_tokens,
            logits_processor=processors,
        )
        drawn = output[:, length:].tolist()
        return [self.local.generation(prompt, row) for prompt, row in zip(batch, drawn, strict=True)]
