"""A run's folder. Whatever kills the process, the same command continues it: nothing is lost, nothing is there twice.

manifest.json       the settings that decide the result, with hashes, and one entry for each session that worked on it
generations.jsonl   one completion a line, only ever appended to
verdicts.jsonl      one verdict a line, only ever appended to
summary.json        the metrics; its presence says that the run is finished
"""

import fcntl
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trl_opd.errors import UserError

FORMAT = 1
PACKAGES = (
    "trl-opd",
    "transformers",
    "tokenizers",
    "torch",
    "peft",
    "math-verify",
    "latex2sympy2_extended",
    "sympy",
    "numpy",
)

MANIFEST, GENERATIONS, VERDICTS, SUMMARY, LOCK = (
    "manifest.json",
    "generations.jsonl",
    "verdicts.jsonl",
    "summary.json",
    ".lock",
)


class JsonLines:
    """A file of JSON objects, one a line, that is only appended to.

    Opening it drops a last line that was cut by the death of its writer. `rows` holds what is in the file.

    Raises:
        UserError: A line other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                self.rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(
                    f"Line {number} of {path} is damaged: delete the run's folder and start again."
                ) from error
        self._file = path.open("ab")
        self._file.truncate(whole)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row and hand it to the operating system, so that it outlives this process."""
        self._file.write(json.dumps(row, ensure_ascii=True).encode() + b"\n")
        self._file.flush()
        self.rows.append(dict(row))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RunStore:
    """The folder of one run, held by one process at a time.

    Args:
        folder (`Path`): Made if it does not exist.
        settings (`Mapping`): What decides the result: JSON values, mappings inside. A folder keeps to its settings.
        session (`Mapping`): What is recorded of this session: command, engine details.

    Raises:
        UserError: The folder holds a run with other settings or something else than a run, or another process works on
            it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f"The output folder {folder} is a file: choose another --output_dir.")
        _refuse_foreign(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The output folder {folder} cannot be made ({error.strerror}): choose another.") from error
        self._lock = _lock(folder)
        try:
            self._open(json.loads(json.dumps(settings)), session)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, settings: dict[str, Any], session: Mapping[str, Any]) -> None:
        new = {"format": FORMAT, "settings": settings, "started": _now(), "sessions": []}
        self.manifest = self._read(MANIFEST) or new
        _refuse_other_settings(self.folder, self.manifest, settings)
        self.summary: dict[str, Any] | None = self._read(SUMMARY)
        if self.summary is None:
            self.manifest["sessions"].append({"started": _now(), **session, **_environment()})
            self._write(MANIFEST, self.manifest)
        self.generations = JsonLines(self.folder / GENERATIONS)
        self.verdicts = JsonLines(self.folder / VERDICTS)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which closes the run."""
        self.manifest["finished"] = _now()
        self._write(MANIFEST, self.manifest)
        self._write(SUMMARY, summary)
        self.summary = dict(summary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.generations.close()
        self.verdicts.close()
        os.close(self._lock)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        """Replace a file as a whole: a reader sees the old one or the new one."""
        partial = self.folder / f".{name}.partial"
        partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, self.folder / name)


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


def _refuse_other_settings(folder: Path, manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{folder} holds a run of format {manifest['format']}, not {FORMAT}: use another output folder."
        )
    found = differences(manifest["settings"], settings)
    if found:
        raise UserError(f"{folder} holds a run with other settings ({'; '.join(found)}): use another output folder.")


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: use another output folder.")
    if folder.is_dir() and not (folder / MANIFEST).exists():
        ours = {LOCK, f".{MANIFEST}.partial"}
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in ours)
        if foreign:
            raise UserError(f"{folder} holds files and no run ({foreign[0]}): use an empty or a new output folder.")


def _lock(folder: Path) -> int:
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(f"Another process is working on {folder}: wait for it or use another output folder.") from error
    return descriptor


def _environment() -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
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
