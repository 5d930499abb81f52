"""A run ends with its budget, whichever it is, and a resumed one where an undisturbed one does."""

import json
import shutil

import pytest

from tests.conftest import digit_reward, make_model, settings
from trl_opd import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl_opd.budget import check_budget
from trl_opd.errors import UserError
from trl_opd.eval_callback import EvalSuiteCallback

SAVING = {"save_strategy": "steps", "save_steps": 2}
SUITE = {"eval_suite": "arithmetic", "eval_suite_steps": 2, "eval_suite_limit": 2, "eval_suite_max_new_tokens": 4}


def grpo(tmp_path, tokenizer, dataset, **options):
    config = GRPOConfig(**settings(tmp_path, **options))
    return GRPOTrainer(make_model(tokenizer), digit_reward, config, dataset, processing_class=tokenizer)


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def suite_of(trainer) -> EvalSuiteCallback:
    return next(one for one in trainer.callback_handler.callbacks if isinstance(one, EvalSuiteCallback))


def test_generated_tokens_end_a_run_after_the_step_that_reaches_them(tmp_path, tokenizer, dataset):
    trainer = grpo(tmp_path, tokenizer, dataset, max_generated_tokens=100, max_steps=50, **SAVING)
    trainer.train()
    tokens = [row["generated_tokens"] for row in trainer.state.log_history if "generated_tokens" in row]
    assert tokens[-2] < 100 <= tokens[-1]
    stored = record(tmp_path)
    assert (stored["stopped_by"], stored["steps"]) == ("max_generated_tokens", len(tokens))
    assert (tmp_path / f"checkpoint-{len(tokens)}").is_dir()


def test_a_run_resumed_before_or_at_its_end_ends_at_the_same_step(tmp_path, tokenizer, dataset):
    options = {"max_generated_tokens": 150, "max_steps": 50, **SAVING}
    grpo(tmp_path, tokenizer, dataset, **options).train()
    whole = record(tmp_path)
    for checkpoint in (2, whole["steps"]):
        for path in tmp_path.glob("checkpoint-*"):
            if int(path.name.rsplit("-", 1)[1]) > checkpoint:
                shutil.rmtree(path)
        again = grpo(tmp_path, tokenizer, dataset, **options)
        again.train(resume_from_checkpoint=True)
        stored = record(tmp_path)
        for name in ("steps", "generated_tokens", "stopped_by"):
            assert stored[name] == whole[name], (checkpoint, name)


def test_a_run_resumed_at_its_last_step_makes_no_other(tmp_path, tokenizer, dataset):
    grpo(tmp_path, tokenizer, dataset, max_steps=2, **SAVING).train()
    again = grpo(tmp_path, tokenizer, dataset, max_steps=2, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2
    assert record(tmp_path)["stopped_by"] == "max_steps"


class Clock:
    """A second passes whenever it is read, and a thousand in each validation."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


def test_seconds_end_a_run_and_validation_is_not_counted(tmp_path, tokenizer, dataset, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("trl_opd.resumable.time", clock)
    trainer = grpo(tmp_path, tokenizer, dataset, max_train_seconds=15.0, max_steps=50, **SUITE, **SAVING)
    suite = suite_of(trainer)
    evaluate = suite._evaluate

    def slow(*arguments):
        clock.now += 1000.0
        return evaluate(*arguments)

    monkeypatch.setattr(suite, "_evaluate", slow)
    trainer.train()
    stored = record(tmp_path)
    assert stored["stopped_by"] == "max_train_seconds"
    assert 4 <= stored["steps"] < 50
    assert 15 <= stored["seconds"] < 30
    assert stored["validation_seconds"] == pytest.approx(1001 * len(stored["validation"]))


def test_the_last_step_is_validated_and_the_best_checkpoint_stays(tmp_path, tokenizer, dataset, monkeypatch):
    answers = iter([0.5, 0.25, 0.5, 0.125])
    trainer = grpo(tmp_path, tokenizer, dataset, max_steps=7, save_total_limit=1, **SUITE, **SAVING)
    suite = suite_of(trainer)
    evaluate = suite._evaluate

    def graded(*arguments):
        (summary,) = evaluate(*arguments)
        object.__setattr__(summary.metrics, "accuracy", next(answers))
        return [summary]

    monkeypatch.setattr(suite, "_evaluate", graded)
    trainer.train()
    assert record(tmp_path)["validation"] == [[2, 0.5], [4, 0.25], [6, 0.5], [7, 0.125]]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-7"]


def test_off_policy_methods_are_validated_and_timed_as_well(tmp_path, student_path, dataset):
    options = settings(tmp_path, max_steps=2, **SUITE, **SAVING)
    drawing = ("num_generations", "max_completion_length")
    config = SFTConfig(**{key: value for key, value in options.items() if key not in drawing})
    SFTTrainer(str(student_path), args=config, train_dataset=dataset).train()
    stored = record(tmp_path)
    assert [step for step, _ in stored["validation"]] == [2]
    assert stored["stopped_by"] == "max_steps"


@pytest.mark.parametrize("name", ["max_generated_tokens", "max_train_seconds"])
def test_a_budget_of_nothing_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        check_budget(GRPOConfig(**settings(tmp_path, **{name: 0})))
