"""Two steps of a method in a fresh process; prints the measured peak above the idle process and the estimate."""

import json
import resource
import sys

import torch

from tests.conftest import make_model
from tests.distributed.run import make_trainer
from trl_opd.memory import Run, Shape, estimate
from trl_opd.testbed.tokenizer import build_tokenizer

ROWS = 4


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def random_rollouts(length: int):
    """Completions of one length, of random tokens."""

    def rollouts(prompts, trainer):
        tokenizer = trainer.processing_class
        rendered = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)
        ids = torch.randint(6, len(tokenizer), (len(prompts), length)).tolist()
        return {"prompt_ids": [list(row) for row in rendered["input_ids"]], "completion_ids": ids, "logprobs": None}

    return rollouts


def main(method: str, size: dict[str, int], folder: str) -> None:
    length, tokenizer = size.pop("length"), build_tokenizer()
    make_trainer(method, f"{folder}/warm").train()  # what libraries take once is no part of the run
    idle = peak_bytes()
    student = make_model(tokenizer, hidden=size.pop("hidden_size"), **size, max_position_embeddings=4096)
    trainer = make_trainer(
        method,
        f"{folder}/run",
        model=student,
        rollout_func=random_rollouts(length),
        per_device_train_batch_size=ROWS,
        num_generations=ROWS,
        max_completion_length=length,
        max_steps=2,
    )
    trainer.train()
    run = Run(
        student=Shape.of(student.config, torch.float32),
        average=method == "sdpo",
        states=int(method == "sdpo"),
        rows=ROWS,
        rollouts=ROWS,
        prompt=12,
        teacher_prompt=12 + length,
        completion=length,
        checkpointing=bool(trainer.args.gradient_checkpointing),
        compute_bytes=4,
        own_rollouts=False,
        device_kind="cpu",
    )
    print(json.dumps({"measured": peak_bytes() - idle, "estimated": estimate(run).peak}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
