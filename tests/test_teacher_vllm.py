"""A teacher on a real vLLM server equals the same teacher here; slow, and only where a Python with vLLM is named.

TRL_OPD_VLLM_PYTHON=/path/to/vllm/venv/bin/python python -m pytest tests/test_teacher_vllm.py -m slow -s
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
import requests
from datasets import Dataset

from tests.conftest import losses, make_model
from tests.distributed.run import GLOBAL_BATCH, make_trainer
from tests.test_teacher_server import logged, refused
from trl_opd.testbed.tasks import rows

PYTHON = os.environ.get("TRL_OPD_VLLM_PYTHON")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="TRL_OPD_VLLM_PYTHON names no Python with vLLM")]


@pytest.fixture(scope="module")
def teacher(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    make_model(tokenizer, seed=3, head_dim=32).save_pretrained(path)  # vLLM's CPU kernels take no smaller heads
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def url(teacher, tmp_path_factory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", teacher, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--max-model-len", "256", "--max-logprobs", "100"]
    command += ["--enforce-eager", "--max-num-seqs", "16"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as server:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
        try:
            while not is_up(address):
                assert server.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(1)
            yield address
        finally:
            server.terminate()


def is_up(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=2).ok
    except requests.RequestException:
        return False


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "k1"},
        {"estimator": "topk", "support_size": 20, "support_owner": "teacher"},
    ],
    ids=["k1", "topk"],
)
def test_a_vllm_server_equals_the_teacher_here(options, url, teacher, tmp_path, capsys):
    here = make_trainer("opd", tmp_path / "here", teacher_model=None, teacher_model_name_or_path=teacher, **options)
    here.train()
    named = {"teacher_model": None, "teacher_server": url, "teacher_model_name_or_path": teacher}
    there = make_trainer("opd", tmp_path / "there", **named | options)
    started = time.monotonic()
    there.train()
    seconds = time.monotonic() - started
    probe = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher server:"))
    assert losses(there) == pytest.approx(losses(here), rel=1e-5, abs=1e-6)
    assert logged(there, "grad_norm") == pytest.approx(logged(here, "grad_norm"), rel=1e-4)
    assert logged(there, "teacher/missing_fraction") == [0.0] * 3
    largest = max(abs(a - b) for a, b in zip(losses(there), losses(here), strict=True))
    with capsys.disabled():
        print(f"\n{options}: {probe}; largest difference of a loss {largest:.1e}; 3 x 12 rows in {seconds:.1f} s")


def test_a_vllm_server_does_not_scale_by_the_temperature_and_is_refused_there(url, tmp_path):
    options = {"teacher_model": None, "teacher_server": url, "estimator": "k1", "temperature": 0.7}
    refused("set temperature: 1.0", tmp_path, **options)


def test_a_vllm_server_that_gives_too_few_likeliest_tokens_is_refused(url, tmp_path):
    options = {"estimator": "topk", "support_size": 101, "support_owner": "teacher"}
    refused("--max-logprobs 101", tmp_path, teacher_model=None, teacher_server=url, **options)


def test_rows_that_are_longer_than_a_vllm_server_takes_are_dropped_and_counted(url, tmp_path):
    options = {"teacher_model": None, "teacher_server": url, "estimator": "k1", "max_steps": 1}
    data = rows("train", 16)
    data[5]["prompt"] = [{"role": "user", "content": "1" * 260}]
    trainer = make_trainer("opd", tmp_path, train_dataset=Dataset.from_list(data), **options)
    trainer.train()
    assert trainer.scorers[0].max_length == 255
    assert logged(trainer, "context/dropped_fraction") == [pytest.approx(1 / GLOBAL_BATCH)]
    assert logged(trainer, "teacher/missing_fraction") == [0.0]
