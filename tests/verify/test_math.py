import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trl_opd.errors import UserError
from trl_opd.verify import MathVerifier, Verdict, scorer_version
from trl_opd.verify.normalise import normalise
from trl_opd.verify.worker import compare

MATH_SETS = [
    "gsm8k_test",
    "math500",
    "aime2024",
    "aime2025",
    "amc2023",
    "minerva_math",
    "olympiadbench_math_en",
    "hmmt2025_feb",
    "hmmt2025_nov",
]

ENDLESS = r"\sum_{n=1}^{10^{12}} \frac{\sin n}{n}"
HOSTILE = [
    "9^{9^{9}}",
    "9^{9^{9^9}}",
    "9**9**9",
    "{" * 900 + "1" + "}" * 900,
    "x" * 100_000,
    "1" * 100_000,
    r"\frac{" * 300 + "1" + "}{2}" * 300,
    ENDLESS,
    "(((1000!)!)!)!",
    "\x00\ud800\u202e",
]


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier()
    yield verifier
    verifier.close()


def boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def test_no_answer(verifier):
    for completion in ("I do not know 5", boxed(" ")):
        verdict = verifier.verify(completion, "5")
        assert verdict == Verdict(False, None, "no answer", "No final answer in \\boxed{} was found.")


def test_feedback_shows_the_attempt_and_never_the_reference(verifier):
    assert verifier.verify(boxed("41"), "42").feedback == "The final answer 41 is not correct."
    assert verifier.verify(boxed("42"), "42").feedback is None
    assert verifier.verify(boxed("4" * 300), "42").feedback == "The final answer is not correct."
    assert verifier.verify(boxed("x" * 3000), "42").feedback == "The final answer could not be read."
    assert "42" not in verifier.verify("none", "42", "last-number").feedback


def test_last_number_extraction(verifier):
    assert verifier.verify("The total is $1,234.", "1234", "last-number").correct
    assert verifier.verify(rf"{boxed('5')} after 7 steps", "5", "last-number").correct


def test_misuse_is_refused(verifier):
    with pytest.raises(UserError, match="finds no mathematics: choose one of boxed, last-number"):
        verifier.verify("5", "5", "letter")
    with pytest.raises(UserError, match="empty"):
        verifier.verify(boxed("5"), " ")
    with pytest.raises(UserError, match="workers >= 1"):
        MathVerifier(workers=0)


def test_verdicts_do_not_depend_on_order_or_workers(verifier):
    pairs = [(boxed(f"\\frac{{{i}}}{{4}}"), f"{i // 4}.25") for i in range(40)] + [(boxed("x"), "y"), ("none", "1")]
    forward = verifier.verify_all(pairs)
    assert {verdict.reason for verdict in forward} == {"correct", "wrong", "no answer"}
    assert verifier.verify_all(pairs[::-1])[::-1] == forward
    two = MathVerifier(workers=2)
    assert two.verify_all(pairs) == forward
    two.close()


def test_plain_answers_need_no_process():
    verifier = MathVerifier()
    assert verifier.verify(boxed(r"\frac12"), r"\frac12").correct
    assert not verifier.verify(boxed("12"), "13").correct
    assert processes(verifier) == []


@pytest.fixture(scope="module")
def hasty():
    verifier = MathVerifier(timeout=0.4)
    yield verifier
    verifier.close()


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_end_in_a_verdict_in_time(hasty, answer):
    start = time.perf_counter()
    verdict = hasty.verify(boxed(answer), "5")
    assert time.perf_counter() - start < 10
    assert not verdict.correct
    assert verdict.reason in ("wrong", "timeout") or verdict.reason.startswith("error: ")


def test_the_verifier_works_on_after_a_timeout(hasty):
    assert hasty.verify(boxed(ENDLESS), "5").reason == "timeout"
    assert hasty.verify(boxed("2^2"), "4").correct


def test_timeout_from_another_thread():
    verifier = MathVerifier(timeout=0.5)
    verdicts = []
    threads = [threading.Thread(target=lambda: verdicts.append(verifier.verify(boxed(ENDLESS), "5"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert [verdict.reason for verdict in verdicts] == ["timeout", "timeout"]
    verifier.close()


def test_a_worker_that_dies_is_replaced():
    verifier = MathVerifier()
    assert verifier.verify(boxed("2^2"), "4").correct
    (process,) = processes(verifier)
    process.kill()
    process.wait()
    assert verifier.verify(boxed("2^2"), "4").correct
    verifier.close()


def test_a_fork_uses_workers_of_its_own():
    verifier = MathVerifier()
    assert verifier.verify(boxed("2^2"), "4").correct
    worker = verifier._idle.get()  # as if another thread were comparing while this one forks
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        correct = verifier.verify(boxed("2^3"), "8").correct
        verifier.close()
        os._exit(0 if correct else 1)
    assert os.waitpid(child, 0)[1] == 0
    verifier._idle.put(worker)
    (process,) = processes(verifier)
    assert process.poll() is None
    assert verifier.verify(boxed("2^4"), "16").correct
    assert processes(verifier) == [process]
    verifier.close()


@pytest.mark.parametrize("answer", ["2^2", ENDLESS], ids=["idle", "in the middle of a comparison"])
def test_a_worker_dies_with_its_parent(answer):
    script = (
        "import sys, threading, time\n"
        "from trl_opd.verify import MathVerifier\n"
        "verifier = MathVerifier(timeout=1)\n"
        "verifier.verify(r'\\boxed{2^2}', '4')\n"
        "worker = verifier._idle.queue[0]\n"
        "print(worker._process.pid, flush=True)\n"
        "verifier.verify(sys.argv[1], '4')\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, boxed(answer)], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 8
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def test_a_worker_imports_neither_torch_nor_trl():
    worker = Path(sys.modules[compare.__module__].__file__)
    script = (
        f"import runpy, sys; runpy.run_path({str(worker)!r}); print('torch' in sys.modules or 'trl' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-P", "-c", script], text=True).strip() == "False"


def test_scorer_version_names_the_libraries():
    assert all(name in scorer_version() for name in ("math ", "math-verify 0.", "sympy 1."))


@pytest.mark.slow
@pytest.mark.parametrize("name", MATH_SETS)
def test_reference_answers_equal_themselves(shared, verifier, name):
    """Through the worker too: equal strings alone would need none."""
    lines = (shared / "data" / f"{name}.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    answers = {row["id"]: row["answer"] for row in map(json.loads, lines)}
    normal = {row: normalise(answer) for row, answer in answers.items()}
    assert [row for row, answer in normal.items() if compare(answer, answer) != "correct"] == []
    assert all(verdict.correct for verdict in verifier.verify_all([(boxed(a), a) for a in answers.values()]))


def test_a_busy_machine_gives_the_same_verdict():
    """The time is the processor's: two loops that never end share the core, and the comparison takes twice as long."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    verifier = MathVerifier(timeout=1)
    try:
        assert verifier.verify(boxed(r"\frac{\sqrt{6}+\sqrt{2}}{2}"), r"\sqrt{2+\sqrt{3}}").correct
    finally:
        verifier.close()
        for loop in loops:
            loop.kill()
            loop.wait()


def test_the_time_is_that_of_the_processor():
    verifier = MathVerifier(timeout=0.5)
    assert verifier.verify(boxed("2^2"), "4").correct
    (process,) = processes(verifier)
    before = time.perf_counter()
    threading.Timer(0.1, process.send_signal, [signal.SIGSTOP]).start()
    threading.Timer(1.5, process.send_signal, [signal.SIGCONT]).start()
    assert verifier.verify(boxed(ENDLESS), "5").reason == "timeout"
    assert time.perf_counter() - before > 1.5  # the pause of 1.4 s was not counted
    verifier.close()


def processes(verifier: MathVerifier) -> list[subprocess.Popen]:
    return [worker._process for worker in verifier._idle.queue if worker._process is not None]


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
