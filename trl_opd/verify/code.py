"""Does a program pass its problem's tests? Run in the sandbox, with limits that do not depend on the load."""

import hashlib
import json
import platform
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from trl_opd.errors import UserError
from trl_opd.verify.base import Verdict
from trl_opd.verify.code_dialects import CodeProblem, make_problem
from trl_opd.verify.code_extraction import extract_code
from trl_opd.verify.code_tasks import CallsTask, Judgement
from trl_opd.verify.sandbox import Limits, describe, open_sandbox, sandbox_name

REFERENCE_FACTOR = 5.0
"""A program may take this many times the reference solution's processor time, where that is more than the limit."""

REFERENCE_SECONDS = 60.0
"""Processor time for a reference solution, which is trusted to end."""

_RULES = "1"  # raise it whenever extraction, comparison or limits change


def code_scorer_version() -> str:
    """What decides a verdict: our rules and the interpreter that runs the programs."""
    return f"code {_RULES} python {platform.python_version()}"


class CodeVerifier:
    """Scores completions that are programs, from any thread.

    The limit that counts is processor time. A program that runs out of time is run once more alone, while no other of
    this verifier runs, and with a limit that follows the reference solution's own time, where there is one.

    Args:
        workers (`int`, defaults to `1`): Programs that run at the same time.
        sandbox (`str`, *optional*): A name in `trl_opd.verify.sandbox.BACKENDS`; by default what the environment
            variable `TRL_OPD_SANDBOX` names, else "auto".
        limits (`Limits`, *optional*): What a program may use.

    Raises:
        UserError: `workers` is not positive, or no sandbox can run here.
    """

    def __init__(self, workers: int = 1, sandbox: str | None = None, limits: Limits | None = None) -> None:
        if workers < 1:
            raise UserError(f"CodeVerifier needs workers >= 1, not {workers}.")
        self.workers = workers
        self.limits = limits or Limits()
        self.backend = open_sandbox(sandbox or sandbox_name())
        self._gate = _Gate(workers)
        self._problems: dict[bytes, _Prepared] = {}
        self._lock = threading.Lock()

    def verify(self, completion: str, dialect: str, fields: Mapping[str, Any]) -> Verdict:
        """Score one completion.

        Args:
            completion (`str`): The text to score, which is not trusted.
            dialect (`str`): How the tests are written, a name in `trl_opd.verify.code_dialects.DIALECTS`.
            fields (`dict`): The row's fields, as JSON has them.

        Raises:
            UserError: The dialect is unknown or a field is missing or wrong.
        """
        prepared = self._prepare(dialect, fields)
        code = extract_code(completion, prepared.problem.names)
        if code is None:
            return Verdict(correct=False, extracted=None, reason="no answer", feedback="No program was found.")
        judgement = self._judge(prepared, prepared.problem.sources(code))
        correct = judgement.reason == "correct"
        return Verdict(correct, code, judgement.reason, None if correct else feedback(judgement))

    def verify_all(self, requests: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Verdict]:
        """Score `(completion, dialect, fields)`; the verdicts come in the order of the requests."""
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(lambda request: self.verify(*request), requests))

    def describe(self) -> dict[str, Any]:
        """The sandbox in force and its limits."""
        return describe(self.backend, self.limits)

    def _judge(self, prepared: "_Prepared", sources: Sequence[str]) -> Judgement:
        with self._gate.shared():
            task = prepared.solved(self).task
            judgement = task.judge(self.backend, sources, self._limits(prepared))
        if judgement.reason != "timeout":
            return judgement
        with self._gate.alone():
            prepared.measure(self)
            return task.judge(self.backend, sources, self._limits(prepared))

    def _limits(self, prepared: "_Prepared") -> Limits:
        seconds = max(self.limits.cpu_seconds, REFERENCE_FACTOR * (prepared.reference_seconds or 0))
        return self.limits.with_cpu_seconds(seconds)

    def _prepare(self, dialect: str, fields: Mapping[str, Any]) -> "_Prepared":
        key = hashlib.sha256(json.dumps([dialect, dict(fields)], sort_keys=True, default=str).encode()).digest()
        with self._lock:
            if key not in self._problems:
                self._problems[key] = _Prepared(make_problem(dialect, fields))
            return self._problems[key]


class _Prepared:
    """A problem and what has been learnt from its reference solution."""

    def __init__(self, problem: CodeProblem) -> None:
        self.problem = problem
        self.reference_seconds: float | None = None
        self._lock = threading.Lock()

    def solved(self, verifier: CodeVerifier) -> CodeProblem:
        """The problem with its expected values, which the reference solution gives where the data do not."""
        with self._lock:
            task = self.problem.task
            if isinstance(task, CallsTask) and task.expected is None:
                ran = task.solve(verifier.backend, verifier.limits.with_cpu_seconds(REFERENCE_SECONDS))
                solved = replace(task, expected=tuple(call.value for call in ran.calls))
                self.problem = replace(self.problem, task=solved)
                self.reference_seconds = ran.cpu_seconds
        return self.problem

    def measure(self, verifier: CodeVerifier) -> None:
        """Find the reference solution's time, if there is one and it is not known."""
        if self.reference_seconds is None:
            limits = verifier.limits.with_cpu_seconds(REFERENCE_SECONDS)
            self.reference_seconds = self.problem.task.reference_seconds(verifier.backend, limits)


class _Gate:
    """Lets so many through at once, or one alone; who wants to be alone goes before those who come later."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._inside = 0
        self._waiting_alone = 0
        self._changed = threading.Condition()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Be one of several."""
        with self._changed:
            self._changed.wait_for(lambda: self._inside < self._places and not self._waiting_alone)
            self._inside += 1
        try:
            yield
        finally:
            self._leave(1)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one."""
        with self._changed:
            self._waiting_alone += 1
            self._changed.wait_for(lambda: self._inside == 0)
            self._waiting_alone -= 1
            self._inside = self._places
        try:
            yield
        finally:
            self._leave(self._places)

    def _leave(self, count: int) -> None:
        with self._changed:
            self._inside -= count
            self._changed.notify_all()


def feedback(judgement: Judgement) -> str:
    """What an environment may tell a model of a failed program: the failing test, what was expected and what came."""
    head = {"wrong": "Wrong answer.", "timeout": "Time limit exceeded."}.get(judgement.reason, "The program failed.")
    details = judgement.details
    if not details and judgement.reason.startswith("error: "):
        details = (("Error", judgement.reason.removeprefix("error: ")),)
    return "\n".join([head, *(f"{title}: {text}" for title, text in details)])
