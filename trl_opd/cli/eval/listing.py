"""`trl-opd eval list`: the benchmarks and the suites."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trl_opd.cli.parser import Parser
from trl_opd.evals.suites import load_suite, names, suites_dir

#: Column -> its least width, which holds the longest name of a benchmark in a list of them.
WIDTHS = {"title": 22}


def main(argv: list[str]) -> int:
    """Print all benchmarks and suites; returns the exit status."""
    Parser(prog="trl-opd eval list", description=__doc__).parse_args(argv)
    _print_list()
    return 0


def _print_list() -> None:
    table = Table(box=box.SIMPLE_HEAD, caption=f"licences and sources: {escape(str(suites_dir()))}/NAME.yaml")
    for heading in ("name", "title", "problems", "released"):
        table.add_column(heading, no_wrap=heading == "name", min_width=WIDTHS.get(heading), overflow="fold")
    for name in names():
        benchmarks = load_suite(name)
        if [benchmark.name for benchmark in benchmarks] == [name]:
            (one,) = benchmarks
            table.add_row(name, escape(one.title), str(one.rows), one.released)
        else:
            members = ", ".join(benchmark.name for benchmark in benchmarks)
            problems = sum(benchmark.rows for benchmark in benchmarks)
            table.add_row(name, f"suite: {escape(members)}", str(problems), "")
    Console().print(table)
