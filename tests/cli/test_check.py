"""`trl-opd check`: what it refuses and warns of, its exit status, and what of a recipe each part depends on."""

import argparse
import json
import re
import time
from pathlib import Path

import pytest
import torch

from tests.fake_server import serving
from trl_opd.cli import check
from trl_opd.cli.check import reading, rehearsal, resources
from trl_opd.cli.check.estimator import gradient
from trl_opd.cli.main import main
from trl_opd.memory import Run, Shape
from trl_opd.objectives.divergence import Divergence
from trl_opd.testbed import REFERENCE_TEMPLATE

CPU = "use_cpu: true\nbf16: false\nreport_to: none\n"
BASE = f"model_name_or_path: testbed/base\ndataset_name: testbed\nmax_completion_length: 32\n{CPU}"
TEMPLATE = f"reference_template: {json.dumps(REFERENCE_TEMPLATE)}\n"
REWARD = "reward_funcs: [math_reward]\n"
OPD = "teacher_model_name_or_path: testbed/teacher\n"


@pytest.fixture
def report(tmp_path):
    """Checks a recipe of a method; returns the exit status and the report."""

    def run(method: str, recipe: str = "", *options: str, base: str = BASE, sample: str = "--no-sample"):
        path, made = tmp_path / f"{method}.yaml", tmp_path / "report.json"
        path.write_text(base + recipe)
        status = check.main(["--config", str(path), sample, "--rows", "16", "--json", str(made), *options])
        return status, json.loads(made.read_text())

    return run


def test_a_recipe_that_works_is_fine_and_every_part_is_on_the_screen(report, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    status, found = report("opsd", TEMPLATE)
    assert (status, found["status"], found["warnings"], found["refused"]) == (0, "fine", [], [])
    shown = capsys.readouterr().out
    assert all(f"\n{title}" in shown for title, _ in (check.FIRST | check.SECTIONS).values() if title != "Parity")
    assert shown.rstrip().endswith("fine")
    assert "\x1b[" not in shown  # plain where it is no terminal
    assert len(shown.splitlines()) < 70


def test_the_report_for_machines_alone_is_all_of_the_output(tmp_path, capsys):
    path = tmp_path / "opsd.yaml"
    path.write_text(BASE + TEMPLATE)
    assert check.main(["--config", str(path), "--no-sample", "--rows", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "opsd"
    assert found["sections"]["lengths"]["rows"] == 4


def test_the_disk_is_that_of_the_output_folder_however_it_is_named(report, tmp_path):
    for options in (["--output_dir", str(tmp_path / "a")], [f"--output_dir={tmp_path / 'a'}"]):
        assert report("opsd", TEMPLATE, *options)[1]["sections"]["disk"]["folder"] == str(tmp_path / "a")


# The method


def test_the_method_is_read_from_the_name_of_the_recipe_or_its_first_lines(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"# trl-opd train opsd --config mine.yaml\n{BASE}{TEMPLATE}")
    options = ["--config", str(path), "--no-sample", "--rows", "2"]
    assert check.main(options) == 0
    assert capsys.readouterr().out.startswith("check opsd")
    path.write_text(BASE + TEMPLATE)
    assert main(["check", *options]) == 2
    assert "does not say its method" in capsys.readouterr().err
    assert check.main(["opsd", *options]) == 0


@pytest.mark.parametrize(("method", "recipe", "longest"), [("sft", "", 20), ("rft", "max_completion_length: 32\n", 32)])
def test_methods_without_rollouts_are_told_what_applies_to_them(method, recipe, longest, report):
    base = BASE.replace("max_completion_length: 32\n", "")
    status, found = report(method, f"{recipe}{REWARD if method == 'rft' else ''}", base=base)
    assert (status, found["refused"]) == (0, [])
    assert "exact gradient" in found["sections"]["estimator"]["gradient"]
    assert found["sections"]["lengths"]["max_completion_length"] >= longest
    assert found["sections"]["disk"]["needed"] > 0
    assert "rollouts" not in found["sections"]


# Refusals and options


def test_everything_that_is_refused_is_said_at_once(report):
    status, found = report("scope", "fp16: true\n")
    assert (status, found["status"]) == (2, "refused")
    refused = " ".join(found["refused"])
    assert "fp16 is not supported" in refused
    assert "no reward function" in refused
    assert "none was given" in refused
    assert "rollouts" not in found["sections"]  # nothing is drawn for a run that is refused


@pytest.mark.parametrize(
    ("method", "recipe", "message"),
    [
        ("grpo", "reward_funcs: [math_rewrd]\n", "did you mean 'math_reward'"),
        ("grpo", REWARD + "per_device_train_batch_size: 80000\n", "no step could be made"),
        ("opsd", TEMPLATE + "solution_column: worked\n", "no column 'worked'"),
        ("sdpo", REWARD + "support_size: 5000\n", "the vocabulary has 102 tokens"),
        ("opd", "teacher_model_name_or_path: /nowhere/at/all\n", "There is no model in /nowhere/at/all"),
        ("opsd", TEMPLATE + "beta: 0.1\n", "would be ignored"),
    ],
)
def test_what_training_refuses_is_refused(method, recipe, message, report):
    status, found = report(method, recipe)
    assert status == 2
    assert message in " ".join(found["refused"])


@pytest.mark.parametrize(
    ("recipe", "option", "switch"),
    [
        ("lora_r: 4\n", "lora_r=4", "use_peft"),
        ("vllm_gpu_memory_utilization: 0.5\n", "vllm_gpu_memory_utilization=0.5", "use_vllm"),
        ("eval_suite_steps: 5\n", "eval_suite_steps=5", "eval_suite"),
    ],
)
def test_options_of_a_group_that_is_off_are_refused_by_check_and_by_train(
    recipe, option, switch, report, tmp_path, capsys
):
    status, found = report("opsd", TEMPLATE + recipe)
    assert status == 2
    assert [told for told in found["refused"] if told.startswith(f"{option} acts with {switch} only")]
    capsys.readouterr()
    assert main(["train", "opsd", "--config", str(tmp_path / "opsd.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
    assert f"{option} acts with {switch} only" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_options_that_act_are_those_that_differ_from_the_method(report):
    _, found = report("opsd", TEMPLATE + "learning_rate: 5.0e-6\nmax_steps: 3\n")
    options = found["sections"]["options"]["set"]
    assert options["max_steps"] == 3
    assert "learning_rate" not in options  # OPSD's own


@pytest.mark.parametrize(
    ("method", "option", "status"), [("sdpo", "support_size: 20\n", 2), ("opsd", "use_peft: true\n", 0)]
)
def test_zero3_takes_no_averaged_weights(method, option, status, report):
    found, sections = report(method, f"{REWARD}{option}", "--strategy", "zero3", "--processes", "2")
    assert found == status
    assert ("Under ZeRO-3" in "".join(sections["refused"])) == (status == 2)


# The estimator


@pytest.mark.parametrize(
    ("divergence", "told"),
    [
        (Divergence("reverse_kl", "k1"), "as a policy gradient: in expectation the gradient of the reverse KL"),
        (Divergence("reverse_kl", "k2"), "differentiated: in expectation the gradient of the reverse KL"),
        (Divergence("forward_kl", "k3"), "differentiated: in expectation the gradient of the forward KL"),
        (Divergence("forward_kl", entry_clip=0.05), "capped at 0.05 nats, differentiated: its exact gradient"),
        (Divergence("jsd", "topk", jsd_beta=0.5, support_size=9), "JSD with beta 0.5 over the student's 9 likeliest"),
        (Divergence("jsd", "topk", jsd_beta=0.5, support_size=9), "the gradient of a lower bound of it"),
    ],
)
def test_the_gradient_is_named(divergence, told):
    assert told in gradient(divergence)


def test_a_sampled_estimator_on_a_cut_distribution_is_warned_of(report):
    recipe = f"{OPD}estimator: k1\n"
    assert report("opd", recipe)[1]["warnings"] == []
    status, found = report("opd", f"{recipe}top_p: 0.9\n")
    assert status == 1
    assert "cut the distribution" in found["warnings"][0]


# What is read


def test_row_0_is_shown_as_both_read_it(report, capsys):
    _, found = report("opsd", TEMPLATE)
    row = found["sections"]["reading"]
    assert row["student"].startswith("«user»39+89+96=?")
    assert "39+89=128" in row["teacher"]
    assert not row["same"]
    assert re.search(r"«user»39\+89\+96=\?.*\|.*«user»Solution", capsys.readouterr().out)


def test_a_teacher_of_siblings_is_shown_with_what_stands_for_one(report):
    _, found = report("sdpo", REWARD + "support_size: 20\n")
    assert reading.SIBLING in found["sections"]["reading"]["teacher"]


def test_side_by_side_marks_the_lines_that_differ():
    assert reading.side_by_side("a\nb\nc", "a\nx\ny\nc") == [
        ("a", " ", "a"),
        ("b", "|", "x"),
        ("", ">", "y"),
        ("c", " ", "c"),
    ]
    long = "\n".join(map(str, range(100)))
    shown = reading.side_by_side(long, long)
    assert len(shown) == reading.LINES + 1
    assert ("... 86 more lines", " ", "") in shown


def test_a_prompt_reaches_no_terminal_as_control_characters(report, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1+1=\x1b[31m?", "solution": "2 [bold]", "answer": "2"}) + "\n")
    report(
        "opsd",
        TEMPLATE + f"dataset_name: {rows}\nper_device_train_batch_size: 1\n",
        base=BASE.replace("dataset_name: testbed\n", ""),
    )
    assert "\x1b[31m" not in capsys.readouterr().out


@pytest.fixture
def other_stops(tmp_path) -> Path:
    """The testbed's teacher with another stop token in its generation configuration."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_opd.testbed import model_path

    folder = tmp_path / "teacher"
    AutoTokenizer.from_pretrained(model_path("teacher")).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(model_path("teacher"))
    model.generation_config.eos_token_id = [1, 7]
    model.save_pretrained(folder)
    return folder


def test_other_stop_tokens_of_the_teacher_are_warned_of(other_stops, report):
    assert report("opd", OPD)[1]["warnings"] == []
    status, found = report("opd", f"teacher_model_name_or_path: {other_stops}\n")
    assert status == 1
    assert "stop at different tokens" in found["warnings"][0]
    sides = found["sections"]["models"]
    assert sides["student"]["stop ids"] == "1 «end»"
    assert sides["teacher"]["stop ids"].startswith("1 «end», 7 ")


def test_template_arguments_and_ends_of_both_sides_are_told(report):
    sides = report("opsd", TEMPLATE)[1]["sections"]["models"]
    assert sides["student"]["template arguments"] == {"enable_thinking": False}
    assert sides["teacher"]["template arguments"] == {"enable_thinking": True}
    assert sides["teacher"]["prompt ends with"] == sides["student"]["prompt ends with"]
    assert sides["student"]["thinking"] == "the template has no such flag"
    assert reading._thinking("{% if enable_thinking %}", {"enable_thinking": True}) == "on"


# Lengths


def test_rows_that_the_teacher_would_drop_are_counted(report):
    roomy = report("opsd", TEMPLATE + "max_teacher_length: 200\n")[1]["sections"]["lengths"]
    assert (roomy["teacher_dropped"], roomy["teacher_limit"]) == (0.0, 200)
    status, found = report("opsd", TEMPLATE + "max_teacher_length: 81\n")
    lengths = found["sections"]["lengths"]
    # With 32 tokens of completion 49 are left: some of the 16 rows have that, and none has more than 81 itself.
    assert 0.0 < lengths["teacher_dropped"] < 1.0
    assert lengths["teacher_dropped_at_once"] == 0.0
    assert status == 1
    assert "do not fit the teacher's 81 tokens" in found["warnings"][0]


def test_rows_that_are_over_the_students_positions_are_counted(report):
    status, found = report(
        "grpo", REWARD + "max_completion_length: 1020\n", base=BASE.replace("max_completion_length: 32\n", "")
    )
    assert found["sections"]["lengths"]["student_over"] == 1.0
    assert status == 1
    assert "longer than the student's 1024" in found["warnings"][0]


def test_rows_without_a_solution_are_counted(report, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "1+1=?", "solution": text}) + "\n" for text in ("1+1=2", "")))
    base = BASE.replace("testbed\nmax", f"{rows}\nmax")
    _, found = report("opsd", TEMPLATE + "per_device_train_batch_size: 2\n", base=base)
    assert found["sections"]["lengths"]["teacher_absent"] == 0.5
    assert "nothing to read for 50% of the rows" in found["warnings"][0]


# Rollouts


def test_a_rehearsal_scores_rollouts_and_leaves_nothing_behind(report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    status, found = report(
        "sdpo", REWARD + "support_size: 20\nnum_generations: 4\nmax_teacher_length: 256\n", sample="--sample"
    )
    rollouts = found["sections"]["rollouts"]
    assert status in (0, 1)
    assert len(rollouts["rewards"]) == len(rollouts["tokens"]) == 16  # four prompts
    assert set(rollouts["rewards"]) <= {0.0, 1.0}
    assert rollouts["metrics"]["context/active_fraction"] <= 1.0
    assert found["sections"]["time"]["measured"]["rollouts"] == 16
    assert found["sections"]["time"]["seconds"] > 0.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "sdpo.yaml"]


def constant_reward(completions, **_):
    return [1.0] * len(completions)


def test_rewards_that_are_all_alike_and_a_gradient_of_zero_are_warned_of(report):
    recipe = "reward_funcs: [tests.cli.test_check.constant_reward]\nnum_generations: 2\nmax_completion_length: 4\n"
    status, found = report("grpo", recipe, base=BASE.replace("max_completion_length: 32\n", ""), sample="--sample")
    assert status == 1
    told = " ".join(found["warnings"])
    assert "All 8 rewards are 1" in told
    assert "gradient of the rehearsed step is zero" in told
    assert "cut at max_completion_length=4" in told


@pytest.mark.parametrize(
    ("rewards", "warned"),
    [
        ([0.0, 0.0], "All 2 rewards are 0"),
        ([0.3, 0.3], "never changes"),
        ([0.0, 1.0], ""),
        ([0.0, float("nan")], "1 of 2"),
    ],
)
def test_what_rewards_are_warned_of(rewards, warned):
    told = " ".join(rehearsal._reward_warnings(rewards))
    assert warned in told
    assert bool(warned) == bool(told)


# Parity


def test_a_server_is_probed_and_its_disagreement_refused(report):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_opd.testbed import model_path

    model = AutoModelForCausalLM.from_pretrained(model_path("teacher")).eval()
    with serving(model, AutoTokenizer.from_pretrained(model_path("teacher"))) as server:
        recipe = f"estimator: k1\nteacher_server: {server.url}\n"
        status, found = report("opd", f"{recipe}teacher_model_name_or_path: testbed/teacher\n")
        assert (status, found["refused"]) == (0, [])
        assert "mean differences in nats" in found["sections"]["parity"]["teacher"]
        status, found = report("opd", f"{recipe}teacher_model_name_or_path: testbed/base\n")
        assert status == 2
        assert "server" in found["refused"][0]


def test_a_server_that_is_not_there_is_refused(report):
    status, found = report("opd", "estimator: k1\nteacher_server: http://127.0.0.1:9\nteacher_server_retries: 0\n")
    assert status == 2
    assert "127.0.0.1:9" in found["refused"][0]


def test_vllm_that_is_not_there_is_warned_of(report, monkeypatch):
    monkeypatch.setattr("trl_opd.cli.check.parity.find_spec", lambda _: None)
    assert (
        "vLLM is not installed here"
        in report("grpo", REWARD + "use_vllm: true\nvllm_mode: colocate\n")[1]["warnings"][0]
    )
    recipe = "use_vllm: true\nvllm_mode: server\nvllm_server_base_url: http://127.0.0.1:9\n"
    assert "does not answer" in report("grpo", REWARD + recipe)[1]["warnings"][0]


# Memory, time, disk


def held(report, method: str, recipe: str = "", *options: str) -> dict[str, float]:
    return report(method, recipe, *options)[1]["sections"]["memory"]["single"]["lasting"]


def test_memory_is_told_by_strategy(report):
    _, found = report("sdpo", REWARD + "support_size: 20\n", "--processes", "8")
    memory = found["sections"]["memory"]
    assert set(memory) == {"ddp", "fsdp2", "zero2", "zero3", "assumed"}
    assert {"moving average", "teacher states"} <= set(memory["ddp"]["lasting"])


def test_a_frozen_teacher_is_a_copy_without_an_adapter_and_nothing_with_one(report):
    whole = held(report, "opsd")
    assert whole["teachers"] == whole["parameters"]
    assert "teachers" not in held(report, "opsd", "use_peft: true\n")


def test_external_teachers_are_counted_where_they_are_held(report):
    assert held(report, "opd", OPD)["teachers"] > 0
    assert "teachers" not in held(
        report, "opd", "estimator: k1\nteacher_server: http://127.0.0.1:9\nteacher_server_retries: 0\n"
    )


def test_vllm_takes_its_share_of_the_device(report):
    recipe = f"{REWARD}use_vllm: true\nvllm_mode: colocate\nvllm_gpu_memory_utilization: 0.25\n"
    assert held(report, "grpo", recipe, "--device_gib", "40")["vLLM on this device"] == 10 * 2**30


def test_states_that_are_off_loaded_are_not_on_the_device(report):
    assert "teacher states" in held(report, "opsd")
    assert "teacher states" not in held(report, "opsd", "teacher_states: offload\n")


def test_prompts_of_the_memory_table_are_those_of_the_rows(report):
    _, found = report("opsd", TEMPLATE)
    assumed, lengths = found["sections"]["memory"]["assumed"], found["sections"]["lengths"]
    assert (assumed["prompt"], assumed["teacher_prompt"]) == (lengths["student"]["most"], lengths["teacher"]["most"])


def shape(**changes) -> Shape:
    sizes = {"parameters": 10, "trainable": 10, "adapted": 0, "head": 1, "unit": 1, "layers": 1, "hidden": 1}
    return Shape(**sizes | {"intermediate": 1, "kv_width": 1, "bytes_per": 2} | changes)


def test_operations_of_a_step_follow_from_parameters_and_tokens():
    lengths = {"prompt": 3, "teacher_prompt": 5, "completion": 2}
    run = Run(student=shape(), scorers=[shape(parameters=100)], checkpointing=False, **lengths)
    work = resources.operations(run, rollouts=4)
    assert work == {"rollouts": 2 * 10 * 4 * 5, "scoring": 2 * 100 * 4 * 7, "loss and backward": 6 * 10 * 4 * 5}
    adapter = Run(student=shape(trainable=1), checkpointing=True, **lengths)
    assert resources.operations(adapter, 4)["loss and backward"] == 6 * 10 * 4 * 5


def test_the_time_of_a_step_follows_from_a_given_speed(report):
    time_of = report("grpo", REWARD, "--device_tflops", "2")[1]["sections"]["time"]
    assert time_of["seconds"] == pytest.approx(sum(time_of["operations"].values()) / 2e12 / resources.UTILISATION)


def test_checkpoints_are_weighed_against_the_disk(report, monkeypatch):
    recipe = REWARD + "max_steps: 100\nsave_steps: 10\n"
    disk = report("grpo", recipe)[1]["sections"]["disk"]
    assert disk["checkpoints"] == 10
    assert report("grpo", recipe + "save_total_limit: 2\n")[1]["sections"]["disk"]["checkpoints"] == 3
    smaller = report("grpo", recipe + "save_only_model: true\n")[1]["sections"]["disk"]
    assert smaller["checkpoint"] == pytest.approx(disk["checkpoint"] / 3)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: argparse.Namespace(free=1000))
    status, found = report("grpo", recipe)
    assert status == 1
    assert "set save_total_limit" in found["warnings"][0]


# The short form


def test_training_prints_the_short_form_before_the_first_step(tmp_path, capsys, monkeypatch):
    from trl_opd.cli.check import brief

    seconds = []

    def timed(*arguments):
        start = time.monotonic()
        lines = made(*arguments)
        seconds.append(time.monotonic() - start)
        return lines

    made = brief.brief
    monkeypatch.setattr(brief, "brief", timed)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        BASE + TEMPLATE + "max_steps: 1\nper_device_train_batch_size: 4\nsave_strategy: 'no'\nlogging_steps: 1\n"
    )
    assert main(["train", "opsd", "--config", str(path), "--output_dir", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    first_step = next(index for index, line in enumerate(lines) if line.startswith("step 1/1"))
    before = "\n".join(lines[:first_step])
    for told in ("divergence: the forward KL", "the teacher reads", "student's prompts", "memory of a device"):
        assert told in before
    assert seconds[0] < 1.0


def test_a_run_without_a_model_is_refused(report):
    assert report("opsd", base="dataset_name: testbed\n" + CPU)[0] == 2
