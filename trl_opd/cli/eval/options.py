"""Options that several evaluation commands share."""

import argparse
import json
from dataclasses import MISSING, fields
from typing import Any

from trl_opd.evals.engines import EngineOptions


def given(arguments: argparse.Namespace, record: type) -> dict[str, Any]:
    """The fields of a dataclass that the command names."""
    values = {field.name: getattr(arguments, field.name) for field in fields(record)}
    return {name: value for name, value in values.items() if value is not None}


def add_option(group: argparse._ArgumentGroup, flag: str, **settings: Any) -> None:
    """Add an option under both spellings, `--data-dir` and `--data_dir`."""
    group.add_argument(flag, f"--{flag[2:].replace('-', '_')}", **settings)


def engine_default(name: str) -> Any:
    """The default of an engine option."""
    default = next(field.default for field in fields(EngineOptions) if field.name == name)
    assert default is not MISSING, f"{name} has no default"
    return default


def json_object(text: str) -> dict[str, Any]:
    """An option that is a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value
