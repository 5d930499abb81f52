"""Mistakes in a spec are told in one sentence before anything starts."""

import shutil
from pathlib import Path

import pytest

from trl_opd.boards.commands import eval_arguments, model_options, short
from trl_opd.boards.spec import load_spec
from trl_opd.errors import UserError
from trl_opd.recipes import find

ARITHMETIC = {"benchmark": "arithmetic", "n": 2}
VALIDATED = {"validation": {"benchmark": "arithmetic_validation", "n": 1}, "checkpoint": {"every": 10}}
TRIALS = {"trials": {"learning_rates": [1.0e-5, 3.0e-5]}}


def method(**changes) -> dict:
    return {"name": "grpo", "method": "grpo", "recipe": "recipes/fake.yaml"} | changes


def refused(write_spec, **changes) -> str:
    with pytest.raises(UserError) as caught:
        load_spec(write_spec(**changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_are_found_above_the_spec_and_the_folder_lies_beside_it(write_spec, tmp_path):
    spec = load_spec(write_spec())
    assert spec.methods[0].recipe == tmp_path / "recipes" / "fake.yaml"
    assert spec.folder == tmp_path / "boards" / "small"
    assert load_spec(write_spec(output_dir="../elsewhere")).folder == tmp_path / "elsewhere"


def test_a_shipped_recipe_is_found_by_its_name_after_files(write_spec, tmp_path):
    shipped = find("testbed/grpo").path
    board = {
        "base_model": "testbed/base",
        "data": {"dataset_name": "testbed"},
        "budget": {"unit": "steps", "value": 60},
    }
    assert load_spec(write_spec(methods=[method(recipe="testbed/grpo")], **board)).methods[0].recipe == shipped
    assert "did you mean 'testbed/grpo'" in refused(write_spec, methods=[method(recipe="testbed/gpro")], **board)


def test_a_whole_spec(write_spec):
    suite = [ARITHMETIC, {"benchmark": "arithmetic", "n": 64, "limit": 8, "purpose": "pass_at_k"}]
    lines = [method(overrides={"learning_rate": 0.1, "lora": True}, kind="baseline", label="GRPO")]
    spec = load_spec(write_spec(methods=lines, evaluation=suite, notes=["one machine"], **VALIDATED))
    assert spec.methods[0].overrides == {"learning_rate": 0.1, "lora": True}
    assert [spec.benchmark_key(entry) for entry in spec.evaluation] == ["arithmetic", "arithmetic/pass_at_k"]
    assert spec.primary.settings() == {
        "benchmark": "arithmetic",
        "n": 2,
        "seed": 0,
        "limit": None,
        "max_new_tokens": None,
    }
    assert (spec.checkpoint.rule, spec.engine, spec.launch.workers) == ("last", "transformers", 2)
    assert spec.environment == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown key `seed`; did you mean `seeds`"),
        ({"methods": [method(recipee="x")]}, "unknown key `recipee`; did you mean `recipe`"),
        ({"evaluation": [{"benchmark": "arithmetic", "limits": 3}]}, "did you mean `limit`"),
        ({"evaluation": [{"n": 3}]}, "`benchmark` is missing"),
        ({"evaluation": ARITHMETIC}, "`evaluation` must be list"),
        ({"launch": {"worker": 1}}, "unknown key `worker`; did you mean `workers`"),
        ({"budget": None}, "`budget` is missing"),
        ({"data": None}, "`data` is missing"),
        ({"baseline": "grop"}, "did you mean `grpo`"),
        ({"baseline": None}, "`baseline` is missing"),
        ({"seeds": []}, "`seeds` is empty"),
        ({"seeds": [1, 1]}, "the seed 1 is given 2 times"),
        ({"seeds": ["a"]}, "must be int, not 'a'"),
        ({"seeds": [True]}, "must be int, not True"),
        ({"launch": {"workers": 0}}, "`workers` is 0"),
        ({"methods": []}, "at least one method"),
        ({"methods": [method(), method()]}, "the method name grpo is given 2 times"),
        ({"methods": [method(recipe="recipes/none.yaml")]}, "there is no recipes/none.yaml"),
        ({"methods": [method(recipe="recipes")]}, "is a folder"),
        ({"methods": [method(name="../up")]}, "becomes a folder"),
        ({"methods": [method(name="base")], "baseline": "base"}, "stands for the untrained model"),
        ({"methods": [method(overrides={"seed": 3})]}, "`seed` is set by the board"),
        ({"methods": [method(overrides={"model_name_or_path": "other"})]}, "would train other"),
        ({"methods": [method(overrides={"a": [1]})]}, "must be str or int or float or bool"),
        ({"methods": [method(kind="methods")]}, "did you mean `method`"),
        ({"path": "x"}, "unknown key `path`"),
        ({"engine": "vlm"}, "did you mean `vllm`"),
    ],
)
def test_mistakes_are_refused(write_spec, changes, message):
    assert message in refused(write_spec, **changes)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ([], "at least one benchmark"),
        ([ARITHMETIC | {"n": 0}], "at least one answer"),
        ([ARITHMETIC | {"limit": 1}], "statistics need two"),
        ([ARITHMETIC, ARITHMETIC | {"benchmark": "arithmetic_validation"}], "2 entries have `purpose: primary`"),
        ([ARITHMETIC | {"purpose": "secondary"}], "0 entries have `purpose: primary`"),
        ([ARITHMETIC | {"purpose": "pass@k"}], "did you mean `pass_at_k`"),
        ([ARITHMETIC, *[ARITHMETIC | {"purpose": "secondary"}] * 2], "listed 2 times as secondary"),
        ([{"benchmark": "gsm8k", "n": 4}], "decodes greedily"),
        ([ARITHMETIC, {"benchmark": "gsm8k", "purpose": "pass_at_k"}], "needs `n`"),
        ([{"benchmark": "testbed"}], "is a suite: list its benchmarks one by one (arithmetic)"),
        ([{"benchmark": "arithmetik"}], "did you mean 'arithmetic'"),
    ],
)
def test_a_suite_that_cannot_be_reported_is_refused(write_spec, evaluation, message):
    assert message in refused(write_spec, evaluation=evaluation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"dataset": "testbed"}}, "unknown key `dataset`; did you mean `dataset_name`"),
        ({"data": {"dataset_limit": 3}}, "`dataset_name` is missing"),
        ({"data": {"dataset_name": "testbed", "dataset_limit": "3"}}, "must be int or nothing, not '3'"),
        ({"methods": [method(overrides={"dataset_name": "other.jsonl"})]}, "trained on the same rows"),
        ({"methods": [method(overrides={"dataset_limit": 5})]}, "`data` has none"),
        ({"methods": [method(overrides={"model_revision": "v2"})]}, "would start from `model_revision: v2`"),
        ({"methods": [method(overrides={"eval_suite": "arithmetic"})]}, "would validate with `eval_suite: arithmetic`"),
        (
            VALIDATED | {"methods": [method(overrides={"eval_suite_limit": 5})]},
            "`eval_suite_limit: 5` where the board has none",
        ),
        ({"budget": {"unit": "epochs", "value": 3}}, "budget: `unit` is 'epochs'"),
        ({"budget": {"unit": "steps", "value": 0}}, "more than nothing"),
        ({"budget": {"unit": "steps", "value": 2.5}}, "a whole number of steps"),
        ({"budget": {"unit": "steps", "value": "30"}}, "must be int or float"),
        ({"methods": [method(overrides={"max_steps": 60})]}, "would stop at `max_steps: 60`"),
        ({"methods": [method(overrides={"max_train_seconds": 9.0})]}, "would stop at `max_train_seconds: 9.0`"),
        (
            {"methods": [method(overrides={"max_steps": 30})], "budget": {"unit": "generated_tokens", "value": 9000}},
            "override it with `max_steps: -1`",
        ),
    ],
)
def test_rows_and_budgets_that_differ_are_refused(write_spec, changes, message):
    assert message in refused(write_spec, **changes)


def test_recipes_that_agree_with_the_board_are_taken(write_spec, tmp_path):
    (tmp_path / "recipes").mkdir()
    recipe = "dataset_name: testbed\ndataset_train_split: train\nmax_steps: 30\nreward_funcs: [math_reward]\n"
    (tmp_path / "recipes" / "fake.yaml").write_text(recipe)
    assert load_spec(write_spec())
    assert "`max_steps: 30`" in refused(write_spec, budget={"unit": "steps", "value": 40})
    tokens = {"unit": "generated_tokens", "value": 9000}
    assert "would stop at" in refused(write_spec, budget=tokens)
    assert load_spec(write_spec(budget=tokens, methods=[method(overrides={"max_steps": -1})]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": {"rule": "best"}}, "chooses by validation"),
        ({"checkpoint": {"rule": "first"}}, "checkpoint: `rule` is 'first'"),
        ({"checkpoint": {"every": 10}}, "does nothing without `validation`"),
        (VALIDATED | {"checkpoint": {}}, "set `every`"),
        (VALIDATED | {"checkpoint": {"every": 7}}, "does not divide the budget of 30 steps"),
        (VALIDATED | {"checkpoint": {"every": 0}}, "at least one step"),
        (VALIDATED | {"validation": ARITHMETIC}, "both `validation` and part of `evaluation`"),
        (VALIDATED | {"methods": [method(overrides={"save_steps": 5})]}, "`save_steps` is set by the board, to 10"),
        (TRIALS, "judged by validation"),
        (VALIDATED | {"trials": {"learning_rates": [1.0e-5], "seed": 1}}, "also one of the board's"),
        (VALIDATED | {"trials": {"learning_rates": []}}, "has 0 values"),
        (VALIDATED | {"trials": {"learning_rates": ["1e-5"]}}, "write 1.0e-5"),
        (VALIDATED | {"trials": {"learning_rates": [0]}}, "must all be positive"),
        (VALIDATED | {"trials": {"learning_rates": [1.0e-5, 1.0e-5]}}, "is given 2 times"),
        (
            VALIDATED | TRIALS | {"methods": [method(learning_rates=[0.1])]},
            "has 1 values where the board tries 2",
        ),
        ({"methods": [method(learning_rates=[0.1])]}, "do nothing on a board without `trials`"),
        (VALIDATED | TRIALS | {"methods": [method(overrides={"learning_rate": 0.1})]}, "chosen by the trials"),
    ],
)
def test_choices_without_their_validation_are_refused(write_spec, changes, message):
    assert message in refused(write_spec, **changes)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="There is no board spec"):
        load_spec(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_spec(broken)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "leaderboards").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_boards_of_the_repository_load(path, tmp_path):
    """In a repository with the folder of data that some of them read, which whoever clones it must fetch."""
    (tmp_path / "leaderboards").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "trainers").symlink_to(path.parents[1] / "trainers")
    copied = shutil.copy(path, tmp_path / "leaderboards")
    assert load_spec(copied).name == path.stem


def test_template_variables_reach_the_evaluation_and_change_nothing_where_there_are_none(write_spec):
    thinking = {"benchmark": "aime2025", "purpose": "secondary", "chat_template_kwargs": {"enable_thinking": False}}
    spec = load_spec(write_spec(evaluation=[ARITHMETIC, thinking]))
    plain, asked = (eval_arguments(spec, entry, {"model": "model"}, Path("out")) for entry in spec.evaluation)
    assert asked[asked.index("--chat_template_kwargs") + 1] == '{"enable_thinking": false}'
    assert "chat_template_kwargs" not in spec.evaluation[0].settings()
    assert "--chat_template_kwargs" not in plain


def test_a_run_with_an_adapter_is_evaluated_on_the_base_model_with_it(write_spec, tmp_path):
    trained = tmp_path / "train" / "model"
    methods = [method(overrides={"use_peft": True}), method(name="whole")]
    spec = load_spec(write_spec(methods=methods, baseline="whole", dtype="bfloat16"))
    adapter, whole = (model_options(spec, line, trained) for line in spec.methods)
    assert adapter == {"model": spec.base_model, "adapter": short(trained)}
    assert whole == {"model": short(trained)}
    command = eval_arguments(spec, spec.primary, adapter, tmp_path)
    assert command[command.index("--adapter") + 1] == short(trained)
    assert command[command.index("--dtype") + 1] == "bfloat16"
