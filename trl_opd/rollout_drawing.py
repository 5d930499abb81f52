"""The student's own rollouts at its start, drawn once: what a teacher cache is made of where no rollouts are given."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import GenerationConfig

from trl_opd.compat import pad, render_prompts
from trl_opd.errors import UserError
from trl_opd.offsite import COMPLETION_IDS

#: Rows whose completions are drawn between two writes to disk.
ROWS_PER_FILE = 64

DRAWN = "drawn-{:05d}.json"


def draw_rollouts(folder: Path, dataset: Dataset, config: Any, student: str, tokenizer: Any) -> Dataset:
    """The dataset with `completion_ids`: `num_generations` completions of the student for each row.

    They are drawn as the trainer draws them, with the configuration's sampling, and written file by file: a file that
    is there is not drawn again, and each has a seed of its own, so that a stopped run goes on to the same rollouts.

    Args:
        folder (`Path`): Where they are kept.
        dataset (`Dataset`): Rows with a `prompt`.
        config: The trainer's configuration.
        student (`str`): The model.
        tokenizer: Its tokenizer.

    Raises:
        `UserError`: If the folder holds rollouts of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = render_prompts(tokenizer, list(dataset["prompt"]), None, config.chat_template_kwargs or {})
    _check_same(folder, _settings(config, student, prompts))
    model, completions = None, []
    for index, start in enumerate(range(0, len(prompts), ROWS_PER_FILE)):
        path = folder / DRAWN.format(index)
        if not path.exists():
            model = _loaded(student, config) if model is None else model
            torch.manual_seed(config.seed + index)
            partial, started = path.with_suffix(".partial"), time.monotonic()
            drawn = _draw(model, tokenizer, prompts[start : start + ROWS_PER_FILE], config)
            partial.write_text(json.dumps({"seconds": time.monotonic() - started, "completions": drawn}))
            partial.replace(path)
        completions += json.loads(path.read_text())["completions"]
        print(f"rollouts of {len(completions)} of {len(prompts)} rows", flush=True)
    return dataset.add_column(COMPLETION_IDS, completions)


def drawing_seconds(folder: Path) -> float:
    """What drawing the rollouts of a folder took, over all its sittings."""
    return sum(json.loads(path.read_text())["seconds"] for path in folder.glob("drawn-*.json"))


def _settings(config: Any, student: str, prompts: list[list[int]]) -> dict[str, Any]:
    names = ("temperature", "top_p", "top_k", "max_completion_length", "num_generations", "seed", "generation_kwargs")
    return {"student": student, "prompts": prompts} | {name: getattr(config, name) for name in names}


def _check_same(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "drawn.json"
    if not path.exists():
        path.write_text(json.dumps(settings))
        return
    stored = json.loads(path.read_text())
    different = [name for name in settings if stored.get(name) != json.loads(json.dumps(settings[name]))]
    if different:
        raise UserError(
            f"{folder} holds rollouts that were drawn with another {', '.join(different)}; choose another folder, or "
            "remove that one."
        )


def _loaded(student: str, config: Any):
    from trl.trainer.utils import create_model_from_path

    device = Accelerator(cpu=config.use_cpu).device
    return create_model_from_path(student, **(config.model_init_kwargs or {}) | {"device_map": None}).to(device).eval()


@torch.no_grad()
def _draw(model: Any, tokenizer: Any, prompts: list[list[int]], config: Any) -> list[list[list[int]]]:
    """`num_generations` completions of each prompt, the end of the turn included."""
    ends = {tokenizer.eos_token_id}
    configured = model.generation_config.eos_token_id
    ends |= set(configured if isinstance(configured, list) else [configured]) - {None}
    sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
    sampling |= {"max_new_tokens": config.max_completion_length, "pad_token_id": tokenizer.pad_token_id}
    generation = GenerationConfig(**sampling | {"eos_token_id": sorted(ends)} | (config.generation_kwargs or {}))
    repeated = [torch.tensor(ids) for ids in prompts for _ in range(config.num_generations)]
    drawn = []
    for start in range(0, len(repeated), config.per_device_train_batch_size):
        chunk = repeated[start : start + config.per_device_train_batch_size]
        ids = pad(chunk, tokenizer.pad_token_id, "left").to(model.device)
        mask = pad([torch.ones_like(row) for row in chunk], 0, "left").to(model.device)
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=generation)
        drawn += [_until(row, ends) for row in output[:, ids.shape[1] :].tolist()]
    return [drawn[i : i + config.num_generations] for i in range(0, len(drawn), config.num_generations)]


def _until(ids: list[int], ends: set[int]) -> list[int]:
    stop = next((position for position, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: stop + 1]
