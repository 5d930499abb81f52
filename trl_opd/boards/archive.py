"""What a board publishes of its runs: small files without weights, from which every number can be computed again.

    records/trials.json                           the learning rates that the trials chose
    records/prompts/<benchmark>.json.gz           problem id -> prompt
    records/<run>/record.json                     which run, how it stands, run.json, settings of its evaluations
    records/<run>/log.jsonl.gz                    the training log, each step once
    records/<run>/<benchmark>-<checkpoint>.jsonl.gz    one problem a line: verdicts, what was read, tokens, first answer

A record does not depend on when or where it is written: the same run gives the same bytes. Paths and names of a machine
are taken out of everything but the answers.
"""

import gzip
import hashlib
import json
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_opd.boards.choices import BEST, LAST
from trl_opd.boards.files import encoded, read_json, write_bytes, write_json
from trl_opd.boards.spec import BoardSpec
from trl_opd.errors import UserError
from trl_opd.state import best_step

RECORD, LOG, TRIALS, PROMPTS = "record.json", "log.jsonl.gz", "trials.json", "prompts"
#: What stands for a folder that is not below the working folder.
ELSEWHERE = "<path>/"
#: An absolute path of two parts or more that is no part of an address on the net.
_PATH = re.compile(r"(?:(?<![\w./<>])|(?<=file://))/(?:[^\s/:'\"]+/)+")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished evaluation of one checkpoint on one benchmark.

    Args:
        key (`str`), checkpoint (`str`):
            The benchmark key, and "last" or "best".
        entry (`dict`):
            What the spec asked for.
        settings (`dict`):
            The harness's settings, hashes included.
        session (`dict`):
            What drew the answers: versions, machine, engine.
        sources (`dict[str, str]`):
            SHA-256 of the harness's own files, which hold every answer in full.
        problems (`list[dict]`):
            Sorted by `id`; lists of the length of the answers (`correct`, `extracted`, `reason`, `tokens`, `truncated`)
            and the first `completion`.
    """

    key: str
    checkpoint: str
    entry: dict[str, Any]
    settings: dict[str, Any]
    session: dict[str, Any]
    sources: dict[str, str]
    problems: list[dict[str, Any]] = field(repr=False)

    @property
    def problem_ids(self) -> list[str]:
        return [problem["id"] for problem in self.problems]

    @property
    def correct(self) -> NDArray:
        """Verdicts, `[N, K]`."""
        return np.array(self.column("correct"), dtype=bool)

    def column(self, name: str) -> list[list[Any]]:
        return [problem[name] for problem in self.problems]

    @property
    def file(self) -> str:
        return f"{self.key.replace('/', '--')}-{self.checkpoint}.jsonl.gz"


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One run as it is published; `files` holds the SHA-256 of its files, empty where nothing is stored."""

    name: str
    role: str
    line: str
    method: str | None
    seed: int | None
    learning_rate: float | None
    status: str
    identity: dict[str, Any]
    stage: str | None = None
    error: str | None = None
    attempts: int | None = None
    commands: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list, repr=False)
    evaluations: list[Evaluation] = field(default_factory=list, repr=False)
    files: dict[str, str] = field(default_factory=dict)

    def evaluation(self, key: str, checkpoint: str) -> Evaluation | None:
        """The evaluation of one checkpoint; None where there is none."""
        return next((one for one in self.evaluations if (one.key, one.checkpoint) == (key, checkpoint)), None)

    def picked_by(self, rule: str) -> str:
        """The checkpoint that a rule picks: "best" only where validation knows one that is not the last."""
        best = best_step(self.training.get("validation", []))
        return LAST if rule == LAST or best in (None, self.training.get("steps")) else BEST


def records_folder(spec: BoardSpec) -> Path:
    """Where a board's records lie."""
    return spec.folder / "records"


def write_record(spec: BoardSpec, record: RunRecord) -> None:
    """Write a run's record, in place of an older one."""
    folder = records_folder(spec) / record.name
    plain = {name: value for name, value in asdict(record).items() if name not in ("log", "evaluations", "files")}
    about = [{name: value for name, value in asdict(one).items() if name != "problems"} for one in record.evaluations]
    wanted = {RECORD, *(one.file for one in record.evaluations), *([LOG] if record.log else [])}
    folder.mkdir(parents=True, exist_ok=True)
    for one in record.evaluations:
        write_bytes(folder / one.file, _packed(one.problems))
    if record.log:
        write_bytes(folder / LOG, _packed(record.log))
    host = socket.gethostname()
    identity = scrubbed(record.identity)  # compared on other machines, one of which may be called as a model is
    told = scrubbed(plain, host) | {"identity": identity, "evaluations": scrubbed(about, host)}
    write_json(folder / RECORD, told)
    for path in folder.iterdir():  # last: a record never names a file that is gone
        if path.name not in wanted:
            path.unlink()


def read_record(spec: BoardSpec, name: str) -> RunRecord | None:
    """A run's record as it is stored; None where there is none.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    folder = records_folder(spec) / name
    stored = read_json(folder / RECORD)
    if stored is None:
        return None
    log = _unpacked(folder / LOG) if (folder / LOG).exists() else []
    try:
        outlines = [Evaluation(**about, problems=[]) for about in stored.pop("evaluations")]
        evaluations = [replace(one, problems=_unpacked(folder / one.file)) for one in outlines]
        return RunRecord(**stored, log=log, evaluations=evaluations, files=hashes(folder))
    except (KeyError, TypeError) as error:
        raise _damaged(folder / RECORD) from error


def stored_names(spec: BoardSpec) -> list[str]:
    """The runs that have a record."""
    return sorted(path.parent.name for path in records_folder(spec).glob(f"*/{RECORD}"))


def write_prompts(spec: BoardSpec, prompts: dict[str, dict[str, str]]) -> None:
    """Write the prompts of benchmarks, by key and problem, in place of older ones."""
    for key, texts in prompts.items():
        write_bytes(_prompts_file(spec, key), _packed([texts]))


def read_prompts(spec: BoardSpec, key: str) -> dict[str, str]:
    """Problem id -> prompt."""
    path = _prompts_file(spec, key)
    return _unpacked(path)[0] if path.exists() else {}


def write_trials(spec: BoardSpec, choices: dict[str, Any]) -> None:
    """Add what trials chose, by line."""
    if choices:
        told = scrubbed(read_trials(spec) | choices, socket.gethostname())
        write_json(records_folder(spec) / TRIALS, told)


def read_trials(spec: BoardSpec) -> dict[str, Any]:
    """What trials chose, by line."""
    return read_json(records_folder(spec) / TRIALS) or {}


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file directly in a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shared_hashes(spec: BoardSpec) -> dict[str, str]:
    """SHA-256 of the files that belong to no run."""
    folder = records_folder(spec)
    paths = sorted([*folder.glob(TRIALS), *folder.glob(f"{PROMPTS}/*")])
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def scrubbed(value: Any, host: str | None = None) -> Any:
    """The value without paths, which below the working folder become relative, and without the name of `host`."""
    if isinstance(value, dict):
        return {key: scrubbed(one, host) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(one, host) for one in value]
    if not isinstance(value, str):
        return value
    text = value.replace(f"{Path.cwd()}/", "")
    if host is not None and len(host) > 3:
        text = re.sub(rf"\b{re.escape(host)}\b", "<host>", text)
    return _PATH.sub(ELSEWHERE, text)


def same_setting(one: Any, other: Any) -> bool:
    """Whether two scrubbed settings are the same, wherever the files that they name lay."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_setting(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_setting, one, other))
    if isinstance(one, str) and isinstance(other, str) and ELSEWHERE in one + other:
        return one.rpartition("/")[2] == other.rpartition("/")[2]
    return one == other


def _prompts_file(spec: BoardSpec, key: str) -> Path:
    return records_folder(spec) / PROMPTS / f"{key.replace('/', '--')}.json.gz"


def _packed(rows: Iterable[Any]) -> bytes:
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n" for row in rows)
    return gzip.compress(encoded(text), compresslevel=9, mtime=0)


def _unpacked(path: Path) -> Sequence[Any]:
    try:
        return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"The record {path} is missing: get it back from version control, or run the board.") from error
    except (OSError, EOFError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"The record {path} is damaged: get it back from version control, or run the board.")
