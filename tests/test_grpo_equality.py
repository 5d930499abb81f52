"""GRPO through the pipeline is TRL's GRPO: same seed and data give the same losses and parameters."""

import pytest
import torch
import trl

from tests.conftest import digit_reward, losses, make_model, settings
from trl_opd import GRPOConfig, GRPOTrainer

VARIANTS = {
    "default": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "sequence mean": {"loss_type": "grpo", "gradient_accumulation_steps": 2},
    "token micro": {"loss_type": "bnpo", "gradient_accumulation_steps": 2},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0, "num_iterations": 2},
    "sapo": {"loss_type": "sapo", "num_iterations": 2},
    "two iterations, clip": {"num_iterations": 2, "epsilon_high": 0.28, "delta": 1.5},
    "reference KL": {"beta": 0.1, "num_iterations": 2},
    "temperature": {"temperature": 0.7},
    "truncated masked": {"mask_truncated_completions": True},
}


def train(trainer_class, config_class, model, tokenizer, dataset, tmp_path, **options):
    config = config_class(**settings(tmp_path, num_generations=2, max_completion_length=24, **options))
    trainer = trainer_class(model, digit_reward, config, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", VARIANTS)
def test_pipeline_grpo_equals_trl(name, student_path, tokenizer, dataset, tmp_path):
    options = VARIANTS[name] | {"model_init_kwargs": {"dtype": "float32"}}
    theirs = train(trl.GRPOTrainer, trl.GRPOConfig, student_path, tokenizer, dataset, tmp_path / "trl", **options)
    ours = train(GRPOTrainer, GRPOConfig, student_path, tokenizer, dataset, tmp_path / "ours", **options)
    assert len(losses(ours)) == 5
    assert losses(ours) == pytest.approx(losses(theirs), abs=2e-5)
    # TRL logs the entropy as a mean over micro-batches, which depends on their lengths; ours is that of all tokens.
    whole = options.get("gradient_accumulation_steps", 1) == 1
    for key in ("reward", "grad_norm", "clip_ratio/region_mean", "kl", *(["entropy"] if whole else [])):
        # A step whose tokens are all masked has no mean: None here, 0 in TRL.
        mine, reference = ([row[key] or 0.0 for row in t.state.log_history if key in row] for t in (ours, theirs))
        assert mine == pytest.approx(reference, abs=2e-4, rel=1e-3), key
    changed = 0.0
    start = dict(make_model(tokenizer).named_parameters())
    for (label, mine), reference in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-4, rtol=1e-3, msg=label)
        changed += (mine - start[label]).abs().sum().item()
    assert changed > 0.1
