"""`trl-opd train`: what a user types, what is refused, and what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import make_model
from trl_opd.cli.main import COMMANDS, main
from trl_opd.methods import METHODS


@pytest.fixture(scope="module")
def model_path(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def recipe(tmp_path, **values) -> str:
    settings = {
        "dataset_name": "testbed",
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 8,
        "max_completion_length": 8,
        "max_steps": 3,
        "logging_steps": 1,
        "report_to": "none",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings | values))
    return str(path)


def opsd_recipe(tmp_path, **values) -> str:
    return recipe(tmp_path, reference_template="{prompt}\n{solution}\n", dtype="float32", **values)


def opsd_command(path: str, model_path: str, output_dir) -> list[str]:
    return f"train opsd --config {path} --model_name_or_path {model_path} --output_dir {output_dir}".split()


def run_record(folder) -> dict:
    return json.loads((Path(folder) / "run.json").read_text())


def log_rows(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_record_log_and_model_and_is_not_repeated(tmp_path, model_path, capsys):
    out = tmp_path / "run"
    command = ["train", "opsd", "--config", opsd_recipe(tmp_path), "--model_name_or_path", model_path]
    command += ["--output_dir", str(out)]
    assert main(command) == 0
    record = run_record(out)
    assert record["status"] == "finished"
    assert record["steps"] == 3
    assert record["method"] == "opsd"
    assert record["config"]["max_completion_length"] == 8
    assert "entry_clip" not in record["config"]
    assert record["generated_tokens"] > 0
    assert record["peak_memory_bytes"] > 1e8
    assert [row["step"] for row in log_rows(out)] == [1, 2, 3]
    assert (out / "model" / "model.safetensors").exists()
    written = (out / "run.json").stat().st_mtime_ns
    assert main(command) == 0
    assert "is finished" in capsys.readouterr().out
    assert (out / "run.json").stat().st_mtime_ns == written


def test_killed_and_started_again_gives_the_undisturbed_run(tmp_path, model_path):
    path = opsd_recipe(tmp_path, max_steps=40, save_steps=5, save_total_limit=2)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(out):
        return [sys.executable, "-m", "trl_opd", "train", "opsd", "--config", path,
                "--model_name_or_path", model_path, "--output_dir", str(out)]  # fmt: skip

    assert main(command(tmp_path / "whole")[3:]) == 0
    killed = tmp_path / "killed"
    with subprocess.Popen(
        command(killed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        deadline = time.monotonic() + 90
        while not (killed / "checkpoint-5" / "trl_opd_state.json").exists():
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert run_record(killed)["status"] == "running"
    done = subprocess.run(command(killed), env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert "resuming from" in done.stdout
    undisturbed, resumed = log_rows(tmp_path / "whole"), log_rows(killed)
    assert [row["step"] for row in resumed] == list(range(1, 41))
    for key in ("loss", "grad_norm", "generated_tokens", "teacher_tokens"):
        assert [row[key] for row in resumed] == pytest.approx([row[key] for row in undisturbed], abs=1e-6), key


def test_a_failed_run_says_so_in_its_record(tmp_path, model_path):
    path = opsd_recipe(tmp_path, reward_funcs=["tests.cli.test_train.broken_reward"])
    with pytest.raises(RuntimeError, match="no such luck"):
        main(
            ["train", "opsd", "--config", path, "--model_name_or_path", model_path, "--output_dir", str(tmp_path / "r")]
        )
    record = run_record(tmp_path / "r")
    assert record["status"] == "failed"
    assert record["error"] == "RuntimeError: no such luck"


def broken_reward(completions, **_):
    raise RuntimeError("no such luck")


#: What goes wrong -> (command, a fragment of the message); RECIPE, PLAIN and MODEL stand for paths.
BAD = {
    "no command": ("", "No command"),
    "unknown command": ("trane", "no command 'trane'"),
    "unknown method": ("train opsdd", "did you mean 'opsd'"),
    "no recipe": ("train opsd --config missing.yaml", "There is no recipe missing.yaml"),
    "nothing after config": ("train opsd --config", "--config is followed by nothing"),
    "unknown option": ("train opsd --config RECIPE --lerning_rate 1", "did you mean '--learning_rate'"),
    "no model": ("train opsd --config RECIPE", "model_name_or_path is missing"),
    "wrong model path": ("train opsd --config RECIPE --model_name_or_path ./nowhere", "no config.json"),
    "wrong testbed model": ("train opsd --config RECIPE --model_name_or_path testbed/bse", "bse"),
    "wrong data path": (
        "train opsd --config RECIPE --model_name_or_path MODEL --dataset_name no.jsonl",
        "There is no data file no.jsonl",
    ),
    "no solution column": (
        "train opsd --config RECIPE --model_name_or_path MODEL --solution_column proof",
        "no column 'proof'",
    ),
    "no teacher": ("train opd --config PLAIN --model_name_or_path MODEL", "external teacher and none"),
    "wrong teacher": (
        "train opd --config PLAIN --model_name_or_path MODEL --teacher_model_name_or_path ./nowhere",
        "no config.json",
    ),
    "group of one": (
        "train grpo --config PLAIN --model_name_or_path MODEL --num_generations 1 --reward_funcs math_reward",
        "num_generations=1",
    ),
    "no reward": ("train grpo --config PLAIN --model_name_or_path MODEL", "no reward function"),
    "unknown reward": (
        "train grpo --config PLAIN --model_name_or_path MODEL --reward_funcs maths_reward",
        "did you mean 'math_reward'",
    ),
    "sizes do not divide": ("train grpo --config PLAIN --model_name_or_path MODEL --num_generations 3", "divisible"),
    "ignored option": (
        "train opsd --config RECIPE --model_name_or_path MODEL --scale_rewards batch",
        "scale_rewards",
    ),
    "bad template": (
        "train opsd --config RECIPE --model_name_or_path MODEL --reference_template {prompt}",
        "{solution}",
    ),
    "empty limit": ("train opsd --config RECIPE --model_name_or_path MODEL --dataset_limit 0", "no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_status_2(case, tmp_path, model_path, capsys):
    command, fragment = BAD[case]
    write = recipe if "PLAIN" in command else opsd_recipe
    names = {"RECIPE": write(tmp_path), "PLAIN": write(tmp_path), "MODEL": model_path}
    argv = [names.get(argument, argument) for argument in command.split()]
    if argv[:1] == ["train"] and "--config" in argv[:-1]:
        argv += ["--output_dir", str(tmp_path / "out")]
    assert main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()
    ours = [line for line in error if line.startswith("error: ")]
    assert len(ours) == 1
    assert fragment in ours[0]
    assert "Traceback" not in "\n".join(error)


def test_unknown_recipe_key_names_the_nearest(tmp_path, capsys):
    path = recipe(tmp_path, max_stepps=3)
    assert main(["train", "grpo", "--config", path]) == 2
    assert "did you mean 'max_steps'" in capsys.readouterr().err


def test_another_configuration_in_the_same_folder_is_refused(tmp_path, model_path, capsys):
    path = opsd_recipe(tmp_path, max_steps=1)
    command = opsd_command(path, model_path, tmp_path / "r")
    assert main(command) == 0
    assert main([*command, "--learning_rate", "0.5"]) == 2
    assert "learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], *(["train", name, "--help"] for name in METHODS)])
def test_help_reads(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: trl-opd")
    assert set(COMMANDS) <= set(out.split()) or argv != ["--help"]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trl-opd 0.")


def test_too_few_rows_for_one_step_are_refused(tmp_path, model_path, capsys):
    path = opsd_recipe(tmp_path, dataset_limit=4)
    command = opsd_command(path, model_path, tmp_path / "r")
    assert main(command) == 2
    assert "has 4 rows, but one rollout batch takes 8 prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "fragment"),
    [("", "is empty"), ("no json\n", "cannot be read as jsonl"), ('{"prompt": 3}\n' * 9, "int values")],
)
def test_a_data_file_that_cannot_be_used_is_refused(content, fragment, tmp_path, model_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text(content)
    options = ["--model_name_or_path", model_path, "--dataset_name", str(data), "--output_dir", str(tmp_path / "r")]
    assert main(["train", "grpo", "--config", recipe(tmp_path, reward_funcs=["math_reward"]), *options]) == 2
    assert fragment in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--learning_rate abc", "--max_steps 0", "--seed -1", "--gradient_accumulation_steps 0"]
)
def test_values_that_cannot_work_are_one_sentence(option, tmp_path, model_path, capsys):
    options = ["--model_name_or_path", model_path, "--output_dir", str(tmp_path / "r"), *option.split()]
    assert main(["train", "opsd", "--config", opsd_recipe(tmp_path), *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert option.split()[0].lstrip("-") in lines[0]
