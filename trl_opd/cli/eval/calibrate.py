"""`trl-opd eval calibrate`: does the harness reproduce what others published?"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trl_opd.cli.eval.tables import percent, shown_interval
from trl_opd.cli.parser import Parser
from trl_opd.errors import UserError
from trl_opd.evals.calibration import (
    Measured,
    Published,
    calibration_dir,
    load_measured,
    load_published,
    measurement,
    published_for,
    record,
    status,
)
from trl_opd.evals.results import read_run
from trl_opd.evals.suites import load_suite

DESCRIPTION = """\
Without a run: the published scores that are known, what was measured here, and which benchmarks are calibrated.

With finished runs of a known model, under each benchmark's protocol and on all of its problems: whether their 95 %
intervals over problems hold the published scores. --record keeps the answer; tables mark every benchmark without one.
"""

EPILOG = """\
example:
  trl-opd eval --model Qwen/Qwen2.5-Coder-0.5B-Instruct --benchmark humaneval --output_dir runs/coder
  trl-opd eval calibrate runs/coder/humaneval --model Qwen/Qwen2.5-Coder-0.5B-Instruct --record
"""


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="trl-opd eval calibrate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument(
        "--model", metavar="ID", help="the published model that the runs evaluated, by its id on the Hub"
    )
    parser.add_argument(
        "--weights",
        default="as published",
        metavar="TEXT",
        help="which weights were loaded, if not the published ones: quantisation, hash (default: %(default)s)",
    )
    parser.add_argument("--record", action="store_true", help="keep what was found beside the published scores")
    return parser


def main(argv: list[str]) -> int:
    """Print what is published and what was measured; returns the exit status.

    Raises:
        UserError: A run or a published score is missing, or a run is not one of the whole benchmark.
    """
    options = build_parser().parse_args(argv)
    if not options.runs:
        _print(load_published(), load_measured())
        return 0
    if options.model is None:
        raise UserError("--model is missing: name the published model that the runs evaluated, by its id on the Hub.")
    published, measured = [], []
    for folder in options.runs:
        run = read_run(folder)
        name = run.manifest["settings"]["benchmark"]
        published += published_for(options.model, [name])
        (benchmark,) = load_suite(name)
        measured.append(measurement(run, benchmark, options.model, options.weights))
    if options.record:
        for entry in measured:
            record(entry)
    _print(published, measured)
    if options.record:
        Console().print(f"Recorded in {escape(str(calibration_dir()))}", soft_wrap=True, highlight=False)
    return 0


def _print(published: Sequence[Published], measured: Sequence[Measured]) -> None:
    by_entry = {(entry.benchmark, entry.model): entry for entry in measured}
    table = Table(title="calibration", caption="in %, 95 % interval over problems", box=box.SIMPLE_HEAD)
    for heading in ("benchmark", "model", "published", "measured", "interval", "holds it"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "model")
    for entry in published:
        found = by_entry.get((entry.benchmark, entry.model))
        table.add_row(entry.benchmark, escape(entry.model), f"{entry.score:.1f}", *_found(entry, found))
    Console().print(table)
    for entry in measured:
        Console().print(
            f"{entry.benchmark} on {escape(entry.model)}, weights: {escape(entry.weights)}", highlight=False
        )
    for name in dict.fromkeys(entry.benchmark for entry in published):
        Console().print(f"{name}: {status(load_suite(name)[0])} by what is recorded", highlight=False)


def _found(published: Published, measured: Measured | None) -> tuple[str, ...]:
    if measured is None:
        return "-", "-", "not measured"
    holds = "yes" if measured.holds(published) else "NO"
    return percent(measured.accuracy), shown_interval(measured.interval), holds
