"""Starts a module of this folder on two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "trainers" / "accelerate_configs"


def launch(config: str, module: str, *arguments: str, timeout: float = 150, **environment: str) -> Any:
    """Runs `python -m tests.distributed.MODULE` by `accelerate launch`; returns the JSON of its line RESULT."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config),
        "--main_process_port", port, "-m", f"tests.distributed.{module}", *arguments,
    ]  # fmt: skip
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout, check=False
    )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert results, done.stdout[-2000:] + done.stderr[-4000:]
    assert "find_unused_parameters" not in done.stderr, "DDP looks for unused parameters, and there are none"
    return json.loads(results[-1].removeprefix("RESULT "))
