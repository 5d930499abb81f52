"""Scoring what was generated elsewhere: a file of completions takes the place of an engine."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark
from trl_opd.evals.engines import Generation, Key, Request, Sampling, in_batches
from trl_opd.evals.records import file_sha256
from trl_opd.evals.rows import load_rows
from trl_opd.evals.runner import Job, Summary, checked_workers, run
from trl_opd.evals.scorers import make_scorer

ROWS_A_CLAIM = 64
"""Rows that one of several processes takes at a time."""


@dataclass(frozen=True)
class GivenCompletions:
    """The rows of a file, matched with the problems of a benchmark.

    Attributes:
        generations (`dict[Key, Generation]`): The completions of known problems, in the order of the problems.
        unknown_ids (`list[str]`): Ids in the file that the benchmark does not have.
        unknown_rows (`int`): Rows with such an id; they are not scored.
        missing_ids (`list[str]`): Problems without a completion; the metrics leave them out.
        least (`int`), most (`int`): Completions of the problem that has the fewest, or the most, of those with any.
    """

    generations: dict[Key, Generation]
    unknown_ids: list[str]
    unknown_rows: int
    missing_ids: list[str]
    least: int
    most: int


class GivenEngine:
    """An `Engine` that draws nothing: its completions lie in a file."""

    def __init__(self, path: Path, generations: Mapping[Key, Generation]) -> None:
        self.path = path
        self.generations = generations

    def identity(self) -> dict[str, Any]:
        """The hash of the file."""
        return {"engine": "external", "generations": file_sha256(self.path)}

    def details(self) -> dict[str, Any]:
        """Where the file lay."""
        return {"generations_file": str(self.path)}

    def batches(self, requests: Sequence[Request], sampling: Sampling | None) -> list[list[Request]]:
        """Portions of the file."""
        return in_batches(requests, ROWS_A_CLAIM)

    def generate(
        self, batches: Iterable[list[Request]], sampling: Sampling | None, done: Set[Key] = frozenset()
    ) -> Iterator[Generation]:
        """The completions of the file that are not done."""
        return (self.generations[one.key] for batch in batches for one in batch if one.key not in done)


def score_generations(
    benchmark: Benchmark,
    path: Path,
    out_dir: Path,
    *,
    limit: int | None = None,
    data_dir: Path | None = None,
    errata: bool = True,
    allow_other_data: bool = False,
    workers: int | None = None,
    sandbox: str | None = None,
    command: str | None = None,
    progress: bool = False,
) -> tuple[Summary, GivenCompletions]:
    """Score a file of completions, and store them as a run.

    Args:
        benchmark (`Benchmark`): What was asked.
        path (`Path`): JSON lines, see `read_generations`.
        out_dir (`Path`): Folder of the run, see `trl_opd.evals.store`.
        limit (`int`, *optional*): The first problems only; the ids of the others are unknown then.
        data_dir (`Path`, *optional*): Folder with local copies of the data.
        errata (`bool`, defaults to `True`): Correct or leave out the rows that are known to be wrong.
        allow_other_data (`bool`, defaults to `False`): Take rows that are not the benchmark's; the manifest says so.
        workers (`int`, *optional*): Completions scored at the same time; the number of cores by default.
        sandbox (`str`, *optional*): What programs run in, see `trl_opd.verify.code.CodeVerifier`.
        command (`str`, *optional*): The command line, for the manifest.
        progress (`bool`, defaults to `False`): Show progress on the error stream.

    Raises:
        UserError: The data or the file are not as expected, no id of the file is known, or `out_dir` holds another run.
    """
    workers = checked_workers(workers)
    rows = load_rows(benchmark, data_dir, limit, errata=errata, allow_other_data=allow_other_data)
    given = read_generations(path, [problem.id for problem in rows.problems], benchmark.name)
    engine = GivenEngine(path, given.generations)
    scorer = make_scorer(benchmark, workers, sandbox)
    settings = {
        "benchmark": benchmark.name,
        **rows.settings(),
        "prompts": None,
        "engine": engine.identity(),
        "n": given.most,
        "sampling": None,
        "seed": None,
        "scorer": scorer.identity(),
    }
    requests = [Request(problem_id, index, [], 0) for problem_id, index in given.generations]
    job = Job(benchmark, rows.problems, requests, None, settings)
    return run(job, engine, scorer, out_dir, workers=workers, command=command, progress=progress), given


def read_generations(path: Path, problem_ids: Sequence[str], benchmark: str) -> GivenCompletions:
    """Read rows `{id, completion}`, several for a problem if need be.

    A row may also hold `index` (which of the problem's samples it is; by default their order in the file), `tokens` and
    `finish_reason` ("stop" or "length"). Other fields are left alone.

    Args:
        path (`Path`): JSON lines.
        problem_ids (`Sequence[str]`): The ids of the benchmark's problems.
        benchmark (`str`): Its name, for messages.

    Raises:
        UserError: The file is missing, empty or no JSON lines, a row lacks a field or repeats a sample, or no id is
            known.
    """
    known, indices = set(problem_ids), Counter()
    found: dict[Key, Generation] = {}
    unknown: Counter[str] = Counter()
    for place, row in _rows(path):
        generation = _generation(row, indices, place)
        if generation.key in found:
            raise UserError(f"{place} is a second sample {generation.index} of {generation.problem_id!r}: drop one.")
        if generation.problem_id in known:
            found[generation.key] = generation
        else:
            unknown[generation.problem_id] += 1
    if not found:
        example = f" such as {next(iter(unknown))!r}" if unknown else ""
        raise UserError(
            f"No id in {path} is one of {benchmark}'s: its rows have ids{example}, and the benchmark's are like "
            f"{problem_ids[0]!r}."
        )
    position = {problem_id: number for number, problem_id in enumerate(problem_ids)}
    ordered = dict(sorted(found.items(), key=lambda item: (position[item[0][0]], item[0][1])))
    counts = Counter(problem_id for problem_id, _ in ordered)
    missing = [problem_id for problem_id in problem_ids if problem_id not in counts]
    return GivenCompletions(
        ordered, list(unknown), unknown.total(), missing, min(counts.values()), max(counts.values())
    )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows, each after its place for messages."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"{path} cannot be read ({reason}): pass a file of JSON lines.") from error
    if not any(line.strip() for line in lines):
        raise UserError(f"{path} is empty: there is nothing to score.")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"Line {number} of {path}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place} is not JSON: write one object {{id, completion}} a line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{place} is no JSON object: write one object {{id, completion}} a line.")
        yield place, row


def _generation(row: Mapping[str, Any], indices: Counter[str], place: str) -> Generation:
    """A row's completion; `indices` counts the rows of each problem so far."""
    problem_id = row.get("id")
    if not isinstance(problem_id, str | int) or isinstance(problem_id, bool) or problem_id == "":
        raise UserError(f"{place} has no 'id': every row needs the id of its problem.")
    problem_id = str(problem_id)
    if not isinstance(row.get("completion"), str):
        raise UserError(f"{place} has no 'completion' that is a text: every row needs one, if only an empty one.")
    index = indices[problem_id] if row.get("index") is None else row["index"]
    indices[problem_id] += 1
    tokens, finish_reason = row.get("tokens"), row.get("finish_reason")
    for name, value in (("index", index), ("tokens", tokens)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise UserError(f"{place} has the {name} {value!r}: give a whole number from 0, or leave it out.")
    if finish_reason not in (None, "stop", "length"):
        raise UserError(f"{place} has the finish_reason {finish_reason!r}: give stop or length, or leave it out.")
    return Generation(problem_id, index, None, row["completion"], tokens, finish_reason)
