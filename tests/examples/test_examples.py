"""Every way into the package that docs/adopting.md shows, run for a step or two on the testbed."""

import difflib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.objectives.bench import group
from trl_opd.cli.main import main
from trl_opd.errors import UserError
from trl_opd.methods import method

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("own_objective", "own_reward_and_context"):
        sys.modules.pop(name, None)


def train(capsys, *argv: str) -> list[dict]:
    """The log rows of a run of one step by the command line."""
    short = ["--output_dir", "run", "--max_steps", "1", "--per_device_train_batch_size", "16"]
    assert main(["train", *argv, *short]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]


def test_one_import_is_all_that_changes_in_a_script():
    before, after = ((EXAMPLES / f"{name}.py").read_text().splitlines() for name in ("trl_script", "one_import"))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert changed == [
        "- from trl import GRPOConfig, GRPOTrainer",
        "+ from trl_opd import SDPOConfig as GRPOConfig, SDPOTrainer as GRPOTrainer",
    ]


def test_the_script_trains_with_either_import():
    trl, ours = (runpy.run_path(str(EXAMPLES / f"{name}.py"))["trainer"] for name in ("trl_script", "one_import"))
    first = {name: trainer.state.log_history[0] for name, trainer in (("trl", trl), ("ours", ours))}
    assert trl.state.global_step == ours.state.global_step == 2
    assert first["trl"]["reward"] == first["ours"]["reward"] > 0  # the same rollouts: same model, data and seed
    assert "distill/divergence" not in first["trl"]
    assert first["ours"]["distill/divergence"] > 0
    assert set(first["trl"]) - set(first["ours"]) <= {"num_tokens"} | {k for k in first["trl"] if "clip_ratio" in k}


def test_own_reward_and_context_function_in_a_script():
    names = runpy.run_path(str(EXAMPLES / "own_reward_and_context.py"), run_name="example")
    names["main"]()
    rows = [json.loads(line) for line in Path("runs/own_reward_and_context/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["rewards/right_and_short/mean"] > 0 for row in rows)
    # The teacher has something to read in exactly the groups with a success.
    assert [row["context/active_fraction"] for row in rows] == [1 - row["frac_reward_zero_std"] for row in rows]
    assert 0 < rows[0]["context/active_fraction"] < 1


def test_own_reward_and_context_function_from_the_command_line(capsys):
    own = "own_reward_and_context"
    (row,) = train(capsys, "sdpo", "--config", str(EXAMPLES / f"{own}.yaml"))
    assert row["context/active_fraction"] > 0
    assert json.loads(Path("run/run.json").read_text())["config"]["teacher_context"] == f"{own}.shortest_success"


def test_own_objective_from_outside_the_package(capsys):
    (row,) = train(capsys, "own_objective:TotalVariationTrainer", "--config", str(EXAMPLES / "own_objective.yaml"))
    assert 0 < row["distill/divergence"] < 1  # a total variation, which no KL need be
    assert json.loads(Path("run/run.json").read_text())["method"] == "own_objective:TotalVariationTrainer"


def test_own_objective_is_what_its_file_says():
    import own_objective

    config = own_objective.TotalVariationConfig(
        output_dir="run", right_weight=0.25, use_cpu=True, bf16=False, report_to="none"
    )
    objective = own_objective.TotalVariationTrainer.make_objective(config)
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.3, 0.6]])
    assert objective.divergence.over_vocabulary(p.log(), q.log()).item() == pytest.approx(0.4)
    assert not objective.divergence.has_closed_form
    signals = objective.route(group([1.0, 0.0, 1.0]), torch.tensor([True, True, False]))
    assert signals.kl.tolist() == [0.25, 1.0, 0.0]
    with pytest.raises(UserError, match="right_weight is 2"):
        own_objective.TotalVariationTrainer.make_objective(
            own_objective.TotalVariationConfig(
                output_dir="run", right_weight=2.0, use_cpu=True, bf16=False, report_to="none"
            )
        )


def test_a_mix_in_yaml(capsys):
    (row,) = train(capsys, "mix", "--config", str(EXAMPLES / "mix.yaml"))
    assert row["signal/pg_fraction"] + row["signal/kl_fraction"] == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_objectives:TotalVariationTrainer", "There is no module 'own_objectives'"),
        ("own_objective:VariationTrainer", "The module own_objective has no 'VariationTrainer'"),
        ("own_objective:TotalVariation", "is no method; name a subclass of trl_opd.OnPolicyTrainer"),
        (":TotalVariationTrainer", "names no trainer"),
    ],
)
def test_a_name_from_outside_that_is_no_method_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        method(name)


def test_a_module_that_lacks_what_it_imports_says_so(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="needs a_package_that_is_not_there: install it"):
        method("lacking:Trainer")
