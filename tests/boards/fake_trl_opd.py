"""A stand-in for `trl-opd train` and `trl-opd eval`: writes the same files in milliseconds, and resumes as they do.

Results depend on the method, the seed and the step alone, so an interrupted run must end as an undisturbed one does.
FAKE_SECONDS is how long a step takes; FAKE_TROUBLE="KIND STEP RUN" is what befalls one run at one step of training:
`fail`, `fail_once`, `hang`, `disk_full` or `refuse`.
"""

import argparse
import errno
import fcntl
import json
import math
import os
import random
import sys
import time
from pathlib import Path

STEPS = 30
SKILL = {"grpo": 0.50, "opd": 0.72, "opsd": 0.53}
HOSTILE = "</script><img src=x onerror=alert(1)> {{ 7 * 7 }} <b>&amp;"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("train", "eval"))
    parser.add_argument("method", nargs="?")
    for flag in ("config", "output_dir", "model", "benchmark", "data_dir"):
        parser.add_argument(f"--{flag}")
    for flag in ("seed", "n", "limit", "max_new_tokens", "fail_at"):
        parser.add_argument(f"--{flag}", type=int)
    for flag in ("learning_rate", "eval_suite"):
        parser.add_argument(f"--{flag}")
    arguments, _ = parser.parse_known_args()  # model, rows, budget: the same for all
    folder = Path(arguments.output_dir)
    if arguments.kind == "eval":
        folder = folder / arguments.benchmark
    folder.mkdir(parents=True, exist_ok=True)
    writer = (folder / "writer").open("a")
    try:
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (folder / "TWO_WRITERS").touch()
        return 3
    writer.write(f"{os.getpid()}\n")
    writer.flush()
    return train(arguments, folder) if arguments.kind == "train" else evaluate(arguments, folder)


def pause() -> None:
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))


def trouble(step: int, folder: Path) -> None:
    kind, when, run = os.environ.get("FAKE_TROUBLE", "none 0 -").split()
    if folder.parent.name != run or step != int(when):
        return
    if kind == "hang":
        print("waiting for a lock that nobody gives", flush=True)
        time.sleep(600)
    if kind == "disk_full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if kind == "refuse":
        print("error: this setting cannot work; choose another.")
        sys.exit(2)
    if kind == "fail" or not (folder / "failed_once").exists():
        (folder / "failed_once").touch()
        raise RuntimeError("the device fell off the bus")


def train(arguments: argparse.Namespace, folder: Path) -> int:
    checkpoint = folder / "checkpoint.json"
    done = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    if (folder / "model").exists():
        print("This run is finished.")
        return 0
    for step in range(done + 1, STEPS + 1):
        if step == arguments.fail_at:
            write(folder / "run.json", {"status": "failed", "error": "gone", "step": step, "total_steps": STEPS})
            raise RuntimeError(f"the loss is <nan> at step {step}")
        pause()
        trouble(step, folder)
        noise = random.Random(f"{arguments.method} {arguments.seed} {step}").gauss(0, 0.05)
        reward = SKILL[arguments.method] * (1 - math.exp(-step / 8)) + noise
        row = {"step": step, "seconds": 2.0 * step, "generated_tokens": 4096 * step, "loss": 0.1, "reward": reward}
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        if step % 5 == 0:
            write(checkpoint, {"step": step})
        spent = {"seconds": 2.0 * step, "generated_tokens": 4096 * step}
        write(folder / "run.json", {"status": "running", "step": step, "total_steps": STEPS} | spent)
    (folder / "model").mkdir()
    skill = SKILL[arguments.method] + 0.01 * (arguments.seed - 1)
    write(folder / "model" / "skill.json", {"skill": skill})
    record = {
        "status": "finished", "method": arguments.method, "seed": arguments.seed, "seconds": 2.0 * STEPS,
        "steps": STEPS, "generated_tokens": 4096 * STEPS, "teacher_tokens": 4096 * STEPS,
        "peak_memory_bytes": 312 * 2**20, "versions": {"trl": "1.16.0", "torch": "2.13.0"},
        "config": {"learning_rate": 3e-4, "num_generations": 8, "max_steps": STEPS}, "command": "trl-opd train",
    }  # fmt: skip
    if arguments.eval_suite:
        record["validation"] = [[step, validated(arguments, step)] for step in (10, 20, STEPS)]
    write(folder / "run.json", record)
    return 0


def validated(arguments: argparse.Namespace, step: int) -> float:
    """The smaller the rate the better, and the later the better."""
    return round(0.9 - 100 * float(arguments.learning_rate) + step / 1000, 6)


def evaluate(arguments: argparse.Namespace, folder: Path) -> int:
    model = Path(arguments.model)
    skill = json.loads((model / "skill.json").read_text())["skill"] if model.exists() else 0.3
    problems, answers = arguments.limit or 40, arguments.n or 4
    stored, judged = folder / "generations" / "000.jsonl", folder / "verdicts" / "fake" / "000.jsonl"
    for file in (stored, judged):
        file.parent.mkdir(parents=True, exist_ok=True)
    done = len(stored.read_text().splitlines()) if stored.exists() else 0
    settings = {"data": "d41d8cd9", "n": answers, "problems": problems, "engine": {"model": str(model)}}
    write(folder / "manifest.json", {"format": 2, "settings": settings, "scoring": "fake"})
    keys = [(problem, index) for problem in range(problems) for index in range(answers)]
    for problem, index in keys[done:]:
        if index == 0:
            pause()
        row = {"problem_id": f"sum-{problem:03}", "index": index}
        logit = math.log(skill / (1 - skill)) - random.Random(problem).gauss(0, 1.5)
        right = random.Random(f"{skill} {problem} {index}").random() < 1 / (1 + math.exp(-logit))
        completion = f"The sum is \\boxed{{{problem}}}." if right else HOSTILE
        asked = {"prompt": f"What is {problem} + 0?", "completion": completion}
        text = row | asked | {"tokens": 9, "finish_reason": "stop"}
        verdict = row | {"correct": right, "extracted": str(problem) if right else None, "reason": ""}
        with stored.open("a") as generations:
            generations.write(json.dumps(text) + "\n")
        with judged.open("a") as verdicts:
            verdicts.write(json.dumps(verdict) + "\n")
    write(folder / "summary.json", {"metrics": {"problems": problems, "accuracy": skill, "truncated_rate": 0.01}})
    return 0


def write(path: Path, value: dict) -> None:
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(value))
    scratch.replace(path)


if __name__ == "__main__":
    sys.exit(main())
