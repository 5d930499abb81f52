"""From the fields of a data set's row to its tests and to the sources of a program, for each data set's way.

| dialect | fields | tests |
| --- | --- | --- |
| humaneval | prompt, entry_point, test[, canonical_solution] | the program `test`, then `check(entry_point)` |
| humanevalplus | prompt, entry_point, canonical_solution, base_input, plus_input, atol | calls; the solution's values |
| mbpp | test_list[, test_setup_code, code] | the asserts, after the set-up |
| mbppplus | test, code[, test_imports] | the program `test` |
| leetcode | test | the program `test`, on the class `Solution` |
| stdin | tests: a list of {input, output} | runs |
| livecodebench | evaluation_sample, or public_test_cases, private_test_cases and metadata | runs, or calls |
"""

import base64
import builtins
import io
import json
import pickle
import symtable
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl_opd.errors import UserError
from trl_opd.verify.code_compare import close_value, is_root, same_value
from trl_opd.verify.code_extraction import complete, defines
from trl_opd.verify.code_runs import TestProgram
from trl_opd.verify.code_tasks import CallsTask, ScriptTask, Task, TestsTask

STDIN_TOLERANCE = 1e-6
"""What checkers of contests commonly allow; LiveCodeBench itself allows nothing."""

_STARS = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json "
    "builtins typing"
)
_MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
)
CONTEST_PRELUDE = "\n".join(
    [*(f"from {module} import *" for module in _STARS.split()), f"import {', '.join(_MODULES.split())}"]
)
"""The names that the evaluators of LeetCode's problems and of LiveCodeBench put before a program."""

LEETCODE_CLASSES = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next


class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val = val
        self.left = left
        self.right = right
"""


@dataclass(frozen=True)
class CodeProblem:
    """The tests of one problem, and how a program becomes the sources that they run against.

    Attributes:
        task (`Task`): The tests.
        names (`tuple[str, ...]`): Functions and classes that a program must define, to find it in a completion.
        sources (`Callable`): Sources from a program.
    """

    task: Task
    names: tuple[str, ...]
    sources: Callable[[str], Sequence[str]]


def make_problem(dialect: str, fields: Mapping[str, Any]) -> CodeProblem:
    """The tests of a row.

    Raises:
        UserError: The dialect is unknown, or a field is missing or is not what the dialect needs.
    """
    if dialect not in DIALECTS:
        raise UserError(f"The dialect {dialect!r} of code tests is unknown: choose one of {', '.join(DIALECTS)}.")
    try:
        return DIALECTS[dialect](fields)
    except KeyError as error:
        raise UserError(f"A row of {dialect} problems has no field {error}: add it to the data.") from error
    except (TypeError, ValueError, SyntaxError, AttributeError) as error:
        raise UserError(f"A row of {dialect} problems cannot be read ({error}): mend its fields.") from error


def _alone(code: str) -> list[str]:
    return [code]


def _humaneval(fields: Mapping[str, Any]) -> CodeProblem:
    prompt, name = fields["prompt"], fields["entry_point"]
    tests = TestProgram((prompt,), (name,), (fields["test"], f"check({name})"))
    solution = fields.get("canonical_solution")
    task = TestsTask(tests, (prompt + solution,) if solution else None)
    return CodeProblem(task, (name,), lambda code: complete(prompt, code, name))


def _humanevalplus(fields: Mapping[str, Any]) -> CodeProblem:
    prompt, name, atol = fields["prompt"], fields["entry_point"], fields["atol"]
    task = CallsTask(
        name,
        (*fields["base_input"], *fields["plus_input"]),
        is_root(atol) if name == "find_zero" else close_value(atol),
        reference=(prompt + fields["canonical_solution"],),
    )
    return CodeProblem(task, (name,), lambda code: complete(prompt, code, name))


def _mbpp(fields: Mapping[str, Any]) -> CodeProblem:
    tests, reference = fields["test_list"], fields.get("code")
    # One row's set-up builds its trees with the program's own class: code, set-up, tests, in this order.
    setup = fields.get("test_setup_code") or ""
    return _asserts([], [setup, *tests], reference)


def _mbppplus(fields: Mapping[str, Any]) -> CodeProblem:
    return _asserts(fields.get("test_imports") or [], [fields["test"]], fields["code"])


def _leetcode(fields: Mapping[str, Any]) -> CodeProblem:
    names = ("Solution", *(name for name in ("ListNode", "TreeNode") if name in fields["test"]))
    task = TestsTask(TestProgram((CONTEST_PRELUDE,), names, (fields["test"],)))
    return CodeProblem(task, ("Solution",), lambda code: [CONTEST_PRELUDE, LEETCODE_CLASSES, code])


def _asserts(preamble: Sequence[str], tests: Sequence[str], reference: str | None) -> CodeProblem:
    names = _names_of_program("\n".join([*preamble, *tests]), reference)
    if not names:
        raise ValueError("the tests call nothing that a program could define")
    task = TestsTask(TestProgram(tuple(preamble), names, tuple(tests)), (reference,) if reference else None)
    return CodeProblem(task, names, _alone)


def _names_of_program(tests: str, reference: str | None) -> tuple[str, ...]:
    """The global names that trusted tests use and do not define.

    A name of a builtin belongs to the program only where the reference solution defines it too: a program that brings
    its own `set` or `sorted` must not have the tests use them.
    """
    table = symtable.symtable(tests, "tests", "exec")
    used, defined = set(), set()
    for symbol in table.get_symbols():
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
            defined.add(symbol.get_name())
        elif symbol.is_referenced():
            used.add(symbol.get_name())
    for inner in _inner_tables(table):
        used |= {symbol.get_name() for symbol in inner.get_symbols() if symbol.is_global() and symbol.is_referenced()}
    return tuple(
        name
        for name in sorted(used - defined)
        if not hasattr(builtins, name) or (reference is not None and defines(reference, name))
    )


def _inner_tables(table: symtable.SymbolTable) -> Iterable[symtable.SymbolTable]:
    for child in table.get_children():
        yield child
        yield from _inner_tables(child)


def _stdin(fields: Mapping[str, Any]) -> CodeProblem:
    return CodeProblem(ScriptTask(_cases(fields["tests"]), STDIN_TOLERANCE), (), _alone)


def _cases(tests: Any) -> tuple[tuple[str, str], ...]:
    tests = json.loads(tests) if isinstance(tests, str) else tests
    cases = tuple((test["input"], test["output"]) for test in tests)
    if not cases:
        raise ValueError("it has no tests")
    return cases


def _livecodebench(fields: Mapping[str, Any]) -> CodeProblem:
    cases, function = _livecodebench_tests(fields)
    if not cases:
        raise ValueError("it has no tests")
    if not function:
        return CodeProblem(ScriptTask(cases), (), lambda code: [CONTEST_PRELUDE, code])
    task = CallsTask(
        function,
        tuple([json.loads(line) for line in text.split("\n")] for text, _ in cases),
        lambda _inputs, got, expected: same_value(got, expected),
        expected=tuple(json.loads(output) for _, output in cases),
        apart=True,
    )
    return CodeProblem(task, ("Solution", function), lambda code: [CONTEST_PRELUDE, code])


def _livecodebench_tests(fields: Mapping[str, Any]) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """Inputs and outputs, and the function's name where the problem has one."""
    if fields.get("evaluation_sample"):
        sample = _parsed(fields["evaluation_sample"])
        sample = _parsed(sample["input_output"]) if "input_output" in sample else sample
        return tuple(zip(sample["inputs"], sample["outputs"], strict=True)), sample.get("fn_name")
    tests = [*_parsed(fields["public_test_cases"]), *_private_tests(fields["private_test_cases"])]
    return _cases(tests), _parsed(fields["metadata"]).get("func_name")


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _private_tests(text: Any) -> list[dict[str, str]]:
    """Tests as JSON, or as the data set packs them: base64 of zlib of a pickled text of JSON."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(_TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load())


class _TextUnpickler(pickle.Unpickler):
    """Reads a pickled text and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"its private tests name {module}.{name}, and only text is read")


DIALECTS: dict[str, Callable[[Mapping[str, Any]], CodeProblem]] = {
    "humaneval": _humaneval,
    "humanevalplus": _humanevalplus,
    "mbpp": _mbpp,
    "mbppplus": _mbppplus,
    "leetcode": _leetcode,
    "stdin": _stdin,
    "livecodebench": _livecodebench,
}
"""The ways of the data sets, by name."""
