"""Are two mathematical answers equal? math-verify in worker processes that can be killed.

math-verify's own time-out is a signal, which works in the main thread alone and not inside a long C call. Here the
comparison runs in a process of its own, which is killed and replaced when the time is up: it works from any thread and
always ends. The time is that of the processor, so a busy machine gives the same verdicts. Equal strings and plain
integers need no process at all. Verdicts are symmetric: answer and reference may change places.
"""

import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from trl_opd.errors import UserError
from trl_opd.verify.base import Verdict
from trl_opd.verify.extraction import EXTRACTIONS
from trl_opd.verify.normalise import letters_kept, normalise, set_against_tuple

ANSWER_CHARACTERS = 2000
"""A longer answer is not compared: it could only run into the time-out, which would depend on the machine."""

_START_SECONDS = 60
_WALL_FACTOR = 10  # a process that gets a tenth of a core still has its processor time
_SHOWN_CHARACTERS = 200  # in feedback, which a teacher has to read
_NOTHING_FOUND = {
    "boxed": "No final answer in \\boxed{} was found.",
    "last-number": "No final answer was found: neither \\boxed{} nor a number.",
}
_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")
_RULES = "2"  # raise it whenever extraction or comparison changes here


def scorer_version() -> str:
    """The versions that decide a verdict: our rules and the libraries that parse and compare."""
    packages = ("math-verify", "latex2sympy2_extended", "sympy")
    return " ".join([f"math {_RULES}", *(f"{package} {version(package)}" for package in packages)])


class MathVerifier:
    """Scores completions against reference answers, from any thread.

    Verdicts depend on neither the order nor the number of workers. Workers start at the first comparison that needs
    one and end with this process, however it ends.

    Args:
        workers (`int`, defaults to `1`): Processes that compare at the same time.
        timeout (`float`, defaults to `5.0`): Seconds of processor time for one comparison.

    Raises:
        UserError: `workers` or `timeout` is not positive.
    """

    def __init__(self, workers: int = 1, timeout: float = 5.0) -> None:
        if workers < 1 or timeout <= 0:
            raise UserError(f"MathVerifier needs workers >= 1 and timeout > 0, not {workers} and {timeout}.")
        self.workers = workers
        self.timeout = timeout
        self._start_pool()

    def verify(self, completion: str, answer: str, extraction: str = "boxed") -> Verdict:
        r"""Score one completion.

        Args:
            completion (`str`): The text to score, which is not trusted.
            answer (`str`): The reference answer.
            extraction (`str`, defaults to `"boxed"`): "boxed" reads the last `\boxed{...}`; "last-number" reads the
                last number where there is no box.

        Returns:
            `Verdict`: The verdict, within the time-out and the moment that a new worker takes to start.

        Raises:
            UserError: `extraction` is unknown or `answer` is empty.
        """
        if extraction not in _NOTHING_FOUND:
            raise UserError(
                f"The extraction {extraction!r} finds no mathematics: choose one of {', '.join(_NOTHING_FOUND)}."
            )
        reference = answer.strip()
        if not reference:
            raise UserError("A reference answer is empty: give every row a non-empty answer.")
        extracted = (EXTRACTIONS[extraction](completion) or "").strip()
        if not extracted:
            return Verdict(False, None, "no answer", _NOTHING_FOUND[extraction])
        if len(extracted) > ANSWER_CHARACTERS:
            reason = f"error: the answer has more than {ANSWER_CHARACTERS} characters"
        else:
            reason = self._compare(normalise(extracted), normalise(reference))
        return Verdict(reason == "correct", extracted, reason, _feedback(extracted, reason))

    def verify_all(self, pairs: Sequence[tuple[str, str]], extraction: str = "boxed") -> list[Verdict]:
        """Score `(completion, answer)` pairs; the verdicts come in the order of the pairs."""
        if self.workers == 1:
            return [self.verify(completion, answer, extraction) for completion, answer in pairs]
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(lambda pair: self.verify(*pair, extraction), pairs))

    def close(self) -> None:
        """End the workers. A later comparison starts new ones."""
        self._finalizer()
        self._start_pool()

    def _start_pool(self) -> None:
        workers = [_Worker() for _ in range(self.workers)]
        self._pid = os.getpid()
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in workers:
            self._idle.put(worker)
        self._finalizer = weakref.finalize(self, _close_all, workers)

    def _compare(self, answer: str, reference: str) -> str:
        """The reason of the verdict on two answers in normal spelling, the same with the two in either place."""
        plain = _compare_plain(answer, reference)
        return plain or self._compare_in_worker(*letters_kept(answer, reference))

    def _compare_in_worker(self, answer: str, reference: str) -> str:
        if os.getpid() != self._pid:  # forked: the workers' pipes belong to the parent
            self._start_pool()
        worker = self._idle.get()
        try:
            return worker.compare(answer, reference, self.timeout)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process that compares, started when it is first needed and after it had to be killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def compare(self, answer: str, reference: str, timeout: float) -> str:
        """The reason of the verdict."""
        wall = _WALL_FACTOR * timeout
        request = json.dumps({"answer": answer, "reference": reference, "cpu_seconds": timeout, "wall_seconds": wall})
        try:
            if self._process is None or self._process.poll() is not None:
                self._start()
            process = self._process
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
            reply = self._reply(wall)
        except BrokenPipeError:
            reply = b""
        except BaseException:  # a reply that is still to come would answer the next request
            self.close()
            raise
        if reply:
            return json.loads(reply)
        late = reply is None or process.wait() == -signal.SIGPROF
        self.close()
        return "timeout" if late else "error: the comparison ended its process"

    def close(self) -> None:
        """Kill the process and forget it. In a fork of the owner, forget it only."""
        process, self._process = self._process, None
        if process is None or os.getpid() != self._owner:
            return
        process.kill()
        process.wait()
        process.stdout.close()
        with suppress(BrokenPipeError):  # a request that was never read
            process.stdin.close()

    def _start(self) -> None:
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))],  # -P: math.py here would hide math
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy's order of terms follows the hashes
            start_new_session=True,  # Ctrl-C is for the parent
        )
        if not self._reply(_START_SECONDS):
            self.close()
            raise RuntimeError(f"A math-verify worker did not start within {_START_SECONDS} seconds.")

    def _reply(self, timeout: float) -> bytes | None:
        """A line of the process, `None` when the time is up, or no bytes when the process has ended."""
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        return self._process.stdout.readline() if poll.poll(timeout * 1000) else None


def _compare_plain(answer: str, reference: str) -> str | None:
    """The reason for equal strings, two plain integers and two kinds of brackets, `None` where it takes mathematics."""
    if answer == reference:
        return "correct"
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(reference):
        return "correct" if int(answer) == int(reference) else "wrong"
    return "wrong" if set_against_tuple(answer, reference) else None


def _feedback(extracted: str, reason: str) -> str | None:
    """What an environment may say about a failed attempt: never the expected answer, which would be a leak."""
    if reason == "correct":
        return None
    shown = f" {extracted}" if len(extracted) <= _SHOWN_CHARACTERS else ""
    return f"The final answer{shown} {'is not correct' if reason == 'wrong' else 'could not be read'}."


def _close_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.close()
