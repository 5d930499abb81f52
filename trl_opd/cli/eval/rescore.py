"""`trl-opd eval rescore`: score a run anew, without drawing anything."""

import shlex
from pathlib import Path

from rich.console import Console

from trl_opd.cli.eval.options import add_scoring_options, add_source_options, one_benchmark
from trl_opd.cli.eval.tables import percent, plain, summary_table
from trl_opd.cli.parser import Parser
from trl_opd.evals.rescore import rescore
from trl_opd.evals.results import read_run, run_folder

DESCRIPTION = """\
Score the completions of a run anew, with the scorer and the answers that this version of trl-opd has. The old verdicts
stay in the run's folder; the new ones are in force.
"""


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="trl-opd eval rescore", description=DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--benchmark", metavar="FILE", help="the benchmark's YAML file, if it is not one of ours")
    add_source_options(parser)
    add_scoring_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Rescore the run and print the metrics; returns the exit status.

    Raises:
        UserError: There is no such run, or its benchmark asks something else by now.
    """
    arguments = build_parser().parse_args(argv)
    folder = run_folder(arguments.run)
    before = read_run(folder).summary
    summary = rescore(
        folder,
        benchmark=one_benchmark(arguments.benchmark) if arguments.benchmark else None,
        data_dir=arguments.data_dir,
        errata=arguments.errata,
        allow_other_data=arguments.allow_other_data,
        workers=arguments.workers,
        sandbox=arguments.sandbox,
        command=shlex.join(["trl-opd", "eval", "rescore", *argv]),
        progress=True,
    )
    if summary is None:
        Console().print(plain(f"{arguments.run} is not finished: give the command that began it, and it goes on."))
        return 0
    Console().print(summary_table(str(arguments.run), [summary]))
    Console().print(f"accuracy before: {percent(before['metrics']['accuracy'])}")
    return 0
