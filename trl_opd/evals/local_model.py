"""A model on this machine, as every local engine sees it: its files, its prompts and the text of what it wrote.

No weights are loaded here. Engines that share this module read the same prompts and stop at the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from trl_opd.errors import UserError
from trl_opd.evals import models
from trl_opd.evals.engines import EngineOptions, Generation, Request, Sampling


@dataclass(frozen=True)
class Prompt(Request):
    """A request with its prompt as the model reads it.

    Attributes:
        text (`str`): The rendered conversation.
        ids (`list[int]`): Its tokens.
    """

    text: str
    ids: list[int]


class LocalModel:
    """The files of a model and an adapter, the precision to run it in, and its tokenizer.

    Args:
        name (`str`): A folder, `testbed/base`, `testbed/teacher` or a model id on the Hub.
        options (`EngineOptions`): Adapter, precision and variables of the chat template.

    Raises:
        UserError: The model or the adapter does not exist, the tokenizer has no chat template, or there is no token
            that ends a completion.
    """

    def __init__(self, name: str, options: EngineOptions) -> None:
        self.name = name
        self.options = options
        self.folder = models.resolve_model(name)
        self.adapter = None if options.adapter is None else models.resolve_adapter(options.adapter)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = options.dtype or ("bfloat16" if self.device == "cuda" else "float32")
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        if not self.tokenizer.chat_template:
            raise UserError(f"The tokenizer of {name} has no chat template: add chat_template.jinja to its folder.")
        self.stop_ids = self._stop_ids()

    def identity(self) -> dict[str, Any]:
        """The settings that decide the completions, with hashes of the files."""
        return {
            "model": models.model_sha256(self.folder),
            "adapter": None if self.adapter is None else models.adapter_sha256(self.adapter),
            "tokenizer": models.tokenizer_sha256(self.folder),
            "chat_template_kwargs": self.options.chat_template_kwargs,
            "dtype": self.dtype,
        }

    def details(self) -> dict[str, Any]:
        """What is worth recording besides."""
        return {
            "model": self.name,
            "adapter": self.options.adapter,
            "stop_ids": self.stop_ids,
            "device": self.device,
            "device_name": torch.cuda.get_device_name() if self.device == "cuda" else None,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @cached_property
    def config(self) -> Any:
        """The configuration of the text model."""
        return AutoConfig.from_pretrained(self.folder).get_text_config()

    def prompts(self, requests: Sequence[Request], sampling: Sampling) -> list[Prompt]:
        """The requests with their prompts rendered, shortest first.

        Raises:
            UserError: A prompt and `max_new_tokens` do not fit into the model's context.
        """
        prompts = sorted(map(self._prompt, requests), key=lambda prompt: len(prompt.ids))
        longest = prompts[-1]
        context = getattr(self.config, "max_position_embeddings", None)  # models without position limits name none
        if context is not None and len(longest.ids) + sampling.max_new_tokens > context:
            raise UserError(
                f"max_new_tokens={sampling.max_new_tokens} and the {len(longest.ids)} tokens of the prompt of "
                f"{longest.problem_id} exceed the model's context of {context}: lower max_new_tokens."
            )
        return prompts

    def generation(self, prompt: Prompt, ids: list[int]) -> Generation:
        """The completion in text; what follows its first stop token is dropped."""
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

    def _stop_ids(self) -> list[int]:
        """The ids that end a completion: those of the generation configuration and the tokenizer's own."""
        configured = []
        if (self.folder / "generation_config.json").is_file():
            configured = GenerationConfig.from_pretrained(self.folder).eos_token_id or []
        ids = {*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id} - {None}
        if not ids:
            raise UserError(f"{self.name} names no stop token: set eos_token_id in its generation_config.json.")
        return sorted(ids)

    def _prompt(self, request: Request) -> Prompt:
        text = self.tokenizer.apply_chat_template(
            request.messages, tokenize=False, add_generation_prompt=True, **self.options.chat_template_kwargs
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Prompt(request.problem_id, request.index, request.messages, request.seed, text, ids)
