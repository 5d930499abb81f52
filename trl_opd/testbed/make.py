"""Makes the testbed's two checkpoints and measures them: `python -m trl_opd.testbed.make`.

Both start from one warm-up on worked steps. The base goes on with the mixture of `corpus.py`, which leaves it a model
that can do the steps and mostly does not; the teacher goes on with worked steps alone. Weights are rounded to float16
on disk and load as float32; what is printed is measured after the rounding. The result depends on the seed, and on the
build of torch and the number of threads in the last bits only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from trl_opd.testbed import CHECKPOINTS, DATA
from trl_opd.testbed.corpus import mixture, worked
from trl_opd.testbed.measure import accuracies
from trl_opd.testbed.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Stage:
    """One run of supervised training: what it reads, for how many steps, and how fast it learns."""

    corpus: Callable[[int, int], list[dict]]
    steps: int
    learning_rate: float
    schedule: str
    batch_size: int = 64
    warmup_steps: int = 20


WARM_UP = Stage(worked, steps=500, learning_rate=2e-3, schedule="constant_with_warmup")
CONTINUATIONS = {
    "base": Stage(mixture, steps=450, learning_rate=1e-3, schedule="linear"),
    "teacher": Stage(worked, steps=900, learning_rate=2e-3, schedule="linear"),
}


def new_model() -> PreTrainedModel:
    """A Qwen3 model of about 0.8 M parameters with random weights."""
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def train(model: PreTrainedModel, stage: Stage, seed: int) -> None:
    """Train a model in place on the completions of a stage's corpus, each example once."""
    with tempfile.TemporaryDirectory() as scratch:
        args = SFTConfig(
            output_dir=scratch,
            max_steps=stage.steps,
            per_device_train_batch_size=stage.batch_size,
            learning_rate=stage.learning_rate,
            lr_scheduler_type=stage.schedule,
            warmup_steps=stage.warmup_steps,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            seed=seed,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            disable_tqdm=True,
        )
        corpus = Dataset.from_list(stage.corpus(seed, stage.steps * stage.batch_size))
        SFTTrainer(model, args=args, train_dataset=corpus, processing_class=build_tokenizer()).train()


def save(model: PreTrainedModel, path: Path) -> None:
    """Write a checkpoint with float16 weights whose configuration asks for float32 when it is loaded."""
    weights = {name: parameter.half() for name, parameter in model.named_parameters()}
    model.save_pretrained(path, state_dict=weights)
    build_tokenizer().save_pretrained(path)


def main() -> None:
    """Make the checkpoints that are asked for, and print how well they do."""
    parser = argparse.ArgumentParser(description="Make and measure the checkpoints of the testbed.")
    parser.add_argument("--out", type=Path, default=DATA, help="folder that gets one folder for each checkpoint")
    parser.add_argument("--only", choices=CHECKPOINTS, help="make this checkpoint alone")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the corpora")
    options = parser.parse_args()

    torch.set_num_threads(1)
    set_seed(options.seed)
    model = new_model()
    train(model, WARM_UP, options.seed)
    warm = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in [options.only] if options.only else CHECKPOINTS:
        model = new_model()
        model.load_state_dict(warm)
        train(model, CONTINUATIONS[name], options.seed + 1)
        save(model, options.out / name)
        print(json.dumps({name: accuracies(options.out / name)}, indent=2), flush=True)


if __name__ == "__main__":
    main()
