"""`trl-opd board`: run a leaderboard, report it, or say what is left to do."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from rich.console import Console
from rich.text import Text

from trl_opd.boards.runner import LAUNCHER, run_board
from trl_opd.boards.runs import check_identity, plan_runs
from trl_opd.boards.spec import BoardSpec, check_data_folders, load_spec
from trl_opd.cli.board_plan import detectable, print_plan
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

exit status: 0 all runs are finished (verify: all is right), 1 one is not, 2 the spec or a folder cannot work,
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
        ("verify", "take the hashes of the stored records again, and compute every number of the page again"),
        ("plan", "check the spec, say what is done, what is left to do and what it will cost"),
    ):
        action = actions.add_parser(name, help=what, description=what.capitalize() + ".")
        action.add_argument("spec", metavar="SPEC", help="the board's YAML file")
        if name == "plan":
            action.add_argument("--commands", action="store_true", help="show the commands of what is left as well")
    return parser


def main(argv: Sequence[str] | None = None, launcher: Sequence[str] = LAUNCHER) -> int:
    """Run the command; `launcher` starts `train` and `eval`. Returns the exit status, see the help text.

    Raises:
        UserError: the spec or a folder cannot work.
    """
    arguments = build_parser().parse_args(argv)
    console = Console()
    _require_extras()
    spec = load_spec(arguments.spec)
    if arguments.action in ("plan", "run"):
        unchecked = _check(spec, launcher, to_run=arguments.action == "run")
    if arguments.action == "plan":
        print_plan(spec, unchecked, arguments.commands, console)
        return 0
    if arguments.action == "verify":
        return _verify(spec, console)
    status = 0
    if arguments.action == "run":
        console.print(detectable(spec), soft_wrap=True, highlight=False)
        status = run_board(spec, launcher, console)
    from trl_opd.boards.report import write_report  # slow to import, and `plan` needs none of it

    paths = write_report(spec)
    console.print(Text(paths["table"].read_text()), soft_wrap=True)
    for path in paths.values():
        if path.exists():
            console.print(Text(str(path)), soft_wrap=True)
    return status


def _check(spec: BoardSpec, launcher: Sequence[str], to_run: bool) -> list[str]:
    """Everything that can be refused before the first run. Returns what could not be checked.

    Raises:
        UserError: with the first thing that is wrong.
    """
    check_data_folders(spec)
    unchecked: list[str] = []
    if launcher is LAUNCHER:  # a stand-in for the trainer has options of its own
        from trl_opd.cli.board_check import check_training  # imports torch and TRL

        unchecked = check_training(spec, to_run)
    for run in plan_runs(spec):
        check_identity(run)
    return unchecked


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
