"""A benchmark: where its problems lie, how they are asked, how answers are read, and its protocol."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trl_opd.errors import UserError
from trl_opd.evals.engines import Sampling
from trl_opd.evals.records import file_sha256, from_mapping, json_sha256
from trl_opd.verify.extraction import EXTRACTIONS

SCORERS = ("math",)
BUILTINS = ("testbed",)


@dataclass(frozen=True)
class Problem:
    """One row of a benchmark.

    Attributes:
        id (`str`): Unique in its benchmark.
        problem (`str`): The text that goes into the prompt.
        answer (`str`): The reference answer; empty where the scorer reads `fields` instead.
        fields (`dict`): What else of the row the scorer reads, such as tests.
    """

    id: str
    problem: str
    answer: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the rows come from: a data set on the Hub or one that is built in.

    Attributes:
        split (`str`): The split.
        hub (`str`, *optional*): Data set id on the Hub.
        config (`str`, *optional*): The data set's configuration.
        builtin (`str`, *optional*): "testbed", in place of `hub`.
        fields (`dict[str, str]`): Our field (`id`, `problem`, `answer`) to the data set's, where the names differ. A
            Hub data set without ids gets `<benchmark>-<split>-<row number>`.
        answer_after (`str`, *optional*): The answer is what follows this mark, without thousands separators.
    """

    split: str
    hub: str | None = None
    config: str | None = None
    builtin: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    answer_after: str | None = None

    def __post_init__(self) -> None:
        if (self.hub is None) == (self.builtin is None):
            raise UserError("A benchmark's source needs either 'hub' or 'builtin', and not both.")
        if self.builtin is not None and self.builtin not in BUILTINS:
            raise UserError(f"The builtin source {self.builtin!r} is unknown: choose one of {', '.join(BUILTINS)}.")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The settings that a benchmark is run with unless the command says otherwise, and where they come from."""

    n: int
    temperature: float
    top_p: float
    max_new_tokens: int
    note: str

    @property
    def sampling(self) -> Sampling:
        """The decoding settings."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A set of problems and how to run and score it.

    Attributes:
        name (`str`): Short name, that of the YAML file.
        title (`str`): Name on pages.
        licence (`str`): Licence of the data, or how it is commonly stated.
        source (`Source`): Where the rows come from.
        rows (`int`): Number of rows, checked.
        rows_sha256 (`str`): Hash over the rows' ids, problems and answers, checked for every source.
        local_file (`str`, *optional*): Name of the JSONL file in a data folder.
        file_sha256 (`str`, *optional*): Hash of that file, checked.
        prompt (`str`): The user message; `{problem}` stands for the problem's text and is the only placeholder.
        system (`str`, *optional*): The system message.
        extraction (`str`): How the answer is found in a completion, a name in `EXTRACTIONS`.
        scorer (`str`): What compares it with the reference, a name in `SCORERS`.
        protocol (`Protocol`): The default settings.
    """

    name: str
    title: str
    licence: str
    source: Source
    rows: int
    rows_sha256: str
    prompt: str
    extraction: str
    scorer: str
    protocol: Protocol
    local_file: str | None = None
    file_sha256: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        if "{problem}" not in self.prompt:
            raise UserError(f"The prompt of {self.name} has no {{problem}}: put it where the problem's text goes.")
        if self.extraction not in EXTRACTIONS:
            raise UserError(
                f"{self.name}: extraction {self.extraction!r} is unknown: choose one of {', '.join(EXTRACTIONS)}."
            )
        if self.scorer not in SCORERS:
            raise UserError(f"{self.name}: scorer {self.scorer!r} is unknown: choose one of {', '.join(SCORERS)}.")
        if (self.local_file is None) != (self.file_sha256 is None):
            raise UserError(f"{self.name}: 'local_file' and 'file_sha256' go together: give both or neither.")

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The conversation that asks one problem."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.prompt.replace("{problem}", problem.problem)}]


def load_benchmark(path: Path) -> Benchmark:
    """Read a benchmark from its YAML file.

    Raises:
        UserError: The file is no YAML mapping, a key is unknown or missing, or a value cannot be.
    """
    values = read_yaml(path)
    sections = {"source": Source, "protocol": Protocol}
    built = {
        key: from_mapping(record, values[key], f"{path.name}: {key}")
        for key, record in sections.items()
        if key in values
    }
    return from_mapping(Benchmark, {**values, **built}, path.name)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: The file is no YAML or holds something else than a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path.name} must be a mapping of keys to values.")
    return values


def load_rows(benchmark: Benchmark, data_dir: Path | None = None, limit: int | None = None) -> list[Problem]:
    """The problems of a benchmark, checked against its number of rows and its hashes.

    Args:
        benchmark (`Benchmark`): The benchmark.
        data_dir (`Path`, *optional*): Folder with the benchmark's `local_file`, read in place of the Hub.
        limit (`int`, *optional*): Keep the first rows only, after the checks.

    Returns:
        `list[Problem]`: At least one problem.

    Raises:
        UserError: A file or a field is missing, an answer is empty, or the rows are not the expected ones.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}: an evaluation of no problems says nothing.")
    problems = list(_problems(benchmark, data_dir))
    if not problems:
        raise UserError(f"{benchmark.name} has no rows: an evaluation of no problems says nothing.")
    if len({problem.id for problem in problems}) != len(problems):
        raise UserError(f"{benchmark.name} has rows with the same id: make the ids unique.")
    digest = rows_sha256(problems)
    if len(problems) != benchmark.rows or digest != benchmark.rows_sha256:
        raise UserError(
            f"{benchmark.name} has {len(problems)} rows with the hash {digest} where {benchmark.rows} rows with "
            f"{benchmark.rows_sha256} are expected: use the revision of the data that the benchmark names."
        )
    return problems[:limit]


def rows_sha256(problems: list[Problem]) -> str:
    """The hash of the rows' ids, problems and answers, in order."""
    return json_sha256([[row.id, row.problem, row.answer] for row in problems])


def _problems(benchmark: Benchmark, data_dir: Path | None) -> Iterator[Problem]:
    source = benchmark.source
    if source.builtin == "testbed":
        from trl_opd.testbed import tasks  # the one data set that is code

        rows = tasks.rows(source.split, benchmark.rows)
        names, answer_after = {}, None
    elif data_dir is not None:
        rows, names, answer_after = _local_rows(benchmark, data_dir), {}, None
    else:
        rows, names, answer_after = _hub_rows(source), source.fields, source.answer_after
    for number, row in enumerate(rows):
        identity = {"id": f"{benchmark.name}-{source.split}-{number}"} if source.hub and "id" not in names else {}
        values = {}
        for ours in ("id", "problem", "answer"):
            value = str({**identity, **row}.get(names.get(ours, ours)) or "").strip()
            if ours == "answer" and answer_after is not None:
                value = value.rpartition(answer_after)[2].strip().replace(",", "")
            if not value:
                raise UserError(
                    f"Row {number} of {benchmark.name} has no {names.get(ours, ours)!r}: every row needs one."
                )
            values[ours] = value
        yield Problem(**values)


def _local_rows(benchmark: Benchmark, data_dir: Path) -> Iterator[dict[str, Any]]:
    if benchmark.local_file is None:
        raise UserError(f"{benchmark.name} names no local file: leave --data_dir out to load it from the Hub.")
    path = data_dir / benchmark.local_file
    if not path.is_file():
        raise UserError(f"{path} does not exist: --data_dir must be the folder that holds {benchmark.local_file}.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: an evaluation of no problems says nothing.")
    digest = file_sha256(path)
    if digest != benchmark.file_sha256:
        raise UserError(f"{path} has the hash {digest}, and {benchmark.name} expects {benchmark.file_sha256}.")
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def _hub_rows(source: Source) -> Any:
    import datasets  # slow to import

    try:
        return datasets.load_dataset(source.hub, source.config, split=source.split)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The data set {source.hub} cannot be loaded from the Hub: connect or log in, or pass --data_dir with a "
            f"local copy."
        ) from error
