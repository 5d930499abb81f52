"""`trl-opd eval --model ...`: run benchmarks on a model."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from trl_opd.cli.eval.engine_options import add_engine_options
from trl_opd.cli.eval.options import add_data_options, add_option, add_scoring_options, given
from trl_opd.cli.eval.tables import summary_table
from trl_opd.cli.parser import Parser
from trl_opd.errors import UserError
from trl_opd.evals.engines import EngineOptions, Sampling, make_engine
from trl_opd.evals.rows import load_rows
from trl_opd.evals.runner import checked_workers, evaluate
from trl_opd.evals.suites import load_suite

DESCRIPTION = """\
Run benchmarks on a model: draw completions, score them, report accuracy with intervals.

A run lives in OUTPUT_DIR/BENCHMARK. The same command continues a run that was interrupted and reports one that is
finished; given in several processes at the same time, they share the work. Other settings need another folder.
"""

EPILOG = """\
other commands, each with a --help of its own:
  trl-opd eval list                   the benchmarks and the suites
  trl-opd eval score BENCHMARK ...    score completions that were drawn elsewhere
  trl-opd eval rescore RUN            score a run anew, without drawing anything
  trl-opd eval show RUN               the problems of a run, or one sample with its verdict
  trl-opd eval diff A B               the difference of two runs, problem by problem
  trl-opd eval calibrate RUN ...      whether a known model gets its published score here
  trl-opd eval lm-eval-tasks ...      our benchmarks as tasks for lm-eval
  trl-opd eval --via lm-eval TASK ... lm-eval's own tasks, kept as runs

examples:
  trl-opd eval --model testbed/base --benchmark arithmetic
  trl-opd eval --model Qwen/Qwen3-1.7B --benchmark gsm8k --n 4 --temperature 0.6 --output_dir runs/qwen3
  trl-opd eval --model runs/sdpo/final --suite my_suite.yaml --data_dir data --limit 20
  trl-opd eval --model Qwen/Qwen3-8B --engine vllm --benchmark gsm8k
  trl-opd eval --model Qwen/Qwen3-8B --engine server --base-url http://localhost:8000/v1 --benchmark gsm8k
"""


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="trl-opd eval",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "--model",
        required=True,
        help="folder, testbed/base, testbed/teacher, or a model id on the Hub; with --engine server, its name there",
    )
    what.add_argument("--adapter", metavar="PATH", help="folder of a PEFT adapter on that model")
    what.add_argument("--benchmark", nargs="+", metavar="NAME", default=[], help="benchmarks, see `trl-opd eval list`")
    what.add_argument("--suite", metavar="NAME", help="a suite: name or path of a YAML file that lists benchmarks")
    add_data_options(what)
    what.add_argument("--cutoff", metavar="YYYY-MM", help="the model's last month of training data; flags older sets")

    how = parser.add_argument_group("how to decode (default: what each benchmark's protocol says)")
    how.add_argument("--n", type=int, metavar="N", help="samples for each problem")
    how.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    add_option(how, "--top-p", type=float, metavar="P", help="nucleus; 1 keeps all tokens")
    add_option(
        how, "--max-new-tokens", type=int, metavar="M", help="longest completion; a longer one is cut and counted"
    )
    how.add_argument("--seed", type=int, default=0, help="seed of the run (default: %(default)s)")

    engine = add_engine_options(parser)
    add_scoring_options(engine)
    add_option(engine, "--output-dir", type=Path, metavar="DIR", help="folder for the runs (default: eval_runs/MODEL)")
    return parser


def main(argv: list[str]) -> int:
    """Run the benchmarks and print their table; returns the exit status.

    Raises:
        UserError: What the command asks cannot be done.
    """
    _run(build_parser().parse_args(argv), argv)
    return 0


def _run(arguments: argparse.Namespace, argv: list[str]) -> None:
    suites = [*arguments.benchmark, *([arguments.suite] if arguments.suite else [])]
    if not suites:
        raise UserError("Nothing to run: pass --benchmark NAME or --suite NAME; `trl-opd eval list` shows the names.")
    benchmarks = list({benchmark.name: benchmark for name in suites for benchmark in load_suite(name)}.values())
    if arguments.window:
        benchmarks = [benchmark.within(*arguments.window) for benchmark in benchmarks]
    seen = {benchmark.name: benchmark.seen_before(arguments.cutoff) for benchmark in benchmarks if arguments.cutoff}
    samplings = [replace(benchmark.protocol.sampling, **given(arguments, Sampling)) for benchmark in benchmarks]
    checked_workers(arguments.workers)
    if arguments.sandbox and all(benchmark.scorer != "code" for benchmark in benchmarks):
        raise UserError("None of the benchmarks runs programs, so --sandbox would be ignored: leave it out.")
    options = EngineOptions(**given(arguments, EngineOptions))
    data = {
        "data_dir": arguments.data_dir,
        "limit": arguments.limit,
        "errata": arguments.errata,
        "allow_other_data": arguments.allow_other_data,
    }
    for benchmark in benchmarks:
        load_rows(benchmark, **data)  # all data are there before the first model is loaded

    # Slow to import, and not needed where the command has a mistake.
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    engine = make_engine(arguments.engine, arguments.model, options)
    folder = arguments.output_dir or _default_folder(arguments)
    summaries = [
        evaluate(
            benchmark,
            engine,
            folder / benchmark.name,
            n=arguments.n,
            sampling=sampling,
            seed=arguments.seed,
            **data,
            workers=arguments.workers,
            sandbox=arguments.sandbox if benchmark.scorer == "code" else None,
            command=shlex.join(["trl-opd", "eval", *argv]),
            progress=True,
        )
        for benchmark, sampling in zip(benchmarks, samplings, strict=True)
    ]
    Console().print(summary_table(arguments.model, summaries, seen))
    Console().print(f"Completions, verdicts and manifest: {escape(str(folder))}", soft_wrap=True, highlight=False)


def _default_folder(arguments: argparse.Namespace) -> Path:
    parts = [arguments.model, *([arguments.adapter] if arguments.adapter else [])]
    return Path("eval_runs") / "-".join(part.strip("./").replace("/", "-") for part in parts)
