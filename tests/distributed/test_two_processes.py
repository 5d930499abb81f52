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


def launch(case: str, output_dir: Path, accumulation: int) -> list[dict[str, float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TWO_PROCESSES)]
    command += [
        "--main_process_port",
        port,
        "-m",
        "tests.distributed.run",
        case,
        str(output_dir),
        "2",
        str(accumulation),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=150,
        check=False,
    )  # fmt: skip
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(results[-1].removeprefix("RESULT "))


@pytest.mark.parametrize(("case", "accumulation"), [("grpo", 1), ("opsd", 2), ("opsd-one-rank-empty+lora", 1)])
def test_two_processes_equal_one(case, accumulation, tmp_path):
    one, two = train(case, str(tmp_path / "one"), 1, 1), launch(case, tmp_path / "two", accumulation)
    assert len(one) == 3
    # Logged means are means over micro-batches, as in TRL, so they depend on the split; losses and gradients do not.
    keys = ("loss", "grad_norm", "generated_tokens") if accumulation > 1 else one[0].keys()
    for alone, together in zip(one, two, strict=True):
        alone, together = ({key: row[key] for key in keys} for row in (alone, together))
        assert together == pytest.approx(alone, rel=2e-3, abs=2e-5)
    if "one-rank-empty" in case:
        assert one[0]["context/dropped_fraction"] == 0.5
