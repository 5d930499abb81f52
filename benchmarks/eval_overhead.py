"""What the harness costs: `evaluate` against a bare loop over the engine, for the same requests.

    python benchmarks/eval_overhead.py [--quick] [--json FILE]

Both draw the same completions of the embedded model with the transformers engine, in one process with one thread, and
take turns. The harness also reads and checks the rows, stores and scores every completion, and computes the metrics,
all of which is in its time. "arithmetic" is the benchmark as it is, whose answers are compared as integers at once. In
"through math-verify" every reference is written as a fraction, so that each comparison goes to a worker process, which
competes for the machine's cores. Ratios are medians over pairs of neighbours. Beside the wall time stands the
processor time of the thread that draws: unlike wall time it tells something on a machine that others use, too.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from _bench import finish, in_fresh_process, parser, report, row

TARGET = 1.05
WORK = {False: {"limit": 512, "n": 8, "repeats": 5}, True: {"limit": 512, "n": 2, "repeats": 3}}
CLOCKS = {"wall time": time.perf_counter, "processor time": time.thread_time}
CASES = {"plain": "arithmetic", "worker": "through math-verify"}


def measure_case(case: str, limit: int, n: int, repeats: int) -> dict[str, float]:
    """Median seconds of the bare loop, and the median ratio, of wall time and of the drawing thread's."""
    from trl_opd.evals import runner
    from trl_opd.evals.engines import Request, request_seed
    from trl_opd.evals.rows import load_rows
    from trl_opd.evals.suites import load_suite
    from trl_opd.evals.transformers_engine import TransformersEngine

    (benchmark,) = load_suite("arithmetic")
    rows = load_rows(benchmark, limit=limit)
    if case == "worker":
        rows = replace(rows, problems=[replace(one, answer=rf"\frac{{{one.answer}}}{{1}}") for one in rows.problems])
        runner.load_rows = lambda *_, **__: rows
    sampling = benchmark.protocol.sampling
    requests = [
        Request(problem.id, index, benchmark.messages(problem), request_seed(0, problem.id, index))
        for problem in rows.problems
        for index in range(n)
    ]
    engine = TransformersEngine("testbed/base")

    def bare() -> None:
        drawn = sum(1 for _ in engine.generate(engine.batches(requests, sampling), sampling))
        assert drawn == len(requests)

    def harness() -> None:
        with tempfile.TemporaryDirectory() as folder:
            summary = runner.evaluate(benchmark, engine, Path(folder) / "run", n=n, limit=limit)
        assert summary.metrics.problems * summary.metrics.n == len(requests)

    bare()  # loads the weights
    pairs = [(_seconds(bare), _seconds(harness)) for _ in range(repeats)]
    found = {}
    for clock in CLOCKS:
        found[f"{clock}, bare"] = statistics.median(theirs[clock] for theirs, _ in pairs)
        found[f"{clock}, ratio"] = statistics.median(ours[clock] / theirs[clock] for theirs, ours in pairs)
    return found


def _seconds(work) -> dict[str, float]:
    start = {clock: read() for clock, read in CLOCKS.items()}
    work()
    return {clock: read() - start[clock] for clock, read in CLOCKS.items()}


def main() -> None:
    options = parser(__doc__).parse_args()
    work = WORK[options.quick]
    if options.case:
        report(measure_case(options.case, **work))
        return
    rows = []
    for case, title in CASES.items():
        found = in_fresh_process(__file__, case, options)
        for clock in CLOCKS:
            bare = found[f"{clock}, bare"]
            rows.append(row(f"{title}: {clock}", found[f"{clock}, ratio"] * bare, bare, TARGET, "s"))
    finish(rows, options, work)


if __name__ == "__main__":
    main()
