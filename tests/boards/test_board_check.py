"""What only the trainer's configurations can tell is refused before the first run, by the line that is wrong."""

import json
from pathlib import Path

import pytest
import torch

from trl_opd.boards.runs import check_identity, plan_runs
from trl_opd.boards.spec import load_spec
from trl_opd.cli.board import main
from trl_opd.cli.board_check import check_training
from trl_opd.cli.train import parse
from trl_opd.errors import UserError
from trl_opd.run_log import RunFolder, differences

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "trainers" / "recipes" / "testbed"
STEPS = {"unit": "steps", "value": 60}


def line(name: str, **overrides) -> dict:
    return {"name": name, "method": name, "recipe": str(RECIPES / f"{name}.yaml"), "overrides": overrides}


def board(write_spec, *lines: dict, **changes):
    return load_spec(write_spec(methods=list(lines), **{"budget": STEPS} | changes))


@pytest.mark.parametrize("path", sorted((ROOT / "leaderboards").glob("arithmetic*.yaml")), ids=lambda path: path.stem)
def test_the_boards_of_the_testbed_are_accepted(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert check_training(load_spec(path)) == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line("grpo", leaning_rate=0.1)], "grpo: There is no option --leaning_rate (did you mean '--learning_rate'?)"),
        ([line("grpo", teacher_update_rate=0.1)], "grpo: There is no option --teacher_update_rate"),
        ([line("grpo"), line("opd", teacher_model_name_or_path="../none/here")], "opd: There is no model in"),
        ([line("grpo", beta="high")], "grpo: --beta: invalid float value"),
        ([line("grpo", num_generations=1)], "grpo: grpo compares the rollouts of one prompt"),
        ([line("grpo"), line("opd", per_device_train_batch_size=32)], "as many rollouts (or examples) a step"),
        ([line("grpo"), line("sft", gradient_accumulation_steps=2)], "grpo 64, sft 128"),
    ],
)
def test_settings_that_the_trainer_would_refuse(write_spec, lines, message):
    with pytest.raises(UserError) as caught:
        check_training(board(write_spec, *lines))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_that_would_share_all_gpus_are_refused_before_they_run(write_spec, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="2 GPUs are visible and `gpus_per_run` is 0"):
        check_training(board(write_spec, line("grpo")))
    check_training(board(write_spec, line("grpo")), to_run=False)
    check_training(board(write_spec, line("grpo"), environment={"CUDA_VISIBLE_DEVICES": "1"}))
    check_training(board(write_spec, line("grpo"), launch={"gpus_per_run": 1}))


def test_a_method_without_its_teacher(write_spec, tmp_path):
    recipe = tmp_path / "opd.yaml"
    kept = [text for text in (RECIPES / "opd.yaml").read_text().splitlines() if not text.startswith("teacher_model")]
    recipe.write_text("\n".join(kept))
    spec = board(write_spec, line("grpo"), {"name": "opd", "method": "opd", "recipe": str(recipe)})
    with pytest.raises(UserError, match="opd: opd distils an external teacher and none was given"):
        check_training(spec)


def test_a_schedule_of_steps_with_a_budget_of_tokens(write_spec):
    tokens = {"unit": "generated_tokens", "value": 90_000}
    check_training(board(write_spec, line("grpo", max_steps=-1), budget=tokens))
    spec = board(write_spec, line("grpo", max_steps=-1, lr_scheduler_type="linear"), budget=tokens)
    with pytest.raises(UserError, match="lr_scheduler_type linear follows a number of steps"):
        check_training(spec)
    with pytest.raises(UserError, match=r"sft: .*max_generated_tokens"):
        check_training(board(write_spec, line("grpo", max_steps=-1), line("sft", max_steps=-1), budget=tokens))


def test_held_out_problems_that_are_trained_on(write_spec, tmp_path):
    from trl_opd.testbed.tasks import rows

    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [*rows("train", 70), *rows("validation", 3)]))
    data = {"data": {"dataset_name": str(file)}}
    held_out = {"validation": {"benchmark": "arithmetic_validation"}, "checkpoint": {"every": 20}}
    grpo = line("grpo", dataset_name=str(file))
    with pytest.raises(UserError, match="3 of the 256 problems of arithmetic_validation are among the training rows"):
        check_training(board(write_spec, grpo, **data, **held_out))
    limited = {"data": {"dataset_name": str(file), "dataset_limit": 70}}
    assert check_training(board(write_spec, grpo, **limited, **held_out)) == []


def test_a_board_is_planned_but_not_run_without_its_training_file(write_spec):
    spec = board(write_spec, line("grpo", dataset_name="away.jsonl"), data={"dataset_name": "away.jsonl"})
    assert check_training(spec, to_run=False) == ["the training rows, away.jsonl, which are not on this machine"]
    with pytest.raises(UserError, match="There is no data file away"):
        check_training(spec)


def test_a_run_that_was_trained_by_hand_is_taken_over_if_its_settings_are_the_boards(write_spec, monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = board(write_spec, line("grpo"), seeds=[0])
    run = plan_runs(spec)[1]
    (run.train_folder / "model").mkdir(parents=True)

    def write(*options: str) -> None:
        """What `trl-opd train grpo --config RECIPE --output_dir DIR --seed 0` leaves."""
        command = ["--config", str(RECIPES / "grpo.yaml"), "--output_dir", str(run.train_folder), "--seed", "0"]
        (run.train_folder / "run.json").unlink(missing_ok=True)
        with RunFolder(run.train_folder, "grpo", differences(*parse("GRPOConfig", [*command, *options]))) as folder:
            folder.write(status="finished")

    write("--learning_rate", "0.1")
    check_training(spec)
    with pytest.raises(UserError, match="no board made"):
        check_identity(run)
    write()
    check_training(spec)
    check_identity(run)
    assert (run.folder / "identity.json").exists()


def test_the_plan_says_what_is_left(write_spec, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = write_spec(methods=[line("grpo")], budget=STEPS, seeds=[0])
    assert main(["plan", str(path), "--commands"]) == 0
    printed = capsys.readouterr().out
    assert "trl-opd train grpo --config trainers/recipes/testbed/grpo.yaml" in printed
    assert "left: 1 trainings and 2 evaluations; their time is unknown" in printed
    assert "trained on testbed, SHA-256" in printed
