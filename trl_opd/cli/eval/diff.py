"""`trl-opd eval diff`: the difference of two runs, problem by problem."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from trl_opd.cli.eval.options import add_option
from trl_opd.cli.eval.tables import percent, plain, shown_interval
from trl_opd.cli.parser import Parser
from trl_opd.evals.compare import Comparison, compare
from trl_opd.evals.results import read_run, run_folder

DESCRIPTION = """\
Compare two finished runs on the same problems: the difference of their accuracies (B minus A), its 95 % interval,
paired and clustered by problem, the p of a sign-flip permutation test, and the problems won and lost.
"""

PROBLEMS_SHOWN = 10


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="trl-opd eval diff", description=DESCRIPTION)
    parser.add_argument("a", type=Path, metavar="A", help="folder of a run")
    parser.add_argument("b", type=Path, metavar="B", help="folder of the other run")
    add_option(
        parser,
        "--allow-other-data",
        action="store_true",
        help="compare on the problems that both have, even if data or scorer differ",
    )
    parser.add_argument("--all", action="store_true", help=f"list all problems won and lost, not {PROBLEMS_SHOWN} each")
    return parser


def main(argv: list[str]) -> int:
    """Print the comparison; returns the exit status.

    Raises:
        UserError: A folder holds no finished run, or the runs are not comparable.
    """
    arguments = build_parser().parse_args(argv)
    comparison = compare(
        read_run(run_folder(arguments.a)),
        read_run(run_folder(arguments.b)),
        allow_other_data=arguments.allow_other_data,
    )
    console = Console()
    console.print(_table(comparison, arguments.a, arguments.b))
    shown = None if arguments.all else PROBLEMS_SHOWN
    for title, ids in (("won by B", comparison.won()), ("lost by B", comparison.lost())):
        if ids:
            more = "" if len(ids[:shown]) == len(ids) else f", ... ({len(ids)}; --all lists them)"
            console.print(plain(f"{title}: {', '.join(ids[:shown])}{more}"), soft_wrap=True)
    if comparison.left_out:
        console.print(f"{len(comparison.left_out)} problems that one run alone has are left out.")
    return 0


def _table(comparison: Comparison, a: Path, b: Path) -> Table:
    won, lost = len(comparison.won()), len(comparison.lost())
    problems = len(comparison.problem_ids)
    table = Table(title=plain(f"B minus A, {problems} problems"), caption="in %, interval at 95 %", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("", justify="right", overflow="fold")
    table.add_row(plain(f"A: {a}"), percent(float(comparison.accuracy_a_P.mean())))
    table.add_row(plain(f"B: {b}"), percent(float(comparison.accuracy_b_P.mean())))
    table.add_row("difference", f"{100 * comparison.difference:+.1f}")
    table.add_row("  paired by problem, with other problems", shown_interval(comparison.interval))
    table.add_row("  p, signs of the problems flipped", f"{comparison.p:.4f}")
    table.add_row("problems won, lost, equal", f"{won}, {lost}, {problems - won - lost}")
    return table
