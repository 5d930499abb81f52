"""`trl-opd eval --via lm-eval TASK`: lm-eval's own tasks, kept in our format."""

import argparse
import shlex
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from trl_opd.cli.eval.engine_options import add_backend_options
from trl_opd.cli.eval.options import add_option, given, json_object
from trl_opd.cli.eval.tables import summary_table
from trl_opd.cli.parser import Parser
from trl_opd.errors import UserError
from trl_opd.evals.engines import BATCH_SIZES, DTYPES, EngineOptions, make_engine

DESCRIPTION = """\
Let lm-evaluation-harness run its own tasks, and keep completions, verdicts, metrics and intervals in the format of
every other run. A run lives in OUTPUT_DIR/TASK; the same command continues one that was interrupted.
"""

EPILOG = """\
example:
  trl-opd eval --via lm-eval gsm8k --model Qwen/Qwen3-1.7B --metric exact_match,flexible-extract
"""


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="trl-opd eval --via",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--via", nargs="+", required=True, metavar=("lm-eval", "TASK"), help="the harness and its tasks, by its names"
    )
    parser.add_argument(
        "--model",
        required=True,
        help="a model as of any run with the backend hf; else what the backend takes as `pretrained`",
    )
    add_backend_options(parser)
    parser.add_argument("--adapter", metavar="PATH", help="folder of a PEFT adapter on that model")
    parser.add_argument("--metric", metavar="NAME,FILTER", help="the metric that is the verdict (default: the first)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N problems of each task only")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: %(default)s)")
    add_option(parser, "--include-path", type=Path, metavar="DIR", help="folder with more tasks of lm-eval")
    parser.add_argument(
        "--chat", action=argparse.BooleanOptionalAction, default=True, help="put prompts into the chat template"
    )
    add_option(
        parser,
        "--batch-size",
        type=int,
        metavar="B",
        help=f"completions drawn at a time (default: {BATCH_SIZES['lm-eval']})",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="precision (default: the backend's)")
    add_option(
        parser, "--chat-template-kwargs", type=json_object, metavar="JSON", help="e.g. '{\"enable_thinking\": false}'"
    )
    add_option(parser, "--output-dir", type=Path, metavar="DIR", help="folder for the runs (default: eval_runs/MODEL)")
    return parser


def main(argv: list[str]) -> int:
    """Run the tasks and print their table; returns the exit status.

    Raises:
        UserError: What the command asks cannot be done.
    """
    options = build_parser().parse_args(argv)
    harness, *tasks = options.via
    if harness != "lm-eval" or not tasks:
        raise UserError("--via takes lm-eval and the names of its tasks, as in `--via lm-eval gsm8k`.")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"limit must be at least 1, not {options.limit}: an evaluation of no problems says nothing.")
    from trl_opd.evals.lm_eval_run import evaluate_task

    engine = make_engine("lm-eval", options.model, EngineOptions(**given(options, EngineOptions)))
    folder = options.output_dir or Path("eval_runs") / options.model.strip("./").replace("/", "-")
    summaries = [
        evaluate_task(
            task,
            engine,
            folder / task,
            metric=options.metric,
            limit=options.limit,
            seed=options.seed,
            include_path=options.include_path,
            chat=options.chat,
            command=shlex.join(["trl-opd", "eval", *argv]),
        )
        for task in tasks
    ]
    Console().print(summary_table(options.model, summaries, {}))
    Console().print(f"Completions, verdicts and manifest: {escape(str(folder))}", soft_wrap=True, highlight=False)
    return 0
