"""Bad input: every command tells a mistake in one sentence, with exit status 2 and no traceback unless --debug."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from trl_opd.cli.main import COMMANDS, main
from trl_opd.errors import UserError

ROOT = Path(__file__).parents[2]

RECIPE = {
    "model_name_or_path": "testbed/base",
    "dataset_name": "testbed",
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "max_completion_length": 8,
    "max_steps": 1,
    "output_dir": "run",
}

#: What lies in the folder that the commands are given in.
FILES = {
    "file": "x",
    "grpo.yaml": RECIPE | {"reward_funcs": ["math_reward"]},
    "opd.yaml": RECIPE | {"teacher_model_name_or_path": "testbed/teacher"},
    "unnamed.yaml": RECIPE,
    "typo.yaml": RECIPE | {"learning_rat": 1.0e-5},
    "old_recipe.yaml": RECIPE | {"teacher_sync_steps": 4},
    "list.yaml": ["learning_rate"],
    "broken.yaml": "learning_rate: [1",
    "empty.yaml": "",
    "bytes.yaml": b"\xff\xfe\x00",
    "ignored.yaml": RECIPE | {"reward_funcs": ["math_reward"], "lora_r": 8},
    "board.yaml": {"name": "x", "methds": []},
    "old_losses.json": {"format": 99},
    "old_cache/manifest.json": {"format": 0},
    "old_eval/manifest.json": {"format": 1, "settings": {}},
    "old_run/run.json": {"version": 0},
    "cut_run/run.json": '{"method": "grpo", "con',
    "rows.jsonl": {"question": "1+1=?"},
}

GRPO = ("train", "grpo", "--config", "grpo.yaml")
EVAL = ("eval", "--model", "testbed/base", "--benchmark", "arithmetic", "--limit", "1")
CACHE = ("cache", "opd", "--config", "opd.yaml", "--output")


@dataclass(frozen=True)
class Case:
    """A command with a mistake, what the sentence must say, and the modules that are not installed."""

    argv: tuple[str, ...]
    says: str
    hidden: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(self.argv) + (f" without {', '.join(self.hidden)}" if self.hidden else "")


def case(command: str, says: str, *hidden: str) -> Case:
    return Case(tuple(command.split()), says, hidden)


NO_ARGUMENTS = [
    case("", "No command was given; use one of train"),
    case("train", "No method was given; use one of grpo"),
    case("train sdpo", "name a recipe with --config"),
    case("check", "name a method (grpo"),
    case("explain", "METHOD is missing"),
    case("eval", "--model is missing"),
    case("eval --model testbed/base", "pass --benchmark NAME"),
    case("eval show", "RUN is missing"),
    case("eval diff", "A, B are missing"),
    case("eval score", "BENCHMARK, --generations are missing"),
    case("eval rescore", "RUN is missing"),
    case("eval lm-eval-tasks", "--benchmark, --output-dir are missing"),
    case("eval --via lm-eval", "--model is missing"),
    case("cache", "No method was given; use opd"),
    case("cache opd", "--output is missing"),
    case("discover", "name one with --config"),
    case("conformance", "FILE is missing"),
    case("board", "ACTION is missing"),
    case("board run", "SPEC is missing"),
    case("recipes", "ACTION is missing"),
    case("recipes show", "NAME is missing"),
]

UNKNOWN_NAMES = [
    case("trian", "There is no command 'trian' (did you mean 'train'?)"),
    case("train sdop --config grpo.yaml", "did you mean 'sdpo'"),
    case("train mine:Trainer --config grpo.yaml", "There is no module 'mine'"),
    case("check sdop --config grpo.yaml", "did you mean 'sdpo'"),
    case("check --config unnamed.yaml", "does not say its method; put it before the options"),
    case("explain sdop", "did you mean 'sdpo'"),
    case("cache exodp", "did you mean 'exopd'"),
    case("cache grpo --config grpo.yaml --output c", "grpo has no external teacher"),
    case("eval shwo", "did you mean 'show'"),
    case("eval --model testbed/base --benchmark arithmetc", "did you mean 'arithmetic'"),
    case("eval --model testbed/bse --benchmark arithmetic", "choose one of base, teacher"),
    case("eval score arithmetc --generations file", "did you mean 'arithmetic'"),
    case("eval --via lm-evl gsm8k --model x", "--via takes lm-eval"),
    case("board rnu board.yaml", "did you mean 'run'"),
    case("recipes lst", "did you mean 'list'"),
    case("recipes show testbed/sdop", "did you mean 'testbed/sdpo'"),
    case("recipes list --model qwen3-4", "did you mean 'qwen3-4b'"),
    case(" ".join(GRPO) + " --reward_funcs math_rewrd", "did you mean 'math_reward'"),
    case(" ".join(GRPO) + " --eval_suite gsm8 --eval_suite_steps 1", "did you mean 'gsm8k'"),
    case(" ".join(GRPO) + " --model_name_or_path testbed/bse", "choose one of base, teacher"),
]

UNKNOWN_OPTIONS = [
    case(" ".join(GRPO) + " --learning_rat 1", "did you mean '--learning_rate'"),
    case(" ".join(GRPO) + " --learning_rate fast", "--learning_rate: invalid float value: 'fast'"),
    case(" ".join(GRPO) + " twice", "'twice' is one argument too many"),
    case("check --config grpo.yaml --sampel", "did you mean '--sample'"),
    case("check --config grpo.yaml --strategy zreo3", "did you mean 'zero3'"),
    case("check --config grpo.yaml --rows 0", "--rows is 0"),
    case("explain sdpo --jsn", "did you mean '--json'"),
    case("explain sdpo opd", "'opd' is one argument too many"),
    case("eval --modle testbed/base --benchmark arithmetic", "did you mean '--model'"),
    case(" ".join(EVAL) + " --engine vlm", "did you mean 'vllm'"),
    case(" ".join(EVAL) + " --n many", "--n: invalid int value: 'many'"),
    case(" ".join(EVAL) + " --sandbox bwrap", "--sandbox would be ignored"),
    case("eval list everything", "one argument too many"),
    case("cache opd --config opd.yaml --output c --learning_rat 1", "did you mean '--learning_rate'"),
    case("discover --max_stps 3", "did you mean '--max_steps'"),
    case("conformance file --tolerence 1", "did you mean '--tolerance'"),
    case("conformance file --tolerance -1", "--tolerance is -1.0"),
    case("recipes list --mehtod sdpo", "--mehtod"),
]

WRONG_PATHS = [
    case("train grpo --config nowhere.yaml", "There is no recipe nowhere.yaml"),
    case("train grpo --config", "--config is followed by nothing"),
    case("train grpo --config .", "There is no recipe ."),
    case("train sdpo --config testbed/sdop", "did you mean 'testbed/sdpo'"),
    case(" ".join(GRPO) + " --dataset_name nowhere.jsonl", "There is no data file nowhere.jsonl"),
    case(" ".join(GRPO) + " --dataset_name rows.jsonl", "has no column 'prompt'"),
    case(" ".join(GRPO) + " --model_name_or_path ./nowhere", "There is no model in ./nowhere"),
    case("train opd --config opd.yaml --teacher_model_name_or_path ./nowhere", "There is no model in ./nowhere"),
    case("check --config nowhere.yaml", "There is no recipe nowhere.yaml"),
    case("check grpo --config nowhere.yaml", "There is no recipe nowhere.yaml"),
    case("eval --model nowhere/at/all --benchmark arithmetic", "does not exist"),
    case("eval --model testbed/base --suite nowhere.yaml", "nowhere.yaml does not exist"),
    case("eval --model testbed/base --benchmark gsm8k --data_dir nowhere", "--data-dir must be the folder"),
    case("eval show nowhere", "nowhere holds no run"),
    case("eval diff nowhere elsewhere", "nowhere holds no run"),
    case("eval score arithmetic --generations nowhere.jsonl", "There is no file nowhere.jsonl"),
    case("eval rescore nowhere", "nowhere holds no run"),
    case("eval calibrate nowhere --model x", "nowhere holds no run"),
    case("cache opd --config nowhere.yaml --output c", "There is no recipe nowhere.yaml"),
    case("cache opd --config opd.yaml --output c --rollouts nowhere.jsonl", "There is no data file nowhere.jsonl"),
    case("discover --config nowhere.yaml", "There is no recipe nowhere.yaml"),
    case("conformance nowhere.json", "nowhere.json cannot be read"),
    case("board plan nowhere.yaml", "There is no board spec nowhere.yaml"),
]

BAD_FILES = [
    case("train grpo --config typo.yaml", "did you mean 'learning_rate'"),
    case("train grpo --config list.yaml", "list.yaml must hold `key: value` lines"),
    case("train grpo --config broken.yaml", "broken.yaml is not valid YAML"),
    case("train grpo --config empty.yaml", "empty.yaml must hold `key: value` lines"),
    case("train grpo --config bytes.yaml", "bytes.yaml is not valid YAML"),
    case("train grpo --config ignored.yaml", "lora_r=8 acts with use_peft only"),
    case("check grpo --config typo.yaml", "did you mean 'learning_rate'"),
    case("cache opd --config typo.yaml --output c", "did you mean 'learning_rate'"),
    case("discover --config typo.yaml", "did you mean 'learning_rate'"),
    case("eval --model testbed/base --suite typo.yaml", "has the unknown key"),
    case("eval --model testbed/base --suite bytes.yaml", "bytes.yaml is not valid YAML"),
    case("board plan board.yaml", "did you mean `methods`"),
    case("board plan broken.yaml", "broken.yaml is not valid YAML"),
    case("board plan bytes.yaml", "bytes.yaml is not valid YAML"),
    case("board report list.yaml", "must hold `key: value` lines"),
    case("conformance file", "file is no JSON"),
]

OTHER_VERSIONS = [
    case("train grpo --config old_recipe.yaml", "sets 'teacher_sync_steps', which is no option of grpo"),
    case(" ".join(GRPO) + " --output_dir old_run", "old_run/run.json is no record of a run by this version"),
    case(" ".join(GRPO) + " --output_dir cut_run", "cut_run/run.json is no record of a run by this version"),
    case("train opd --config opd.yaml --teacher_cache old_cache", "old_cache is a teacher cache of format 0"),
    case("conformance old_losses.json", "old_losses.json is of format 99"),
    case("eval show old_eval", "old_eval holds a run of format 1"),
    case("eval rescore old_eval", "old_eval holds a run of format 1"),
]

READ_ONLY = [
    case(" ".join(GRPO) + " --output_dir file/run", "The output folder file/run cannot be written"),
    case("check --config grpo.yaml --json file/x.json", "file/x.json cannot be written"),
    case(" ".join(EVAL) + " --output_dir file/x", "file/x/arithmetic cannot be made"),
    case("eval score arithmetic --generations rows.jsonl --json file/x.json", "file/x.json does not exist"),
    case(" ".join(CACHE) + " file/x", "file/x cannot be used"),
    case("discover --config grpo.yaml --output_dir file/x", "The output folder file/x cannot be written"),
    case("recipes copy testbed/sdpo file/x.yaml", "file/x.yaml cannot be written"),
    case("recipes copy testbed/sdpo file", "file is there already"),
]

EXTRAS = [
    case(" ".join(GRPO) + " --use_vllm true --vllm_mode colocate", "pip install 'trl-opd[vllm]'", "vllm"),
    case(" ".join(EVAL) + " --engine vllm", "pip install 'trl-opd[vllm]'", "vllm"),
    case(" ".join(EVAL) + " --engine lm-eval", "pip install 'trl-opd[lm-eval]'", "lm_eval", "lm_eval.api.registry"),
    case("eval --via lm-eval gsm8k --model testbed/base", "pip install 'trl-opd[lm-eval]'", "lm_eval"),
    case("board run board.yaml", "pip install 'trl-opd[boards]'", "matplotlib"),
    case("board plan board.yaml", "pip install 'trl-opd[boards]'", "jinja2"),
]

CASES = [
    *NO_ARGUMENTS,
    *UNKNOWN_NAMES,
    *UNKNOWN_OPTIONS,
    *WRONG_PATHS,
    *BAD_FILES,
    *OTHER_VERSIONS,
    *READ_ONLY,
    *EXTRAS,
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder that commands are given in, with `FILES`."""
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        else:
            write = yaml.safe_dump if path.suffix == ".yaml" else json.dumps
            path.write_text(write(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mistake_is_one_sentence(case, folder, monkeypatch, capsys):
    for name in case.hidden:
        monkeypatch.setitem(sys.modules, name, None)
    before = sorted(folder.rglob("*"))
    assert main(list(case.argv)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.rstrip().endswith((".", "?"))
    assert case.says in err
    assert "usage:" not in err
    assert "Traceback" not in err
    assert out == ""
    assert [path for path in folder.rglob("*.safetensors") if path not in before] == []


def test_the_table_is_about_every_command():
    assert len(CASES) == len(set(CASES)) >= 60
    assert {case.argv[0] for case in CASES if case.argv} >= set(COMMANDS)


@pytest.mark.parametrize("command", ["explain sdop", "board plan nowhere.yaml", "eval --modle x"])
def test_debug_lets_the_traceback_through(command, folder):
    with pytest.raises(UserError):
        main([*command.split(), "--debug"])


#: Where nobody may make a file, root included.
CLOSED = "/sys"


@pytest.mark.parametrize(
    "command",
    [
        " ".join(GRPO) + f" --output_dir {CLOSED}/run",
        "train sft --config testbed/sft --output_dir " + f"{CLOSED}/run",
        "discover --config grpo.yaml --output_dir " + f"{CLOSED}/run",
        " ".join(EVAL) + f" --output_dir {CLOSED}/run",
        f"check --config grpo.yaml --no-sample --json {CLOSED}/x.json",
        f"recipes copy testbed/sdpo {CLOSED}/x.yaml",
        "board run closed.yaml",
    ],
)
def test_a_folder_without_permission_is_told(command, folder, capsys):
    board = {"data": {"dataset_name": "testbed"}, "budget": {"unit": "steps", "value": 3}, "baseline": "grpo"}
    line = {"name": "grpo", "method": "grpo", "recipe": "testbed/grpo", "overrides": {"max_steps": 3}}
    board |= {"name": "b", "title": "t", "description": "d", "base_model": "testbed/base", "seeds": [0]}
    board |= {"methods": [line], "evaluation": [{"benchmark": "arithmetic", "limit": 8}], "output_dir": f"{CLOSED}/b"}
    (folder / "closed.yaml").write_text(yaml.safe_dump(board))
    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert re.search(rf"^error: .*{CLOSED}/\S+ cannot be \w+ \([\w -]+\)[;:] \w.*\.$", err, re.MULTILINE), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("cache opd --config testbed/opd --output made --teacher_model_name_or_path ./nowhere", "There is no model in"),
        ("discover --config testbed/sdpo", "A search throws its weights away"),
        ("check --config testbed/sdpo --model_name_or_path ./nowhere", "There is no model in"),
        ("train opd --config testbed/opd --model_name_or_path ./nowhere --output_dir run", "There is no model in"),
    ],
)
def test_every_command_knows_shipped_recipes_by_name(command, expected, folder, capsys):
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    told = captured.out + captured.err
    assert expected in told
    assert "There is no recipe" not in told


def test_a_file_that_cannot_be_reached_is_one_sentence(monkeypatch, capsys):
    def unreachable(argv):
        raise OSError("We couldn't connect to\n'https://huggingface.co'")

    monkeypatch.setattr("trl_opd.cli.explain.main", unreachable)
    assert main(["explain", "sdpo"]) == 2
    assert capsys.readouterr().err == (
        "error: We couldn't connect to 'https://huggingface.co'; mend that, or add --debug to see where it came from.\n"
    )


def started(*argv: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "trl_opd", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_a_process_ends_with_status_2_and_the_sentence_alone():
    found = started("train", "sdop")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: There is no method 'sdop' (did you mean 'sdpo'?)")
    assert found.stderr.count("\n") == 1


def test_a_process_with_debug_shows_where_the_mistake_was_noticed():
    found = started("explain", "sdop", "--debug")
    assert found.returncode == 1
    assert "Traceback" in found.stderr
    assert "trl_opd.errors.UserError: There is no method 'sdop'" in found.stderr


def test_an_interrupt_is_a_sentence_and_debug_shows_where(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("trl_opd.cli.train.main", interrupted)
    assert main(list(GRPO)) == 130
    assert capsys.readouterr().err == "\nStopped: the same command goes on from what is stored, if anything is.\n"
    with pytest.raises(KeyboardInterrupt):
        main([*GRPO, "--debug"])
