"""Learning rates and checkpoints are chosen by validation alone, once, and every trial is kept."""

import json
from pathlib import Path

import pytest

from trl_opd.boards.choices import Trial, chosen_rate
from trl_opd.boards.costs import estimate_rest
from trl_opd.boards.files import write_json
from trl_opd.boards.runs import (
    BASE,
    EVAL,
    FAILED,
    FINAL,
    FINISHED,
    MISSING,
    TRAIN,
    TRIAL,
    WAITING,
    Run,
    check_identity,
    choice_of,
    plan_runs,
    status_of,
    write_identity,
)
from trl_opd.boards.spec import BoardSpec, load_spec
from trl_opd.boards.trials import settle_trials
from trl_opd.errors import UserError

RATES = [0.0001, 0.0003, 0.001]
CHOOSING = {
    "methods": [{"name": name, "method": name, "recipe": "recipes/fake.yaml"} for name in ("grpo", "opd")],
    "trials": {"learning_rates": RATES},
    "validation": {"benchmark": "arithmetic_validation", "n": 1},
    "checkpoint": {"rule": "last", "every": 10},
    "evaluation": [
        {"benchmark": "arithmetic", "n": 2, "limit": 12},
        {"benchmark": "arithmetic", "n": 8, "limit": 4, "purpose": "pass_at_k"},
    ],
}


def named(spec: BoardSpec, name: str) -> Run:
    return next(run for run in plan_runs(spec) if run.name == name)


def finish_training(run: Run, *curve: tuple[int, float]) -> None:
    """What `trl-opd train` leaves."""
    (run.train_folder / "model").mkdir(parents=True)
    write_json(run.train_folder / "run.json", {"status": "finished", "steps": 30, "seconds": 40.0, "validation": curve})
    write_identity(run)


def fail(run: Run) -> None:
    write_json(run.folder / "state.json", {"status": FAILED, "stage": TRAIN, "error": f"{run.name} broke"})
    write_identity(run)


def finish_trials(spec: BoardSpec, method: str, *accuracies: float | None) -> None:
    for rate, accuracy in zip(RATES, accuracies, strict=True):
        run = named(spec, f"trial-{method}-lr{rate:g}")
        if accuracy is None:
            fail(run)
        else:
            finish_training(run, (10, 0.9), (20, 0.1), (30, accuracy))


def test_final_runs_wait_for_the_trials_of_their_own_method(write_spec):
    spec = load_spec(write_spec(**CHOOSING))
    runs = plan_runs(spec)
    assert [run.role for run in runs] == [BASE] + [TRIAL] * 6 + [FINAL] * 4
    waiting = named(spec, "grpo-seed0")
    assert waiting.waiting_for == tuple(f"trial-grpo-lr{rate:g}" for rate in RATES)
    assert (waiting.stages, waiting.next_stage(), status_of(waiting).state) == ((), None, WAITING)
    finish_trials(spec, "grpo", 0.5, 0.7, 0.6)
    assert settle_trials(spec) == [
        "grpo: learning rate 0.0003 chosen on validation (0.0001: 50.0 %, 0.0003: 70.0 %, 0.001: 60.0 %)"
    ]
    ready = named(spec, "grpo-seed0")
    assert (ready.waiting_for, ready.learning_rate, status_of(ready).state) == ((), 0.0003, MISSING)
    assert "--learning_rate 0.0003" in ready.stages[0].command
    assert named(spec, "opd-seed0").waiting_for
    assert settle_trials(spec) == []


def test_a_trial_is_trained_as_a_final_run_with_its_own_seed_and_rate_and_sees_no_test_problem(write_spec):
    spec = load_spec(write_spec(**CHOOSING))
    (train,) = named(spec, "trial-opd-lr0.0001").stages
    for part in ("--seed 100", "--learning_rate 0.0001", "--max_steps 30", "--dataset_name testbed"):
        assert part in train.command
    assert "--eval_suite arithmetic_validation --eval_suite_steps 10 --eval_suite_n 1" in train.command


def test_of_equally_good_rates_the_smaller_is_chosen():
    trials = [
        Trial(f"lr{rate}", rate, accuracy, FINISHED) for rate, accuracy in ((3e-4, 0.7), (1e-4, 0.7), (1e-3, 0.6))
    ]
    assert chosen_rate(trials) == 1e-4
    assert chosen_rate([Trial("lr", 1e-4, None, FAILED, "broke")]) is None


def test_a_failed_trial_does_not_count_and_is_not_tried_again_once_a_rate_is_chosen(write_spec):
    spec = load_spec(write_spec(**CHOOSING))
    finish_trials(spec, "opd", 0.5, None, 0.4)
    assert settle_trials(spec)
    assert choice_of(spec, spec.methods[1]).learning_rate == 0.0001
    failed = named(spec, "trial-opd-lr0.0003")
    assert failed.next_stage() is None
    assert (status_of(failed).state, status_of(failed).error) == (FAILED, "trial-opd-lr0.0003 broke")
    stored = json.loads((spec.runs_folder / "trials.json").read_text())["opd"]["trials"]
    assert [(trial["status"], trial["validation"]) for trial in stored] == [
        (FINISHED, 0.5),
        (FAILED, None),
        (FINISHED, 0.4),
    ]


def test_a_method_whose_trials_all_failed_is_a_failed_line_until_one_succeeds(write_spec):
    spec = load_spec(write_spec(**CHOOSING))
    finish_trials(spec, "grpo", None, None, None)
    assert settle_trials(spec) == ["grpo: all 3 learning-rate trials failed, so it is not trained further"]
    lost = named(spec, "grpo-seed1")
    assert status_of(lost).state == FAILED
    assert "all its trials failed: trial-grpo-lr0.001 broke" in status_of(lost).error
    assert lost.next_stage() is None
    again = named(spec, "trial-grpo-lr0.0001")
    assert again.next_stage() is not None
    write_json(again.folder / "state.json", {"status": "running", "stage": TRAIN, "error": None})
    assert status_of(named(spec, "grpo-seed1")).state == WAITING
    finish_training(again, (30, 0.3))
    assert settle_trials(spec)
    assert named(spec, "grpo-seed1").learning_rate == 0.0001


def test_a_failed_trial_that_will_be_tried_again_is_waited_for(write_spec):
    spec = load_spec(write_spec(**CHOOSING))
    finish_trials(spec, "opd", 0.5, None, 0.4)
    assert settle_trials(spec, {"trial-opd-lr0.0003"}) == []
    assert choice_of(spec, spec.methods[1]) is None
    assert settle_trials(spec, {"trial-grpo-lr0.0003"})


def test_several_devices_are_in_the_command_and_make_another_run(write_spec):
    one, two = (load_spec(write_spec(launch={"gpus_per_run": count})) for count in (1, 2))
    single, double = named(one, "grpo-seed0"), named(two, "grpo-seed0")
    assert single.stages[0].command.startswith("trl-opd train grpo ")
    assert double.stages[0].command.startswith("torchrun --standalone --nproc_per_node 2 --no-python trl-opd train ")
    assert double.stages[1].command.startswith("trl-opd eval ")
    finish_training(single)
    with pytest.raises(UserError, match=r"made with other settings \(processes\)"):
        check_identity(double)


def test_a_choice_of_other_rates_does_not_count(write_spec):
    spec = load_spec(write_spec(**CHOOSING))
    finish_trials(spec, "grpo", 0.5, 0.7, 0.6)
    settle_trials(spec)
    finish_training(named(spec, "grpo-seed0"), (30, 0.7))
    more = load_spec(write_spec(**CHOOSING | {"trials": {"learning_rates": [*RATES, 0.003]}}))
    assert named(more, "grpo-seed0").waiting_for
    finish_training(named(more, "trial-grpo-lr0.003"), (30, 0.9))
    settle_trials(more)
    with pytest.raises(UserError, match=r"made with other settings \(learning_rate\)"):
        check_identity(named(more, "grpo-seed0"))


@pytest.mark.parametrize(("rule", "chosen"), [("last", 0.001), ("best", 0.0001)])
def test_trials_are_judged_at_the_checkpoint_that_the_rule_picks(write_spec, rule, chosen):
    spec = load_spec(write_spec(**CHOOSING | {"checkpoint": {"rule": rule, "every": 10}}))
    for rate, curve in zip(RATES, ([0.8, 0.2], [0.3, 0.3], [0.4, 0.5]), strict=True):
        finish_training(named(spec, f"trial-grpo-lr{rate:g}"), *zip((20, 30), curve, strict=True))
    settle_trials(spec)
    assert choice_of(spec, spec.methods[0]).learning_rate == chosen


@pytest.mark.parametrize(
    ("rule", "curve", "evaluated"),
    [
        ("last", [(10, 0.5), (30, 0.6)], [("last", "arithmetic"), ("last", "arithmetic/pass_at_k")]),
        (
            "last",
            [(10, 0.6), (30, 0.5)],
            [("last", "arithmetic"), ("last", "arithmetic/pass_at_k"), ("best", "arithmetic")],
        ),
        (
            "best",
            [(10, 0.6), (20, 0.6), (30, 0.5)],
            [("best", "arithmetic"), ("best", "arithmetic/pass_at_k"), ("last", "arithmetic")],
        ),
    ],
)
def test_the_best_checkpoint_is_evaluated_beside_the_last_where_they_differ(write_spec, rule, curve, evaluated):
    spec = load_spec(write_spec(**CHOOSING | {"checkpoint": {"rule": rule, "every": 10}, "trials": None}))
    run = named(spec, "grpo-seed0")
    assert [stage.checkpoint for stage in run.stages if stage.kind == EVAL] == ["last", "last"]
    finish_training(run, *curve)
    stages = [stage for stage in named(spec, "grpo-seed0").stages if stage.kind == EVAL]
    assert [(stage.checkpoint, spec.benchmark_key(stage.entry)) for stage in stages] == evaluated
    assert len({stage.folder for stage in stages}) == len(stages)
    for stage in stages:
        assert ("checkpoint-10" in stage.command) == (stage.checkpoint == "best")


def test_what_is_left_is_judged_by_what_has_finished(write_spec):
    spec = load_spec(write_spec(**CHOOSING))
    empty = estimate_rest(spec, plan_runs(spec))
    assert (empty.trainings, empty.evaluations, empty.seconds) == (10, 10, None)
    assert empty.unknown == ("evaluation on arithmetic", "evaluation on arithmetic/pass_at_k", "training")
    base = named(spec, "base")
    logs = []
    for stage, seconds in zip(base.stages, (3.0, 5.0), strict=True):
        write_json(stage.folder / "summary.json", {})
        logs.append({"log": stage.log.name, "seconds": seconds})
    write_json(base.folder / "state.json", {"attempts": logs})
    finish_training(named(spec, "trial-grpo-lr0.0001"), (30, 0.5))
    rest = estimate_rest(spec, plan_runs(spec))
    assert (rest.trainings, rest.evaluations, rest.measured) == (9, 8, 3)
    assert rest.seconds == 9 * 40.0 + 4 * 3.0 + 4 * 5.0


def test_other_rows_are_another_board(write_spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = Path("rows.jsonl")
    rows.write_text('{"problem": "1+1"}\n')
    data = {"data": {"dataset_name": str(rows)}}
    spec = load_spec(write_spec(**data))
    run = named(spec, "grpo-seed0")
    finish_training(run)
    check_identity(named(spec, "grpo-seed0"))
    rows.rename("moved.jsonl")
    check_identity(named(spec, "grpo-seed0"))  # a report needs no rows
    rows.write_text('{"problem": "2+2"}\n')
    with pytest.raises(UserError, match=r"made with other settings \(rows\)"):
        check_identity(named(spec, "grpo-seed0"))
    finish_training(named(load_spec(write_spec()), "opd-seed0"))
    with pytest.raises(UserError, match=r"\(budget\)"):
        check_identity(named(load_spec(write_spec(budget={"unit": "steps", "value": 60})), "opd-seed0"))
