"""Options that several evaluation commands share."""

import argparse
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any


def given(arguments: argparse.Namespace, record: type) -> dict[str, Any]:
    """The fields of a dataclass that the command names."""
    values = {field.name: getattr(arguments, field.name) for field in fields(record)}
    return {name: value for name, value in values.items() if value is not None}


def add_option(group: argparse._ArgumentGroup, flag: str, **settings: Any) -> None:
    """Add an option under both spellings, `--data-dir` and `--data_dir`."""
    group.add_argument(flag, f"--{flag[2:].replace('-', '_')}", **settings)


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """The options that say which rows of a benchmark are read."""
    add_option(
        group, "--data-dir", type=Path, metavar="DIR", help="folder with local copies of the data, in place of the Hub"
    )
    group.add_argument("--limit", type=int, metavar="N", help="the first N problems of each benchmark only")
    add_option(
        group,
        "--allow-other-data",
        action="store_true",
        help="take rows whose hash is not the benchmark's; the run is recorded as not comparable",
    )
    add_option(
        group,
        "--no-errata",
        dest="errata",
        action="store_false",
        help="keep the rows that are known to be wrong as they are",
    )
    group.add_argument(
        "--window",
        type=window,
        metavar="FROM:TO",
        help="problems of these months only, e.g. 2025-02:2025-05; either end may be left out",
    )


def window(text: str) -> tuple[str | None, str | None]:
    """An option that is two months or days with a colon between them."""
    start, colon, end = text.partition(":")
    if not colon or not all(re.fullmatch(r"([0-9]{4}-[0-9]{2}(-[0-9]{2})?)?", part) for part in (start, end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not two months with a colon between, as in 2025-02:2025-05")
    return start or None, end or None


def json_object(text: str) -> dict[str, Any]:
    """An option that is a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value
