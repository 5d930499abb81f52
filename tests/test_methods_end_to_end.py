"""Every method through the real TRL, transformers and PEFT, on a tiny model and deterministic rollouts."""

import copy
import math

import pytest
import torch
from datasets import Dataset

import trl_opd
from tests.conftest import losses, make_model, settings
from tests.distributed.run import EXTERNAL, GLOBAL_BATCH, OPTIONS, REWARDS, make_trainer
from tests.objectives.bench import kl
from trl_opd.contexts import Context
from trl_opd.divergences import entropy
from trl_opd.errors import UserError
from trl_opd.methods import METHODS
from trl_opd.testbed.tasks import rows

REVERSE = {"divergence": "reverse_kl", "jsd_beta": None, "estimator": "full", "support_size": None}


def logged(trainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def buffered(trainer, name: str) -> torch.Tensor:
    """A tensor of the last rollout batch, all of its micro-batches."""
    return torch.cat([batch[name] for batch in trainer._buffered_inputs])


def record_reads(scorer) -> list[tuple[int, ...]]:
    """The completions that a scorer reads from now on."""
    seen, read = [], scorer.read

    def recording(ids, mask, width, *shared):
        for row, row_mask in zip(ids[:, -width:], mask[:, -width:], strict=True):
            seen.append(tuple(row[row_mask.bool()].tolist()))
        return read(ids, mask, width, *shared)

    scorer.read = recording
    return seen


def completions(trainer, chosen: torch.Tensor) -> list[tuple[int, ...]]:
    ids, mask = buffered(trainer, "completion_ids"), buffered(trainer, "completion_mask").bool()
    return [tuple(ids[row][mask[row]].tolist()) for row in chosen.nonzero().squeeze(-1)]


def hopeless_reward(completions, log_extra, **_):
    log_extra("feedback", ["try again"] * len(completions))
    return [0.0] * len(completions)


def perfect_reward(completions, **_):
    return [1.0] * len(completions)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("method", ["grpo", "grpo_ema", "opd", "opsd", "sdpo", "srpo", "exopd", "scope"])
def test_accumulation_gives_the_steps_of_one_batch(method, lora, tmp_path):
    runs = []
    for steps in (1, 4):
        options = {"per_device_train_batch_size": GLOBAL_BATCH // steps, "gradient_accumulation_steps": steps}
        options["max_steps"] = 2
        if method == "grpo":
            options["aggregation"] = "token-global"
        trainer = make_trainer(method, tmp_path / str(steps), lora=lora, **options)
        trainer.train()
        runs.append(trainer)
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-3, abs=2e-6)
    norms = [logged(trainer, "grad_norm") for trainer in runs]
    assert norms[1] == pytest.approx(norms[0], rel=2e-3)
    assert min(norms[0]) > 0
    assert logged(runs[1], "generated_tokens") == logged(runs[0], "generated_tokens")
    # A prompt that rows share is read once a forward, so more forwards may read more tokens.
    assert all(many >= one for one, many in zip(*(logged(run, "teacher_tokens") for run in runs), strict=True))
    assert ("lora" in next(name for name, p in runs[0].model.named_parameters() if p.requires_grad)) == lora


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("method", ["sdpo", "srpo", "scope"])
def test_the_teacher_reads_the_rows_with_divergence_weight_and_no_others(method, steps, tmp_path):
    options = {"per_device_train_batch_size": GLOBAL_BATCH // steps, "gradient_accumulation_steps": steps}
    trainer = make_trainer(method, tmp_path, max_steps=1, **options)
    seen = record_reads(trainer.scorers[0])
    trainer.train()
    weighted = (buffered(trainer, "kl_weight") != 0).any(-1)
    assert 0 < weighted.sum() < GLOBAL_BATCH
    assert sorted(seen) == sorted(completions(trainer, weighted))
    # The other rows' scores were never read: they stay 0 and so does what depends on them.
    assert (buffered(trainer, "scorer_logps_0")[~weighted] == 0).all()


def test_both_scorers_of_a_trust_region_read_the_same_rows(tmp_path):
    options = {"teacher_weights": "trust-region", "estimator": "full", "support_size": None, "max_steps": 2}
    trainer = make_trainer("sdpo", tmp_path, **options)
    start, live = map(record_reads, trainer.scorers)
    trainer.train()
    assert start
    assert start == live
    assert min(logged(trainer, "grad_norm")) > 0


def test_sdpo_reads_rows_whose_group_has_another_success(tmp_path):
    trainer = make_trainer("sdpo", tmp_path, max_steps=1)
    trainer.train()
    lengths = buffered(trainer, "completion_mask").sum(-1) - 1  # a token is a character; the last one ends the turn
    assert logged(trainer, "context/active_fraction")[0] == pytest.approx(
        (buffered(trainer, "kl_weight") != 0).any(-1).float().mean().item()
    )
    assert torch.equal(buffered(trainer, "counted").bool().any(-1), (buffered(trainer, "kl_weight") != 0).any(-1))
    assert 0 < (lengths % 2 == 0).sum() < GLOBAL_BATCH


def test_srpo_distils_wrong_rows_and_rewards_the_others(tmp_path):
    trainer = make_trainer("srpo", tmp_path, max_steps=1)
    trainer.train()
    mask = buffered(trainer, "completion_mask").bool()
    kl_weight, pg_weight = buffered(trainer, "kl_weight"), buffered(trainer, "pg_weight")
    right = (mask.sum(-1) - 1) % 2 == 0
    distilled = (kl_weight != 0).any(-1)
    assert not (distilled & right).any()
    assert torch.equal((pg_weight != 0).any(-1), ~distilled)
    assert kl_weight[distilled][mask[distilled]].mean().item() == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(buffered(trainer, "counted").bool(), mask)


def test_r7_srpo_weighs_by_the_teacher_s_entropy_over_the_whole_vocabulary(tmp_path):
    trainer = make_trainer("srpo", tmp_path, max_steps=1, teacher_weights="frozen", teacher_update_rate=0.05)
    trainer.train()
    weights = buffered(trainer, "kl_weight")
    live = weights != 0
    states = [state for batch in trainer._buffered_inputs for state in batch["scorer_states_0"] if state is not None]
    hidden = torch.cat(states)
    head = trainer.scorers[0].head
    raw = torch.exp(-entropy(head.logps(head.project(hidden)).detach()))
    torch.testing.assert_close(weights[live], raw / raw.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_r2_an_all_wrong_group_under_srpo_gives_zero_gradient(lora, tmp_path):
    trainer = make_trainer("srpo", tmp_path, lora=lora, reward_funcs=hopeless_reward, weight_decay=0.0)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    seen = record_reads(trainer.scorers[0])
    trainer.train()
    assert losses(trainer) == [0.0] * 3
    assert logged(trainer, "grad_norm") == [0.0] * 3
    assert seen == []
    assert all(torch.equal(p, q) for p, q in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("method", ["sdpo", "srpo"])
def test_feedback_reaches_the_teacher_of_an_all_wrong_group(method, tmp_path):
    trainer = make_trainer(method, tmp_path, reward_funcs=hopeless_reward, use_feedback=True, max_steps=2)
    seen = record_reads(trainer.scorers[0])
    trainer.train()
    assert len(seen) == 2 * GLOBAL_BATCH
    assert logged(trainer, "context/active_fraction") == [1.0, 1.0]
    assert min(logged(trainer, "grad_norm")) > 0


def test_feedback_alone_needs_no_group(tmp_path):
    options = {"use_demonstrations": False, "use_feedback": True, "num_generations": 1, "max_steps": 2}
    trainer = make_trainer("sdpo", tmp_path, **options)
    trainer.train()
    active = logged(trainer, "context/active_fraction")
    assert all(0 < share < 1 for share in active)
    assert min(logged(trainer, "grad_norm")) > 0


@pytest.mark.parametrize("method", ["sdpo", "scope"])
def test_groups_that_are_all_right_or_all_wrong_train_without_nan(method, tmp_path):
    for name, reward in (("right", perfect_reward), ("wrong", hopeless_reward)):
        trainer = make_trainer(method, tmp_path / name, reward_funcs=reward, max_steps=2)
        trainer.train()
        assert all(map(math.isfinite, losses(trainer) + logged(trainer, "grad_norm")))
        assert all(p.isfinite().all() for p in trainer.model.parameters())
        still = method == "sdpo" and name == "wrong"
        assert (max(logged(trainer, "grad_norm")) == 0) == still


class SamePrompt(Context):
    """The teacher reads what the student read."""

    def prompts(self, rollouts):
        return list(rollouts.prompts)


@pytest.mark.parametrize("weights", ["ema", "trust-region", "frozen", "live"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_s8_a_teacher_that_reads_the_same_gives_no_loss_at_first(lora, weights, tmp_path):
    rate = {} if weights in ("ema", "trust-region") else {"teacher_update_rate": 0.05}
    options = REVERSE | {"teacher_weights": weights, "max_steps": 1} | rate
    trainer = make_trainer("sdpo", tmp_path, lora=lora, **options)
    trainer.objective.context = SamePrompt()
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.0, abs=1e-6)
    assert logged(trainer, "grad_norm")[0] == pytest.approx(0.0, abs=1e-5)


def test_later_updates_of_a_rollout_batch_are_weighed_by_the_capped_ratio(tmp_path):
    options = {"steps_per_generation": 2, "learning_rate": 0.1, "max_steps": 4, "importance_cap": 1.1}
    trainer = make_trainer("sdpo", tmp_path, per_device_train_batch_size=GLOBAL_BATCH // 2, **options)
    trainer.train()
    capped = logged(trainer, "distill/importance_capped")
    assert capped[0] == 0.0
    assert capped[1] > 0.0
    assert "old_per_token_logps" in trainer._buffered_inputs[0]


def test_grpo_fixture_advantages(tmp_path):
    def first_two(completions, **_):
        return [1.0, 1.0, *[0.0] * 6]

    found = {}
    for scale in ("none", "group"):
        options = {"num_generations": 8, "per_device_train_batch_size": 8, "scale_rewards": scale, "max_steps": 1}
        trainer = make_trainer("srpo", tmp_path / scale, reward_funcs=first_two, **options)
        trainer.train()
        found[scale] = sorted(buffered(trainer, "advantages").tolist())
        assert sum(found[scale]) == pytest.approx(0.0, abs=1e-5)
    assert found["none"] == pytest.approx([-0.25] * 6 + [0.75] * 2)
    assert found["group"] == pytest.approx([-0.540060558] * 6 + [1.620181675] * 2, rel=3e-4)


# ExOPD and its reference


@pytest.mark.parametrize(("extrapolation", "lora"), [(0.5, False), (1.25, True)])
def test_x9_the_reference_is_the_student_s_start_if_none_is_named(extrapolation, lora, tmp_path):
    trainer = make_trainer("exopd", tmp_path / "default", lora=lora, extrapolation=extrapolation, max_steps=2)
    assert len(trainer.scorers) == 2
    trainer.train()
    named = make_trainer(
        "exopd", tmp_path / "named", lora=lora, extrapolation=extrapolation, max_steps=2,
        reference_model=make_model(trainer.processing_class),
    )  # fmt: skip
    named.train()
    assert losses(named) == pytest.approx(losses(trainer), rel=1e-4)
    plain = make_trainer("exopd", tmp_path / "plain", lora=lora, extrapolation=1.0)
    assert len(plain.scorers) == 1
    plain.train()
    assert losses(plain)[0] != pytest.approx(losses(trainer)[0], rel=1e-2)


def test_x1_lambda_1_is_opd(tmp_path):
    exopd = make_trainer("exopd", tmp_path / "exopd", extrapolation=1.0)
    opd = make_trainer("opd", tmp_path / "opd", estimator="k1")
    for trainer in (exopd, opd):
        trainer.train()
    assert losses(exopd) == pytest.approx(losses(opd), rel=1e-5)


def test_x2_lambda_0_at_the_student_s_start_has_no_gradient(tmp_path):
    trainer = make_trainer("exopd", tmp_path, extrapolation=0.0, estimator="full", max_steps=1)
    trainer.train()
    assert logged(trainer, "grad_norm")[0] == pytest.approx(0.0, abs=1e-5)


def test_x4_the_target_of_a_run_is_the_extrapolated_one(tmp_path):
    """The logged divergence is KL(p || q_lambda) - ln Z_lambda of three models' own logits."""
    trainer = make_trainer("exopd", tmp_path, extrapolation=1.25, estimator="full", max_steps=1)
    student, teacher = copy.deepcopy(trainer.model).eval(), copy.deepcopy(trainer.scorers[0].model)
    vars(student).pop("forward", None)
    trainer.train()
    batch = {name: buffered(trainer, name) for name in ("prompt_ids", "prompt_mask", "completion_ids")}
    mask = buffered(trainer, "completion_mask")
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], mask], 1)
    with torch.no_grad():
        p, q = (
            model(input_ids=ids, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1][mask.bool()]
            for model in (student, teacher)
        )
    reference = p.log_softmax(-1)
    raw = 1.25 * q.log_softmax(-1) - 0.25 * reference
    expected = (kl(p, raw) - raw.logsumexp(-1)).mean().item()
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-4)


# What is refused, before a model is loaded

NOWHERE = "./there/is/no/model/here"


def refused(method: str, fragment: str, folder, model=NOWHERE, **options) -> None:
    """The trainer must refuse the settings without ever looking for its model."""
    arguments = {"reward_funcs": REWARDS.get(method), "train_dataset": Dataset.from_list(rows("train", 4))}
    arguments["teacher_model"] = torch.nn.Identity() if method in EXTERNAL else None
    taken = (*arguments, "reference_model", "processing_class")
    arguments |= {name: options.pop(name) for name in list(options) if name in taken}
    names = METHODS[method]
    values = settings(folder, **(OPTIONS.get(method, {}) | options))

    def launch():
        getattr(trl_opd, names.trainer)(model, args=getattr(trl_opd, names.config)(**values), **arguments)

    with pytest.raises(UserError, match=fragment) as refusal:
        launch()
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize(
    ("method", "options", "fragment"),
    [
        ("sdpo", {"grpo_lambda": -0.1}, "grpo_lambda is -0.1"),
        ("sdpo", {"grpo_lambda": 1.1}, "grpo_lambda is 1.1"),
        ("sdpo", {"num_generations": 1}, "num_generations=1"),
        ("sdpo", {"reward_funcs": None}, "no reward function"),
        ("sdpo", {"use_demonstrations": False}, "nothing to read"),
        ("sdpo", {"include_attempt": True}, "include_attempt"),
        ("sdpo", {"demonstration_section": "none"}, "demonstration_section"),
        ("sdpo", {"teacher_update_rate": -0.01}, "teacher_update_rate is -0.01"),
        ("sdpo", {"teacher_update_rate": 1.01}, "teacher_update_rate is 1.01"),
        ("sdpo", {"teacher_update_rate": None}, "teacher_update_rate is None"),
        ("sdpo", {"teacher_weights": "frozen"}, "teacher_update_rate=0.3 would be ignored"),
        ("sdpo", {"teacher_weights": "emma"}, "teacher_weights is 'emma'"),
        ("sdpo", {"support_size": 0}, "support_size is 0"),
        ("sdpo", {"support_size": None}, "support_size"),
        ("sdpo", {"jsd_beta": None}, "jsd_beta"),
        ("sdpo", {"jsd_beta": 1.5}, "jsd_beta is 1.5"),
        ("sdpo", {"beta": 0.1}, "beta=0.1"),
        ("sdpo", {"importance_cap": 0.0}, "importance_cap is 0.0"),
        ("sdpo", {"importance_cap": -1.0}, "importance_cap is -1.0"),
        ("sdpo", {"advantage_clip": 5.0}, "advantage_clip"),
        ("sdpo", {"teacher_model": torch.nn.Identity()}, "no external teacher"),
        ("sdpo", {"reference_model": torch.nn.Identity()}, "does not use one"),
        (
            "sdpo",
            REVERSE | {"estimator": "k1", "teacher_weights": "trust-region"},
            "trust-region is normalised over the vocabulary",
        ),
        ("srpo", {"entropy_beta": -0.5}, "entropy_beta is -0.5"),
        ("srpo", {"num_generations": 1}, "num_generations=1"),
        ("srpo", {"reward_funcs": None}, "no reward function"),
        ("srpo", {"teacher_update_rate": 2.0}, "teacher_update_rate is 2.0"),
        ("srpo", {"teacher_weights": "trust-region"}, "trust-region"),
        ("exopd", {"divergence": "forward_kl", "estimator": "full"}, "no extrapolated form"),
        ("exopd", {"estimator": "topk", "support_size": 5}, "no extrapolated form"),
        ("exopd", {"estimator": "k2"}, "k2"),
        ("exopd", {"teacher_model": None}, "none was given"),
        ("exopd", {"extrapolation": 1.0, "reference_model": torch.nn.Identity()}, "would be ignored"),
        ("exopd", {"extrapolation": 1.0, "reference_model_name_or_path": NOWHERE}, "would be ignored"),
        ("exopd", {"teacher_models": {"a": NOWHERE}}, "name the teacher twice"),
        ("exopd", {"teacher_models": {"a": NOWHERE}, "teacher_model": None, "estimator": "full"}, "sampled tokens"),
        ("exopd", {"extrapolation": float("nan")}, "extrapolation is nan"),
        ("exopd", {"extrapolation": float("inf")}, "extrapolation is inf"),
        ("scope", {"num_generations": 1}, "num_generations=1"),
        ("scope", {"reward_funcs": None}, "no reward function"),
        ("scope", {"teacher_model": None}, "none was given"),
        ("scope", {"weight_temperature": 0.0}, "weight_temperature is 0.0"),
        ("scope", {"weight_temperature": -1.0}, "weight_temperature is -1.0"),
        ("scope", {"weight_norm": "max1"}, "weight_norm is 'max1'; choose sum1 or mean1"),
        ("scope", {"length_norm": "max"}, "length_norm is 'max'; choose sum or mean"),
        ("scope", {"student_direction": "up"}, "student_direction is 'up'"),
        ("scope", {"teacher_direction": "down"}, "teacher_direction is 'down'"),
        ("opd", {"teacher_model": None}, "none was given"),
        ("opd", {"reference_model": torch.nn.Identity()}, "does not use one"),
    ],
)
def test_settings_that_cannot_work_are_refused(method, options, fragment, tmp_path):
    refused(method, fragment, tmp_path, **options)


@pytest.mark.parametrize("method", ["sdpo", "srpo"])
def test_a_support_larger_than_the_vocabulary_is_refused_at_launch(method, tmp_path, student_path, tokenizer):
    """Not at the first loss, after the rollouts were paid for."""
    for model in (student_path, make_model(tokenizer)):
        refused(method, "support_size is 5000", tmp_path, model=model, processing_class=tokenizer, support_size=5000)
