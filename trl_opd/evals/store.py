"""A run's folder. Whatever kills a process, the same command continues it: nothing is lost, nothing is there twice.

manifest.json                      the settings that decide the result, with hashes, and an entry for each session
generations/<writer>.jsonl         one completion a line, only ever appended to
verdicts/<scoring>/<writer>.jsonl  one verdict a line, only ever appended to; <scoring> is a hash of scorer and answers
verdicts/<scoring>/metrics.json    the metrics that follow from these verdicts
summary.json                       those of the scoring in force; its presence says that the run is finished
.locks/                            who writes which files, and who draws which batch

Several processes may fill one run. Each appends to files of its own, which it holds by a lock that dies with it; the
files of a dead writer go to the next process that asks. What to draw is shared out in batches, each claimed by a lock
of the same kind.
"""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trl_opd.errors import UserError
from trl_opd.evals.engines import Key
from trl_opd.evals.files import Appender, Tail, read_json, read_rows, write_json
from trl_opd.evals.locks import Claims, locked, try_lock
from trl_opd.evals.records import json_sha256

FORMAT = 2
PACKAGES = (
    "trl-opd",
    "transformers",
    "tokenizers",
    "torch",
    "vllm",
    "peft",
    "math-verify",
    "latex2sympy2_extended",
    "sympy",
    "numpy",
)

MANIFEST, SUMMARY, METRICS = "manifest.json", "summary.json", "metrics.json"
GENERATIONS, VERDICTS, LOCKS = "generations", "verdicts", ".locks"

SCORING = ("data", "comparable", "errata", "scorer")
"""The settings that rescoring may change: what the answers are, and what compares a completion with them."""

_open_folders: set[Path] = set()


def scoring_key(settings: Mapping[str, Any]) -> str:
    """The name of the folder of verdicts that follow from these settings."""
    return json_sha256({name: settings[name] for name in SCORING if name in settings})[:12]


def generation_files(folder: Path) -> list[Path]:
    """The files of completions in a run's folder, those of format 1 included."""
    single = folder / "generations.jsonl"
    return [single] if single.is_file() else sorted((folder / GENERATIONS).glob("*.jsonl"))


def verdict_files(folder: Path, scoring: str) -> list[Path]:
    """The files of verdicts of one scoring, those of format 1 included."""
    single = folder / "verdicts.jsonl"
    return [single] if single.is_file() else sorted((folder / VERDICTS / scoring).glob("*.jsonl"))


class _Shard:
    """The files of one writer, held by this process."""

    def __init__(self, folder: Path, scoring: str, number: int, lock: int) -> None:
        name = f"{number:03}.jsonl"
        self._lock = lock
        try:
            self.generations = Appender(folder / GENERATIONS / name)
            self.verdicts = Appender(folder / VERDICTS / scoring / name)
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        self.generations.close()
        self.verdicts.close()
        os.close(self._lock)


class RunStore:
    """The folder of one run, as one of the processes that fill it sees it.

    A finished run is not opened for writing: see `summary`.

    Args:
        folder (`Path`): Made if it does not exist.
        settings (`Mapping`): What decides the result: JSON values, mappings inside. A folder keeps to its settings.
        session (`Mapping`): What is recorded of this session: command, engine details.
        rescore (`bool`, defaults to `False`): Take a run whose settings differ in `SCORING` only, add verdicts of the
            new scoring, and let them be in force at `finish` or `switch`. No other process may be at work.

    Attributes:
        manifest (`dict`): What the folder's manifest says.
        summary (`dict` or `None`): The summary of a finished run.
        drawn (`set`), scored (`set`): Keys of all that is stored, by whichever process, as of the last `refresh`.

    Raises:
        UserError: The folder holds a run with other settings or something else than a run, or cannot be written.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], session: Mapping[str, Any], *, rescore: bool = False
    ) -> None:
        self.folder = folder
        self.settings = json_values(settings)
        self.scoring = scoring_key(self.settings)
        self.drawn: set[Key] = set()
        self.scored: set[Key] = set()
        self._held: dict[int, _Shard] = {}
        self._tails: dict[int, tuple[Tail, Tail]] = {}
        self._claims: Claims | None = None
        _refuse_foreign(folder)
        self._locks = folder / LOCKS
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The output folder {folder} cannot be made ({error.strerror}): choose another.") from error
        if folder.resolve() in _open_folders:
            raise UserError(f"This process is already working on {folder}: use another output folder.")
        _open_folders.add(folder.resolve())
        try:
            self._open(session, rescore)
        except BaseException:
            self.close()
            raise

    def _open(self, session: Mapping[str, Any], rescore: bool) -> None:
        with locked(self._locks / "run"):
            start = {"format": FORMAT, "started": _now(), "sessions": []}
            new = {**start, "settings": self.settings, "scoring": self.scoring}
            self.manifest = read_json(self.folder / MANIFEST) or new
            if self.manifest["format"] == FORMAT and self.manifest["settings"] != self.settings and self._unused():
                self.manifest = new
            _refuse_other_settings(self.folder, self.manifest, self.settings, SCORING if rescore else ())
            self.summary = self._stored_summary()
            if self.summary is not None:
                return
            self._take_writer(everything=rescore)
            entry = {"started": _now(), "writer": self.writer, **session, **_environment()}
            self.manifest["sessions"].append(json_values(entry))
            write_json(self.folder / MANIFEST, self.manifest)
        self._claims = Claims(self._locks / "batches")
        self.refresh()

    def _unused(self) -> bool:
        """Whether nothing was drawn and nobody is at work: what could not begin binds nobody to its settings."""
        if (self.folder / SUMMARY).exists() or any(file.stat().st_size for file in generation_files(self.folder)):
            return False
        locks = [try_lock(path) for path in self._locks.glob("writer-*")]
        for lock in locks:
            if lock is not None:
                os.close(lock)
        return None not in locks

    def _stored_summary(self) -> dict[str, Any] | None:
        """The summary, unless it is that of another scoring or was never written."""
        in_force = self.manifest["scoring"] == self.scoring
        summary = read_json(self.folder / SUMMARY) if in_force else None
        return summary if summary is not None and summary["scoring"] == self.scoring else None

    def _take_writer(self, everything: bool) -> None:
        """Hold the files of the first writer that is dead or new; or those of all writers."""
        for number in count():
            if self._hold(number):
                if not everything or number >= len(generation_files(self.folder)) - 1:
                    return
            elif everything:
                raise UserError(f"Another process is working on {self.folder}: wait for it.")

    def _hold(self, number: int) -> bool:
        lock = try_lock(self._locks / f"writer-{number:03}")
        if lock is None:
            return False
        self._held[number] = _Shard(self.folder, self.scoring, number, lock)
        lost = self._read(number)  # for the last time: from here on the files grow by this object alone
        if lost:  # a power failure may keep verdicts and lose their completions, which are drawn again
            self._held[number].verdicts.drop(lambda row: key_of(row) in lost)
            self.scored -= lost
        shard = self._held[number]
        shard.generations.rows = self._tails[number][0].rows
        shard.verdicts.rows = self._tails[number][1].rows - len(lost)
        return True

    def refresh(self) -> None:
        """See what other processes stored since the last call.

        Raises:
            UserError: A line is damaged.
        """
        for file in generation_files(self.folder):
            if int(file.stem) not in self._held:
                self._read(int(file.stem))

    def _read(self, number: int) -> set[Key]:
        """Read on in a writer's files; returns the keys of verdicts that came before their completions."""
        name = f"{number:03}.jsonl"
        if number not in self._tails:
            places = (self.folder / GENERATIONS / name, self.folder / VERDICTS / self.scoring / name)
            self._tails[number] = (Tail(places[0]), Tail(places[1]))
        generations, verdicts = self._tails[number]
        self.drawn.update(map(key_of, generations.new_rows()))
        scored = set(map(key_of, verdicts.new_rows()))
        self.scored |= scored
        return scored - self.drawn

    def claim(self, batch: int) -> bool:
        """Keep other processes from drawing a batch, unless one of them has it."""
        return self._claims.take(batch)

    def release(self, batch: int) -> None:
        """Let a batch go."""
        self._claims.release(batch)

    def adopt(self) -> None:
        """Hold the files of writers that died, so that `unscored` finds what they left."""
        for file in generation_files(self.folder):
            if int(file.stem) not in self._held:
                self._hold(int(file.stem))

    def unscored(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The completions without a verdict in the files that this process holds, each after its writer's number."""
        for number, shard in list(self._held.items()):
            if shard.verdicts.rows == shard.generations.rows:
                continue
            for row in read_rows(self.folder / GENERATIONS / f"{number:03}.jsonl"):
                if key_of(row) not in self.scored:
                    yield number, row

    @property
    def writer(self) -> int:
        """The number of this process's own files."""
        return min(self._held)

    def add_generation(self, row: Mapping[str, Any]) -> None:
        """Store a completion."""
        self._held[self.writer].generations.append(row)
        self.drawn.add(key_of(row))

    def add_verdict(self, row: Mapping[str, Any], writer: int) -> None:
        """Store a verdict beside its completion, which the given writer drew; from any thread."""
        self._held[writer].verdicts.append(row)
        self.scored.add(key_of(row))

    def switch(self) -> None:
        """Let the scoring of this object be the one in force."""
        with locked(self._locks / "run"):
            self._switch()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which closes the run."""
        with locked(self._locks / "run"):
            self.summary = {"scoring": self.scoring, **summary}
            write_json(self.folder / VERDICTS / self.scoring / METRICS, self.summary)
            self._switch(finished=_now())
            write_json(self.folder / SUMMARY, self.summary)

    def _switch(self, **facts: Any) -> None:
        sessions = read_json(self.folder / MANIFEST)["sessions"]  # others may have been added
        self.manifest |= {"settings": self.settings, "scoring": self.scoring, "sessions": sessions, **facts}
        write_json(self.folder / MANIFEST, self.manifest)

    def close(self) -> None:
        """Let go of all that is held."""
        for shard in self._held.values():
            shard.close()
        if self._claims is not None:
            self._claims.close()
        _open_folders.discard(self.folder.resolve())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def key_of(row: Mapping[str, Any]) -> Key:
    """The key of a stored completion or verdict."""
    return row["problem_id"], row["index"]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings that differ, each as `a.b is X there and Y here`."""
    found = []
    for key in sorted({*old, *new}):
        there, here, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found += differences(there, here, f"{name}.")
        elif there != here:
            found.append(f"{name} is {_short(there)} there and {_short(here)} here")
    return found


def _refuse_other_settings(
    folder: Path, manifest: Mapping[str, Any], settings: Mapping[str, Any], free: tuple[str, ...]
) -> None:
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{folder} holds a run of format {manifest['format']}, and this version writes format {FORMAT}: use "
            f"another output folder."
        )
    stored = {name: value for name, value in manifest["settings"].items() if name not in free}
    found = differences(stored, {name: value for name, value in settings.items() if name not in free})
    if not found:
        return
    other_scoring = all(line.startswith(SCORING) for line in found)
    remedy = f"`trl-opd eval rescore {folder}`, or " if other_scoring else ""
    raise UserError(
        f"{folder} holds a run with other settings ({'; '.join(found)}): {remedy}use another output folder."
    )


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: use another output folder.")
    if folder.is_dir() and not (folder / MANIFEST).exists():
        ours = {LOCKS, GENERATIONS, VERDICTS, f".{MANIFEST}.partial"}
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in ours)
        if foreign:
            raise UserError(f"{folder} holds files and no run ({foreign[0]}): use an empty or a new output folder.")


def json_values(value: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(value))


def _environment() -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {"platform": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # optional, or run from a checkout
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
