"""`trl-opd check`: what it refuses, its exit status, and what of a recipe the memory table depends on."""

import json

import pytest

from trl_opd import UserError
from trl_opd.cli import check

MODEL = "model_name_or_path: testbed/base\n"


@pytest.fixture
def report(tmp_path):
    """Checks a recipe of a method; returns the exit status and the report."""

    def run(method: str, recipe: str = "", *options: str) -> tuple[int, dict[str, dict]]:
        path, made = tmp_path / f"{method}.yaml", tmp_path / "report.json"
        path.write_text(MODEL + recipe)
        status = check.main(["--config", str(path), "--json", str(made), *options])
        return status, {section["title"].split(" of ")[0]: section["facts"] for section in json.loads(made.read_text())}

    return run


def test_a_recipe_that_works_has_status_0_and_a_table(report, capsys):
    status, found = report("sdpo", "reward_funcs: [math_reward]\n", "--processes", "8")
    assert status == 0
    assert found["Refused"] == {"refused": []}
    assert set(found["Memory"]) == {"ddp", "fsdp2", "zero2", "zero3", "assumed"}
    assert {"moving average", "teacher states"} <= set(found["Memory"]["ddp"]["lasting"])
    assert "peak" in capsys.readouterr().out


def test_everything_that_is_refused_is_said_at_once(report):
    status, found = report("scope", "fp16: true\nbf16: false\n")
    assert status == 2
    refused = " ".join(found["Refused"]["refused"])
    assert "fp16 is not supported" in refused
    assert "no reward function" in refused
    assert "none was given" in refused


@pytest.mark.parametrize(("method", "option", "status"), [("sdpo", "", 2), ("opsd", "use_peft: true\n", 0)])
def test_zero3_takes_no_averaged_weights(method, option, status, report):
    found, sections = report(
        method, f"reward_funcs: [math_reward]\n{option}", "--strategy", "zero3", "--processes", "2"
    )
    assert found == status
    assert ("Under ZeRO-3" in "".join(sections["Refused"]["refused"])) == (status == 2)


def held(report, method: str, recipe: str = "", *options: str) -> dict[str, float]:
    return report(method, recipe, *options)[1]["Memory"]["single"]["lasting"]


def test_a_frozen_teacher_is_a_copy_without_an_adapter_and_nothing_with_one(report):
    whole = held(report, "opsd")
    assert whole["teachers"] == whole["parameters"]
    assert "teachers" not in held(report, "opsd", "use_peft: true\n")


def test_external_teachers_are_counted_where_they_are_held(report):
    assert held(report, "opd", "teacher_model_name_or_path: testbed/base\n")["teachers"] > 0
    assert "teachers" not in held(report, "opd", "teacher_server: http://localhost:1\n")


def test_vllm_takes_its_share_of_the_device(report):
    recipe = "reward_funcs: [math_reward]\nuse_vllm: true\nvllm_mode: colocate\nvllm_gpu_memory_utilization: 0.25\n"
    assert held(report, "grpo", recipe, "--device_gib", "40")["vLLM on this device"] == 10 * 2**30


def test_states_that_are_off_loaded_are_not_on_the_device(report):
    assert "teacher states" in held(report, "opsd")
    assert "teacher states" not in held(report, "opsd", "teacher_states: offload\n")


def test_a_recipe_that_is_not_named_after_a_method_needs_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MODEL)
    with pytest.raises(UserError, match="put it before the options"):
        check.main(["--config", str(path)])
    assert check.main(["opsd", "--config", str(path)]) == 0


def test_without_a_model_the_check_refuses(tmp_path):
    path = tmp_path / "opsd.yaml"
    path.write_text("learning_rate: 1.0e-5\n")
    assert check.main(["--config", str(path)]) == 2
