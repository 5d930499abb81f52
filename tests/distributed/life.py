"""A run that is cut and resumed, its final model, and sampled rollouts; run by `accelerate launch`, prints JSON."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.run import keep_parameters, logged, make_trainer
from trl_opd.state import TEACHER_FILE, newest_checkpoint


def steps(folder: Path, until: int, resume: bool = False):
    """SDPO with a moving average up to a step; the schedule does not depend on where it stops."""
    options = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    trainer = make_trainer("sdpo", folder, per_device_train_batch_size=4, num_generations=4, **options)
    trainer.args.max_steps = until
    trainer.train(resume_from_checkpoint=str(newest_checkpoint(folder)) if resume else None)
    keep_parameters(trainer)
    return trainer


def resumption(folder: Path) -> dict[str, bool]:
    """Whether a cut run goes on as the whole one does, bit by bit."""
    whole = steps(folder / "whole", 3)
    steps(folder / "cut", 2)
    resumed = steps(folder / "cut", 3, resume=True)
    same = {"losses": logged(whole) == logged(resumed)}
    for name, path in (("average", f"checkpoint-3/{TEACHER_FILE.format(0)}"), ("parameters", "parameters.safetensors")):
        one, two = (load_file(folder / run / path) for run in ("whole", "cut"))
        same[name] = one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    early, late = (load_file(folder / "whole" / f"checkpoint-{step}" / TEACHER_FILE.format(0)) for step in (1, 3))
    same["average moved"] = all(not torch.equal(early[name], value) for name, value in late.items())
    resumed.save_model(str(folder / "model"))
    resumed.accelerator.wait_for_everyone()
    plain = dict(AutoModelForCausalLM.from_pretrained(folder / "model").named_parameters())
    trained = load_file(folder / "cut" / "parameters.safetensors")
    same["model"] = all(torch.equal(plain[name].detach(), value) for name, value in trained.items())
    return same


def sampling(folder: Path) -> dict[str, bool]:
    """Whether completions are drawn by the model itself, as many as asked for."""
    trainer = make_trainer("opsd", folder, rollout_func=None, per_device_train_batch_size=4, max_steps=2)
    trainer.train()
    return {"sampled": logged(trainer)[-1]["generated_tokens"] > 2 * 4}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    results = resumption(folder) | sampling(folder / "sampling")
    if PartialState().is_main_process:
        print("RESULT " + json.dumps(results), flush=True)
    PartialState().destroy_process_group()
