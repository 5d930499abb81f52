"""The boards for large models, which nobody ran here: they load, plan, and every planned training would be accepted."""

from pathlib import Path

import pytest

from tests.conftest import check_command
from trl_opd.boards.runs import TRAIN, plan_runs
from trl_opd.boards.spec import load_spec

BOARDS = sorted((Path(__file__).parents[2] / "leaderboards").glob("qwen3-*.yaml"))


@pytest.fixture(params=BOARDS, ids=lambda path: path.stem)
def spec(request):
    return load_spec(request.param)


def test_it_says_that_it_was_not_run(spec):
    assert spec.notes[0] == "Not run here."
    assert not (spec.folder / "results.json").exists()


def test_the_protocol_holds(spec):
    assert len(spec.seeds) >= 3
    assert spec.checkpoint.rule == "best"
    assert {"grpo", "dr_grpo", "dapo", "grpo_ema"} <= {line.name for line in spec.methods if line.kind == "baseline"}
    assert {len(spec.learning_rates(line)) for line in spec.methods} == {3}
    for line in spec.methods:
        assert line.settings()["learning_rate"] in spec.learning_rates(line)
    purposes = [entry.purpose for entry in spec.evaluation]
    assert {"primary", "secondary", "pass_at_k", "forgetting"} == set(purposes)


def test_one_teacher_and_one_batch_for_all(spec):
    settings = [line.settings() for line in spec.methods]
    assert len({one["teacher_model_name_or_path"] for one in settings if "teacher_model_name_or_path" in one}) == 1
    rows = {
        one["per_device_train_batch_size"] * one.get("steps_per_generation", one["gradient_accumulation_steps"])
        for one in settings
    }
    assert rows == {256}


def test_every_planned_training_would_be_accepted(spec):
    runs = plan_runs(spec)
    assert len(runs) == 1 + len(spec.methods) * 6  # the base, three trials and three seeds
    tried = {run.method.name: stage for run in runs for stage in run.stages if stage.kind == TRAIN and run.seed == 100}
    assert set(tried) == {line.name for line in spec.methods}
    for stage in tried.values():
        method, *options = stage.arguments[1:]
        check_command(method, options)
