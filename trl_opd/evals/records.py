"""Dataclasses from YAML mappings, and the hashes that identify what was run."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from trl_opd.errors import UserError

Record = TypeVar("Record")


def from_mapping(record: type[Record], values: Any, where: str) -> Record:
    """Build a dataclass from a mapping, with neither unknown nor missing keys.

    Args:
        record (`type`): The dataclass.
        values: What the file holds; a mapping, or the message says so.
        where (`str`): Names the file and the section in messages.

    Raises:
        UserError: `values` is no mapping, a key is unknown, a field without a default is missing, or a value has the
            wrong type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a mapping of keys to values, not {type(values).__name__}.")
    known = {field.name: field for field in fields(record)}
    for key in values:
        if key not in known:
            raise UserError(f"{where} has the unknown key {key!r}{suggest(str(key), known)}.")
    required = [name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise UserError(f"{where} lacks {', '.join(map(repr, missing))}: add it.")
    hints = get_type_hints(record)
    for key, value in values.items():
        if not _has_type(value, hints[key]):
            raise UserError(f"{where}: {key} cannot be {value!r}: give a value of type {_type_name(hints[key])}.")
    return record(**values)


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest known one, or all of them."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}" if near else f": choose one of {', '.join(known)}"


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """One hash over the names and the bytes of files, whatever their order and folder."""
    return json_sha256(sorted((path.name, file_sha256(path)) for path in paths))


def json_sha256(value: Any) -> str:
    """The hash of a JSON value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML fits a field: whole numbers are floats too, and truth values are no numbers."""
    if isinstance(hint, UnionType):
        return any(_has_type(value, part) for part in get_args(hint))
    kind = get_origin(hint) or hint
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _type_name(hint: Any) -> str:
    return str(hint) if get_origin(hint) else getattr(hint, "__name__", str(hint))
