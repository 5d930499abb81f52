"""The rows of a benchmark: read from a local copy or the Hub, checked, mended by the errata, cut to the window."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark, Problem, Source
from trl_opd.evals.livecodebench import evaluation_sample
from trl_opd.evals.records import file_sha256, json_sha256


@dataclass(frozen=True)
class Rows:
    """The problems of a run and what became of the benchmark's rows on the way.

    Attributes:
        problems (`list[Problem]`): At least one.
        comparable (`bool`): Whether the rows are those that the benchmark names; numbers on others are not comparable.
        corrected (`list[str]`): Problems whose reference an erratum replaced.
        excluded (`list[str]`): Problems that an erratum left out.
        outside_window (`int`): Problems that the window left out.
    """

    problems: list[Problem]
    comparable: bool
    corrected: list[str]
    excluded: list[str]
    outside_window: int

    def settings(self) -> dict[str, Any]:
        """What of it decides a result, for the manifest of a run."""
        return {
            "problems": len(self.problems),
            "data": rows_sha256(self.problems),
            "comparable": self.comparable,
            "errata": {"corrected": self.corrected, "excluded": self.excluded},
            "outside_window": self.outside_window,
        }


def load_rows(
    benchmark: Benchmark,
    data_dir: Path | None = None,
    limit: int | None = None,
    *,
    errata: bool = True,
    allow_other_data: bool = False,
) -> Rows:
    """The problems of a benchmark, checked against its number of rows and its hashes.

    Args:
        benchmark (`Benchmark`): The benchmark.
        data_dir (`Path`, *optional*): Folder with the benchmark's local file, read in place of the Hub.
        limit (`int`, *optional*): Keep the first rows only, after everything else.
        errata (`bool`, defaults to `True`): Correct or leave out the rows that are known to be wrong.
        allow_other_data (`bool`, defaults to `False`): Take rows that are not the expected ones; the result says so.

    Raises:
        UserError: A file or a field is missing, an answer is empty, no problem is left, or the rows are not the
            expected ones.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}: an evaluation of no problems says nothing.")
    local = data_dir is not None and benchmark.source.builtin is None
    raw = _raw_rows(benchmark, data_dir, allow_other_data)
    cut = islice(enumerate(raw), *(benchmark.source.slice or (None,)))
    problems = [_problem(benchmark, number, row, local) for number, row in cut]
    if not problems:
        raise UserError(f"{benchmark.name} has no rows: an evaluation of no problems says nothing.")
    if len({problem.id for problem in problems}) != len(problems):
        raise UserError(f"{benchmark.name} has rows with the same id: make the ids unique.")
    comparable = _check(benchmark, problems, allow_other_data)
    kept, corrected, excluded = _mend(benchmark, problems, comparable) if errata else (problems, [], [])
    inside = [problem for problem in kept if benchmark.window is None or benchmark.window.holds(problem)]
    if not inside:
        raise UserError(f"{benchmark.name} has no problems in its window: an evaluation of no problems says nothing.")
    return Rows(inside[:limit], comparable, corrected, excluded, len(kept) - len(inside))


def rows_sha256(problems: list[Problem]) -> str:
    """The hash of all that is read of the rows, in order."""
    return json_sha256([_identity(problem) for problem in problems])


def _identity(problem: Problem) -> list[Any]:
    extra = [problem.system, dict(problem.fields)] if problem.fields or problem.system is not None else []
    return [problem.id, problem.problem, problem.answer, *extra]


def _check(benchmark: Benchmark, problems: list[Problem], allow_other_data: bool) -> bool:
    """Whether the rows are the expected ones; others are refused unless they are allowed."""
    digest = rows_sha256(problems)
    if benchmark.rows_sha256 is not None and len(problems) == benchmark.rows and digest == benchmark.rows_sha256:
        return True
    if allow_other_data:
        return False
    if benchmark.rows_sha256 is None:
        raise UserError(
            f"{benchmark.name} names no hash that its {len(problems)} rows could be checked against: pass "
            f"--allow-other-data, and the run is recorded as not comparable."
        )
    raise UserError(
        f"{benchmark.name} has {len(problems)} rows with the hash {digest} where {benchmark.rows} rows with "
        f"{benchmark.rows_sha256} are expected: use the data that the benchmark names, or pass --allow-other-data, and "
        f"the run is recorded as not comparable."
    )


def _mend(
    benchmark: Benchmark, problems: list[Problem], comparable: bool
) -> tuple[list[Problem], list[str], list[str]]:
    """The problems after the errata, and the ids of those that were corrected and left out."""
    known = {problem.id for problem in problems}
    unknown = [erratum.id for erratum in benchmark.errata if erratum.id not in known]
    if unknown and comparable:
        raise UserError(f"An erratum of {benchmark.name} names {unknown[0]!r}, and no row has that id: mend the id.")
    answers = {erratum.id: erratum.answer for erratum in benchmark.errata if erratum.id in known}
    excluded = [name for name, answer in answers.items() if answer is None]
    mended = [replace(row, answer=answers.get(row.id) or row.answer) for row in problems]
    corrected = [new.id for new, old in zip(mended, problems, strict=True) if new.answer != old.answer]
    return [problem for problem in mended if problem.id not in excluded], corrected, excluded


def _raw_rows(benchmark: Benchmark, data_dir: Path | None, allow_other_data: bool) -> Iterator[Mapping[str, Any]]:
    if benchmark.source.builtin == "testbed":
        return _testbed_rows(benchmark)
    if data_dir is not None:
        return _local_rows(benchmark, data_dir, allow_other_data)
    if benchmark.source.url is not None:
        raise UserError(
            f"{benchmark.name} is not on the Hub: get it from {benchmark.source.url} as {benchmark.local.file}, and "
            f"pass --data-dir with its folder."
        )
    return iter(_hub_rows(benchmark.source, benchmark.local.file if benchmark.local else "the rows"))


def _testbed_rows(benchmark: Benchmark) -> Iterator[Mapping[str, Any]]:
    from trl_opd.testbed import tasks  # the one data set that is code

    form = benchmark.source.config
    for row in tasks.rows(benchmark.source.split, benchmark.rows):
        forms = tasks.contexts(row)
        if form is not None and form not in forms:
            raise UserError(
                f"{benchmark.name} asks for the form {form!r} of the testbed's prompts: use one of {', '.join(forms)}."
            )
        yield row if form is None else row | {"problem": forms[form]}


def _problem(benchmark: Benchmark, number: int, row: Mapping[str, Any], local: bool) -> Problem:
    source = benchmark.source
    columns = benchmark.local.fields if local else source.fields
    row = dict(row)
    if source.hub and not local and "id" not in columns:
        template = source.id or f"{benchmark.name}-{source.split}-{{row}}"
        row["id"] = template.format_map({**row, "row": number})
    if benchmark.code is not None and benchmark.code.dialect == "livecodebench":
        row["evaluation_sample"] = evaluation_sample(row)
    values = {}
    for ours in ("id", "problem") if benchmark.scorer == "code" else ("id", "problem", "answer"):
        column = columns.get(ours, ours)
        values[ours] = _text(row.get(column))
        if not values[ours]:
            raise UserError(f"Row {number} of {benchmark.name} has no {column!r}: every row needs one.")
    if not local and source.answer_after is not None:
        values["answer"] = values["answer"].rpartition(source.answer_after)[2].strip().replace(",", "")
    missing = [column for column in source.keep if column not in row]
    if missing:
        raise UserError(f"Row {number} of {benchmark.name} has no {missing[0]!r}: every row needs one.")
    return Problem(
        **{"answer": "", **values},
        fields={column: row[column] for column in source.keep},
        system=row[columns["system"]] if "system" in columns else None,
    )


def _text(value: Any) -> str:
    """A column as text: the parts of a list joined by commas, nothing where there is none."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value).strip()


def _local_rows(benchmark: Benchmark, data_dir: Path, allow_other_data: bool) -> Iterator[dict[str, Any]]:
    if benchmark.local is None:
        raise UserError(f"{benchmark.name} names no local file: leave --data-dir out to load it from the Hub.")
    path = data_dir / benchmark.local.file
    if not path.is_file():
        raise UserError(f"{path} does not exist: --data-dir must be the folder that holds {benchmark.local.file}.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: an evaluation of no problems says nothing.")
    digest = file_sha256(path)
    if benchmark.local.sha256 not in (None, digest) and not allow_other_data:
        raise UserError(
            f"{path} has the hash {digest}, and {benchmark.name} expects {benchmark.local.sha256}: get that file, or "
            f"pass --allow-other-data, and the run is recorded as not comparable."
        )
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield _row(line, path, number)


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise UserError(f"Line {number} of {path} is not JSON: write one JSON object a line.") from error
    if not isinstance(row, dict):
        raise UserError(f"Line {number} of {path} is not a JSON object: write one JSON object a line.")
    return row


def _hub_rows(source: Source, file: str) -> Any:
    import datasets  # slow to import

    try:
        if source.files:
            files = [f"hf://datasets/{source.hub}/{name}" for name in source.files]
            return datasets.load_dataset("json", data_files=files, split="train")
        return datasets.load_dataset(source.hub, source.config, split=source.split)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The data set {source.hub} cannot be loaded from the Hub: connect or log in, or pass --data-dir with "
            f"the folder that holds {file}."
        ) from error
