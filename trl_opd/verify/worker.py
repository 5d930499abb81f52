r"""The process that runs math-verify: one JSON line in, one JSON line out, until the input ends.

A line `{"answer": ..., "reference": ..., "timeout": seconds}` is answered by a reason, as in
`trl_opd.verify.base.Verdict`. The first line out is `"ready"`. It runs as a script and imports nothing of ours, so
that it starts at once.

The parent enforces the time-out by killing this process. Should the parent itself be killed in the middle of a
comparison, the alarm ends this process; otherwise it ends when its input is closed.
"""

import json
import logging
import os
import resource
import signal
import sys
from itertools import product

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

MEMORY_LIMIT = 4 * 2**30  # bytes; a tower of powers asks for far more than any answer needs


def parse_boxed(text: str) -> list:
    """What math-verify reads in `text`, taken as the content of a LaTeX box: expressions, then the string itself."""
    return parse(
        rf"\boxed{{{text}}}",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()],
        parsing_timeout=None,
        raise_on_error=True,
    )


def compare(answer: str, reference: str) -> str:
    """The reason of the verdict: "correct", "wrong" or "error: ...".

    Equal to math-verify's own verdict, which counts a comparison that raises as unequal; here its error is told.
    """
    error = None
    try:
        pairs = product(parse_boxed(reference), parse_boxed(answer))
    except Exception as exception:
        return describe(exception)
    for gold, target in pairs:
        try:
            if verify(gold, target, timeout_seconds=None, raise_on_error=True):
                return "correct"
        except Exception as exception:
            error = exception
    return "wrong" if error is None else describe(error)


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
        signal.setitimer(signal.ITIMER_REAL, 2 * request["timeout"])
        reason = compare(request["answer"], request["reference"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reason), file=replies, flush=True)


if __name__ == "__main__":
    serve()
