"""One evaluation from beginning to end: problems -> generations -> verdicts -> metrics."""

import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark, Problem, load_rows, rows_sha256
from trl_opd.evals.engines import Engine, Key, Request, Sampling, request_seed
from trl_opd.evals.metrics import Metrics, compute
from trl_opd.evals.records import json_sha256
from trl_opd.evals.scorers import Scorer, make_scorer
from trl_opd.evals.store import RunStore

Item = TypeVar("Item")


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
    command: str | None = None,
    progress: bool = False,
) -> Summary:
    """Run a benchmark, or continue or report the same run where its folder has it already.

    Args:
        benchmark (`Benchmark`): What to run.
        engine (`Engine`): What generates.
        out_dir (`Path`): Folder of the run, see `trl_opd.evals.store`.
        n (`int`, *optional*): Samples for each problem; the benchmark's protocol by default.
        sampling (`Sampling`, *optional*): Decoding settings; the benchmark's protocol by default.
        seed (`int`, defaults to `0`): Seed of the run; each sample's own seed follows from it.
        limit (`int`, *optional*): The first problems only.
        data_dir (`Path`, *optional*): Folder with local copies of the data.
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
    problems = load_rows(benchmark, data_dir, limit)
    requests = [
        Request(problem.id, index, benchmark.messages(problem), request_seed(seed, problem.id, index))
        for problem in problems
        for index in range(n)
    ]
    with closing(make_scorer(benchmark)) as scorer:
        settings = _settings(benchmark, engine, scorer, problems, n, sampling, seed)
        session = {"command": command, **engine.details(), "scorer": scorer.details()}
        with RunStore(out_dir, settings, session) as store:
            if store.summary is None:
                _generate(store, engine, requests, sampling, progress)
                _score(store, scorer, problems, n, progress)
                metrics = _metrics(store, problems, n)
                store.finish(asdict(Summary(benchmark.name, json_sha256(settings), metrics)))
            return Summary.from_json(store.summary)


def _settings(
    benchmark: Benchmark,
    engine: Engine,
    scorer: Scorer,
    problems: list[Problem],
    n: int,
    sampling: Sampling,
    seed: int,
) -> dict[str, Any]:
    """All that decides the result. A folder with other settings is another experiment."""
    return {
        "benchmark": benchmark.name,
        "problems": len(problems),
        "data": rows_sha256(problems),
        "prompts": json_sha256([benchmark.messages(problem) for problem in problems]),
        "engine": engine.identity(),
        "n": n,
        "sampling": asdict(sampling),
        "seed": seed,
        "scorer": scorer.identity(),
    }


def _generate(store: RunStore, engine: Engine, requests: list[Request], sampling: Sampling, progress: bool) -> None:
    done = {_key(row) for row in store.generations.rows}
    generations = engine.generate(engine.batches(requests, sampling), sampling, done)
    for generation in _track(generations, "generating", len(requests) - len(done), progress):
        store.generations.append(asdict(generation))
    assert {_key(row) for row in store.generations.rows} == {request.key for request in requests}, (
        "the engine did not draw what was asked"
    )
    assert len(store.generations.rows) == len(requests), "a completion is stored twice"


def _score(store: RunStore, scorer: Scorer, problems: list[Problem], n: int, progress: bool) -> None:
    """Score what has no verdict yet, in the order of the problems."""
    by_id = {problem.id: problem for problem in problems}
    completions = {_key(row): row["completion"] for row in store.generations.rows}
    done = {_key(row) for row in store.verdicts.rows}
    missing = [key for key in _keys(problems, n) if key not in done]
    for problem_id, index in _track(missing, "scoring", len(missing), progress):
        verdict = scorer.score(completions[problem_id, index], by_id[problem_id])
        store.verdicts.append({"problem_id": problem_id, "index": index, **asdict(verdict)})


def _metrics(store: RunStore, problems: list[Problem], n: int) -> Metrics:
    keys = _keys(problems, n)
    generations = {_key(row): row for row in store.generations.rows}
    verdicts = {_key(row): row for row in store.verdicts.rows}
    shape = (len(problems), n)
    return compute(
        correct_PN=np.array([verdicts[key]["correct"] for key in keys]).reshape(shape),
        answers=_rows([verdicts[key]["extracted"] for key in keys], n),
        reasons=_rows([verdicts[key]["reason"] for key in keys], n),
        truncated_PN=np.array([generations[key]["finish_reason"] == "length" for key in keys]).reshape(shape),
        tokens_PN=np.array([generations[key]["tokens"] for key in keys]).reshape(shape),
    )


def _keys(problems: list[Problem], n: int) -> list[Key]:
    return [(problem.id, index) for problem in problems for index in range(n)]


def _key(row: dict[str, Any]) -> Key:
    return row["problem_id"], row["index"]


def _rows(items: list[Item], length: int) -> list[list[Item]]:
    """Cut a list into rows of `length`; the last may be shorter."""
    return [items[start : start + length] for start in range(0, len(items), length)]


def _track(items: Iterable[Any], description: str, total: int, progress: bool) -> Iterable[Any]:
    return track(items, description, total=total, console=Console(file=sys.stderr), disable=not progress)
