"""Mistakes in a spec are told in one sentence before anything starts."""

from pathlib import Path

import pytest
import yaml

from trl_opd.boards.spec import load_spec
from trl_opd.errors import UserError


def method(**changes) -> dict:
    return {"name": "grpo", "method": "grpo", "recipe": "recipes/fake.yaml"} | changes


def test_paths_are_found_above_the_spec_and_the_folder_lies_beside_it(write_spec, tmp_path):
    spec = load_spec(write_spec())
    assert spec.methods[0].recipe == tmp_path / "recipes" / "fake.yaml"
    assert spec.folder == tmp_path / "boards" / "small"
    assert load_spec(write_spec(output_dir="../elsewhere")).folder == tmp_path / "elsewhere"


def test_methods_are_called_with_what_the_spec_says(write_spec):
    spec = load_spec(write_spec(methods=[method(overrides={"learning_rate": 0.1, "lora": True})]))
    assert spec.methods[0].overrides == {"learning_rate": 0.1, "lora": True}
    assert spec.evaluation.arguments() == ["--benchmark", "arithmetic", "--n", "2", "--seed", "0", "--limit", "12"]
    assert spec.environment == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown key `seed`; did you mean `seeds`"),
        ({"methods": [method(recipee="x")]}, "unknown key `recipee`; did you mean `recipe`"),
        ({"evaluation": {"benchmark": "arithmetic", "limits": 3}}, "did you mean `limit`"),
        ({"evaluation": {"n": 3}}, "`benchmark` is missing"),
        ({"baseline": "grop"}, "did you mean `grpo`"),
        ({"baseline": None}, "`baseline` is missing"),
        ({"seeds": []}, "`seeds` is empty"),
        ({"seeds": [1, 1]}, "the seed 1 is given 2 times"),
        ({"seeds": ["a"]}, "must be int, not 'a'"),
        ({"seeds": [True]}, "must be int, not True"),
        ({"workers": 0}, "`workers` is 0"),
        ({"methods": []}, "at least one method"),
        ({"methods": [method(), method()]}, "the method name grpo is given 2 times"),
        ({"methods": [method(recipe="recipes/none.yaml")]}, "there is no recipes/none.yaml"),
        ({"methods": [method(recipe="recipes")]}, "is a folder"),
        ({"methods": [method(name="../up")]}, "becomes a folder"),
        ({"methods": [method(name="base")], "baseline": "base"}, "stands for the untrained model"),
        ({"methods": [method(overrides={"seed": 3})]}, "`seed` is set by the board"),
        ({"methods": [method(overrides={"model_name_or_path": "other"})]}, "would train other"),
        ({"methods": [method(overrides={"a": [1]})]}, "must be str or int or float or bool"),
        ({"evaluation": {"benchmark": "arithmetic", "n": 0}}, "at least one answer"),
        ({"evaluation": {"benchmark": "arithmetic", "limit": 1}}, "statistics need two"),
        ({"path": "x"}, "unknown key `path`"),
    ],
)
def test_mistakes_are_refused(write_spec, changes, message):
    with pytest.raises(UserError) as caught:
        load_spec(write_spec(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="There is no board spec"):
        load_spec(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_spec(broken)


def test_the_boards_of_the_repository_load_but_for_recipes():
    """The recipes are tested with the trainer; here the keys of every board that is shipped."""
    for path in (Path(__file__).parents[2] / "leaderboards").glob("*.yaml"):
        raw = yaml.safe_load(path.read_text())
        missing = [one["recipe"] for one in raw["methods"] if not (path.parents[1] / one["recipe"]).exists()]
        if not missing:
            assert load_spec(path).name == path.stem
