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
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    return [row["vllm/sync_difference"] for row in rows]


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
