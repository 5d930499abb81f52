"""Options that several evaluation commands share."""

import argparse
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark
from trl_opd.evals.suites import load_suite
from trl_opd.verify.sandbox import BACKENDS


def given(arguments: argparse.Namespace, record: type) -> dict[str, Any]:
    """The fields of a dataclass that the command names; it need not have an option for each."""
    values = {field.name: getattr(arguments, field.name, None) for field in fields(record)}
    return {name: value for name, value in values.items() if value is not None}


def add_option(group: argparse._ArgumentGroup, flag: str, **settings: Any) -> None:
    """Add an option under both spellings, `--data-dir` and `--data_dir`."""
    group.add_argument(flag, f"--{flag[2:].replace('-', '_')}", **settings)


def add_source_options(group: argparse._ArgumentGroup) -> None:
    """The options that say where the rows lie and what is made of them."""
    add_option(
        group, "--data-dir", type=Path, metavar="DIR", help="folder with local copies of the data, in place of the Hub"
    )
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


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """The options that say which rows of a benchmark are read."""
    add_source_options(group)
    group.add_argument("--limit", type=int, metavar="N", help="the first N problems of each benchmark only")
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


def add_scoring_options(group: argparse._ArgumentGroup) -> None:
    """How many completions are scored at the same time, and what programs among them run in."""
    group.add_argument(
        "--workers", type=int, metavar="W", help="completions scored at the same time (default: the number of cores)"
    )
    group.add_argument(
        "--sandbox",
        choices=BACKENDS,
        help="what programs run in, see docs/security.md (default: $TRL_OPD_SANDBOX, else auto)",
    )


def one_benchmark(name: str) -> Benchmark:
    """The benchmark of that name or file.

    Raises:
        UserError: There is none, or it is a suite of several.
    """
    benchmarks = load_suite(name)
    if len(benchmarks) > 1:
        members = ", ".join(benchmark.name for benchmark in benchmarks)
        raise UserError(f"{name} is a suite: name one of its benchmarks ({members}).")
    return benchmarks[0]


def json_object(text: str) -> dict[str, Any]:
    """An option that is a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value
