"""Reading and writing the JSON files of a board, safe against a process that dies in the middle."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from trl_opd.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all."""
    write_bytes(path, encoded(text))


def encoded(text: str) -> bytes:
    """UTF-8; half of a surrogate pair, which a model may write, has none and becomes the escape that JSON reads."""
    return text.encode("utf-8", "backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    scratch.write_bytes(content)
    os.replace(scratch, path)


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict | None:
    """The stored object, or None while there is none or its writer is (or died) halfway through."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # ValueError: neither whole JSON nor whole UTF-8
        return None


def read_rows(path: Path) -> list[dict]:
    """Rows of a JSON-lines file, none if there is no file; a last line without its end is still being written.

    Raises:
        UserError: if a finished line is not JSON.
    """
    if not path.exists():
        return []
    *lines, _unfinished = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}, is not JSON: mend the file, or move the run's folder away to run it again."
            ) from error
    return rows


def content_hash(value: Any) -> str:
    """First 12 hexadecimal digits of the SHA-256 of `value` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
