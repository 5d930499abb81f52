"""What judges a benchmark's completions: one factory for each name that a benchmark's YAML file may give."""

import sys
from collections.abc import Callable
from typing import Any, Protocol

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark, Problem
from trl_opd.verify import MathVerifier, Verdict, choice, scorer_version, tool_use
from trl_opd.verify.code import CodeVerifier, code_scorer_version


class Scorer(Protocol):
    """Judges completions, from any thread; verdicts depend on neither the order nor the load of the machine."""

    def score(self, completion: str, problem: Problem) -> Verdict:
        """The verdict on one completion, which is not trusted."""

    def identity(self) -> dict[str, Any]:
        """What decides a verdict: the rules and the versions of the libraries. A resumed run must have the same."""

    def details(self) -> dict[str, Any]:
        """What is worth recording and may change between two sessions of one run, such as the sandbox in force."""

    def close(self) -> None:
        """End all processes of the scorer."""


class MathScorer:
    """Compares answers by mathematics."""

    def __init__(self, benchmark: Benchmark, workers: int, sandbox: str | None) -> None:
        self.extraction = benchmark.extraction
        self.verifier = MathVerifier(workers)

    def score(self, completion: str, problem: Problem) -> Verdict:
        return self.verifier.verify(completion, problem.answer, self.extraction)

    def identity(self) -> dict[str, Any]:
        return {"extraction": self.extraction, "version": scorer_version()}

    def details(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.verifier.close()


class TextScorer:
    """Compares texts in this process, by rules that take no time."""

    def __init__(self, rules: str, verify: Callable[[str, str], Verdict]) -> None:
        self.rules = rules
        self.verify = verify

    def score(self, completion: str, problem: Problem) -> Verdict:
        return self.verify(completion, problem.answer)

    def identity(self) -> dict[str, Any]:
        return {"version": self.rules}

    def details(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """There is nothing to end."""


class CodeScorer:
    """Runs programs against tests, in the sandbox."""

    def __init__(self, benchmark: Benchmark, workers: int, sandbox: str | None) -> None:
        self.dialect = benchmark.code.dialect
        self.verifier = CodeVerifier(workers, sandbox)
        force = self.verifier.describe()
        print(f"sandbox: {force['backend']}, self-test {force['self_test']}", file=sys.stderr)

    def score(self, completion: str, problem: Problem) -> Verdict:
        return self.verifier.verify(completion, self.dialect, problem.fields)

    def identity(self) -> dict[str, Any]:
        return {"dialect": self.dialect, "version": code_scorer_version(), "limits": self.verifier.limits.describe()}

    def details(self) -> dict[str, Any]:
        return self.verifier.describe()

    def close(self) -> None:
        """There is nothing to end: each program's process ends with its verdict."""


SCORERS: dict[str, Callable[[Benchmark, int, str | None], Scorer]] = {
    "math": MathScorer,
    "code": CodeScorer,
    "choice": lambda *_: TextScorer(choice.RULES, choice.verify_choice),
    "tool-use": lambda *_: TextScorer(tool_use.RULES, tool_use.verify_tool_use),
}


def make_scorer(benchmark: Benchmark, workers: int = 1, sandbox: str | None = None) -> Scorer:
    """The scorer that the benchmark names, with so many processes at work at the same time.

    `sandbox` names what programs run in, see `trl_opd.verify.code.CodeVerifier`.

    Raises:
        UserError: The scorer runs no programs and a sandbox is named, or none can run here.
    """
    if sandbox is not None and benchmark.scorer != "code":
        raise UserError(f"{benchmark.name} runs no programs, so a sandbox would be ignored: leave it out.")
    return SCORERS[benchmark.scorer](benchmark, workers, sandbox)
