"""Answers verified a second: the pool of killable workers against math-verify called directly, one process per core.

    python benchmarks/verify_throughput.py [--quick] [--json FILE] [--workers N]

Both sides verify the same completions against the same references: fractions, roots, polynomials, intervals, sets and
decimals as contest problems have them, one in three wrong. The direct side calls `math_verify.parse` and `verify` in a
loop, without a time-out, in as many processes as there are workers. Ours goes through `MathVerifier.verify_all`, with
its time-out and its checks of values. Integers cost ours almost nothing, so they are measured apart. Each side first
verifies a few pairs: starting is not counted. The sides take turns, and the median is shown.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path

REPEATS = 5
TARGET = 0.9

Pairs = list[tuple[str, str]]


def expressions(count: int) -> Pairs:
    """Completions with references that take mathematics; every third completion is wrong."""
    return [_pair(random.Random(number), wrong=number % 3 == 2) for number in range(count)]


def integers(count: int) -> Pairs:
    """Completions with whole numbers as in AIME and GSM8K; every third is wrong."""
    rng = random.Random(0)
    answers = [rng.randrange(1000) for _ in range(count)]
    return [(_completion(str(answer + (number % 3 == 2))), str(answer)) for number, answer in enumerate(answers)]


def _pair(rng: random.Random, wrong: bool) -> tuple[str, str]:
    a, b, c = rng.randrange(2, 60), rng.randrange(2, 30), rng.randrange(2, 12)
    other = a + wrong
    answer, reference = rng.choice(
        [
            (rf"\frac{{{other * c}}}{{{b * c}}}", rf"\frac{{{a}}}{{{b}}}"),
            (rf"{other}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}"),
            (rf"(x+{other})^2", rf"x^2+{2 * a}x+{a * a}"),
            (rf"[{other}, \infty)", rf"x \ge {a}"),
            (rf"\{{{b}, {other}\}}", rf"\{{{a}, {b}\}}"),
            (f"{other / 8:.3f}", rf"\frac{{{a}}}{{8}}"),
            (rf"\left({other}, \frac{{\pi}}{{{c}}}\right)", rf"({a}, \pi/{c})"),
            (rf"{other}\pi + {b}", rf"{b} + {a}\pi"),
        ]
    )
    return _completion(answer), reference


def _completion(answer: str) -> str:
    steps = "We collect the terms, divide by $12$ and find that $x^2 = 7$ has no part in it. " * 12
    return f"{steps}So the answer is $\\boxed{{{answer}}}$."


def _direct(pairs: Pairs) -> list[bool]:
    logging.disable()  # it warns of the time-out that is left out
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    verdicts = []
    for completion, reference in pairs:
        target = parse(completion, extraction_config=config, parsing_timeout=None)
        gold = parse(rf"\boxed{{{reference}}}", extraction_config=config, parsing_timeout=None)
        verdicts.append(verify(gold, target, timeout_seconds=None))
    return verdicts


def measure(pairs: Pairs, workers: int) -> dict[str, float]:
    """Pairs a second of each side, and how many verdicts differ."""
    from trl_opd.verify import MathVerifier

    seconds: dict[str, list[float]] = {"direct": [], "ours": []}
    parts = [pairs[worker::workers] for worker in range(workers)]
    verifier = MathVerifier(workers)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(_direct, [part[:5] for part in parts], chunksize=1)
        verifier.verify_all(pairs[: 5 * workers])
        for _ in range(REPEATS):
            start = time.perf_counter()
            theirs = pool.map(_direct, parts, chunksize=1)
            seconds["direct"].append(time.perf_counter() - start)
            start = time.perf_counter()
            ours = [verdict.correct for verdict in verifier.verify_all(pairs)]
            seconds["ours"].append(time.perf_counter() - start)
    verifier.close()
    differ = sum(
        ours[worker::workers][i] != value for worker, part in enumerate(theirs) for i, value in enumerate(part)
    )
    rate = {side: len(pairs) / statistics.median(values) for side, values in seconds.items()}
    return {**rate, "differ": differ}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 pairs of each kind, half a minute")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: the number of cores")
    options = parser.parse_args()
    count = 200 if options.quick else 1000
    rows = []
    print(f"{'verified a second':<24}{'direct':>10}{'ours':>10}{'ratio':>8}{'target':>8}{'differ':>8}")
    for name, pairs in (("expressions", expressions(count)), ("integers", integers(count))):
        found = measure(pairs, options.workers)
        ratio = found["ours"] / found["direct"]
        rows.append({"figure": name, **found, "ratio": ratio, "target": TARGET, "met": ratio >= TARGET})
        shown = f"{found['direct']:>10.0f}{found['ours']:>10.0f}{ratio:>8.2f}{TARGET:>8.2f}{found['differ']:>8}"
        print(f"{name:<24}{shown}", flush=True)
    if options.json:
        versions = {package: version(package) for package in ("math-verify", "latex2sympy2_extended", "sympy")}
        about = {"machine": f"{platform.machine()}, {platform.system()}", "workers": options.workers, "pairs": count}
        options.json.write_text(json.dumps({"about": about | versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
