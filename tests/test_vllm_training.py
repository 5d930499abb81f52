"""Rollouts by vLLM for real, on a CPU: needs an environment with vLLM (docs/vllm.md); run with -m vllm."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LORA = ["--use_peft", "true", "--lora_r", "8", "--lora_alpha", "32", "--lora_target_modules", "q_proj", "v_proj"]
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed in this environment"),
]

#: A sync that forgets to merge the adapter, or one that copies nothing.
STALE = """
import sys
import peft
from trl.generation.vllm_generation import VLLMGeneration
from trl_opd.cli.main import entry

if sys.argv.pop(1) == "adapter":
    peft.PeftModel.merge_adapter = peft.PeftModel.unmerge_adapter = lambda *_, **__: None
else:
    VLLMGeneration._iter_named_params = lambda self: iter(())
sys.exit(entry())
"""


def train(tmp_path, method: str, *arguments: str, start=("-m", "trl_opd")) -> subprocess.CompletedProcess:
    recipe = ["--config", "trainers/recipes/testbed-vllm/grpo.yaml" if method == "grpo" else f"{method}.yaml"]
    if method != "grpo":
        recipe[1] = _with_vllm(tmp_path, method)
    small = ["--max_steps", "3", "--per_device_train_batch_size", "16", "--output_dir", str(tmp_path / "run")]
    command = [sys.executable, *start, "train", method, *recipe, *small, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)


def _with_vllm(tmp_path, method: str) -> str:
    """The testbed's recipe of a method with the settings for vLLM of the recipe that has them."""
    with_vllm = (ROOT / "trainers" / "recipes" / "testbed-vllm" / "grpo.yaml").read_text()
    settings = [line for line in with_vllm.splitlines() if line.startswith(("use_vllm", "vllm_"))]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join([*settings, (ROOT / "trainers" / "recipes" / "testbed" / f"{method}.yaml").read_text()]))
    return str(path)


def differences(tmp_path) -> list[float]:
    return [row["vllm/sync_difference"] for row in rows(tmp_path / "run" / "log.jsonl")]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("adapter", [[], LORA], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["grpo", "opsd", "sdpo"])
def test_three_steps_with_a_check_after_each_sync(method, adapter, tmp_path):
    done = train(tmp_path, method, *adapter, *(["--learning_rate", "1e-3"] if adapter else []))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    print(method, differences(tmp_path))
    assert len(differences(tmp_path)) == 3
    assert all(0 < difference < 0.02 for difference in differences(tmp_path))


@pytest.mark.parametrize(("what", "adapter"), [("adapter", LORA), ("weights", [])])
def test_a_stale_engine_stops_the_run(what, adapter, tmp_path):
    rate = "1e-3" if adapter else "5e-5"
    done = train(tmp_path, "grpo", *adapter, "--learning_rate", rate, start=("-c", STALE, what))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "at step 1, vLLM gives bit for bit what it gave before" in done.stderr


SUITE = ["--eval_suite", "arithmetic", "--eval_suite_steps", "1", "--eval_suite_limit", "4"]


@pytest.mark.parametrize("adapter", [[], LORA], ids=["full", "lora"])
def test_a_suite_is_drawn_by_the_trainers_engine_and_training_does_not_notice(adapter, tmp_path):
    logs = {}
    for name, suite in (("plain", []), ("suite", SUITE)):
        done = train(tmp_path / name, "grpo", *adapter, *(["--learning_rate", "1e-3"] if adapter else []), *suite)
        assert done.returncode == 0, done.stdout + done.stderr
        logs[name] = rows(tmp_path / name / "run" / "log.jsonl")
    losses = {name: [row["loss"] for row in log] for name, log in logs.items()}
    print(losses)
    assert losses["suite"] == losses["plain"]
    assert any(losses["plain"])
    logged = [row["eval/arithmetic/avg@4"] for row in logs["suite"]]
    folders = sorted((tmp_path / "suite" / "run" / "evaluations").glob("step-*/arithmetic"))
    summaries, manifests = (
        [json.loads((folder / f"{name}.json").read_text()) for folder in folders] for name in ("summary", "manifest")
    )
    print(logged)
    assert logged == [summary["metrics"]["accuracy"] for summary in summaries]
    engines = [manifest["settings"]["engine"] for manifest in manifests]
    assert [engine["engine"] for engine in engines] == ["vllm"] * 3
    assert len({engine["model"] for engine in engines if engine["model"].startswith("live:")}) == 3


def test_a_suite_draws_what_the_harness_draws_from_the_saved_weights(tmp_path):
    done = train(tmp_path, "grpo", "--max_steps", "1", *SUITE)
    assert done.returncode == 0, done.stdout + done.stderr
    model = ["--model", str(tmp_path / "run" / "model"), "--engine", "vllm", "--dtype", "bfloat16"]
    command = [*model, "--benchmark", "arithmetic", "--limit", "4", "--output_dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "trl_opd", "eval", *command], cwd=ROOT, check=True, timeout=300)
    (live,) = (tmp_path / "run" / "evaluations").glob("step-1-*/arithmetic")
    drawn, stored = (
        {(row["problem_id"], row["index"]): row for file in folder.glob("generations/*.jsonl") for row in rows(file)}
        for folder in (live, tmp_path / "arithmetic")
    )
    same = sum(drawn[key]["completion"] == stored[key]["completion"] for key in stored)
    print(same, "of", len(stored))
    assert drawn.keys() == stored.keys()
    assert same >= 0.75 * len(stored)  # bfloat16 rounds differently beside other requests


def test_a_suite_that_the_engine_has_no_room_for_is_refused_before_the_first_step(tmp_path):
    done = train(tmp_path, "grpo", *SUITE, "--eval_suite_max_new_tokens", "250", "--vllm_max_model_length", "200")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "exceed the 200 tokens that the running vLLM engine has room for" in done.stderr
    assert "step 1/3" not in done.stdout + done.stderr
