"""`trl-opd recipes`: what it lists, shows and copies, and what it refuses."""

import json

import pytest

from trl_opd.cli.main import main
from trl_opd.recipes import recipes


def test_the_list_has_every_recipe_and_launch_file(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a line a model
    assert main(["recipes", "list"]) == 0
    printed = capsys.readouterr().out
    assert "accelerate/fsdp2" in printed
    assert "slurm/train" in printed
    listed = {line.split()[0]: line.replace(",", " ").split()[1:] for line in printed.splitlines() if line.strip()}
    for recipe in recipes():
        assert f"{recipe.method}{'*' if recipe.run_here else ''}" in listed[recipe.model]


def test_the_list_is_short_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < len(recipes())


def test_the_recipes_of_a_model_are_listed_with_what_they_do(capsys):
    assert main(["recipes", "list", "--model", "testbed"]) == 0
    printed = capsys.readouterr().out
    assert all(recipe.name in printed for recipe in recipes() if recipe.model == "testbed")
    assert "demonstrations" in printed


def test_the_list_for_machines_is_filtered(capsys):
    assert main(["recipes", "list", "--model", "qwen3-4b", "--method", "sdpo", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["run_here"]) == ("qwen3-4b/sdpo", False)
    assert found["summary"].startswith("SDPO on Qwen3-4B")


def test_show_prints_the_file(capsys):
    assert main(["recipes", "show", "testbed/sdpo"]) == 0
    (recipe,) = [recipe for recipe in recipes() if recipe.name == "testbed/sdpo"]
    assert capsys.readouterr().out == recipe.text()


def test_a_copy_is_the_file_and_is_not_overwritten(tmp_path, capsys):
    target = tmp_path / "new" / "mine.yaml"
    assert main(["recipes", "copy", "qwen3-4b/sdpo", str(target)]) == 0
    assert target.read_text().startswith("# SDPO on Qwen3-4B")
    target.write_text("mine\n")
    assert main(["recipes", "copy", "qwen3-4b/sdpo", str(target)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert target.read_text() == "mine\n"
    assert main(["recipes", "copy", "qwen3-4b/sdpo", str(target), "--force"]) == 0
    assert target.read_text().startswith("# SDPO on Qwen3-4B")


def test_a_copy_into_a_folder_keeps_its_name(tmp_path):
    assert main(["recipes", "copy", "slurm/train", str(tmp_path)]) == 0
    assert (tmp_path / "train.sbatch").read_text().startswith("#!/usr/bin/env bash")


@pytest.mark.parametrize(
    ("command", "fragment"),
    [
        ("recipes", "ACTION is missing"),
        ("recipes lst", "did you mean 'list'"),
        ("recipes show", "NAME is missing"),
        ("recipes show testbed/sdop", "did you mean 'testbed/sdpo'"),
        ("recipes copy testbed/sdpo", "DEST is missing"),
        ("recipes list --model qwen3-4", "did you mean 'qwen3-4b'"),
        ("recipes list --method opds", "no recipes of the method 'opds'"),
        ("recipes list --model gsm8k --method scope", "no recipe of scope for gsm8k"),
        ("recipes copy testbed/sdpo /dev/null/mine.yaml", "cannot be written"),
        ("train sdpo --config testbed/sdop --output_dir out", "did you mean 'testbed/sdpo'"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_status_2(command, fragment, capsys):
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert fragment in line
