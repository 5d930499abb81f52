"""The named GRPO baselines are TRL's GRPO with their papers' options, and the anchor is the moving average it says."""

import pytest
import torch
import trl

import trl_opd
from tests.conftest import digit_reward, losses, settings
from tests.distributed.run import make_trainer
from trl_opd.errors import UserError
from trl_opd.methods import METHODS
from trl_opd.teachers import causal_lm
from trl_opd.testbed import model_path

#: Method -> (options of ours beside its defaults, options of TRL's GRPOConfig that are to be the same).
ANCHOR = {"beta": 0.5, "sync_ref_model": True, "ref_model_mixup_alpha": 0.3, "ref_model_sync_steps": 1}
PRESETS = {
    "dr_grpo": ({}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": (
        {"num_iterations": 2},
        {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True, "num_iterations": 2},
    ),
    "grpo_ema": ({"anchor_beta": 0.5, "teacher_update_rate": 0.3}, ANCHOR),
    "grpo_ema, k3": (
        {"anchor_beta": 0.5, "teacher_update_rate": 0.3, "estimator": "k3", "divergence": "forward_kl"},
        ANCHOR | {"use_bias_correction_kl": False},
    ),
}


def train(trainer_class, config_class, dataset, folder, **options):
    common = {"max_completion_length": 28, "max_steps": 4, "model_init_kwargs": {"dtype": "float32"}}
    config = config_class(**settings(folder, per_device_train_batch_size=8, **common | options))
    trainer = trainer_class(str(model_path("base")), digit_reward, config, train_dataset=dataset)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_equals_trl(name, dataset, tmp_path):
    own, theirs = PRESETS[name]
    method = METHODS[name.partition(",")[0]]
    trainer, config = getattr(trl_opd, method.trainer), getattr(trl_opd, method.config)
    reference = train(trl.GRPOTrainer, trl.GRPOConfig, dataset, tmp_path / "trl", **theirs)
    plain = train(trl.GRPOTrainer, trl.GRPOConfig, dataset, tmp_path / "plain")
    ours = train(trainer, config, dataset, tmp_path / "ours", **own)
    key = "grad_norm" if name == "grpo_ema" else "loss"  # the value of k1's surrogate means nothing
    mine, theirs, others = ([row[key] for row in t.state.log_history if key in row] for t in (ours, reference, plain))
    assert mine == pytest.approx(theirs, rel=1e-3, abs=2e-5)
    assert mine != pytest.approx(others, rel=1e-2)
    moved = 0.0
    for (label, mine), other, start in zip(
        ours.model.named_parameters(), reference.model.parameters(), plain.model.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=2e-4, rtol=1e-3, msg=label)
        moved += (mine - start).abs().sum().item()
    assert moved > 0.1
    if method is METHODS["grpo_ema"]:
        # TRL syncs after each step, here the average is taken when the next rollouts are scored: one step behind.
        ours.scorers[0].update(ours.state.global_step)
        for (label, mine), other in zip(
            ours.scorers[0].average.items(), reference.ref_model.named_parameters(), strict=True
        ):
            torch.testing.assert_close(mine, other[1], atol=2e-4, rtol=1e-3, msg=label)


def weights(model) -> dict[str, torch.Tensor]:
    """Those that the anchor averages: a LoRA student's merged products, or the parameters."""
    layers = [(name, module) for name, module in model.named_modules() if hasattr(module, "get_delta_weight")]
    if layers:
        return {name: layer.get_delta_weight("default").detach().clone() for name, layer in layers}
    return {name: p.detach().clone() for name, p in causal_lm(model).named_parameters()}


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_the_anchor_after_k_steps_is_the_moving_average(lora, tmp_path):
    trainer = make_trainer("grpo_ema", tmp_path, lora=lora, max_steps=4, learning_rate=0.01)
    rate, seen = trainer.args.teacher_update_rate, [weights(trainer.model)]
    score = trainer._generate_and_score_completions

    def recording(inputs):
        if trainer.state.global_step:
            seen.append(weights(trainer.model))
        return score(inputs)

    trainer._generate_and_score_completions = recording
    trainer.train()
    assert rate == 0.05
    assert len(seen) == 4
    for name, found in trainer.scorers[0].average.items():
        expected = (1 - rate) ** 3 * seen[0][name]
        for step in (1, 2, 3):
            expected = expected + rate * (1 - rate) ** (3 - step) * seen[step][name]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4, msg=name)
    assert any((seen[3][name] - seen[0][name]).abs().max() > 1e-3 for name in seen[0])


def test_a_resumed_run_has_the_anchor_of_its_checkpoint(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01}
    whole = make_trainer("grpo_ema", tmp_path, max_steps=4, **options)
    whole.train()
    resumed = make_trainer("grpo_ema", tmp_path, max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    for name, value in whole.scorers[0].average.items():
        torch.testing.assert_close(resumed.scorers[0].average[name], value, atol=1e-6, rtol=1e-5)


def test_a_second_anchor_or_none_is_refused(tmp_path):
    for options, fragment in (
        ({"beta": 0.1}, "set anchor_beta instead"),
        ({"anchor_beta": 0.0}, "anchor_beta is 0.0"),
        ({"teacher_update_rate": 1.5}, "teacher_update_rate is 1.5"),
    ):
        with pytest.raises(UserError, match=fragment):
            make_trainer("grpo_ema", tmp_path, **options)
