"""The queue, with a stand-in for the trainer: deaths, failures, full disks, foreign folders."""

import fcntl
import io
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from tests.boards.conftest import spec_in
from trl_opd.boards import runner
from trl_opd.boards.attempts import attempts_of, refuse_run
from trl_opd.boards.collect import collect, publish
from trl_opd.boards.launch import ClusterLost
from trl_opd.boards.launch.local import LocalExecutor
from trl_opd.boards.results import build_results
from trl_opd.boards.runner import last_words, run_board
from trl_opd.boards.runs import FAILED, FINISHED, MISSING, plan_runs, status_of
from trl_opd.boards.spec import load_spec
from trl_opd.boards.table import render_table
from trl_opd.cli.board import main
from trl_opd.errors import UserError

SLOW = {"FAKE_SECONDS": "0.02"}
GRPO = {"name": "grpo", "method": "grpo", "recipe": "recipes/fake.yaml"}
OPD = {"name": "opd", "method": "opd", "recipe": "recipes/fake.yaml"}
KILLS = 5


def drive(launcher: Sequence[str], spec: Path, output: Path, environment: dict[str, str]) -> None:
    """A board in a process of its own; ends with its exit status."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background ignores it
    with output.open("w") as file:
        sys.exit(run_board(load_spec(spec), launcher, Console(file=file)))


def start_board(launcher, spec: Path) -> multiprocessing.Process:
    """Start a board that can be killed; its output goes beside the spec. The server has the imports behind it."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    process = processes.Process(target=drive, args=(launcher, spec, spec.with_suffix(".out"), dict(os.environ)))
    process.start()
    return process


def output_of(process: multiprocessing.Process, spec: Path) -> str:
    process.join(30)
    assert process.exitcode is not None, "the board did not end"
    return spec.with_suffix(".out").read_text()


def contents(folder: Path) -> dict[str, str]:
    """What the statistics and the page are made of; not how often a run was started."""
    names = ("000.jsonl", "summary.json", "skill.json")
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.name in names}


def table_of(spec) -> str:
    """The board's table without its date."""
    publish(spec)
    return re.sub(r"\d{4}-\d{2}-\d{2}\S*", "", render_table(build_results(spec, collect(spec))))


def starts(folder: Path) -> dict[str, int]:
    """How often each stage was started."""
    return {str(p.parent.relative_to(folder)): len(p.read_text().splitlines()) for p in folder.rglob("writer")}


def pids(folder: Path) -> set[int]:
    """Every process that ever wrote a stage."""
    return {int(pid) for path in folder.rglob("writer") for pid in path.read_text().split()}


def wait_until(condition, process: multiprocessing.Process | None = None) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the moment never came"
        assert process is None or process.is_alive(), "the board ended too early"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to take note of its death does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run_of(spec, name: str):
    return next(run for run in plan_runs(spec) if run.name == name)


def test_finished_board_repeats_nothing(write_spec, launcher):
    spec = load_spec(write_spec())
    assert run_board(spec, launcher) == 0
    before = starts(spec.folder)
    assert len(before) == 1 + 2 * 6
    assert set(before.values()) == {1}
    assert run_board(spec, launcher) == 0
    assert starts(spec.folder) == before


def test_board_killed_at_five_random_moments_ends_with_the_same_table(write_spec, launcher, tmp_path):
    (tmp_path / "undisturbed").mkdir()
    board = {"methods": [GRPO, OPD], "environment": {"FAKE_SECONDS": "0.01"}}
    undisturbed = load_spec(spec_in(tmp_path / "undisturbed", **board))
    assert run_board(undisturbed, launcher, Console(file=io.StringIO())) == 0
    spec_file = write_spec(**board)
    spec = load_spec(spec_file)
    moments = random.Random(20)
    for _ in range(KILLS):
        before = pids(spec.folder)
        process = start_board(launcher, spec_file)
        wait_until(lambda known=before: pids(spec.folder) > known, process)
        time.sleep(moments.uniform(0, 0.3))
        assert process.is_alive()
        process.kill()
        process.join()
        wait_until(lambda: not any(alive(pid) for pid in pids(spec.folder)))
    assert run_board(spec, launcher, Console(file=io.StringIO())) == 0
    assert table_of(spec) == table_of(undisturbed)
    assert contents(spec.runs_folder) == contents(undisturbed.runs_folder)
    assert not list(spec.folder.rglob("TWO_WRITERS"))
    ends = [attempt["status"] for run in plan_runs(spec) for attempt in attempts_of(run.folder)]
    assert set(ends) == {"finished", "interrupted"}
    assert ends.count("finished") == len(starts(undisturbed.folder))
    assert sum(starts(spec.folder).values()) <= len(ends)
    assert not any(alive(pid) for pid in pids(spec.folder))


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
    spec_file = write_spec(environment=SLOW)
    lock_file = load_spec(spec_file).runs_folder / "grpo-seed0" / "lock"
    process = start_board(launcher, spec_file)
    wait_until((lock_file.parent / "train" / "run.json").exists, process)
    with lock_file.open("a") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.join()


def test_killed_child_is_an_attempt_and_is_tried_again(write_spec, launcher):
    spec_file = write_spec(methods=[GRPO], environment=SLOW)
    spec = load_spec(spec_file)
    writer = spec.runs_folder / "grpo-seed1" / "train" / "writer"
    process = start_board(launcher, spec_file)
    wait_until(lambda: writer.exists() and writer.read_text().strip(), process)
    os.kill(int(writer.read_text()), signal.SIGKILL)
    output = output_of(process, spec_file)
    assert process.exitcode == 0
    assert "grpo-seed1: train failed: killed by signal 9" in output
    assert "grpo-seed1: train started again (attempt 2)" in output
    ends = [(one["number"], one["stage"], one["status"], one["error"]) for one in attempts_of(writer.parents[1])]
    assert ends == [
        (1, "train", "failed", "killed by signal 9"),
        (2, "train", "finished", None),
        (3, "eval", "finished", None),
    ]


def test_retry_goes_on_from_the_last_checkpoint(write_spec, launcher):
    spec = load_spec(write_spec(methods=[GRPO], environment={"FAKE_TROUBLE": "fail_once 17 grpo-seed0"}))
    assert run_board(spec, launcher) == 0
    steps = [json.loads(line)["step"] for line in (spec.runs_folder / "grpo-seed0/train/log.jsonl").open()]
    assert steps == [*range(1, 17), *range(16, 31)]


@pytest.mark.parametrize(("retries", "kind", "starts_made"), [(0, "fail", 1), (2, "fail", 3), (2, "refuse", 1)])
def test_failed_run_keeps_its_last_line_and_the_board_goes_on(write_spec, launcher, retries, kind, starts_made):
    """A command that refuses its settings is not asked again."""
    trouble = {"FAKE_TROUBLE": f"{kind} 7 opd-seed1"}
    spec = load_spec(write_spec(methods=[GRPO, OPD], environment=trouble, launch={"workers": 2, "retries": retries}))
    assert run_board(spec, launcher) == 1
    states = {run.name: status_of(run) for run in plan_runs(spec)}
    assert {name for name, status in states.items() if status.state != FINISHED} == {"opd-seed1"}
    error = {
        "fail": "RuntimeError: the device fell off the bus (exit status 1)",
        "refuse": "error: this setting cannot work; choose another. (exit status 2)",
    }[kind]
    assert (states["opd-seed1"].state, states["opd-seed1"].error) == (FAILED, error)
    attempts = attempts_of(spec.runs_folder / "opd-seed1")
    assert [(one["status"], one["error"]) for one in attempts] == [("failed", error)] * starts_made
    assert starts(spec.runs_folder)["opd-seed1/train"] == starts_made


def test_run_over_its_time_is_stopped_and_counts_as_an_attempt(write_spec, launcher):
    trouble = {"FAKE_TROUBLE": "hang 7 grpo-seed0"}
    launch = {"workers": 2, "timeout_minutes": 0.02, "retries": 0}
    spec = load_spec(write_spec(methods=[GRPO], seeds=[0], environment=trouble, launch=launch))
    assert run_board(spec, launcher) == 1
    status = status_of(run_of(spec, "grpo-seed0"))
    assert (status.state, status.error) == (
        FAILED,
        "Stopped at the time limit of 0.02 minutes. (exit status 124)",
    )
    assert not any(alive(pid) for pid in pids(spec.folder))


def test_run_that_finds_the_disk_full_stops_the_board(write_spec, launcher):
    trouble = {"FAKE_TROUBLE": "disk_full 7 grpo-seed0"}
    spec = load_spec(write_spec(environment=trouble, launch={"workers": 1}))
    with pytest.raises(UserError, match=r"is full, so the board was stopped: 1 of 7 runs are finished and stay; "):
        run_board(spec, launcher)
    assert set(starts(spec.runs_folder)) == {
        *(key for key in starts(spec.runs_folder) if "base" in key),
        "grpo-seed0/train",
    }
    assert "No space left on device" in status_of(run_of(spec, "grpo-seed0")).error
    assert run_board(load_spec(write_spec(launch={"workers": 2})), launcher) == 0


def test_board_that_finds_the_disk_full_stops_its_runs(write_spec, launcher):
    """/dev/full is a disk without room."""
    spec = load_spec(write_spec(environment=SLOW))
    folder = spec.runs_folder / "opd-seed0"
    folder.mkdir(parents=True)
    (folder / "state.json.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"is full, so the board was stopped: \d of 7 runs are finished and stay; "):
        run_board(spec, launcher)
    assert not any(alive(pid) for pid in pids(spec.folder))
    (folder / "state.json.part").unlink()
    assert run_board(spec, launcher) == 0


def test_failed_trial_does_not_block_its_method(write_spec, launcher):
    trials = {
        "trials": {"learning_rates": [0.0001, 0.0003], "seed": 100},
        "validation": {"benchmark": "arithmetic_validation", "n": 1, "limit": 4},
        "checkpoint": {"every": 10},
        "environment": {"FAKE_TROUBLE": "fail 7 trial-opd-lr0.0001"},
    }
    spec = load_spec(write_spec(methods=[GRPO, OPD], seeds=[0], launch={"workers": 2, "retries": 0}, **trials))
    waiting = {run.name: run.waiting_for for run in plan_runs(spec) if run.waiting_for}
    assert waiting["opd-seed0"] == ("trial-opd-lr0.0001", "trial-opd-lr0.0003")
    assert run_board(spec, launcher) == 1
    states = {run.name: status_of(run).state for run in plan_runs(spec)}
    assert states.pop("trial-opd-lr0.0001") == FAILED
    assert set(states.values()) == {FINISHED}
    assert {run.name: run.learning_rate for run in plan_runs(spec)}["opd-seed0"] == 0.0003
    before = starts(spec.runs_folder)
    run_board(spec, launcher)
    assert starts(spec.runs_folder) == before


def test_cluster_that_does_not_answer_is_a_sentence(write_spec, launcher, monkeypatch):
    def lost(self, job):
        raise ClusterLost("The Ray cluster does not answer (no head)")

    spec = load_spec(write_spec(methods=[GRPO], seeds=[0]))
    with monkeypatch.context() as patch:
        patch.setattr(LocalExecutor, "start", lost)
        with pytest.raises(
            UserError, match=r"does not answer \(no head\): 0 of 2 runs are finished and stay; the same"
        ):
            run_board(spec, launcher)
    assert run_board(spec, launcher) == 0


def test_trial_that_failed_under_a_stopped_board_is_tried_again_before_the_choice(write_spec, launcher):
    trials = {
        "trials": {"learning_rates": [0.0001, 0.0003], "seed": 100},
        "validation": {"benchmark": "arithmetic_validation", "n": 1, "limit": 4},
        "checkpoint": {"every": 10},
    }
    spec = load_spec(write_spec(methods=[GRPO], seeds=[0], launch={"workers": 1}, **trials))
    failed = spec.runs_folder / "trial-grpo-lr0.0003"
    failed.mkdir(parents=True)
    refuse_run(failed, "train", "the machine went down")
    assert run_board(spec, launcher) == 0
    assert {status_of(run).state for run in plan_runs(spec)} == {FINISHED}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_is_finished(write_spec, launcher, number):
    spec_file = write_spec(environment=SLOW)
    spec = load_spec(spec_file)
    process = start_board(launcher, spec_file)
    wait_until((spec.runs_folder / "opd-seed0" / "train" / "run.json").exists, process)
    os.kill(process.pid, number)
    output = output_of(process, spec_file)
    assert process.exitcode == 130
    finished = sum(status_of(run).state == FINISHED for run in plan_runs(spec))
    assert f"Stopped: {finished} of 7 runs are finished and stay; the same command goes on from here." in output
    assert 1 <= finished < 7
    assert "Traceback" not in output
    assert not any(alive(pid) for pid in pids(spec.folder))
    assert attempts_of(spec.runs_folder / "opd-seed0")[-1]["status"] == "interrupted"


def test_last_words_are_of_the_last_attempt(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("\n$ trl-opd train grpo\nValueError: old\n\n$ trl-opd train grpo\n")
    assert last_words(log, -9) == "killed by signal 9"
    with log.open("a") as file:
        file.write("step 1\nValueError:\x1b[2Jnew\n\n")
    assert last_words(log, 1) == "ValueError: [2Jnew (exit status 1)"
    assert last_words(tmp_path / "none.log", 0) == "ended without a finished result"


def test_second_board_on_the_same_folder_is_refused(write_spec, launcher, monkeypatch):
    monkeypatch.setattr(runner, "BOARD_LOCK_PATIENCE_SECONDS", 0.1)
    spec_file = write_spec(environment=SLOW)
    process = start_board(launcher, spec_file)
    wait_until((load_spec(spec_file).runs_folder / "base").exists, process)
    with pytest.raises(UserError, match="Another `board run`"):
        run_board(load_spec(spec_file), launcher)
    process.kill()
    process.join()


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
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    assert run_board(load_spec(write_spec(methods=[GRPO], environment=SLOW)), launcher, console) == 0
    shown = console.file.getvalue()
    plain = Text.from_ansi(shown).plain
    assert re.search(r"grpo-seed1 +final +train +step \d+ of 30, reward 0\.\d+, [\d,]+ tokens, .* left", plain)
    assert "grpo-seed0: eval finished" in shown


def test_plan_and_messages_of_the_command(write_spec, launcher, capsys, tmp_path):
    spec_file = write_spec()
    assert main(["plan", str(spec_file)], launcher) == 0
    printed = capsys.readouterr().out
    assert "0 of 7 runs finished" in printed
    assert re.search(r"^base: missing\ngrpo-seed0 to \w+-seed1 \(6 runs\): missing$", printed, re.MULTILINE)
    assert {status_of(run).state for run in plan_runs(load_spec(spec_file))} == {MISSING}
    with pytest.raises(UserError, match="There is no board spec"):
        main(["run", str(tmp_path / "none.yaml")], launcher)


def test_patience_with_a_held_folder_begins_anew_after_each_start(write_spec, monkeypatch):
    """A lock that is held for a moment before training is not held against the evaluation an hour later."""

    class Executor:
        slots = 1

        def start(self, job):
            return SimpleNamespace(job_id="1", where="here")

    spec = load_spec(write_spec(methods=[GRPO], seeds=[0]))
    queue = runner._Queue(spec, Executor(), ("true",), SimpleNamespace(event=lambda text: None))
    queue._plan()
    run = next(run for run in queue.ready if run.name == "grpo-seed0")
    run.folder.mkdir(parents=True)
    with run.lock_file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        queue._try_start(run)
    queue._try_start(run)
    assert run.name in queue.active
    del queue.active[run.name]
    queue._plan()
    later = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with run.lock_file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        queue._try_start(next(run for run in queue.ready if run.name == "grpo-seed0"))
    assert queue.given_up == set()
