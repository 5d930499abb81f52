"""Checkpoints: which are kept, which are resumed from, and what a run refuses that could not be resumed."""

import pytest
import torch

from tests.conftest import make_model, settings
from trl_opd import OPSDConfig, OPSDTrainer, SDPOConfig, SDPOTrainer, UserError
from trl_opd.checks import check_config
from trl_opd.objectives import OPSD
from trl_opd.state import STATE_FILE, newest_checkpoint, rotate
from trl_opd.teachers import ByDomain, Scorer, adapter_is_identity
from trl_opd.testbed.tasks import REFERENCE_TEMPLATE


def checkpoints(folder, complete, cut_short=()):
    for step in (*complete, *cut_short):
        (folder / f"checkpoint-{step}").mkdir()
    for step in complete:
        (folder / f"checkpoint-{step}" / STATE_FILE).write_text("{}")


def test_rotation_spares_the_newest_complete_ones_and_the_best(tmp_path):
    checkpoints(tmp_path, complete=(2, 4, 10, 12), cut_short=(14,))
    rotate(tmp_path, limit=2, keep=[tmp_path / "checkpoint-2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-12", "checkpoint-2"]
    assert newest_checkpoint(tmp_path).name == "checkpoint-12"


def opsd(folder, tokenizer, dataset, **options):
    options = settings(folder, num_generations=1, reference_template=REFERENCE_TEMPLATE, max_steps=4) | options
    return OPSDTrainer(
        make_model(tokenizer), args=OPSDConfig(**options), train_dataset=dataset, processing_class=tokenizer
    )


def test_one_checkpoint_at_a_time_is_enough_to_resume_from(tmp_path, tokenizer, dataset):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    opsd(tmp_path, tokenizer, dataset, **saving).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert newest_checkpoint(tmp_path).name == "checkpoint-4"


def test_resume_true_takes_everything_from_the_newest_complete_checkpoint(tmp_path, tokenizer, dataset):
    saving = {"save_strategy": "steps", "save_steps": 2}
    opsd(tmp_path, tokenizer, dataset, **saving).train()
    (tmp_path / "checkpoint-4" / STATE_FILE).unlink()
    trainer = opsd(tmp_path, tokenizer, dataset, **saving)
    trainer.train(resume_from_checkpoint=True)
    tokens = [row["generated_tokens"] for row in trainer.state.log_history if "generated_tokens" in row]
    assert len(tokens) == 4
    assert tokens == sorted(tokens)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"save_strategy": "steps", "save_steps": 3, "num_iterations": 2}, "save_steps=3 is not a multiple of the 2"),
        ({"save_strategy": "steps", "save_steps": 1, "steps_per_generation": 4}, "save_steps=1"),
    ],
)
def test_checkpoints_within_a_rollout_batch_are_refused(options, fragment, tmp_path):
    config = OPSDConfig(**settings(tmp_path, num_generations=1) | options)
    with pytest.raises(UserError, match=fragment):
        check_config(config, OPSD(config))


def test_a_domain_that_is_a_number_finds_its_teacher_and_an_unknown_one_is_refused(tokenizer):
    teachers = ByDomain({"0": Scorer(make_model(tokenizer), 1.0), "1": Scorer(make_model(tokenizer), 1.0)}, "domain")
    assert [rows for _, rows in teachers.assign([0, 1, 2], [{"domain": 1}, {"domain": 0}, {"domain": 1}])] == [
        [1],
        [0, 2],
    ]
    with pytest.raises(UserError, match="domain '7'"):
        teachers.assign([0], [{"domain": 7}])


def test_a_live_head_stays_that_of_the_rollout_batch_until_the_next(tokenizer):
    student = make_model(tokenizer)
    live = Scorer(student, 1.0, live=True)
    before = live.head.weight.clone()
    with torch.no_grad():
        student.lm_head.weight.add_(1.0)
    torch.testing.assert_close(live.head.weight, before)
    live.begin()
    torch.testing.assert_close(live.head.weight, before + 1.0)


def test_an_adapter_that_trains_biases_too_is_no_identity(tokenizer):
    from peft import LoraConfig, get_peft_model

    base = make_model(tokenizer, attention_bias=True)
    plain = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert adapter_is_identity(get_peft_model(make_model(tokenizer), plain))
    biased = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", bias="all")
    assert not adapter_is_identity(get_peft_model(base, biased))


def test_generated_tokens_count_what_was_drawn_also_where_it_is_masked(tmp_path, tokenizer, dataset):
    config = SDPOConfig(
        **settings(tmp_path, max_steps=1, mask_truncated_completions=True, max_completion_length=4, top_k=3),
    )
    trainer = SDPOTrainer(
        make_model(tokenizer), lambda completions, **_: [0.0] * len(completions), config, dataset,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "generated_tokens" in row]
    assert row["generated_tokens"] == 4 * row["completions/mean_length"]
