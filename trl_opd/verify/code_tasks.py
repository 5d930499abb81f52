"""What a problem asks of a program, in the three forms that tests have, and the judgement of a program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trl_opd.verify.code_compare import same_text
from trl_opd.verify.code_runs import Calls, TestProgram, run_calls, run_script, run_tests
from trl_opd.verify.sandbox import Backend, Limits

TEXT_LIMIT = 500


@dataclass(frozen=True)
class Judgement:
    """What the tests say of a program.

    Attributes:
        reason (`str`): "correct", "wrong", "timeout" or "error: ...".
        details (`tuple[tuple[str, str], ...]`): Titles and texts that say what went wrong, each of limited length.
    """

    reason: str
    details: tuple[tuple[str, str], ...] = ()


class Task(Protocol):
    """A problem's tests."""

    def judge(self, backend: Backend, sources: Sequence[str], limits: Limits) -> Judgement:
        """Run the tests against a program."""

    def reference_seconds(self, backend: Backend, limits: Limits) -> float | None:
        """Processor time of the reference solution on these tests, or `None` where there is none."""


@dataclass(frozen=True)
class ScriptTask:
    """A program that reads standard input and writes standard output; each case is a run of its own.

    Attributes:
        cases (`tuple[tuple[str, str], ...]`): Inputs and expected outputs.
        tolerance (`float`): See `same_text`.
    """

    cases: tuple[tuple[str, str], ...]
    tolerance: float = 0.0

    def judge(self, backend: Backend, sources: Sequence[str], limits: Limits) -> Judgement:
        """Run the cases up to the first that fails."""
        for text, expected in self.cases:
            ran = run_script(backend, sources, text, limits)
            if ran.failure is not None:
                return Judgement(ran.failure, _details(Input=text, Expected=expected, Error=ran.error))
            if not same_text(ran.output, expected, self.tolerance):
                return Judgement("wrong", _details(Input=text, Expected=expected, Got=ran.output))
        return Judgement("correct")

    def reference_seconds(self, backend: Backend, limits: Limits) -> float | None:
        """Such data sets bring no reference solution."""
        return None


@dataclass(frozen=True)
class CallsTask:
    """Calls of one function, whose values are compared with expected ones.

    Attributes:
        function (`str`): The function, or a method of the class `Solution`.
        arguments (`tuple`): Lists of arguments.
        matches (`Callable`): Whether, for some arguments, a value is the expected one.
        expected (`tuple`, *optional*): The expected values; those of the reference solution where they are not given.
        reference (`tuple[str, ...]`, *optional*): Sources of the reference solution.
        apart (`bool`): Whether each call is a run of its own, with the whole time limit.
    """

    function: str
    arguments: tuple[Sequence[Any], ...]
    matches: Callable[[Sequence[Any], Any, Any], bool]
    expected: tuple[Any, ...] | None = None
    reference: tuple[str, ...] | None = None
    apart: bool = False

    def judge(self, backend: Backend, sources: Sequence[str], limits: Limits) -> Judgement:
        """Run the calls; where they are apart, up to the first that fails."""
        size = 1 if self.apart else len(self.arguments)
        for first in range(0, len(self.arguments), size):
            part = slice(first, first + size)
            ran = run_calls(backend, sources, self.function, self.arguments[part], limits)
            judgement = self._compare(ran, self.arguments[part], self.expected[part])
            if judgement.reason != "correct":
                return judgement
        return Judgement("correct")

    def solve(self, backend: Backend, limits: Limits) -> Calls:
        """The reference solution's values.

        Raises:
            RuntimeError: The reference solution fails.
        """
        ran = run_calls(backend, self.reference, self.function, self.arguments, limits)
        error = ran.failure or next((call.error for call in ran.calls if call.error is not None), None)
        if error is not None:
            raise RuntimeError(f"The reference solution of {self.function} fails: {error}.")
        return ran

    def reference_seconds(self, backend: Backend, limits: Limits) -> float | None:
        """Processor time of the reference solution."""
        return None if self.reference is None else self.solve(backend, limits).cpu_seconds

    def _compare(self, ran: Calls, arguments: Sequence[Sequence[Any]], expected: Sequence[Any]) -> Judgement:
        for call, inputs, right in zip(ran.calls, arguments, expected, strict=False):
            shown = {"Input": self._show_call(inputs), "Expected": _show(right)}
            if call.error is not None:
                return Judgement(f"error: {_last_line(call.error)}", _details(**shown, Error=call.error))
            if not _matches(self.matches, inputs, call.value, right):
                return Judgement("wrong", _details(**shown, Got=_show(call.value)))
        if ran.failure is None:
            return Judgement("correct")
        reached = len(ran.calls)
        inputs = self._show_call(arguments[reached]) if reached < len(arguments) else None
        return Judgement(ran.failure, _details(Input=inputs, Error=ran.error))

    def _show_call(self, inputs: Sequence[Any]) -> str:
        return f"{self.function}({', '.join(map(_show, inputs))})"


@dataclass(frozen=True)
class TestsTask:
    """A program of asserts.

    Attributes:
        program (`TestProgram`): The tests.
        reference (`tuple[str, ...]`, *optional*): Sources of the reference solution.
    """

    __test__ = False  # for pytest

    program: TestProgram
    reference: tuple[str, ...] | None = None

    def judge(self, backend: Backend, sources: Sequence[str], limits: Limits) -> Judgement:
        """Run the tests up to the first that fails."""
        outcome = run_tests(backend, sources, self.program, limits)
        if outcome["reason"] == "correct":
            return Judgement("correct")
        known = {"Test": "assertion", "Input": "call", "Expected": "expected", "Got": "got", "Error": "error"}
        return Judgement(outcome["reason"], _details(**{title: outcome.get(key) for title, key in known.items()}))

    def reference_seconds(self, backend: Backend, limits: Limits) -> float | None:
        """Processor time of the reference solution, without that of the tests."""
        if self.reference is None:
            return None
        return run_tests(backend, self.reference, self.program, limits).get("cpu_seconds")


def _details(**texts: str | None) -> tuple[tuple[str, str], ...]:
    return tuple((title, _clip(text)) for title, text in texts.items() if text)


def _matches(matches: Callable[[Sequence[Any], Any, Any], bool], inputs: Sequence[Any], got: Any, right: Any) -> bool:
    try:
        return bool(matches(inputs, got, right))
    except RecursionError:  # values that are too deep to compare
        return False


def _show(value: Any) -> str:
    try:
        return _clip(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"<{type(value).__name__}>"


def _clip(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else f"{text[: TEXT_LIMIT // 2]} ... {text[-TEXT_LIMIT // 2 :]}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else "unknown"
