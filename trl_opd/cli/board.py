"""`trl-opd board`: run a leaderboard, report it, or say what is left to do."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from rich.console import Console
from rich.text import Text

from trl_opd.boards.runner import LAUNCHER, run_board
from trl_opd.boards.runs import FINISHED, check_identity, plan_runs, status_of
from trl_opd.boards.spec import BoardSpec, load_spec
from trl_opd.cli.parser import Parser
from trl_opd.errors import UserError

DESCRIPTION = """\
A board trains every method of a YAML spec with every seed, evaluates the results and the untrained base, and writes
results.json, table.md and board.html, one page that works offline.

Runs are kept below the board's folder. Whatever stops a board, the same command goes on: finished runs are never
repeated, half-finished ones continue from their last checkpoint, failed ones are tried again.
"""

EPILOG = """\
examples:
  trl-opd board plan   leaderboards/arithmetic.yaml
  trl-opd board run    leaderboards/arithmetic.yaml
  trl-opd board report leaderboards/arithmetic.yaml
  trl-opd board verify leaderboards/arithmetic.yaml

exit status: 0 all runs are finished (verify: all is right), 1 not so, 2 the spec or a folder cannot work,
130 interrupted
"""


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="trl-opd board",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, what in (
        ("run", "do what is not finished, then report"),
        ("report", "write the table and the page from the stored runs"),
        ("plan", "say what is done and what is to do"),
        ("verify", "take the hashes of the stored records again, and compute every number of the page again"),
    ):
        action = actions.add_parser(name, help=what, description=what.capitalize() + ".")
        action.add_argument("spec", metavar="SPEC", help="the board's YAML file")
    return parser


def main(argv: Sequence[str] | None = None, launcher: Sequence[str] = LAUNCHER) -> int:
    """Run the command; `launcher` starts `train` and `eval`. Returns the exit status, see the help text."""
    arguments = build_parser().parse_args(argv)
    console = Console()
    try:
        _require_extras()
        spec = load_spec(arguments.spec)
        if arguments.action == "plan":
            return _plan(spec, console)
        if arguments.action == "verify":
            return _verify(spec, console)
        status = run_board(spec, launcher, console) if arguments.action == "run" else 0
        from trl_opd.boards.report import write_report  # slow to import, and `plan` needs none of it

        paths = write_report(spec)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(Text(paths["table"].read_text()), soft_wrap=True)
    for path in paths.values():
        if path.exists():
            console.print(Text(str(path)), soft_wrap=True)
    return status


def _verify(spec: BoardSpec, console: Console) -> int:
    """Print what is wrong with the published board."""
    from trl_opd.boards.verify import verify_board

    wrong = verify_board(spec)
    for text in wrong:
        console.print(Text(text), soft_wrap=True)
    told = f"{len(wrong)} sentence(s) above say what is wrong" if wrong else "every hash and every number is right"
    console.print(f"{spec.name}: {told}", soft_wrap=True)
    return 1 if wrong else 0


def _require_extras() -> None:
    """The page's libraries are looked for before hours of training, not after.

    Raises:
        UserError: if they are not installed.
    """
    if not all(find_spec(name) for name in ("jinja2", "matplotlib")):
        raise UserError("A board needs jinja2 and matplotlib for its page: pip install 'trl-opd[boards]'.")


def _plan(spec: BoardSpec, console: Console) -> int:
    """Print how each run stands, and its commands where something is left to do."""
    runs = plan_runs(spec)
    for run in runs:
        check_identity(run)
    for run in runs:
        status = status_of(run)
        state = f"{status.state}: {status.error}" if status.error else status.state
        left = [f"\n    {stage.command}" for stage in run.stages if not stage.is_finished()]
        console.print(Text(f"{run.name}: {state}{''.join(left)}"), soft_wrap=True)
    finished = sum(status_of(run).state == FINISHED for run in runs)
    console.print(
        f"{finished} of {len(runs)} runs finished, {spec.launch.workers} at a time, in {spec.folder}", soft_wrap=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
