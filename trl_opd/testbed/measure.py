"""How often a testbed checkpoint is right, by the form of its prompt: `python -m trl_opd.testbed.measure FOLDER`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_opd.testbed import tasks

MAX_NEW_TOKENS = 48
"""Room for the longest worked solution (33 characters and the end token) and for a step too many."""


def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], seed: int, batch_size: int = 256
) -> list[str]:
    """One completion for each user message, sampled at temperature 1 from the full distribution."""
    torch.manual_seed(seed)
    completions = []
    for start in range(0, len(prompts), batch_size):
        messages = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + batch_size]]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        outputs = model.generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=MAX_NEW_TOKENS
        )
        completions += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return completions


def accuracies(path: Path, split: str = "test", count: int = 512, seed: int = 0) -> dict[str, dict[str, float]]:
    """Measure a checkpoint on each form of prompt, with one sample at temperature 1 for each of `count` problems.

    Returns:
        `dict[str, dict[str, float]]`: For each form of prompt the share of right answers, the share of completions
        with worked steps, the share of right answers among those, and the mean and greatest length in tokens.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    problems = tasks.rows(split, count)
    forms = [tasks.contexts(row) for row in problems]
    answers = [int(row["answer"]) for row in problems]
    return {
        form: _summary(complete(model, tokenizer, [prompts[form] for prompts in forms], seed), answers)
        for form in forms[0]
    }


def _summary(completions: list[str], answers: list[int]) -> dict[str, float]:
    right = [tasks.boxed_number(text) == answer for text, answer in zip(completions, answers, strict=True)]
    worked = ["=" in text for text in completions]
    lengths = [len(text) + 1 for text in completions]  # a token for each character, and the end token
    return {
        "accuracy": fmean(right),
        "worked": fmean(worked),
        "worked_accuracy": sum(map(all, zip(right, worked, strict=True))) / max(1, sum(worked)),
        "mean_tokens": fmean(lengths),
        "max_tokens": max(lengths),
    }


def main() -> None:
    """Print the accuracies of one checkpoint."""
    parser = argparse.ArgumentParser(description="Measure a checkpoint of the testbed.")
    parser.add_argument("path", type=Path, help="folder of the checkpoint")
    parser.add_argument("--split", choices=tasks.SPLITS, default="test", help="split that the problems come from")
    parser.add_argument("--count", type=int, default=512, help="number of problems")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(accuracies(options.path, options.split, options.count, options.seed), indent=2))


if __name__ == "__main__":
    main()
