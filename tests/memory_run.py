"""Two steps of a method in a fresh process; prints the measured peak above the idle process and the estimate."""

import ctypes
import gc
import json
import sys

import torch

from tests.conftest import make_model
from tests.distributed.run import make_trainer
from trl_opd.memory import Run, Shape, estimate
from trl_opd.testbed.tokenizer import build_tokenizer

ROWS = 4


def idle_bytes() -> int:
    """Resident memory of this moment, from which the high-water mark counts from now on."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that the allocator holds would be used again uncounted
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    return resident("VmRSS")


def resident(what: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what))


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
    idle = idle_bytes()
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
    print(json.dumps({"measured": resident("VmHWM") - idle, "estimated": estimate(run).peak}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
