"""A benchmark: where its problems lie, how they are asked, how answers are read, and its protocol."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trl_opd.errors import UserError
from trl_opd.evals.engines import Sampling
from trl_opd.evals.files import read_yaml
from trl_opd.evals.records import from_mapping
from trl_opd.verify.extraction import EXTRACTIONS

SCORERS = ("math", "choice", "tool-use", "code")
BUILTINS = ("testbed",)

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")


@dataclass(frozen=True)
class Problem:
    """One row of a benchmark.

    Attributes:
        id (`str`): Unique in its benchmark.
        problem (`str`): The text that goes into the prompt.
        answer (`str`): The reference answer; empty where the scorer reads `fields` instead.
        fields (`dict`): What else of the row the scorer or the prompt reads, such as tests.
        system (`str`, *optional*): The system message, where each row brings its own.
    """

    id: str
    problem: str
    answer: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the rows come from: a data set on the Hub, one that is built in, or a file that one has to get.

    Attributes:
        split (`str`): The split.
        hub (`str`, *optional*): Data set id on the Hub.
        config (`str`, *optional*): The data set's configuration; of the testbed, a form of prompt that is read before
            the problem, see `trl_opd.testbed.tasks.contexts`.
        files (`list[str]`): Its JSONL files by name, where the data set can only be loaded so.
        builtin (`str`, *optional*): "testbed", in place of `hub`.
        url (`str`, *optional*): Where the file is to be had, in place of `hub`; it is read from a data folder alone.
        id (`str`, *optional*): Our ids, with `{column}` for a column of the data set and `{row}` for the row's number;
            `<benchmark>-<split>-{row}` by default. Ignored where `fields` names a column of ids.
        fields (`dict[str, str]`): Our field (`id`, `problem`, `answer`, `system`) to the data set's, where the names
            differ.
        keep (`list[str]`): Further columns, kept as they are in `Problem.fields`.
        answer_after (`str`, *optional*): The answer is what follows this mark, without thousands separators.
        slice (`list[int]`, *optional*): First row, and the row after the last one, of those that the benchmark is made
            of, counted from 0: how rows are held out of a split that others are trained on.
    """

    split: str
    hub: str | None = None
    config: str | None = None
    files: list[str] = field(default_factory=list)
    builtin: str | None = None
    url: str | None = None
    id: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    keep: list[str] = field(default_factory=list)
    answer_after: str | None = None
    slice: list[int] | None = None

    def __post_init__(self) -> None:
        if self.slice is not None and not (len(self.slice) == 2 and 0 <= self.slice[0] < self.slice[1]):
            raise UserError(f"A source's slice is a first row and the row after the last one, not {self.slice}.")
        if [self.hub, self.builtin, self.url].count(None) != 2:
            raise UserError("A benchmark's source needs exactly one of 'hub', 'builtin' and 'url'.")
        if self.builtin is not None and self.builtin not in BUILTINS:
            raise UserError(f"The builtin source {self.builtin!r} is unknown: choose one of {', '.join(BUILTINS)}.")


@dataclass(frozen=True, kw_only=True)
class Local:
    """A copy of the rows in a data folder.

    Attributes:
        file (`str`): Name of the JSONL file.
        sha256 (`str`, *optional*): Hash of its bytes, checked where it is given.
        fields (`dict[str, str]`): Our field to the file's, where the names differ.
    """

    file: str
    sha256: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


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
class Code:
    """How the tests of a code benchmark are written: the name of a form that the code scorer reads."""

    dialect: str


@dataclass(frozen=True, kw_only=True)
class Window:
    """The problems that were published in a span of time, both ends included, as `YYYY-MM` or `YYYY-MM-DD`.

    Attributes:
        field (`str`): The kept column with the dates, as ISO text.
        start (`str`, *optional*): The first month or day.
        end (`str`, *optional*): The last.
    """

    field: str
    start: str | None = None
    end: str | None = None

    def holds(self, problem: Problem) -> bool:
        """Whether the problem is of that time."""
        date = str(problem.fields[self.field])
        return (self.start is None or date >= self.start) and (self.end is None or date[: len(self.end)] <= self.end)


@dataclass(frozen=True, kw_only=True)
class Erratum:
    """A row whose reference is wrong or cannot be scored.

    Attributes:
        id (`str`): The problem.
        why (`str`): What is wrong.
        source (`str`): How it is known.
        answer (`str`, *optional*): The right answer; without one the problem is left out.
    """

    id: str
    why: str
    source: str
    answer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A set of problems and how to run and score it.

    Attributes:
        name (`str`): Short name, that of the YAML file.
        title (`str`): Name on pages.
        licence (`str`): Licence of the data, or how it is commonly stated.
        released (`str`): Month in which the problems became public, `YYYY-MM`.
        source (`Source`): Where the rows come from.
        rows (`int`): Number of rows, checked.
        rows_sha256 (`str`, *optional*): Hash over the rows as we read them, checked for every source. Without one the
            data cannot be checked, which the caller has to allow.
        local (`Local`, *optional*): The copy in a data folder.
        prompt (`str`): The user message; `{problem}` stands for the problem's text and `{column}` for a kept column.
        system (`str`, *optional*): The system message.
        extraction (`str`): How the answer is found in a completion, a name in `EXTRACTIONS`.
        scorer (`str`): What judges it, a name in `SCORERS`.
        code (`Code`, *optional*): The form of the tests, for the scorer "code".
        window (`Window`, *optional*): Which dates count.
        protocol (`Protocol`): The default settings.
        errata (`list[Erratum]`): Rows that are known to be wrong.
    """

    name: str
    title: str
    licence: str
    released: str
    source: Source
    rows: int
    prompt: str
    extraction: str
    scorer: str
    protocol: Protocol
    rows_sha256: str | None = None
    local: Local | None = None
    system: str | None = None
    code: Code | None = None
    window: Window | None = None
    errata: list[Erratum] = field(default_factory=list)

    def __post_init__(self) -> None:
        if "{problem}" not in self.prompt:
            raise UserError(f"The prompt of {self.name} has no {{problem}}: put it where the problem's text goes.")
        for name in _PLACEHOLDER.findall(self.prompt):
            if name not in ("problem", *self.source.keep):
                raise UserError(
                    f"The prompt of {self.name} has {{{name}}}, which 'source: keep' does not list: add it."
                )
        if self.extraction not in EXTRACTIONS and self.scorer != "code":  # programs are found by the code scorer itself
            raise UserError(
                f"{self.name}: extraction {self.extraction!r} is unknown: choose one of {', '.join(EXTRACTIONS)}."
            )
        if self.scorer not in SCORERS:
            raise UserError(f"{self.name}: scorer {self.scorer!r} is unknown: choose one of {', '.join(SCORERS)}.")
        if (self.scorer == "code") != (self.code is not None):
            raise UserError(f"{self.name}: 'scorer: code' and the section 'code' go together: give both or neither.")
        if self.local is None and self.source.url is not None:
            raise UserError(f"{self.name}: a source with a 'url' is read from a file: add the section 'local'.")
        if not _MONTH.fullmatch(self.released):
            raise UserError(f'{self.name}: released must be a month as in "2024-02", not {self.released!r}.')
        if self.window is not None and self.window.field not in self.source.keep:
            raise UserError(f"{self.name}: 'source: keep' must list {self.window.field!r}, which the window reads.")

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The conversation that asks one problem."""
        system = self.system if problem.system is None else problem.system
        values = {**problem.fields, "problem": problem.problem}
        text = _PLACEHOLDER.sub(lambda match: _as_text(values[match[1]]), self.prompt)
        return [*([] if system is None else [{"role": "system", "content": system}]), {"role": "user", "content": text}]

    def within(self, start: str | None, end: str | None) -> "Benchmark":
        """The same benchmark with another window.

        Raises:
            UserError: Its rows have no dates.
        """
        if self.window is None:
            raise UserError(f"{self.name} has no dates to choose by: leave the window out.")
        return replace(self, window=replace(self.window, start=start, end=end))

    def seen_before(self, cutoff: str) -> bool:
        """Whether the problems, or the first of the window, were public in a model's last month of training data.

        Args:
            cutoff (`str`): That month, `YYYY-MM`.

        Raises:
            UserError: `cutoff` is no month.
        """
        if not _MONTH.fullmatch(cutoff):
            raise UserError(f"The cutoff must be a month as in 2024-06, not {cutoff!r}.")
        windowed = self.window is not None and self.window.start is not None
        return (self.window.start[:7] if windowed else self.released) <= cutoff


def load_benchmark(path: Path) -> Benchmark:
    """Read a benchmark from its YAML file.

    Raises:
        UserError: The file is no YAML mapping, a key is unknown or missing, or a value cannot be.
    """
    values = read_yaml(path)
    sections = {"source": Source, "local": Local, "protocol": Protocol, "code": Code, "window": Window}
    built = {
        key: from_mapping(record, values[key], f"{path.name}: {key}")
        for key, record in sections.items()
        if key in values
    }
    if isinstance(values.get("errata"), list):
        built["errata"] = [from_mapping(Erratum, row, f"{path.name}: errata") for row in values["errata"]]
    return from_mapping(Benchmark, {**values, **built}, path.name)


def _as_text(value: Any) -> str:
    """A column in a prompt: a list of texts line by line."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return json.dumps(value)
