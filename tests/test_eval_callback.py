"""Evaluation during training, end to end on a tiny model: it changes nothing but what it adds."""

import json

import pytest
from transformers import AutoTokenizer

from tests.conftest import digit_reward, losses, make_model, settings
from trl_opd import GRPOConfig, GRPOTrainer
from trl_opd.errors import UserError
from trl_opd.eval_callback import suite_of
from trl_opd.evals.live_model import LiveEngine, weights_fingerprint
from trl_opd.evals.runner import evaluate
from trl_opd.evals.suites import load_suite
from trl_opd.evals.transformers_engine import TransformersEngine

SUITE = {"eval_suite": "arithmetic", "eval_suite_steps": 2, "eval_suite_limit": 3, "eval_suite_max_new_tokens": 8}


def train(tmp_path, tokenizer, dataset, **options):
    config = GRPOConfig(**settings(tmp_path, **options))
    trainer = GRPOTrainer(make_model(tokenizer), digit_reward, config, dataset, processing_class=tokenizer)
    trainer.train()
    return trainer


def test_a_suite_is_run_logged_and_stored_and_training_does_not_notice(tmp_path, tokenizer, dataset):
    plain = train(tmp_path / "plain", tokenizer, dataset)
    trainer = train(tmp_path / "suite", tokenizer, dataset, chat_template_kwargs={"enable_thinking": False}, **SUITE)
    assert losses(trainer) == losses(plain)
    assert weights_fingerprint(trainer.model) == weights_fingerprint(plain.model)
    logged = {
        row["step"]: row["eval/arithmetic/avg@4"] for row in trainer.state.log_history if "eval/arithmetic/avg@4" in row
    }
    folders = sorted((tmp_path / "suite" / "evaluations").iterdir())
    assert [folder.name.rsplit("-", 1)[0] for folder in folders] == ["step-2", "step-4", "step-5"]
    stored = [json.loads((folder / "arithmetic" / "summary.json").read_text()) for folder in folders]
    assert logged == {step: one["metrics"]["accuracy"] for step, one in zip((2, 4, 5), stored, strict=True)}
    manifests = [json.loads((folder / "arithmetic" / "manifest.json").read_text()) for folder in folders]
    models = {manifest["settings"]["engine"]["model"] for manifest in manifests}
    assert len(models) == 3
    assert all(m["settings"]["engine"]["chat_template_kwargs"] == {"enable_thinking": False} for m in manifests)
    assert trainer.model.training


def test_a_model_in_memory_draws_what_its_files_do(student_path, tmp_path):
    from transformers import AutoModelForCausalLM

    (benchmark,) = load_suite("arithmetic")
    model = AutoModelForCausalLM.from_pretrained(student_path).train()
    advice = model.generation_config
    engine = LiveEngine(model, AutoTokenizer.from_pretrained(student_path), "live")
    with engine.drawing():
        evaluate(benchmark, engine, tmp_path / "live", limit=3)
    assert model.training
    assert model.generation_config is advice
    evaluate(benchmark, TransformersEngine(student_path), tmp_path / "stored", limit=3)
    live, stored = ((tmp_path / name / "generations" / "000.jsonl").read_text() for name in ("live", "stored"))
    assert live == stored


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_suite_limit": 3}, "eval_suite_limit would be ignored without eval_suite"),
        ({"eval_suite": "arithmetic"}, "eval_suite_steps is None: set how many steps"),
        ({"eval_suite": "arithmetics", "eval_suite_steps": 1}, "did you mean 'arithmetic'"),
        ({"eval_suite": "arithmetic", "eval_suite_steps": 1, "eval_suite_limit": 0}, "limit must be at least 1"),
    ],
)
def test_a_suite_that_cannot_be_run_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        suite_of(GRPOConfig(**settings(tmp_path, **options)))
