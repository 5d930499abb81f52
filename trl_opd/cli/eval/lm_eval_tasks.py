"""`trl-opd eval lm-eval-tasks`: our benchmarks as tasks that lm-eval runs."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from trl_opd.cli.eval.options import add_option
from trl_opd.cli.parser import Parser
from trl_opd.evals.lm_eval_tasks import export
from trl_opd.evals.suites import load_suite

DESCRIPTION = """\
Write benchmarks as tasks of lm-evaluation-harness. Prompts and verdicts are those of `trl-opd eval`; the model's
backend, batching and the report are lm-eval's.
"""

EPILOG = """\
example:
  trl-opd eval lm-eval-tasks --benchmark gsm8k math500 --output_dir tasks
  lm_eval run --model hf --model_args pretrained=Qwen/Qwen3-1.7B --include_path tasks --tasks trl_opd_gsm8k \\
      --apply_chat_template --log_samples --output_path results
"""


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="trl-opd eval lm-eval-tasks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--benchmark", nargs="+", metavar="NAME", required=True, help="benchmarks or suites")
    add_option(parser, "--output-dir", type=Path, metavar="DIR", required=True, help="folder for the tasks")
    add_option(
        parser, "--data-dir", type=Path, metavar="DIR", help="folder with local copies of the data, in place of the Hub"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N problems of each benchmark only")
    return parser


def main(argv: list[str]) -> int:
    """Write the tasks; returns the exit status.

    Raises:
        UserError: A benchmark is unknown, its rows cannot be loaded, or the folder cannot be written.
    """
    options = build_parser().parse_args(argv)
    benchmarks = [benchmark for name in options.benchmark for benchmark in load_suite(name)]
    tasks = export(benchmarks, options.output_dir, options.data_dir, options.limit)
    Console().print(
        f"{len(tasks)} tasks in {escape(str(options.output_dir))}. Run them with: lm_eval run --include_path "
        f"{escape(str(options.output_dir))} --tasks {','.join(tasks)} --apply_chat_template ...",
        soft_wrap=True,
        highlight=False,
    )
    return 0
