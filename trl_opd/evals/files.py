"""JSON on disk, safe against a process that dies in the middle: whole files, and files of rows that only grow; YAML."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from trl_opd.errors import UserError


class Appender:
    """Appends rows to a file that no other process writes, from any thread.

    Opening it drops a last line that was cut by the death of its writer.

    Attributes:
        rows (`int`): Rows in the file; whoever opens a file with rows sets it.

    Raises:
        UserError: The file cannot be written.
    """

    rows = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._size = _whole_bytes(path)
            os.ftruncate(self._file, self._size)
        except OSError as error:
            raise _unwritable(path, error) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row and hand it to the operating system, so that it outlives this process.

        Raises:
            UserError: The disk is full or does not take the row for another reason; the file is as it was.
        """
        line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
        with self._lock:
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError as error:
                os.ftruncate(self._file, self._size)
                raise _unwritable(self.path, error) from error
            self._size += len(line)
            self.rows += 1

    def drop(self, unwanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Write the file anew without some of its rows."""
        rows = [row for row in read_rows(self.path) if not unwanted(row)]
        partial = Appender(self.path.with_name(f".{self.path.name}.partial"))
        os.ftruncate(partial._file, 0)
        partial._size = 0
        for row in rows:
            partial.append(row)
        os.replace(partial.path, self.path)
        os.close(self._file)
        self._file, self._size, self.rows = partial._file, partial._size, partial.rows

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Tail:
    """Reads the rows of a file as they are added. A last line without its end is still being written.

    Attributes:
        rows (`int`): Rows read so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self.rows = 0

    def new_rows(self) -> Iterator[dict[str, Any]]:
        """The rows that were added since the last call.

        Raises:
            UserError: A line is damaged.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                self.rows += 1
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(
                        f"Line {self.rows} of {self.path} is damaged: delete the run's folder and start again."
                    ) from error
                yield row


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, none where there is no file.

    Raises:
        UserError: A line other than an unfinished last one is damaged.
    """
    return Tail(path).new_rows()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, `None` where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file as a whole: a reader sees the old one or the new one.

    Raises:
        UserError: The disk is full or the file cannot be written for another reason.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: if it is not YAML or not a mapping.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold `key: value` lines.")
    return raw


def _whole_bytes(path: Path) -> int:
    """The length of the file up to the end of its last whole line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({error.strerror}): make room or mend it, then give the same command again."
    )
