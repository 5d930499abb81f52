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
from trl_opd.verify.worker import compare

DATA = Path(__file__).parents[3] / "shared" / "data"

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

PAIRS = [
    ("5", "5", "correct"),
    (" 5 ", "5", "correct"),
    ("05", "5", "correct"),
    ("+5", "5", "correct"),
    ("-5", "5", "wrong"),
    ("100", "10", "wrong"),
    ("5.0", "5", "correct"),
    ("1,000", "1000", "correct"),
    (r"\$18", "18", "correct"),
    (r"12\text{ cm}", "12", "correct"),
    (r"336^\circ", "336", "correct"),
    (r"50\%", "0.5", "correct"),
    ("x=5", "5", "correct"),
    ("y=2x+1", "2x+1", "correct"),
    ("7, 5", "5", "wrong"),
    ("5 or 7", "7", "wrong"),
    (r"\text{Tuesday at 5}", "5", "wrong"),
    ("five", "5", "wrong"),
    ("0.5", r"\frac{1}{2}", "correct"),
    (r"\frac12", r"\frac{1}{2}", "correct"),
    (r"\dfrac{3}{4}", r"\tfrac{3}{4}", "correct"),
    (r"3\frac{1}{2}", "3.5", "correct"),
    ("1/3", "0.333", "wrong"),
    ("1/3", "0.333333", "correct"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", "correct"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{2}}", "wrong"),
    ("1.414214", r"\sqrt{2}", "correct"),
    ("1.41", r"\sqrt{2}", "wrong"),
    (r"\sqrt[3]{8}", "2", "correct"),
    (r"\pi", "3.14159", "wrong"),
    ("2^{10}", "1024", "correct"),
    ("10^{-3}", "0.001", "correct"),
    (r"1.5\times 10^{3}", "1500", "correct"),
    (r"\binom{5}{2}", "10", "correct"),
    ("5!", "120", "correct"),
    ("x+1", "1+x", "correct"),
    ("(x+1)^2", "x^2+2x+1", "correct"),
    ("2x", "2y", "wrong"),
    ("(1,2)", "(1, 2)", "correct"),
    ("(2,1)", "(1,2)", "wrong"),
    (r"\{1,2\}", r"\{2,1\}", "correct"),
    ("[1,2)", "[1,2]", "wrong"),
    (r"x \in (1,2)", "(1,2)", "correct"),
    (r"(-\infty, 3)", "x<3", "correct"),
    (r"\infty", r"-\infty", "wrong"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "correct"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", "wrong"),
    (r"\text{A}", "A", "correct"),
    ("A", "B", "wrong"),
]

HOSTILE = [
    "9^{9^{9}}",
    "9^{9^{9^9}}",
    "9**9**9",
    "{" * 900 + "1" + "}" * 900,
    "x" * 100_000,
    "1" * 100_000,
    r"\frac{" * 300 + "1" + "}{2}" * 300,
    r"\sum_{n=1}^{10^{12}} \frac{\sin n}{n}",
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


@pytest.mark.parametrize(("answer", "reference", "reason"), PAIRS)
def test_verdicts(verifier, answer, reference, reason):
    assert verifier.verify(boxed(answer), reference) == Verdict(reason == "correct", answer.strip(), reason)


def test_no_answer(verifier):
    assert verifier.verify("I do not know 5", "5") == Verdict(False, None, "no answer")
    assert verifier.verify(boxed(" "), "5") == Verdict(False, None, "no answer")


def test_last_number_extraction(verifier):
    assert verifier.verify("The total is $1,234.", "1234", "last-number").correct
    assert verifier.verify(rf"{boxed('5')} after 7 steps", "5", "last-number").correct


def test_misuse_is_refused(verifier):
    with pytest.raises(UserError, match="choose one of boxed, last-number"):
        verifier.verify("5", "5", "first")
    with pytest.raises(UserError, match="empty"):
        verifier.verify(boxed("5"), " ")
    with pytest.raises(UserError, match="workers >= 1"):
        MathVerifier(workers=0)


def test_verdicts_do_not_depend_on_order_or_workers(verifier):
    pairs = [(boxed(answer), reference) for answer, reference, _ in PAIRS]
    forward = verifier.verify_all(pairs)
    assert [verdict.reason for verdict in forward] == [reason for *_, reason in PAIRS]
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
    assert hasty.verify(boxed("9^{9^{9}}"), "5").reason == "timeout"
    assert hasty.verify(boxed("2^2"), "4").correct


def test_timeout_from_another_thread():
    verifier = MathVerifier(timeout=0.5)
    verdicts = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(verifier.verify(boxed("9^{9^{9}}"), "5"))) for _ in range(2)
    ]
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


@pytest.mark.parametrize("answer", ["2^2", "9^{9^{9}}"], ids=["idle", "in the middle of a comparison"])
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
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the benchmark data beside the checkout")
@pytest.mark.parametrize("name", MATH_SETS)
def test_reference_answers_equal_themselves(verifier, name):
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows if compare(row["answer"], row["answer"]) != "correct"] == []
    assert all(
        verdict.correct for verdict in verifier.verify_all([(boxed(row["answer"]), row["answer"]) for row in rows])
    )


def processes(verifier: MathVerifier) -> list[subprocess.Popen]:
    return [worker._process for worker in verifier._idle.queue if worker._process is not None]


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
