"""Dataclasses from a spec's YAML: every key known, every value of its type, nested records included."""

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any

from trl_opd.errors import UserError


def build(cls: type, raw: Any, where: str) -> Any:
    """The dataclass `cls` from a mapping; fields that are dataclasses, or lists of them, are built likewise.

    Args:
        cls (`type`): The dataclass.
        raw: What the file holds.
        where (`str`): File and key, for messages.

    Raises:
        UserError: if `raw` is no mapping, a key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{where} must hold `key: value` lines.")
    hints = typing.get_type_hints(cls)
    fields = {one.name: one for one in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            raise UserError(f"{where}: unknown key `{key}`; {nearest(str(key), fields, 'known are')}")
    for name, one in fields.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise UserError(f"{where}: the key `{name}` is missing.")
    return cls(**{key: typed(value, hints[key], f"{where}: `{key}`") for key, value in raw.items()})


def nearest(name: str, known: typing.Iterable[str], otherwise: str) -> str:
    """The end of a message on an unknown name: the nearest known one, or all of them after `otherwise`."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean `{near[0]}`?" if near else f"{otherwise} {', '.join(sorted(known))}."


def typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` wants it; a YAML integer is a number, but not a truth value, nor the other way round.

    Raises:
        UserError: if it is something else.
    """
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    allowed = arguments if origin in (types.UnionType, typing.Union) else (hint,)
    for one in allowed:
        kind, parts = typing.get_origin(one) or one, typing.get_args(one)
        if dataclasses.is_dataclass(kind) and value is not None:
            return build(kind, value, where.replace("`", ""))
        if not parts and type(value) is kind:
            return value
        if kind is list and isinstance(value, list):
            return [typed(item, parts[0], f"{where}[{index}]") for index, item in enumerate(value)]
        if kind is dict and isinstance(value, dict):
            return {typed(key, parts[0], where): typed(item, parts[1], where) for key, item in value.items()}
        if kind is Path and isinstance(value, str | Path):
            return Path(value)
        if kind is float and type(value) is int:
            return float(value)
    raise UserError(f"{where} must be {' or '.join(map(_name, allowed))}, not {value!r}{_hint(value, allowed)}.")


def _hint(value: Any, allowed: tuple) -> str:
    """YAML reads `1e-5` as a text."""
    if float not in allowed or not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    mantissa, exponent = f"{number:e}".split("e")
    return f" (YAML takes it for text: write {float(mantissa)}e{int(exponent)})"


def _name(kind: Any) -> str:
    return "nothing" if kind is type(None) else getattr(typing.get_origin(kind) or kind, "__name__", str(kind))
