"""The memory estimate against a run's own high-water mark, and what it says of devices and strategies."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import Qwen3Config

from trl_opd.memory import STRATEGIES, Run, Shape, estimate

ROOT = Path(__file__).parents[1]

#: Parameters dominate in the first (25 million, 400 MB with gradients and Adam), activations in the second.
SIZES = {
    "wide": {"vocab_size": 30_000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "length": 32},
    "long": {"vocab_size": 2_000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "length": 384},
}


def shape(config: Qwen3Config | None = None, **kwargs) -> Shape:
    config = config or Qwen3Config(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    return Shape.of(config, torch.bfloat16, **kwargs)


def test_the_shape_counts_parameters_without_making_them():
    layer = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64 + 2 * 16
    found = shape()
    assert found.parameters == found.trainable == 1000 * 64 + 3 * layer + 64
    assert (found.head, found.unit, found.kv_width, found.bytes_per) == (64_000, layer, 32, 2)


def test_an_adapter_is_what_is_trained():
    found = shape(peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert found.trainable == 3 * 4 * (64 + 64)
    assert found.adapted == 3 * 64 * 64


def test_what_lasts_is_counted_exactly():
    student = shape()
    run = Run(student=student, scorers=[student], average=True, states=1, rollouts=8, completion=100)
    assert estimate(run).lasting == {
        "parameters": 2 * student.parameters,
        "optimizer": 4 * student.parameters,
        "moving average": 4 * student.parameters,
        "teachers": 2 * student.parameters,
        "teacher states": 8 * 100 * 64 * 2,
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_divides_what_it_spreads_and_nothing_else(strategy):
    run = Run(student=shape(), scorers=[shape()], average=True, states=1, strategy=strategy)
    one, eight = estimate(run).lasting, estimate(replace(run, devices=8)).lasting
    divided = {name for name in one if eight[name] == one[name] / 8}
    assert all(eight[name] == one[name] for name in one if name not in divided)
    everything = {"parameters", "optimizer", "moving average", "teachers"}
    expected = {"fsdp2": everything, "zero3": everything, "zero2": {"optimizer"}}
    assert divided == expected.get(strategy, set())


def test_checkpointing_and_shorter_rows_take_less():
    run = Run(student=shape(), rows=4, checkpointing=False)
    peak = estimate(run).peak
    assert estimate(replace(run, checkpointing=True)).peak < peak
    assert estimate(replace(run, completion=256)).peak < peak


@pytest.mark.parametrize(
    ("method", "size"),
    [
        ("sdpo", "wide"),
        pytest.param("sdpo", "long", marks=pytest.mark.slow),
        pytest.param("grpo", "wide", marks=pytest.mark.slow),
        pytest.param("grpo", "long", marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_near_the_measured_peak(method, size, tmp_path):
    """Above the idle process: at most 1.4 times as much is used as was said, and at least half of it."""
    command = [sys.executable, "-m", "tests.memory_run", method, json.dumps(SIZES[size]), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 1 / 1.4 < found["estimated"] / found["measured"] < 2.0, found
