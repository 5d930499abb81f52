"""The queue, with a stand-in for the trainer: deaths, failures, foreign folders."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from trl_opd.boards import runner
from trl_opd.boards.runner import run_board
from trl_opd.boards.runs import FAILED, FINISHED, MISSING, plan_runs, status_of
from trl_opd.boards.spec import load_spec
from trl_opd.cli.board import main
from trl_opd.errors import UserError

DRIVER = """
import sys
from trl_opd.cli.board import main
split = sys.argv.index("run")
sys.exit(main(sys.argv[split:], sys.argv[1:split]))
"""
SLOW = {"FAKE_SECONDS": "0.02"}
GRPO = {"name": "grpo", "method": "grpo", "recipe": "recipes/fake.yaml"}


def start_board(launcher, spec: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *launcher, "run", str(spec)],
        env=os.environ | SLOW,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def contents(folder: Path) -> dict[str, str]:
    """What the statistics and the page are made of; not how often a run was started."""
    names = ("000.jsonl", "summary.json", "skill.json")
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.name in names}


def starts(folder: Path) -> dict[str, int]:
    """How often each stage was started."""
    return {str(p.parent.relative_to(folder)): len(p.read_text().splitlines()) for p in folder.rglob("writer")}


def wait_until(condition, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "the moment never came"
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to take note of its death does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_finished_board_repeats_nothing(write_spec, launcher):
    spec = load_spec(write_spec())
    assert run_board(spec, launcher) == 0
    before = starts(spec.folder)
    assert len(before) == 1 + 2 * 6
    assert set(before.values()) == {1}
    assert run_board(spec, launcher) == 0
    assert starts(spec.folder) == before


def test_board_killed_in_the_middle_goes_on_to_the_same_results(write_spec, launcher):
    undisturbed, spec_file = load_spec(write_spec(name="undisturbed")), write_spec()
    spec = load_spec(spec_file)
    assert run_board(undisturbed, launcher) == 0
    for step in (8, 17):
        process = start_board(launcher, spec_file)
        progress = spec.runs_folder / "opd-seed0" / "train" / "run.json"
        wait_until(
            lambda wanted=step, file=progress: file.exists() and json.loads(file.read_text())["step"] >= wanted,
            process,
        )
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert children
        process.kill()
        process.communicate()
        wait_until(lambda pids=children: not any(alive(pid) for pid in pids))
    assert run_board(spec, launcher) == 0
    assert contents(spec.runs_folder) == {
        key: text.replace("undisturbed", "small") for key, text in contents(undisturbed.runs_folder).items()
    }
    assert starts(spec.runs_folder)["opd-seed0/train"] == 3
    assert starts(spec.runs_folder)["opsd-seed1/train"] == 1
    assert not list(spec.folder.rglob("TWO_WRITERS"))


def test_orphan_that_outlives_the_board_keeps_its_folder(write_spec, launcher, monkeypatch):
    """Where the kernel does not kill the child, the lock on the folder holds a second writer off."""
    monkeypatch.setattr(runner, "LOCK_PATIENCE_SECONDS", 0.3)
    spec = load_spec(write_spec(methods=[GRPO]))
    run = next(run for run in plan_runs(spec) if run.name == "grpo-seed0")
    run.folder.mkdir(parents=True)
    with run.lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_board(spec, launcher) == 1
    assert "another process still writes" in status_of(run).error
    assert not run.stages[0].folder.exists()
    assert run_board(spec, launcher) == 0


def test_child_holds_the_lock_of_its_folder(write_spec, launcher):
    spec_file = write_spec()
    lock_file = load_spec(spec_file).runs_folder / "grpo-seed0" / "lock"
    process = start_board(launcher, spec_file)
    wait_until((lock_file.parent / "train" / "run.json").exists, process)
    with lock_file.open("r+") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.communicate()


def test_killed_child_is_a_failed_run_and_is_tried_again(write_spec, launcher):
    spec_file = write_spec(methods=[GRPO])
    spec = load_spec(spec_file)
    writer = spec.runs_folder / "grpo-seed1" / "train" / "writer"
    process = start_board(launcher, spec_file)
    wait_until(lambda: writer.exists() and writer.read_text().strip(), process)
    os.kill(int(writer.read_text()), signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "grpo-seed1: train failed" in output
    run = next(run for run in plan_runs(spec) if run.name == "grpo-seed1")
    assert (status_of(run).state, status_of(run).error) == (FAILED, "killed by signal 9")
    assert run_board(spec, launcher) == 0
    assert status_of(run).state == FINISHED


def test_failed_run_is_kept_with_its_last_line_and_the_board_goes_on(write_spec, launcher):
    methods = [
        GRPO,
        {"name": "opd", "method": "opd", "recipe": "recipes/fake.yaml", "overrides": {"fail_at": 7}},
    ]
    spec = load_spec(write_spec(methods=methods))
    assert run_board(spec, launcher) == 1
    states = {run.name: status_of(run) for run in plan_runs(spec)}
    assert states["opd-seed1"].error == "RuntimeError: the loss is <nan> at step 7 (exit status 1)"
    assert {name for name, status in states.items() if status.state == FINISHED} == {
        "base",
        "grpo-seed0",
        "grpo-seed1",
    }


def test_interrupt_keeps_what_is_finished(write_spec, launcher):
    spec_file = write_spec()
    spec = load_spec(spec_file)
    process = start_board(launcher, spec_file)
    wait_until((spec.runs_folder / "opd-seed0" / "train" / "run.json").exists, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "Stopped: 1 of 7 runs are finished and stay" in output
    assert "Traceback" not in output


def test_second_board_on_the_same_folder_is_refused(write_spec, launcher):
    spec_file = write_spec()
    process = start_board(launcher, spec_file)
    wait_until((load_spec(spec_file).runs_folder / "base").exists, process)
    with pytest.raises(UserError, match="Another `board run`"):
        run_board(load_spec(spec_file), launcher)
    process.kill()
    process.communicate()


def test_run_with_other_settings_is_refused_by_name(write_spec, launcher, tmp_path):
    spec = load_spec(write_spec(methods=[GRPO]))
    assert run_board(spec, launcher) == 0
    (tmp_path / "recipes" / "fake.yaml").write_text("# a comment changes nothing\nlearning_rate: 0.0003\n")
    assert run_board(load_spec(write_spec(methods=[GRPO])), launcher) == 0
    (tmp_path / "recipes" / "fake.yaml").write_text("learning_rate: 0.5\n")
    with pytest.raises(UserError, match=r"made with other settings \(recipe\): move the folder away"):
        run_board(load_spec(write_spec(methods=[GRPO])), launcher)


def test_other_evaluation_is_kept_beside_the_first(write_spec, launcher):
    assert run_board(load_spec(write_spec(methods=[GRPO])), launcher) == 0
    changed = load_spec(write_spec(methods=[GRPO], evaluation=[{"benchmark": "arithmetic", "n": 3, "limit": 12}]))
    assert run_board(changed, launcher) == 0
    counts = starts(changed.runs_folder)
    assert counts["grpo-seed0/train"] == 1
    assert sum(name.startswith("grpo-seed0/evaluations/") for name in counts) == 2


def test_terminal_shows_one_live_line_for_each_run(write_spec, launcher):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    assert run_board(load_spec(write_spec(methods=[GRPO], environment=SLOW)), launcher, console) == 0
    shown = console.file.getvalue()
    assert "grpo-seed1  train, step" in Text.from_ansi(shown).plain
    assert "grpo-seed0: eval finished" in shown


def test_plan_and_messages_of_the_command(write_spec, launcher, capsys, tmp_path):
    spec_file = write_spec()
    assert main(["plan", str(spec_file)]) == 0
    assert "0 of 7 runs finished" in capsys.readouterr().out
    assert {status_of(run).state for run in plan_runs(load_spec(spec_file))} == {MISSING}
    assert main(["run", str(tmp_path / "none.yaml")], launcher) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: There is no board spec")
    assert error.count("\n") == 1
