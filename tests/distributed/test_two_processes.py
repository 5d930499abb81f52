"""Two processes do the same step as one on the same global batch, and never wait for each other in vain."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.run import train

ROOT = Path(__file__).parents[2]
TWO_PROCESSES = ROOT / "trainers" / "accelerate_configs" / "cpu.yaml"

#: All of them are run by one pair of processes, one after the other: starting a pair costs more than training.
CASES = (
    "grpo", "opd/3", "opsd/2", "opsd+half+lora", "sdpo", "sdpo+half", "sdpo+lora/3", "srpo", "srpo+half", "srpo/3",
    "exopd/2", "exopd+lora", "scope", "scope+lora/3",
)  # fmt: skip


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict[str, list[dict[str, float]]]:
    """What two processes logged, by case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TWO_PROCESSES),
        "--main_process_port", port, "-m", "tests.distributed.run", str(tmp_path_factory.mktemp("two")), "2", *CASES,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(results[-1].removeprefix("RESULT "))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, together, tmp_path):
    alone, shared = train(case, tmp_path, 1), together[case]
    assert len(alone) == len(shared) == 3
    # A prompt that rows share is read once a forward, so more forwards may read more tokens.
    assert all(two["teacher_tokens"] >= one["teacher_tokens"] for one, two in zip(alone, shared, strict=True))
    exact = [key for key in alone[0] if key != "teacher_tokens"]
    for one, two in zip(alone, shared, strict=True):
        # A mean over no token at all is logged as nothing.
        measured = [key for key in exact if one[key] is not None]
        assert all(two[key] is None for key in exact if key not in measured)
        assert {key: two[key] for key in measured} == pytest.approx(
            {key: one[key] for key in measured}, rel=2e-3, abs=2e-5
        )
    assert any(one["grad_norm"] > 0 for one in alone)
    if case.startswith("opsd+half"):
        assert alone[0]["context/dropped_fraction"] == 0.5
