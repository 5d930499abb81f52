"""When an output is the expected one. All values are plain: what a program returned was sent as data."""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

_RELATIVE = 1e-7
_FLOAT_ATOL = 1e-6


def same_text(got: str, expected: str, tolerance: float = 0.0) -> bool:
    """Whether two outputs are equal, line by line, as LiveCodeBench compares them.

    Blanks around lines and at the ends of the output do not count. Two lines are equal if they are the same text, or if
    their words are the same decimal numbers, such as 1.0 and 1.00.

    Args:
        got (`str`): The program's output.
        expected (`str`): The expected output.
        tolerance (`float`, defaults to `0.0`): What an expected number with a decimal point may be off by, absolutely
            or relatively; LiveCodeBench allows nothing.
    """
    lines, expected_lines = _lines(got), _lines(expected)
    if len(lines) != len(expected_lines):
        return False
    return all(_same_line(*pair, tolerance) for pair in zip(lines, expected_lines, strict=True))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(got: str, expected: str, tolerance: float) -> bool:
    if got == expected:
        return True
    words, expected_words = got.split(), expected.split()
    if len(words) != len(expected_words):
        return False
    return all(_same_word(*pair, tolerance) for pair in zip(words, expected_words, strict=True))


def _same_word(got: str, expected: str, tolerance: float) -> bool:
    if got == expected:
        return True
    number, expected_number = _number(got), _number(expected)
    if number is None or expected_number is None:
        return False
    if number == expected_number:
        return True
    if tolerance == 0 or expected.lstrip("+-").isdecimal():
        return False
    return math.isclose(float(number), float(expected_number), rel_tol=tolerance, abs_tol=tolerance)


def _number(word: str) -> Decimal | None:
    try:
        number = Decimal(word)
    except InvalidOperation:
        return None
    return None if number.is_nan() else number


def same_value(got: Any, expected: Any) -> bool:
    """Equality as in LiveCodeBench, where a tuple may stand for a list."""
    return (list(got) if isinstance(got, tuple) else got) == expected


def close_value(atol: float) -> Callable[[Sequence[Any], Any, Any], bool]:
    """Equality as in EvalPlus: exact, but within `atol` (1e-6 where it is 0) for floats and lists of floats."""

    def matches(arguments: Sequence[Any], got: Any, expected: Any) -> bool:
        if got == expected:
            return True
        tolerance = _FLOAT_ATOL if atol == 0 and _is_floats(expected) else atol
        return tolerance != 0 and type(got) is type(expected) and _close(got, expected, tolerance)

    return matches


def is_root(atol: float) -> Callable[[Sequence[Any], Any, Any], bool]:
    """EvalPlus's check of HumanEval/32: any zero of the polynomial will do."""

    def matches(arguments: Sequence[Any], got: Any, expected: Any) -> bool:
        if type(got) not in (int, float):
            return False
        try:
            value = sum(coefficient * math.pow(got, power) for power, coefficient in enumerate(arguments[0]))
        except (OverflowError, ValueError):
            return False
        return abs(value) <= atol

    return matches


def _is_floats(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(got: Any, expected: Any, atol: float) -> bool:
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        return len(got) == len(expected) and all(_close(*pair, atol) for pair in zip(got, expected, strict=True))
    if isinstance(expected, int | float) and isinstance(got, int | float):
        try:
            return got == expected or abs(got - expected) <= atol + _RELATIVE * abs(expected)
        except OverflowError:
            return False
    return got == expected
