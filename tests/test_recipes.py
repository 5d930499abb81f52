"""Every recipe that ships: read by the real parser, accepted by the checks, each number with its source, arms alike."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from tests.conftest import check_command
from trl_opd.cli import train
from trl_opd.errors import UserError
from trl_opd.methods import METHODS
from trl_opd.recipes import Recipe, find, launch_files, recipes, with_paths

ROOT = Path(__file__).parents[1]
RECIPES = recipes()
BY_NAME = {recipe.name: recipe for recipe in RECIPES}

#: Models whose recipes give the source of every number.
SOURCED = ("qwen3-1.7b", "qwen3-4b", "qwen3-8b", "r1-distill-qwen-1.5b", "smollm2-135m-instruct")

#: Settings that are one model's and not one method's, so that its recipes can be compared.
SHARED = (
    "model_name_or_path", "dataset_name", "dataset_config", "column_map", "answer_pattern", "system_prompt",
    "prompt_template", "reward_funcs", "use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "bf16", "use_cpu",
    "gradient_checkpointing", "logging_steps", "save_total_limit", "report_to", "seed", "chat_template_kwargs",
    "teacher_model_name_or_path",
)  # fmt: skip

#: Where a method's source says otherwise: it needs solutions, which the questions of SciKnowEval lack.
OTHERWISE = {
    (name, key)
    for name in ("qwen3-8b/opsd", "qwen3-8b/sft")
    for key in ("dataset_name", "column_map", "system_prompt", "prompt_template", "reward_funcs")
}  # fmt: skip

#: Headings of a step's batch: prompts, completions of each, steps that share them, processes.
ROLLOUTS = re.compile(
    r"^# Rollouts: (\d+) prompts x (\d+) completions (?:a step|for (\d+) steps), on (\d+) process(?:es)?$", re.MULTILINE
)
EXAMPLES = re.compile(r"^# Examples: (\d+)()() a step, on (\d+) process(?:es)?$", re.MULTILINE)

#: Label beside a number -> how the header explains it.
SOURCES = {
    "[P]": "the paper: ",
    "[C]": "code of ",
    "[M]": "the method's paper: ",
    "[D]": "",
    "[S]": "the setting of this model's other recipes",
    "[T]": "TRL's default",
    "[O]": "our choice",
}


def settings(recipe: Recipe) -> dict:
    return yaml.safe_load(recipe.text())


def lines_with_values(recipe: Recipe) -> list[str]:
    return [line for line in recipe.text().splitlines() if line and not line.startswith("#")]


def header(recipe: Recipe) -> list[str]:
    text = recipe.text().splitlines()
    return text[: next(number for number, line in enumerate(text) if not line.startswith("#"))]


@pytest.mark.parametrize("name", BY_NAME)
def test_the_parser_and_the_checks_accept_it(name):
    path = BY_NAME[name].path
    method = path.stem
    check_command(method, ["--config", str(path), "--output_dir", "unused"])
    assert (ROOT / "trainers" / f"{method}.py").exists()


def test_an_unknown_key_would_be_found(tmp_path):
    path = tmp_path / "sdpo.yaml"
    path.write_text(BY_NAME["qwen3-8b/sdpo"].text() + "suport_size: 100\n")
    with pytest.raises(UserError, match="support_size"):
        train.check_recipe(["--config", str(path)], "sdpo")


@pytest.mark.parametrize("name", BY_NAME)
def test_it_says_in_one_line_whether_it_was_run(name):
    said = [line for line in header(BY_NAME[name]) if re.match(r"# (Not run here|Run here)\b", line)]
    assert len(said) == 1
    assert BY_NAME[name].run_here == said[0].startswith("# Run here")


@pytest.mark.parametrize("model", SOURCED)
def test_every_number_has_its_source(model):
    for recipe in RECIPES:
        if recipe.model != model:
            continue
        top = "\n".join(header(recipe))
        used = set()
        for line in lines_with_values(recipe):
            label = re.search(r" # (\[\w\])", line)
            assert label, f"{recipe.name}: no source beside {line!r}"
            used.add(label[1])
        assert set(re.findall(r"^#   (\[\w\]) ", top, re.MULTILINE)) == used, recipe.name
        for label in used:
            assert f"#   {label} {SOURCES[label]}" in top, f"{recipe.name}: {label}"


@pytest.mark.parametrize("model", SOURCED)
def test_recipes_of_one_model_can_be_compared(model):
    values = defaultdict(dict)
    for recipe in RECIPES:
        if recipe.model == model:
            found = settings(recipe)
            for key in SHARED:
                if key in found and (recipe.name, key) not in OTHERWISE:
                    values[key][recipe.name] = str(found[key])
    assert values
    for key, found in values.items():
        assert len(set(found.values())) == 1, f"{key}: {found}"


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES if recipe.model in SOURCED])
def test_the_heading_of_the_batch_adds_up(name):
    recipe = BY_NAME[name]
    text, values = recipe.text(), settings(recipe)
    (found,) = ROLLOUTS.findall(text) if METHODS[recipe.method].kind == "on-policy" else EXAMPLES.findall(text)
    prompts, group, steps, processes = (int(number or 1) for number in found)
    accumulated = values["gradient_accumulation_steps"]
    assert values["per_device_train_batch_size"] * processes * accumulated * steps == prompts * group
    assert values.get("steps_per_generation", accumulated) == accumulated * steps
    if METHODS[recipe.method].kind == "on-policy":
        assert values["num_generations"] == group
    if not values.get("use_cpu"):
        launch = re.search(r"accelerate_configs/(\w+)\.yaml(?: --num_processes (\d+))?", text)
        configured = yaml.safe_load((ROOT / "trainers/accelerate_configs" / f"{launch[1]}.yaml").read_text())
        assert int(launch[2] or configured["num_processes"]) == processes
        assert f"Meant for {processes} GPUs" in text
    if values.get("use_vllm"):
        assert values["vllm_max_model_length"] > values["max_completion_length"]


@pytest.mark.parametrize("model", ["qwen3-1.7b", "qwen3-4b", "qwen3-8b", "r1-distill-qwen-1.5b"])
def test_every_method_has_a_recipe(model):
    assert {recipe.method for recipe in RECIPES if recipe.model == model} == set(METHODS) - {"mix"}


def test_papers_are_those_of_the_methods_documentation():
    for recipe in RECIPES:
        page = ROOT / "docs" / "methods" / f"{recipe.method}.md"
        if recipe.model in SOURCED and recipe.method in ("opsd", "sdpo", "srpo", "exopd", "scope"):
            (paper,) = re.findall(r"\[P\].*papers/([\d.]+\d)", recipe.text())
            assert paper in page.read_text(), recipe.name


def test_recipes_and_launch_files_are_found_by_name():
    assert find("testbed/sdpo").path == ROOT / "trainers" / "recipes" / "testbed" / "sdpo.yaml"
    assert {"accelerate/ddp", "accelerate/fsdp2", "accelerate/zero3", "slurm/train"} <= {f.name for f in launch_files()}
    with pytest.raises(UserError, match="did you mean 'qwen3-4b/sdpo'"):
        find("qwen3-4b/sdop")


def test_a_file_comes_before_a_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = with_paths(["--config", "testbed/sdpo", "--seed", "1"])
    assert named == ["--config", str(find("testbed/sdpo").path), "--seed", "1"]
    (tmp_path / "testbed").mkdir()
    (tmp_path / "testbed" / "sdpo").write_text("seed: 1\n")
    assert with_paths(["--config", "testbed/sdpo"]) == ["--config", "testbed/sdpo"]
    assert with_paths(["--config"]) == ["--config"]
