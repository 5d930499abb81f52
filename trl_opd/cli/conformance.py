"""`trl-opd conformance`: do the losses reproduce those that the methods' own released code computed?"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trl_opd.cli.parser import Parser

DESCRIPTION = """\
Sends every recorded case of a file through the losses that the trainers call, on whole log-probabilities (dense) and
tile by tile (tiled), and compares loss and gradient in float64.
"""

EPILOG = "exit status: 0 every case is reproduced, 1 one is not, 2 the file or an option cannot work"

#: Failing cases that are printed one by one; --json holds all of them.
PRINTED_FAILURES = 20


def build_parser(tolerance: float) -> Parser:
    """The command's options."""
    parser = Parser(
        prog="trl-opd conformance",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="JSON file of recorded losses")
    parser.add_argument(
        "--tolerance", type=float, default=tolerance, metavar="E", help="largest absolute error (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write a row for every case and path")
    return parser


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status.

    Raises:
        `UserError`: If the file or an option cannot work.
    """
    from trl_opd.conformance import TOLERANCE, compare, load
    from trl_opd.errors import UserError

    arguments = build_parser(TOLERANCE).parse_args(argv)
    if not arguments.tolerance >= 0.0:
        raise UserError(
            f"--tolerance is {arguments.tolerance}, but an error is never below 0; pass 1e-9, for instance."
        )
    results = compare(load(arguments.file), arguments.tolerance)
    if arguments.json is not None:
        _write(arguments.json, results)
    console = Console()
    console.print(_table(results, f"{arguments.file}: largest errors, {arguments.tolerance:g} allowed"))
    for line in _remarks(results):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return int(any(result.failure for result in results))


def _write(path: Path, results: list) -> None:
    from trl_opd.errors import UserError

    rows = [asdict(result) | {"passed": result.failure is None} for result in results]
    try:
        path.write_text(json.dumps(rows, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another file after --json.") from error


def _table(results: list, title: str) -> Table:
    """A row for each method and path."""
    table = Table(title=escape(title), box=box.SIMPLE_HEAD)
    for heading in ("method", "path"):
        table.add_column(heading, no_wrap=True)
    for heading in ("cases", "no live token", "loss", "gradient"):
        table.add_column(heading, justify="right")
    table.add_column("result")
    for method, path in dict.fromkeys((result.method, result.path) for result in results):
        rows = [result for result in results if (result.method, result.path) == (method, path)]
        failures = sum(row.failure is not None for row in rows)
        table.add_row(
            escape(method),
            path,
            str(len(rows)),
            str(sum(row.live is False for row in rows)),
            _worst([row.loss_error for row in rows]),
            _worst([row.gradient_error for row in rows]),
            f"[red]FAIL ({failures})[/red]" if failures else "[green]pass[/green]",
        )
    return table


def _worst(errors: list[float | None]) -> str:
    compared = [error for error in errors if error is not None]
    return f"{max(compared):.1e}" if compared else "-"


def _remarks(results: list) -> list[str]:
    """The failing cases, and what a pass does not show."""
    failing = [result for result in results if result.failure is not None]
    lines = [f"{result.case}, {result.path}: {result.failure}" for result in failing[:PRINTED_FAILURES]]
    if len(failing) > PRINTED_FAILURES:
        lines.append(f"and {len(failing) - PRINTED_FAILURES} more failures; --json OUT writes them all")
    undefined = {result.case for result in results if result.undefined}
    if undefined:
        lines.append(f"Recorded as nan, an empty denominator: {len(undefined)} cases; no live token is right for them.")
    alive = {result.method for result in results if result.live}
    for method in dict.fromkeys(result.method for result in results if result.failure is None):
        if method not in alive:
            lines.append(f"{method}: no case has a live token, so its pass says nothing about the loss.")
    return lines
