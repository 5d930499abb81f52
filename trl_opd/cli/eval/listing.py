"""`trl-opd eval list`: the benchmarks and the suites."""

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trl_opd.evals.suites import load_suite, names, suites_dir


def main(argv: list[str]) -> int:
    """Print all benchmarks and suites; returns the exit status."""
    argparse.ArgumentParser(prog="trl-opd eval list", description=__doc__).parse_args(argv)
    _print_list()
    return 0


def _print_list() -> None:
    table = Table(title="benchmarks and suites", caption=escape(str(suites_dir())))
    for heading in ("name", "title", "problems", "licence"):
        table.add_column(heading)
    for name in names():
        benchmarks = load_suite(name)
        if [benchmark.name for benchmark in benchmarks] == [name]:
            table.add_row(name, escape(benchmarks[0].title), str(benchmarks[0].rows), escape(benchmarks[0].licence))
        else:
            members = ", ".join(benchmark.name for benchmark in benchmarks)
            table.add_row(name, f"suite: {escape(members)}", str(sum(benchmark.rows for benchmark in benchmarks)), "")
    Console().print(table)
