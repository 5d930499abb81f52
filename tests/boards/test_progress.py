"""What a board says while it runs."""

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from trl_opd.boards import attempts, progress
from trl_opd.boards.progress import Display, show_progress
from trl_opd.boards.runs import EVAL, FINAL, TRAIN, Run, Stage


@dataclass
class AtWork:
    """A job as the queue holds it."""

    stage: Stage
    seconds: float = 90.0
    attempt: int = 1
    handle: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(where="device 3", job_id="77"))


def run_in(folder: Path, name: str) -> Run:
    at = folder / name
    stages = (
        Stage(TRAIN, at / "train", at / "train.log", ("train", "grpo")),
        Stage(EVAL, at / "evaluations" / "arithmetic", at / "eval.log", ("eval",)),
    )
    return Run(name, FINAL, None, 0, None, at, stages, {})


def finish(run: Run, seconds: float) -> None:
    train, evaluation = run.stages
    write(train.folder / "run.json", {"status": "finished"})
    (train.folder / "model").mkdir()
    write(evaluation.folder / "summary.json", {})
    attempts.begin_attempt(run.folder, TRAIN, train.log, "local")
    attempts.end_attempt(run.folder, "finished", seconds=seconds)


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def said(display: Display) -> str:
    return Text.from_ansi(display.console.file.getvalue()).plain


@pytest.fixture
def plain():
    """A display without a terminal."""
    return Display(Console(file=io.StringIO(), width=200), None, slots=2)


def test_training_tells_step_reward_tokens_and_what_is_left(plain, tmp_path):
    run = run_in(tmp_path, "grpo-seed0")
    record = {"status": "running", "step": 20, "total_steps": 60, "seconds": 40.0, "generated_tokens": 81920}
    write(run.stages[0].folder / "run.json", record)
    rows = [{"step": 19, "reward": 0.25}, {"step": 20, "reward": 0.5}]
    (run.stages[0].folder / "log.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 21, "re'
    )
    plain.refresh([run], {run.name: AtWork(run.stages[0])})
    assert "grpo-seed0: train, step 20 of 60, reward 0.500, 81,920 tokens, 0:01:20 left, 0:01:30, device 3" in said(
        plain
    )


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        (("--max_generated_tokens", "100000"), "step 20, 25,000 of 100,000 tokens, 0:02:00 left"),
        (("--max_train_seconds", "100.0"), "step 20, 25,000 tokens, 0:01:00 left"),
    ],
)
def test_training_of_another_budget_is_measured_by_it(plain, tmp_path, option, shown):
    stage = run_in(tmp_path, "grpo-seed0").stages[0]
    record = {"status": "running", "step": 20, "total_steps": 1_000_000, "seconds": 40.0, "generated_tokens": 25000}
    write(stage.folder / "run.json", record)
    assert plain._progress(AtWork(replace(stage, arguments=("train", "grpo", *option)))) == shown


def test_evaluation_counts_answers_of_all_and_reads_each_byte_once(plain, tmp_path):
    run = run_in(tmp_path, "grpo-seed0")
    folder = run.stages[1].folder
    assert plain._progress(AtWork(run.stages[1])) == "starting"
    write(folder / "manifest.json", {"settings": {"problems": 12, "n": 2}})
    stored = folder / "generations" / "000.jsonl"
    stored.parent.mkdir()
    for text, count in (("{}\n{}\n", 2), ("{}\n{}\n{", 2), ("{}\n{}\n{}\n", 3), ("{}\n", 1)):
        stored.write_text(text)
        assert plain._progress(AtWork(run.stages[1])) == f"{count} of 24 answers"


def test_plain_lines_name_the_active_runs_alone(plain, tmp_path):
    runs = [run_in(tmp_path, f"grpo-seed{seed}") for seed in range(70)]
    plain.refresh(runs, {"grpo-seed3": AtWork(runs[3].stages[0])})
    lines = said(plain).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("  grpo-seed3: train, starting")
    assert lines[1].startswith("  0 of 70 runs finished, 70 missing, 0:00:0")
    plain.refresh(runs, {})
    assert said(plain).splitlines() == lines  # not yet due


def test_estimate_is_from_finished_runs(plain, tmp_path):
    runs = [run_in(tmp_path, f"grpo-seed{seed}") for seed in range(4)]
    plain.refresh(runs, {})
    assert "left" not in said(plain)
    finish(runs[0], seconds=100.0)
    plain.next_refresh = 0.0
    plain.refresh(runs, {"grpo-seed1": AtWork(runs[1].stages[0], seconds=40.0)})
    assert said(plain).splitlines()[-1].endswith("about 0:02:10 left")  # (60 + 100 + 100) / 2


def test_terminal_shows_active_runs_first_and_counts_the_rest(tmp_path):
    runs = [run_in(tmp_path, f"grpo-seed{seed}") for seed in range(70)]
    finish(runs[0], seconds=100.0)
    attempts.begin_attempt(runs[2].folder, TRAIN, runs[2].stages[0].log, "local")
    attempts.end_attempt(runs[2].folder, "failed", "ValueError: a [bold]bad[/bold] loss (exit status 1)", 3.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=160, height=20)
    with show_progress(console, slots=1) as display:
        display.refresh(runs, {"grpo-seed69": AtWork(runs[69].stages[0])})
        lines = [line.strip() for line in said(display).splitlines() if line.strip()]
    assert "1 of 70 runs finished, 68 missing, 1 failed, 0:00:00, about" in lines[0]
    assert lines[1].split() == ["run", "role", "state", "progress", "where", "attempt", "last", "error"]
    assert lines[2].startswith("grpo-seed69  final  train    starting, 0:01:30  device 3")
    assert lines[3].split(maxsplit=3)[:3] == ["grpo-seed2", "final", "failed"]
    assert lines[3].endswith("1        ValueError: a [bold]bad[/bold] loss (exit status 1)")
    assert lines[-1] == "and 55 missing, 1 finished"
    assert len(lines) < console.height


def test_event_puts_off_the_next_plain_line(plain, monkeypatch, tmp_path):
    run = run_in(tmp_path, "grpo-seed0")
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    plain.event("grpo-seed0: train started")
    clock[0] += progress.PLAIN_SECONDS - 1
    plain.refresh([run], {})
    assert said(plain) == "grpo-seed0: train started\n"
    clock[0] += 2
    plain.refresh([run], {})
    assert "0 of 1 runs finished" in said(plain)
