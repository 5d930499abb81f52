"""One evaluation from beginning to end: problems -> generations -> verdicts -> metrics."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark, Problem
from trl_opd.evals.engines import Engine, Key, Request, Sampling, request_seed
from trl_opd.evals.files import read_rows
from trl_opd.evals.metrics import Metrics, compute
from trl_opd.evals.pipeline import ScoringThreads, fill
from trl_opd.evals.records import json_sha256
from trl_opd.evals.rows import load_rows
from trl_opd.evals.scorers import Scorer, make_scorer
from trl_opd.evals.store import RunStore, generation_files, key_of, verdict_files

REFRESHES_PER_SECOND = 2
"""Of the progress line: redrawing it takes time from the engine's process."""


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
        benchmark (`str`): Name of the benchmark.
        settings_sha256 (`str`): Hash of all settings that decide the result; two numbers with different hashes are not
            those of one experiment.
        metrics (`Metrics`): The numbers.
    """

    benchmark: str
    settings_sha256: str
    metrics: Metrics

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The summary as it is stored."""
        metrics = dict(values["metrics"])
        for name in ("decoding_interval", "problem_interval"):
            metrics[name] = None if metrics[name] is None else tuple(metrics[name])
        return cls(values["benchmark"], values["settings_sha256"], Metrics(**metrics))


@dataclass(frozen=True)
class Job:
    """What a run is to hold.

    Attributes:
        benchmark (`Benchmark`): What is run.
        problems (`list[Problem]`): Its problems, as many as are run.
        requests (`list[Request]`): What is drawn.
        sampling (`Sampling` or `None`): How it is drawn, unless that was done elsewhere.
        settings (`dict`): All that decides the result. A folder with other settings is another experiment.
    """

    benchmark: Benchmark
    problems: list[Problem]
    requests: list[Request]
    sampling: Sampling | None
    settings: dict[str, Any]


def evaluate(
    benchmark: Benchmark,
    engine: Engine,
    out_dir: Path,
    *,
    n: int | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    limit: int | None = None,
    data_dir: Path | None = None,
    errata: bool = True,
    allow_other_data: bool = False,
    workers: int | None = None,
    sandbox: str | None = None,
    command: str | None = None,
    progress: bool = False,
) -> Summary:
    """Run a benchmark, or continue, share or report the same run where its folder has it already.

    Args:
        benchmark (`Benchmark`): What to run.
        engine (`Engine`): What generates.
        out_dir (`Path`): Folder of the run, see `trl_opd.evals.store`.
        n (`int`, *optional*): Samples for each problem; the benchmark's protocol by default.
        sampling (`Sampling`, *optional*): Decoding settings; the benchmark's protocol by default.
        seed (`int`, defaults to `0`): Seed of the run; each sample's own seed follows from it.
        limit (`int`, *optional*): The first problems only.
        data_dir (`Path`, *optional*): Folder with local copies of the data.
        errata (`bool`, defaults to `True`): Correct or leave out the rows that are known to be wrong.
        allow_other_data (`bool`, defaults to `False`): Take rows that are not the benchmark's; the manifest says so.
        workers (`int`, *optional*): Completions scored at the same time; the number of cores by default.
        sandbox (`str`, *optional*): What programs run in, see `trl_opd.verify.code.CodeVerifier`.
        command (`str`, *optional*): The command line, for the manifest.
        progress (`bool`, defaults to `False`): Show progress on the error stream.

    Raises:
        UserError: The data are missing or not the expected ones, the settings cannot work, or `out_dir` holds another
            run.
    """
    n = benchmark.protocol.n if n is None else n
    if n < 1:
        raise UserError(f"n must be at least 1, not {n}: an evaluation of no samples says nothing.")
    sampling = sampling or benchmark.protocol.sampling
    if n > 1 and sampling.temperature == 0:
        raise UserError(
            f"n is {n} and temperature is 0: greedy samples are all the same, so pass n 1 or a temperature."
        )
    rows = load_rows(benchmark, data_dir, limit, errata=errata, allow_other_data=allow_other_data)
    problems = rows.problems
    requests = requests_of(benchmark, problems, n, seed)
    workers = checked_workers(workers)
    scorer = make_scorer(benchmark, workers, sandbox)
    settings = {
        "benchmark": benchmark.name,
        **rows.settings(),
        "prompts": prompts_sha256(benchmark, problems),
        "engine": engine.identity(),
        "n": n,
        "sampling": asdict(sampling),
        "seed": seed,
        "scorer": scorer.identity(),
    }
    job = Job(benchmark, problems, requests, sampling, settings)
    return run(job, engine, scorer, out_dir, workers=workers, command=command, progress=progress)


def run(
    job: Job,
    engine: Engine,
    scorer: Scorer,
    out_dir: Path,
    *,
    workers: int,
    command: str | None = None,
    progress: bool = False,
) -> Summary:
    """Bring a run's folder to its end, and close the scorer.

    Raises:
        UserError: The folder holds another run or cannot be written, or the engine or the scorer cannot do it.
    """
    session = {"command": command, **engine.details(), "workers": workers, "scorer": scorer.details()}
    by_id = {problem.id: problem for problem in job.problems}
    with closing(scorer), RunStore(out_dir, job.settings, session) as store:
        if store.summary is None:
            with ScoringThreads(store, scorer, by_id, workers) as threads, show_progress(store, job, progress) as tick:
                fill(store, engine, threads, job.requests, job.sampling, tick)
            finish(store, job)
        return Summary.from_json(store.summary)


def finish(store: RunStore, job: Job) -> None:
    """Compute the metrics of a run that is complete, and store them."""
    store.finish(asdict(Summary(job.benchmark.name, json_sha256(job.settings), _metrics(store, job))))


def checked_workers(workers: int | None) -> int:
    """The number of completions to score at a time: the number of cores unless one is given.

    Raises:
        UserError: It is not positive.
    """
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}: nothing would be scored.")
    return workers


def requests_of(benchmark: Benchmark, problems: list[Problem], n: int, seed: int) -> list[Request]:
    """What is drawn: `n` samples for each problem, each with a seed of its own that follows from the run's."""
    return [
        Request(problem.id, index, benchmark.messages(problem), request_seed(seed, problem.id, index))
        for problem in problems
        for index in range(n)
    ]


def prompts_sha256(benchmark: Benchmark, problems: list[Problem]) -> str:
    """The hash of the conversations that ask the problems."""
    return json_sha256([benchmark.messages(problem) for problem in problems])


def _metrics(store: RunStore, job: Job) -> Metrics:
    verdicts = _rows_by_key(verdict_files(store.folder, store.scoring), ("correct", "extracted", "reason"))
    generations = _rows_by_key(generation_files(store.folder), ("finish_reason", "tokens"))
    keys = [request.key for request in job.requests]
    assert verdicts.keys() == set(keys) <= generations.keys(), "the run holds something else than what was asked"

    def column(rows: dict[Key, dict[str, Any]], field: str) -> list[list[Any]]:
        return [[rows[key][field] for key in group] for _, group in groupby(keys, key=itemgetter(0))]

    reasons, tokens = column(generations, "finish_reason"), column(generations, "tokens")
    truncated = [[reason == "length" for reason in row] for row in reasons]
    return compute(
        correct_PN=column(verdicts, "correct"),
        answers=column(verdicts, "extracted"),
        reasons=column(verdicts, "reason"),
        truncated_PN=None if any(None in row for row in reasons) else truncated,
        tokens_PN=None if any(None in row for row in tokens) else tokens,
    )


def _rows_by_key(files: list[Path], fields: tuple[str, ...]) -> dict[Key, dict[str, Any]]:
    """A few fields of all rows; long texts are left on the disk."""
    rows: dict[Key, dict[str, Any]] = {}
    for row in (row for file in files for row in read_rows(file)):
        assert key_of(row) not in rows, f"{key_of(row)} is stored twice"
        rows[key_of(row)] = {field: row[field] for field in fields}
    return rows


@contextmanager
def show_progress(store: RunStore, job: Job, shown: bool) -> Iterator[Callable[[], None]]:
    """Two bars on the error stream: what is drawn and what is scored, by all processes."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        refresh_per_second=REFRESHES_PER_SECOND,
        disable=not shown,
    )
    drawn = bars.add_task(f"{job.benchmark.name}: generating", total=len(job.requests))
    scored = bars.add_task(f"{job.benchmark.name}: scoring", total=len(job.requests))

    def tick() -> None:
        bars.update(drawn, completed=len(store.drawn))
        bars.update(scored, completed=len(store.scored))

    with bars:
        tick()
        yield tick
        tick()
