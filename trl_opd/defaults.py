"""What a configuration's class says, for checks, records and help texts: the one reader of its defaults."""

from dataclasses import MISSING, Field, fields
from typing import Any


def default_of(field: Field) -> Any:
    """The value that a dataclass gives a field; `MISSING` where it must be given."""
    if field.default is MISSING and field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def trl_base(config: type) -> type:
    """The configuration of TRL's that one of ours extends."""
    return next(base for base in config.__mro__ if base.__module__.partition(".")[0] == "trl")


def changed(config: Any) -> set[str]:
    """Names of the fields of a dataclass whose values are not their defaults."""
    return {field.name for field in fields(config) if getattr(config, field.name) != default_of(field)}
