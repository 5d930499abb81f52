"""Generation and scoring side by side: several processes, deaths, failures, a slow scorer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trl_opd.errors import UserError
from trl_opd.evals import pipeline
from trl_opd.evals.runner import evaluate
from trl_opd.evals.scorers import MathScorer
from trl_opd.verify import Verdict

from .conftest import ScriptedEngine, result_rows, results

ROOT = Path(__file__).parents[2]
N = 40
DRIVER = """
import sys, time
from pathlib import Path
from tests.evals.conftest import ScriptedEngine
from trl_opd.evals.benchmark import load_benchmark
from trl_opd.evals.runner import evaluate

class SlowEngine(ScriptedEngine):
    def generate(self, *arguments):
        for generation in super().generate(*arguments):
            time.sleep(0.004)
            yield generation

path, out, n = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
engine = SlowEngine()
evaluate(load_benchmark(path), engine, out, n=n, data_dir=path.parent, workers=2)
print(engine.drawn)
"""


def start(sums_path, out) -> subprocess.Popen:
    command = [sys.executable, "-c", DRIVER, str(sums_path), str(out), str(N)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def drawn(out) -> int:
    return sum(file.read_bytes().count(b"\n") for file in (out / "generations").glob("*.jsonl"))


def wait_for(count: int, out, *processes) -> None:
    deadline = time.monotonic() + 60
    while drawn(out) < count:
        assert time.monotonic() < deadline, "the completions never came"
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


@pytest.fixture
def whole(benchmark, sums_path, tmp_path):
    """An undisturbed run of one process."""
    evaluate(benchmark, ScriptedEngine(), tmp_path / "whole", n=N, data_dir=sums_path.parent)
    return results(tmp_path / "whole")


def test_two_processes_share_a_run(sums_path, tmp_path, whole):
    processes = [start(sums_path, tmp_path / "run") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    shares = [int(output) for output in outputs]
    assert sum(shares) == 12 * N, "a completion was drawn twice"
    assert min(shares) > 0, "one process had nothing to do"
    assert results(tmp_path / "run") == whole


def test_processes_that_are_killed_lose_nothing_and_leave_nothing_twice(sums_path, tmp_path, whole):
    out = tmp_path / "run"
    survivor = start(sums_path, out)
    wait_for(20, out, survivor)
    for count in (120, 200, 280):
        victim = start(sums_path, out)
        wait_for(count, out, survivor, victim)
        os.kill(victim.pid, signal.SIGKILL)
        victim.communicate()
    wait_for(330, out, survivor)
    os.kill(survivor.pid, signal.SIGKILL)
    survivor.communicate()
    assert not (out / "summary.json").exists()
    last = [start(sums_path, out) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in last]
    assert [process.returncode for process in last] == [0, 0], outputs
    assert len(result_rows(out, "generations")) == len(result_rows(out, "verdicts")) == 12 * N
    assert results(out) == whole


def test_a_share_of_a_process_that_dies_goes_to_one_that_waits_for_it(sums_path, tmp_path, whole):
    out = tmp_path / "run"
    victim = start(sums_path, out)
    wait_for(20, out, victim)
    victim.send_signal(signal.SIGSTOP)  # holds its claims
    waiting = start(sums_path, out)
    wait_for(12 * N - 5, out, waiting)
    time.sleep(0.5)
    assert waiting.poll() is None
    victim.kill()
    output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, output
    victim.communicate()
    assert results(out) == whole


def test_a_scorer_that_fails_stops_the_run_with_its_message(benchmark, sums_path, tmp_path, monkeypatch):
    score = MathScorer.score

    def broken(self, completion, problem):
        if problem.id == "sum-7":
            raise ValueError("no such thing")
        return score(self, completion, problem)

    monkeypatch.setattr(MathScorer, "score", broken)
    with pytest.raises(RuntimeError, match=r"sample \d of sum-7 \(ValueError: no such thing\)"):
        evaluate(benchmark, ScriptedEngine(), tmp_path / "run", data_dir=sums_path.parent)
    monkeypatch.undo()
    evaluate(benchmark, ScriptedEngine(), tmp_path / "run", data_dir=sums_path.parent)
    assert len(result_rows(tmp_path / "run", "verdicts")) == 48


def test_a_slow_scorer_does_not_hold_up_the_engine(benchmark, sums_path, tmp_path, monkeypatch):
    scored_while_drawing = []

    def slow(*_):
        time.sleep(0.01)
        return Verdict(correct=True, extracted="1", reason="correct")

    class Watching(ScriptedEngine):
        def generate(self, *arguments):
            for generation in super().generate(*arguments):
                time.sleep(0.002)
                yield generation
            scored_while_drawing.append(len(result_rows(tmp_path / "run", "verdicts")))

    monkeypatch.setattr(MathScorer, "score", slow)
    monkeypatch.setattr(pipeline, "QUEUE_LENGTH", 3)
    evaluate(benchmark, Watching(), tmp_path / "run", data_dir=sums_path.parent, workers=1)
    assert 0 < scored_while_drawing[0] < 40
    assert len(result_rows(tmp_path / "run", "verdicts")) == 48


def test_an_interrupted_run_goes_on_where_it_was(benchmark, sums_path, tmp_path):
    class Interrupted(ScriptedEngine):
        def generate(self, *arguments):
            for generation in super().generate(*arguments):
                if self.drawn == 20:
                    raise KeyboardInterrupt
                yield generation

    with pytest.raises(KeyboardInterrupt):
        evaluate(benchmark, Interrupted(), tmp_path / "run", data_dir=sums_path.parent)
    engine = ScriptedEngine()
    evaluate(benchmark, engine, tmp_path / "run", data_dir=sums_path.parent)
    assert engine.drawn == 48 - 19


def test_an_engine_that_draws_something_else_is_caught(benchmark, sums_path, tmp_path):
    class Lazy(ScriptedEngine):
        def generate(self, batches, *arguments):
            return super().generate([batch[1:] for batch in batches], *arguments)

    with pytest.raises(AssertionError, match="did not draw what was asked"):
        evaluate(benchmark, Lazy(), tmp_path / "run", data_dir=sums_path.parent)


def test_no_workers_are_refused(benchmark, sums_path, tmp_path):
    with pytest.raises(UserError, match="workers must be at least 1"):
        evaluate(benchmark, ScriptedEngine(), tmp_path / "run", data_dir=sums_path.parent, workers=0)
