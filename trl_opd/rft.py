"""Rejection fine-tuning (https://huggingface.co/papers/2308.01825): SFT on the start model's own right completions.

Completions are drawn once, before training; those that the rewards call right and that ended by themselves are kept,
each different one of a prompt once. The rest is [`SFTTrainer`]'s loss. What is drawn counts as generated tokens and as
time of the run.

Differs from the paper: the data's reference solutions are not trained on, and two completions of a prompt are the same
only if all their tokens are, where the paper compares the equations in them.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset

from trl_opd.errors import UserError
from trl_opd.offsite import COMPLETION_IDS
from trl_opd.rollout_drawing import draw_rollouts, drawing_seconds
from trl_opd.sft import OfflineConfig, OfflineTrainer, check_columns

#: Folder in a run's output folder that keeps what was drawn.
DRAWING = "drawing"


@dataclass
class RFTConfig(OfflineConfig):
    """
    Configuration of [`RFTTrainer`], see [`OfflineConfig`].

    > Parameters that control drawing

    Parameters:
        draws (`int`, *optional*):
            Rows that completions are drawn for, chosen by `seed`. `None` for all. GRPO draws for steps x prompts of a
            step within the same budget.
        num_generations (`int`, *optional*, defaults to `8`):
            Completions drawn for each of them.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Longest completion; one that is cut is not kept.
        temperature, top_p, top_k, generation_kwargs:
            Sampling, with the defaults of TRL's rollouts.
        success_threshold (`float`, *optional*, defaults to `0.5`):
            Reward from which a completion is right.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*OfflineConfig._VALID_DICT_FIELDS, "generation_kwargs"]

    draws: int | None = field(
        default=None, metadata={"help": "Rows that completions are drawn for, chosen by seed. None for all."}
    )
    num_generations: int = field(default=8, metadata={"help": "Completions drawn for each row."})
    max_completion_length: int = field(default=512, metadata={"help": "Longest completion, in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of drawing."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of drawing."})
    top_k: int = field(default=0, metadata={"help": "Top-k of drawing; 0 for the whole vocabulary."})
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of transformers' GenerationConfig."}
    )
    success_threshold: float = field(default=0.5, metadata={"help": "Reward from which a completion is right."})


class RFTTrainer(OfflineTrainer):
    """
    Likelihood of the start model's own right completions; see [`RFTConfig`].

    What is drawn is kept in `<output_dir>/drawing`: a run that was killed before goes on to the same completions.
    With several processes one draws and the others wait.
    """

    method = "rft"

    @classmethod
    def check_settings(cls, config: RFTConfig, reward_funcs: Any) -> None:
        super().check_settings(config, reward_funcs)
        if not reward_funcs:
            raise UserError(
                "rft keeps what rewards call right and no reward function was given; pass reward_funcs, for instance "
                "trl_opd.verify.math_reward with an 'answer' column."
            )
        for name in ("num_generations", "max_completion_length", "draws"):
            value = getattr(config, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, but must be at least 1.")
        if not config.temperature > 0.0:
            raise UserError(f"temperature is {config.temperature}, but it divides the logits and must be positive.")

    def _check_data(self, model: Any, args: Any, dataset: Dataset, tokenizer: Any) -> None:
        check_columns(dataset, "rft")
        if not isinstance(model, str):
            raise UserError("rft loads the model once to draw and once to train; pass its name or folder.")
        if args.draws is not None and args.draws > len(dataset):
            raise UserError(f"draws is {args.draws}, but there are {len(dataset)} rows; lower it, or add rows.")

    def _completions(
        self, model: Any, reward_funcs: Any, args: Any, dataset: Dataset, tokenizer: Any
    ) -> tuple[list, list[list[int]]]:
        folder = Path(args.output_dir) / DRAWING
        if args.draws is not None:
            dataset = dataset.shuffle(seed=args.seed).select(range(args.draws))
        with PartialState().main_process_first():
            drawn = draw_rollouts(folder, dataset, args, model, tokenizer)
        clear_device_cache(garbage_collection=True)  # before the model is loaded again, to be trained
        self.pipeline_state.seconds = drawing_seconds(folder)
        self.pipeline_state.generated_tokens = sum(len(ids) for row in drawn[COMPLETION_IDS] for ids in row)
        functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        rewards = score(functions, drawn, tokenizer)
        kept, facts = select(drawn[COMPLETION_IDS], rewards, args, tokenizer.eos_token_id)
        self.data_facts |= facts
        PartialState().print(
            "drawn {drawn} completions of {rows} rows: {wrong} wrong, {cut} right but cut, {duplicates} duplicates, "
            "{kept} kept; {rows_without} rows have none".format(**facts),
            flush=True,
        )
        if not kept:
            raise UserError(
                f"None of the {facts['drawn']} completions is right, so there is nothing to train on; draw more, or "
                "take easier problems."
            )
        return [drawn[row]["prompt"] for row, _ in kept], [ids for _, ids in kept]


def score(functions: list[Callable], drawn: Dataset, tokenizer: Any) -> list[list[float]]:
    """The sum of the rewards of each completion, by rows; NaN where no function scored it.

    The functions are called as TRL calls them, with the dataset's columns repeated for the completions of a row.

    Raises:
        `UserError`: If a function returns another number of rewards than there are completions.
    """
    examples = [(row, ids) for row in drawn for ids in row[COMPLETION_IDS]]
    texts = tokenizer.batch_decode([ids for _, ids in examples], skip_special_tokens=True)
    prompts = [row["prompt"] for row, _ in examples]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    columns = [name for name in drawn.column_names if name not in ("prompt", "completion", COMPLETION_IDS)]
    arguments = {name: [row[name] for row, _ in examples] for name in columns}
    arguments |= {"trainer_state": None, "log_extra": _unread, "log_metric": _unread}
    table = []
    for function in functions:
        found = function(
            prompts=prompts, completions=completions, completion_ids=[ids for _, ids in examples], **arguments
        )
        if len(found) != len(examples):
            raise UserError(
                f"A reward function returned {len(found)} rewards for {len(examples)} completions; let it return one "
                "for each."
            )
        table.append([float("nan") if reward is None else float(reward) for reward in found])
    by_function = torch.tensor(table)
    total = by_function.nansum(0)
    total[by_function.isnan().all(0)] = float("nan")
    whole = iter(total.tolist())
    return [[next(whole) for _ in row] for row in drawn[COMPLETION_IDS]]


def _unread(*_: Any) -> None:
    """Stands in for TRL's hooks for logging, which nothing here reads."""


def select(
    completions: list[list[list[int]]], rewards: list[list[float]], config: RFTConfig, end: int
) -> tuple[list[tuple[int, list[int]]], dict[str, int]]:
    """The right completions that ended by themselves, each different one of a row once.

    Args:
        completions (`list`): Token ids of the completions of each row.
        rewards (`list`): Their rewards.
        config (`RFTConfig`): Threshold and longest completion.
        end (`int`): The token that ends a turn.

    Returns:
        `tuple`: Pairs of row and token ids; and how many completions were drawn, are wrong, cut, duplicates, kept.
    """
    fates = Counter(rows=len(completions), drawn=0, wrong=0, cut=0, duplicates=0, kept=0)
    kept: dict[tuple[int, tuple[int, ...]], None] = {}
    for row, (drawn, scores) in enumerate(zip(completions, rewards, strict=True)):
        for ids, reward in zip(drawn, scores, strict=True):
            fates["drawn"] += 1
            if not reward >= config.success_threshold:
                fates["wrong"] += 1
            elif len(ids) >= config.max_completion_length and ids[-1] != end:
                fates["cut"] += 1
            elif (row, tuple(ids)) in kept:
                fates["duplicates"] += 1
            else:
                kept[row, tuple(ids)] = None
    fates["kept"] = len(kept)
    fates["rows_without"] = len(completions) - len({row for row, _ in kept})
    return [(row, list(ids)) for row, ids in kept], dict(fates)
