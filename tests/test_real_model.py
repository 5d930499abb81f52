"""A real pretrained model and real GSM8K rows, through the README's commands: slow, needs the shared folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: What a local copy of GSM8K needs besides the recipe: its columns have other names than on the hub.
COLUMNS = '{"problem": "problem", "solution": "solution", "answer": "answer"}'
LOCAL = ["--column_map", COLUMNS, "--answer_pattern", "(.+)"]
SMALL = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_completion_length", "64"]
CPU = ["--use_cpu", "true", "--bf16", "false", "--dtype", "float32"]


@pytest.fixture(scope="module")
def smollm2(shared, tmp_path_factory):
    path = tmp_path_factory.mktemp("smollm2") / "model"
    tool = [sys.executable, str(shared / "tools" / "get_model.py"), "smollm2-135m-instruct", str(path)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "gguf"], check=True)
    subprocess.run(tool, check=True, timeout=600)
    return path


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "trl_opd", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("method", "group"), [("grpo", "4"), ("opsd", "1")])
def test_three_steps_and_an_evaluation_of_twenty_problems(method, group, smollm2, shared, tmp_path):
    rows = str(shared / "data" / "gsm8k_train_2000.jsonl")
    recipe = ["--config", f"trainers/recipes/gsm8k/{method}.yaml", "--dataset_name", rows, *LOCAL, *SMALL, *CPU]
    steps = ["--max_steps", "3", "--num_generations", group, "--model_name_or_path", str(smollm2)]
    print(run("train", method, *recipe, *steps, "--output_dir", str(tmp_path / "run")))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["steps"] == 3
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(abs(row["loss"]) < 100 for row in log)
    if method == "opsd":
        assert all(row["grad_norm"] > 0 for row in log)
        assert log[0]["context/active_fraction"] == 1.0
    out = tmp_path / "eval"
    arguments = ["--model", str(tmp_path / "run" / "model"), "--benchmark", "gsm8k", "--data-dir", str(shared / "data")]
    print(run("eval", *arguments, "--limit", "20", "--max_new_tokens", "128", "--output_dir", str(out)))
    (summary,) = out.rglob("summary.json")
    (verdicts,) = summary.parent.glob("verdicts/*/*.jsonl")
    assert len(verdicts.read_text().splitlines()) == 20
