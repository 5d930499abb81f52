import json
import os
import signal
import subprocess
import sys
import time

import pytest

from trl_opd.cli.eval import main
from trl_opd.errors import UserError
from trl_opd.evals.transformers_engine import TransformersEngine

from .conftest import results


@pytest.fixture
def arguments(student_path, sums_path):
    return ["--model", student_path, "--benchmark", str(sums_path), "--data-dir", str(sums_path.parent)]


def test_a_run_prints_a_table_and_a_finished_one_loads_no_weights(arguments, tmp_path, capsys, monkeypatch):
    command = [*arguments, "--output_dir", str(tmp_path / "out"), "--limit", "3", "--max_new_tokens", "8", "--n", "2"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "sums" in first
    assert "3 x 2" in first
    manifest = json.loads((tmp_path / "out" / "sums" / "manifest.json").read_text())
    assert manifest["settings"]["sampling"] == {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 8}
    assert manifest["sessions"][0]["command"].startswith("trl-opd eval --model ")
    monkeypatch.setattr(TransformersEngine, "_model", property(lambda _: pytest.fail("the weights were loaded")))
    assert main(command) == 0
    assert capsys.readouterr().out == first


def test_killed_in_the_middle_and_continued_equals_undisturbed(arguments, tmp_path):
    command = [*arguments, "--batch_size", "4", "--max_new_tokens", "120"]
    assert main([*command, "--output_dir", str(tmp_path / "whole")]) == 0
    disturbed = [*command, "--output_dir", str(tmp_path / "cut")]
    script = "import sys, torch; torch.set_num_threads(1); from trl_opd.cli.eval import main; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", script, *disturbed], stderr=subprocess.DEVNULL)
    generations = tmp_path / "cut" / "sums" / "generations" / "000.jsonl"
    deadline = time.monotonic() + 60
    while not (generations.exists() and generations.read_bytes().count(b"\n") >= 6) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    survived = generations.read_bytes()
    assert 6 <= survived.count(b"\n") < 48
    generations.write_bytes(survived[:-9])  # the death of the machine leaves half a line
    assert main(disturbed) == 0
    assert generations.read_bytes() == (tmp_path / "whole" / "sums" / "generations" / "000.jsonl").read_bytes()
    assert results(tmp_path / "cut" / "sums") == results(tmp_path / "whole" / "sums")
    manifest = json.loads((tmp_path / "cut" / "sums" / "manifest.json").read_text())
    assert len(manifest["sessions"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "nowhere/at/all"], "does not exist"),
        (["--benchmark", "gsm8"], "did you mean 'gsm8k'"),
        (["--temperature", "-1"], "temperature must be"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--data_dir", "nowhere"], "--data-dir must be the folder"),
        (["--batch-size", "0"], "batch_size must be"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(arguments, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        main([*arguments, "--output_dir", str(tmp_path / "out"), *change])
    assert not (tmp_path / "out").exists()


def test_nothing_to_run_and_bad_json_are_refused(student_path):
    with pytest.raises(UserError, match="Nothing to run"):
        main(["--model", student_path])
    with pytest.raises(UserError, match="is not a JSON object"):
        main(["--model", student_path, "--chat_template_kwargs", "[1]"])


def test_an_unknown_command_and_a_file_for_a_model_are_refused(sums_path):
    with pytest.raises(UserError, match="no command 'shwo' of eval: did you mean 'show'"):
        main(["shwo", "runs/a"])
    with pytest.raises(UserError, match="no folder"):
        main(["--model", str(sums_path), "--benchmark", "arithmetic"])


def test_an_interrupt_ends_any_command_with_a_sentence(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("trl_opd.cli.eval.score.main", interrupted)
    assert main(["score", "arithmetic"]) == 130
    assert "goes on from there" in capsys.readouterr().err


def test_the_verdict_of_a_hostile_program_is_shown_as_text(arguments, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*arguments, "--output_dir", str(out), "--limit", "1", "--n", "1", "--max_new_tokens", "2"]) == 0
    (verdicts,) = (out / "sums" / "verdicts").rglob("000.jsonl")
    row = json.loads(verdicts.read_text()) | {"correct": False, "reason": "error: [red]\x1b[31m" + "long " * 40}
    verdicts.write_text(json.dumps(row) + "\n")
    capsys.readouterr()
    assert main(["show", str(out / "sums"), "--id", "sum-0"]) == 0
    shown = capsys.readouterr().out
    assert "error: [red]\\u001b[31m" in shown
    assert "\x1b[31m" not in shown
    assert main(["show", str(out / "sums")]) == 0
    assert "sum-0" in capsys.readouterr().out


def test_list_names_all_suites(capsys):
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("arithmetic", "gsm8k", "testbed"))


def test_help_needs_neither_torch_nor_trl():
    script = (
        "import sys\nfrom trl_opd.cli.eval import main\n"
        "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules, 'trl' in sys.modules)"
    )
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.endswith("False False\n")
    assert "--max_new_tokens" in output
