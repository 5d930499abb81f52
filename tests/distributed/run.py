"""A few steps of methods on deterministic rollouts; run by `accelerate launch`, it prints what was logged as JSON."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import save_file

import trl_opd
from tests.conftest import digit_reward, make_model, settings
from trl_opd import sharding
from trl_opd.methods import METHODS
from trl_opd.testbed.tasks import REFERENCE_TEMPLATE, rows
from trl_opd.testbed.tokenizer import build_tokenizer
from trl_opd.trainer import OnPolicyTrainer

#: Three groups of four: of two processes, each holds one whole group and half of the one in between.
GLOBAL_BATCH = 12


def fixed_rollouts(prompts, trainer):
    """Completions that depend on the row's place in the global batch and on the step, not on the process."""
    tokenizer = trainer.processing_class
    rendered = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)
    first = trainer.accelerator.process_index * len(prompts)
    completions = []
    for row in range(first, first + len(prompts)):
        generator = torch.Generator().manual_seed(1000 * trainer.state.global_step + row)
        length = int(torch.randint(3, 12, (), generator=generator))
        ids = torch.randint(6, len(tokenizer), (length,), generator=generator).tolist()
        completions.append([*ids, tokenizer.eos_token_id])
    return {
        "prompt_ids": [list(ids) for ids in rendered["input_ids"]],
        "completion_ids": completions,
        "logprobs": [[0.0] * len(ids) for ids in completions],
    }


def even_reward(completions, log_extra, hopeless=None, **_):
    """1 for completions of even length, about half of them; feedback for the others; 0 in a hopeless row."""
    lengths = [len(completion[0]["content"]) for completion in completions]
    hopeless = hopeless or [False] * len(lengths)
    rewards = [float(n % 2 == 0 and not lost) for n, lost in zip(lengths, hopeless, strict=True)]
    log_extra("feedback", [None if reward else f"{n} is odd" for n, reward in zip(lengths, rewards, strict=True)])
    return rewards


HINDSIGHT = {
    "demonstration_section": "<D>{demonstration}", "feedback_section": "<F>{feedback}", "support_size": 20,
    "teacher_template": "{prompt}{sections}<C>", "warmup_steps": 0, "teacher_update_rate": 0.3,
}  # fmt: skip

#: What a method's short run needs besides the common settings.
OPTIONS = {
    "opd": {"num_generations": 1},
    "opsd": {
        "num_generations": 1,
        "reference_template": REFERENCE_TEMPLATE,
        "max_teacher_length": 200,
        "aggregation": "token-global",
    },
    "sdpo": HINDSIGHT,
    "srpo": HINDSIGHT,
    "exopd": {"num_generations": 1},
    "scope": {},
}
REWARDS = {
    "grpo": digit_reward,
    "grpo_ema": digit_reward,
    "sdpo": even_reward,
    "srpo": even_reward,
    "scope": even_reward,
}
EXTERNAL = ("opd", "exopd", "scope")


def make_trainer(method: str, output_dir: Path | str, lora: bool = False, **overrides) -> OnPolicyTrainer:
    """A trainer of the method on the tiny student and the deterministic rollouts.

    Args:
        method (`str`): Its name.
        output_dir (`Path`): Where it may write.
        lora (`bool`): Whether the student is adapted instead of trained whole.
        overrides: Options of its config, or the trainer's own arguments.
    """
    from peft import LoraConfig

    tokenizer = build_tokenizer()
    arguments = {
        "reward_funcs": REWARDS.get(method),
        "train_dataset": Dataset.from_list(rows("train", 48)),
        "rollout_func": fixed_rollouts,
        "processing_class": tokenizer,
        "model": make_model(tokenizer),
        "peft_config": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    }
    if method in EXTERNAL:
        arguments["teacher_model"] = make_model(tokenizer, seed=3)
    taken = (*arguments, "reference_model", "eval_dataset")
    arguments |= {name: overrides.pop(name) for name in list(overrides) if name in taken}
    common = {"per_device_train_batch_size": GLOBAL_BATCH, "shuffle_dataset": False, "max_steps": 3}
    config = getattr(trl_opd, METHODS[method].config)
    options = settings(output_dir, **(common | OPTIONS.get(method, {}) | overrides))
    return getattr(trl_opd, METHODS[method].trainer)(args=config(**options), **arguments)


def logged(trainer: OnPolicyTrainer) -> list[dict[str, float]]:
    """What was logged at every step, less what depends on the clock."""
    keys = ("loss", "grad_norm", "generated_tokens", "teacher_tokens", "entropy")
    kinds = ("context/", "distill/")
    history = [row for row in trainer.state.log_history if "loss" in row]
    return [{key: row[key] for key in row if key in keys or key.startswith(kinds)} for row in history]


#: Flags of a case that stand for options.
FLAGS = {
    "live": {"teacher_weights": "live"},
    "trust": {"teacher_weights": "trust-region", "teacher_update_rate": 0.3},
    "ema": {"teacher_weights": "ema", "teacher_update_rate": 0.3},
    "topk": {"estimator": "topk", "support_size": 10},
}


def folder_of(case: str, output_dir: Path | str, processes: int) -> Path:
    """Where a case's run lies."""
    return Path(output_dir) / str(processes) / case.replace("/", "-")


def train(case: str, output_dir: Path | str, processes: int) -> list[dict[str, float]]:
    """Trains three steps and returns what was logged; the parameters of the end go into `parameters.safetensors`.

    Args:
        case (`str`): "method", then "+lora" if the student is adapted, "+half" if the teacher has nothing to read in
            the second half of the rows, others of `FLAGS`, and "/3" for three gradient-accumulation steps (with several
            processes only).
    """
    name, _, steps = case.partition("/")
    method, *flags = name.split("+")
    accumulation = int(steps or 1) if processes > 1 else 1
    data = rows("train", 48)
    if "half" in flags:
        # Nothing for all rows of one process: the other must not wait for it.
        for index, row in enumerate(data):
            row["solution"] = "1" * 300 if index % GLOBAL_BATCH >= GLOBAL_BATCH // 2 else row["solution"]
            row["hopeless"] = index % 3 > 0
    trainer = make_trainer(
        method,
        folder_of(case, output_dir, processes),
        lora="lora" in flags,
        train_dataset=Dataset.from_list(data),
        per_device_train_batch_size=GLOBAL_BATCH // processes // accumulation,
        gradient_accumulation_steps=accumulation,
        **{name: value for flag in flags for name, value in FLAGS.get(flag, {}).items()},
    )
    assert trainer.accelerator.num_processes == processes
    trainer.train()
    assert sharding.is_spread(trainer.model) == sharding.spreads_parameters(trainer.accelerator)
    keep_parameters(trainer)
    return logged(trainer)


def keep_parameters(trainer: OnPolicyTrainer) -> None:
    """Writes the trained parameters, whole, into the output folder."""
    trained = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    sharding.release(trainer.model)
    whole = {name: sharding.whole(p).cpu().contiguous() for name, p in trained.items() if p.requires_grad}
    if trainer.accelerator.is_main_process:
        save_file(whole, Path(trainer.args.output_dir) / "parameters.safetensors")


if __name__ == "__main__":
    results = {case: train(case, sys.argv[1], int(sys.argv[2])) for case in sys.argv[3:]}
    if PartialState().is_main_process:
        print("RESULT " + json.dumps(results), flush=True)
    PartialState().destroy_process_group()
