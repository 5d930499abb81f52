r"""The process that runs math-verify: one JSON line in, one JSON line out, until the input ends.

A line `{"answer": ..., "reference": ..., "cpu_seconds": ..., "wall_seconds": ...}` is answered by a reason, as in
`trl_opd.verify.base.Verdict`. The first line out is `"ready"`. It runs as a script and imports nothing of ours, so
that it starts at once.

A timer of processor time ends this process when a comparison takes too long, so that the verdict is the same on a busy
machine. The parent kills it where even that does not happen. Should the parent itself be killed in the middle of a
comparison, the alarm ends this process; otherwise it ends when its input is closed.
"""

import json
import logging
import os
import re
import resource
import signal
import sys
from itertools import product
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import E, Expr, Float, I, Mul, Symbol, UnevaluatedExpr, prime

MEMORY_LIMIT = 4 * 2**30  # bytes; a tower of powers asks for far more than any answer needs
PLAIN = re.compile(r"[\d\s.,+*/^()×÷%$-]+")
DIGITS = 30
EXACT_DIFFER, EXACT_AGREE = 1e-15, 1e-25
DECIMALS_DIFFER, DECIMALS_AGREE = 1e-5, 1e-12
"""Relative distances of two values beyond which they differ and within which they are the same."""


def parse_boxed(text: str) -> list:
    """What math-verify reads in `text`, taken as the content of a LaTeX box: expressions, then the string itself.

    Plain arithmetic is looked for in answers that hold nothing else: elsewhere math-verify would take any number that
    stands in a formula it cannot read for the whole answer.
    """
    configs = [LatexExtractionConfig(boxed_match_priority=0)]
    if PLAIN.fullmatch(text):
        configs.append(ExprExtractionConfig())
    return parse(rf"\boxed{{{text}}}", extraction_config=configs, parsing_timeout=None, raise_on_error=True)


def compare(answer: str, reference: str) -> str:
    """The reason of the verdict: "correct", "wrong" or "error: ...", the same with the two in either place."""
    one, other = sorted((answer, reference))
    error = None
    try:
        pairs = list(product(parse_boxed(one), parse_boxed(other)))
    except Exception as exception:
        return describe(exception)
    for pair in pairs:
        try:
            if equal(*pair):
                return "correct"
        except Exception as exception:
            error = exception
    return "wrong" if error is None else describe(error)


def equal(one: Any, other: Any) -> bool:
    """Whether two readings are equal.

    math-verify follows the form of the first of the two in equations, inequalities and sets, so those are compared both
    ways; all else is symmetric. The letter i, which it often takes for any symbol, may be the imaginary unit.
    """
    if same(one, other):
        return True
    if not (isinstance(one, Expr) and isinstance(other, Expr)):
        return same(other, one)
    complex_pair = [
        expression.subs({symbol: I for symbol in expression.free_symbols if symbol.name == "i"})
        for expression in (one, other)
    ]
    return complex_pair != [one, other] and same(*complex_pair)


def same(one: Any, other: Any) -> bool:
    """Whether two readings are equal by their values where these decide it, else by math-verify."""
    by_value = equal_by_value(one, other)
    return verify(one, other, timeout_seconds=None, raise_on_error=True) if by_value is None else by_value


def equal_by_value(one: Any, other: Any) -> bool | None:
    """Whether two expressions in the same symbols have the same values at a few points, `None` where it is not certain.

    math-verify takes any two numbers below 1e-15 for equal, and rounds decimals to six places however small they are.
    """
    if not (isinstance(one, Expr) and isinstance(other, Expr)) or one == other:
        return None
    symbols = sorted(one.free_symbols, key=str)
    undecided = one.has(UnevaluatedExpr) or other.has(UnevaluatedExpr)  # a percentage: math-verify is lenient there
    if undecided or one.free_symbols != other.free_symbols or is_text(one) or is_text(other):
        return None
    decimal = one.has(Float) or other.has(Float)
    distances = [distance(one, other, symbols, number) for number in range(3 if symbols else 1)]
    if None in distances:
        return None
    if max(distances) > (DECIMALS_DIFFER if decimal else EXACT_DIFFER):
        return False
    same = decimal or bool(symbols)  # of two exact numbers, one may differ from the other in the hundredth digit
    return True if same and max(distances) < (DECIMALS_AGREE if decimal else EXACT_AGREE) else None


def distance(one: Expr, other: Expr, symbols: list, number: int) -> float | None:
    """The relative distance of two expressions at a point with positive coordinates, `None` where one has no value."""
    point = {symbol: Float(prime(5 * number + place + 3), DIGITS) / 11 for place, symbol in enumerate(symbols)}
    values = [expression.evalf(DIGITS, subs=point) for expression in (one, other)]
    if not all(value.is_number and value.is_finite for value in values):
        return None
    size = max(abs(value) for value in values)
    return 0.0 if size == 0 else float(abs(values[0] - values[1]) / size)


def is_text(expression: Expr) -> bool:
    """Whether it is a letter or a product of letters, which is how a word is read."""
    return all(isinstance(part, Symbol) or part == E for part in Mul.make_args(expression))


def describe(exception: Exception) -> str:
    """The kind of error alone: the text of an exception may hold the whole expression, or fail to be made."""
    return f"error: {type(exception).__name__}"


def limit_memory() -> None:
    """Hold this process to `MEMORY_LIMIT` bytes of address space, or to less where that is the rule already."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > MEMORY_LIMIT:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, hard))


def serve() -> None:
    """Answer requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # the parsers print
    os.dup2(silence, 2)
    logging.disable()
    if sys.platform == "linux":
        limit_memory()
    print('"ready"', file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
        signal.setitimer(signal.ITIMER_REAL, 2 * request["wall_seconds"])
        reason = compare(request["answer"], request["reference"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reason), file=replies, flush=True)


if __name__ == "__main__":
    serve()
