"""A few steps of a method on deterministic rollouts; run by `accelerate launch`, it prints what was logged as JSON."""

import json
import sys

import torch
from accelerate import PartialState
from datasets import Dataset

from tests.conftest import digit_reward, make_model, settings
from trl_opd import GRPOConfig, GRPOTrainer, OPSDConfig, OPSDTrainer
from trl_opd.testbed.tasks import REFERENCE_TEMPLATE, rows
from trl_opd.testbed.tokenizer import build_tokenizer

GLOBAL_BATCH = 8


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


def train(case: str, output_dir: str, processes: int, accumulation: int) -> list[dict[str, float]]:
    """Trains three steps and returns what was logged."""
    tokenizer = build_tokenizer()
    data = rows("train", 64)
    per_device = GLOBAL_BATCH // processes // accumulation
    options = settings(
        output_dir,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        shuffle_dataset=False,
        max_steps=3,
    )
    peft_config = None
    if case.endswith("+lora"):
        from peft import LoraConfig

        peft_config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        case = case.removesuffix("+lora")
    if case == "grpo":
        config = GRPOConfig(**options)
        trainer_class, rewards = GRPOTrainer, digit_reward
    else:
        # Rows whose solution is too long are dropped: with `one-rank-empty`, all rows of the second half of a batch.
        if case == "opsd-one-rank-empty":
            for index, row in enumerate(data):
                row["solution"] = "1" * 300 if index % GLOBAL_BATCH >= GLOBAL_BATCH // 2 else row["solution"]
        config = OPSDConfig(
            **options | {"num_generations": 1},
            reference_template=REFERENCE_TEMPLATE,
            max_teacher_length=200,
            aggregation="token-global",
        )
        trainer_class, rewards = OPSDTrainer, None
    trainer = trainer_class(
        make_model(tokenizer), rewards, config, Dataset.from_list(data), processing_class=tokenizer,
        rollout_func=fixed_rollouts, peft_config=peft_config,
    )  # fmt: skip
    assert trainer.accelerator.num_processes == processes
    trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]
    keys = ("loss", "grad_norm", "generated_tokens", "context/dropped_fraction", "distill/divergence", "entropy")
    return [{key: row[key] for key in keys if key in row} for row in history]


if __name__ == "__main__":
    logged = train(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    if PartialState().is_main_process:
        print("RESULT " + json.dumps(logged), flush=True)
