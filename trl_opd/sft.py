"""Supervised fine-tuning on reference solutions, through TRL's `SFTTrainer`: the off-policy reference of a comparison.

An example is what a rollout would be: the prompt as the on-policy methods render it, then the solution and the end of
the turn. The loss is the negative log-likelihood of the completion's tokens, a mean over those of the optimizer step.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import trl
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer

from trl_opd.budget import check_budget
from trl_opd.compat import render_prompts
from trl_opd.configs import RunConfig
from trl_opd.defaults import changed
from trl_opd.errors import UserError
from trl_opd.eval_callback import suite_of
from trl_opd.model_card import Carded
from trl_opd.resumable import Resumable
from trl_opd.state import PipelineState

#: Options of TRL's that prepare texts, which are token ids here before TRL sees them.
IGNORED = (
    "assistant_only_loss",
    "chat_template_path",
    "completion_only_loss",
    "dataset_kwargs",
    "dataset_text_field",
    "eos_token",
    "pad_token",
)


@dataclass
class OfflineConfig(RunConfig, trl.SFTConfig):
    """
    What the off-policy methods have in common: TRL's `SFTConfig` on prompts and completions of token ids.

    Parameters:
        completion_only_loss (`bool`, *optional*, defaults to `True`):
            The loss is that of completions; prompts are read only.
        max_length (`int`, *optional*):
            Longest example in tokens; a longer one is dropped and counted, never cut. `None` for no limit.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Arguments of the chat template, as for rollouts.
        dataloader_drop_last (`bool`, *optional*, defaults to `True`):
            Every step takes the same number of examples: what is left over in a pass is drawn in another one.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*trl.SFTConfig._VALID_DICT_FIELDS, "chat_template_kwargs"]

    completion_only_loss: bool | None = field(
        default=True, metadata={"help": "The loss is that of completions; prompts are read only."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest example in tokens; a longer one is dropped and counted, never cut."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of the chat template, as for rollouts."}
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Whether every step takes the same number of examples."}
    )


@dataclass
class SFTConfig(OfflineConfig):
    """
    Configuration of [`SFTTrainer`], see [`OfflineConfig`].

    Parameters:
        solution_column (`str`, *optional*, defaults to `"solution"`):
            Dataset column that holds the reference solution.
    """

    solution_column: str = field(
        default="solution", metadata={"help": "Dataset column that holds the reference solution."}
    )


class OfflineTrainer(Carded, Resumable, trl.SFTTrainer):
    """
    TRL's `SFTTrainer` on completions that a subclass chooses in `_completions`.

    Args:
        model (`str` or `PreTrainedModel`): The student.
        reward_funcs (`list`, *optional*): Reward functions, for a method that has a use for them.
        args (`OfflineConfig`): The configuration.
        train_dataset (`Dataset`): Rows with a `prompt`.

    Raises:
        `UserError`: Before a model is loaded, for a setting or a dataset that cannot work.
    """

    def __init__(self, model, reward_funcs=None, args=None, train_dataset=None, processing_class=None, **kwargs):
        if args is None:
            raise UserError(f"args is missing; pass a {type(self).__name__.replace('Trainer', 'Config')}.")
        self.check_settings(args, reward_funcs)
        if kwargs.pop("teacher_context", None) is not None:
            raise UserError(f"{self.method} has no teacher that could read teacher_context; remove it.")
        suite = suite_of(args)
        self.pipeline_state = PipelineState(method=self.method)
        self.data_facts: dict[str, int] = {}
        tokenizer = _tokenizer(model, args) if processing_class is None else processing_class
        self._check_data(model, args, train_dataset, tokenizer)
        chosen = self._completions(model, reward_funcs, args, train_dataset, tokenizer)
        examples = self._examples(*chosen, args, tokenizer)
        super().__init__(model, args, train_dataset=examples, processing_class=tokenizer, **kwargs)
        self._add_callbacks(suite)

    #: Nothing is drawn while it trains, so there is no engine that an evaluation could share.
    use_vllm: ClassVar[bool] = False

    @classmethod
    def check_settings(cls, config: OfflineConfig, reward_funcs: Any) -> None:
        """Refuses options that cannot work or would be ignored.

        Raises:
            `UserError`: With the option and the way out.
        """
        for name in IGNORED:
            if name in changed(config):
                raise UserError(
                    f"{name} acts on texts, which are token ids here already: it would be ignored; remove it."
                )
        check_budget(config)
        if config.max_steps == 0:
            raise UserError("max_steps is 0, so nothing would be trained; set it, or leave it out for whole epochs.")
        if not config.learning_rate >= 0.0:
            raise UserError(f"learning_rate is {config.learning_rate}, but must not be negative.")

    def _check_data(self, model: Any, args: Any, dataset: Dataset, tokenizer: Any) -> None:
        """Refuses a model or data that the method cannot work with."""
        raise NotImplementedError

    def _completions(
        self, model: Any, reward_funcs: Any, args: Any, dataset: Dataset, tokenizer: Any
    ) -> tuple[list, list[list[int]]]:
        """Prompts, and the token ids of a completion for each, its end included; adds to `data_facts`."""
        raise NotImplementedError

    def _examples(self, prompts: list, completions: list[list[int]], args: Any, tokenizer: Any) -> Dataset:
        """The examples as TRL reads them, those that are too long left out and counted."""
        rendered = render_prompts(tokenizer, prompts, None, args.chat_template_kwargs or {})
        pairs = list(zip(rendered, completions, strict=True))
        limit = float("inf") if args.max_length is None else args.max_length
        kept = [(prompt, ids) for prompt, ids in pairs if len(prompt) + len(ids) <= limit]
        self.data_facts |= {"examples": len(kept), "too_long": len(pairs) - len(kept)}
        if len(kept) < len(pairs):
            lost = len(pairs) - len(kept)
            PartialState().print(
                f"{lost} of {len(pairs)} examples are longer than max_length={args.max_length} tokens and are left out",
                flush=True,
            )
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        if len(kept) < step:
            raise UserError(
                f"There are {len(kept)} examples, but one step takes {step}; lower per_device_train_batch_size or "
                "gradient_accumulation_steps, or add rows."
            )
        return Dataset.from_dict(
            {
                "input_ids": [prompt + ids for prompt, ids in kept],
                "completion_mask": [[0] * len(prompt) + [1] * len(ids) for prompt, ids in kept],
            }
        )


class SFTTrainer(OfflineTrainer):
    """Likelihood of the data's reference solutions; see [`SFTConfig`]."""

    method = "sft"

    @classmethod
    def check_settings(cls, config: OfflineConfig, reward_funcs: Any) -> None:
        super().check_settings(config, reward_funcs)
        if reward_funcs:
            raise UserError("sft learns from solutions alone and would ignore reward_funcs; remove it.")

    def _check_data(self, model: Any, args: Any, dataset: Dataset, tokenizer: Any) -> None:
        check_columns(dataset, "sft", args.solution_column)
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has no eos_token, so the student would never learn to stop; set one.")
        empty = [row for row, text in enumerate(dataset[args.solution_column]) if not (text or "").strip()]
        if empty:
            raise UserError(
                f"{len(empty)} rows have no text in {args.solution_column!r}, row {empty[0]} first; drop them, or "
                "choose another solution_column."
            )

    def _completions(
        self, model: Any, reward_funcs: Any, args: Any, dataset: Dataset, tokenizer: Any
    ) -> tuple[list, list[list[int]]]:
        encoded = tokenizer(list(dataset[args.solution_column]), add_special_tokens=False)["input_ids"]
        return list(dataset["prompt"]), [[*ids, tokenizer.eos_token_id] for ids in encoded]


def _tokenizer(model: Any, config: OfflineConfig) -> Any:
    name = model if isinstance(model, str) else model.config.name_or_path
    revision = (config.model_init_kwargs or {}).get("revision")
    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)


def check_columns(dataset: Any, method: str, solution_column: str | None = None) -> None:
    """Refuses a dataset that is missing, empty or without the columns that a method reads.

    Raises:
        `UserError`: With the missing column and those that there are.
    """
    if dataset is None or len(dataset) == 0:
        raise UserError("train_dataset is missing or empty: there is nothing to train on; check its path and filters.")
    for column in ("prompt", *([solution_column] if solution_column else [])):
        if column not in dataset.column_names:
            remedy = "rename the column" if column == "prompt" else "add it, or name yours with solution_column"
            raise UserError(
                f"train_dataset has no column {column!r}, which {method} needs (it has: "
                f"{', '.join(dataset.column_names)}); {remedy}."
            )
