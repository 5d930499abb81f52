"""Fixtures shared by all tests: a tiny Qwen3 student with the testbed's tokenizer, and datasets for it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder of shared data beside the checkout; tests that use it are skipped where it is absent."""
    if not SHARED.exists():
        pytest.skip("needs the shared data folder beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer():
    from trl_opd.testbed.tokenizer import build_tokenizer

    return build_tokenizer()


def make_model(tokenizer, seed: int = 0, hidden: int = 32, **overrides):
    """A random Qwen3 of a few thousand parameters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # Far from uniform: a fresh model's distributions are so flat that teacher and student would hardly differ.
        "initializer_range": 0.3,
    }
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**(settings | overrides)))


@pytest.fixture
def student(tokenizer):
    return make_model(tokenizer)


@pytest.fixture(scope="session")
def student_path(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("student")
    make_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def dataset():
    from datasets import Dataset

    from trl_opd.testbed.tasks import rows

    return Dataset.from_list(rows("train", 64))


def digit_reward(completions, **_):
    """A graded reward that random text varies in: the share of digits."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in texts]


def settings(tmp_path, **overrides):
    """Configuration values for a run of seconds on a CPU."""
    return {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 12,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
    } | overrides


def losses(trainer) -> list[float]:
    """The logged loss of every step."""
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def logged(trainer, name: str) -> list:
    """A metric of every step that logged it."""
    return [row[name] for row in trainer.state.log_history if name in row]


def assert_same_run(one, other) -> None:
    """Two trainers took the same steps: losses, gradient norms and weights."""
    assert losses(one) == pytest.approx(losses(other), rel=1e-5, abs=1e-7)
    assert logged(one, "grad_norm") == pytest.approx(logged(other, "grad_norm"), rel=1e-4)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)  # a tenth of what Adam moves in a step


def check_command(method: str, options: list[str]) -> None:
    """Refuse what `trl-opd train METHOD` would refuse before it loads a model."""
    from trl import get_peft_config

    from trl_opd import checks
    from trl_opd.cli import train
    from trl_opd.methods import METHODS, load
    from trl_opd.objectives import OBJECTIVES

    train.check_recipe(options, method)
    if not torch.cuda.is_available():
        options = [*options, "--use_cpu", "true"]
    data, config, model = train.parse(METHODS[method].config, options)
    rewards = train.named_functions(data)["reward_funcs"]
    checks.check_adapter(get_peft_config(model))
    if METHODS[method].kind == "off-policy":
        load(METHODS[method].trainer).check_settings(config, rewards)
        return
    objective = OBJECTIVES[method](config)
    checks.check_config(config, objective)
    checks.check_rewards(rewards, objective)
    checks.check_teacher(None, None, config, objective)
