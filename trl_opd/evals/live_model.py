"""A model that is already in memory, such as one in training, and the engine that draws from it with transformers."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from trl_opd.evals.engines import BATCH_SIZES, EngineOptions
from trl_opd.evals.local_model import LocalModel
from trl_opd.evals.records import json_sha256
from trl_opd.evals.transformers_engine import TransformersEngine


def weights_fingerprint(model: Any) -> str:
    """A hash of each parameter's name, shape, sum and sum of squares: cheap, and another one after any training step.

    Unlike the hash of a model's files it is no proof of equal weights, and it depends on the kind of machine.
    """
    digest = hashlib.sha256()
    for name, weights in model.named_parameters():
        values = weights.detach().double()
        digest.update(repr((name, tuple(values.shape), values.sum().item(), values.square().sum().item())).encode())
    return digest.hexdigest()


class LiveModel(LocalModel):
    """What a `LocalModel` reads from files, from objects."""

    def __init__(self, model: Any, tokenizer: Any, name: str, options: EngineOptions) -> None:
        self.name = name
        self.options = options
        self.tokenizer = tokenizer
        self.device = str(model.device)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.fingerprint = weights_fingerprint(model)
        configured = model.generation_config.eos_token_id or []
        ids = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id} - {None}
        self.stop_ids = sorted(ids)
        self._model_config = model.config

    @cached_property
    def config(self) -> Any:
        """The configuration of the text model."""
        return self._model_config.get_text_config()

    def identity(self) -> dict[str, Any]:
        """Fingerprints of the weights and the tokenizer."""
        return {
            "model": f"live:{self.fingerprint}",
            "tokenizer": json_sha256([self.tokenizer.get_vocab(), self.tokenizer.chat_template]),
            "chat_template_kwargs": self.options.chat_template_kwargs,
            "dtype": self.dtype,
        }

    def details(self) -> dict[str, Any]:
        """What is worth recording besides."""
        return {
            "model": self.name,
            "stop_ids": self.stop_ids,
            "device": self.device,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


class LiveEngine(TransformersEngine):
    """Draws from a model in memory as it is now. Use it inside `with engine.drawing():`, which restores the model.

    Args:
        model (`PreTrainedModel`): The model, not wrapped for several processes.
        tokenizer (`PreTrainedTokenizer`): Its tokenizer, with a chat template.
        name (`str`): What the run's manifest calls the model, such as the training run and the step.
        options (`EngineOptions`, *optional*): Batch size and variables of the chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions()
        self.local = LiveModel(model, tokenizer, name, self.options)
        self.batch_size = self.options.batch_size or BATCH_SIZES["transformers"]
        self.pad_id = self.local.stop_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._model = model

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """The model in evaluation mode, without the sampling advice of its generation configuration."""
        model, training, advice = self._model, self._model.training, self._model.generation_config
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.local.stop_ids, pad_token_id=self.pad_id
        )
        model.eval()
        try:
            yield
        finally:
            model.generation_config = advice
            model.train(training)
