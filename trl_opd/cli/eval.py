"""`trl-opd eval`: run benchmarks on a model."""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import load_rows
from trl_opd.evals.engines import DTYPES, EngineOptions, Sampling
from trl_opd.evals.metrics import Interval, Metrics
from trl_opd.evals.runner import Summary, evaluate
from trl_opd.evals.suites import load_suite, names, suites_dir

DESCRIPTION = """\
Run benchmarks on a model: draw completions, score them, report accuracy with intervals.

A run lives in OUTPUT_DIR/BENCHMARK. The same command continues a run that was interrupted and reports one that is
finished; other settings need another folder.
"""

EPILOG = """\
examples:
  trl-opd eval list
  trl-opd eval --model testbed/base --benchmark arithmetic
  trl-opd eval --model Qwen/Qwen3-1.7B --benchmark gsm8k --n 4 --temperature 0.6 --output_dir runs/qwen3
  trl-opd eval --model runs/sdpo/final --suite my_suite.yaml --data_dir data --limit 20
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="trl-opd eval",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--model", required=True, help="folder, testbed/base, testbed/teacher, or a model id on the Hub")
    what.add_argument("--adapter", metavar="PATH", help="folder of a PEFT adapter on that model")
    what.add_argument("--benchmark", nargs="+", metavar="NAME", default=[], help="benchmarks, see `trl-opd eval list`")
    what.add_argument("--suite", metavar="NAME", help="a suite: name or path of a YAML file that lists benchmarks")
    _add(what, "--data-dir", type=Path, metavar="DIR", help="folder with local copies of the data, in place of the Hub")
    what.add_argument("--limit", type=int, metavar="N", help="the first N problems of each benchmark only")

    how = parser.add_argument_group("how to decode (default: what each benchmark's protocol says)")
    how.add_argument("--n", type=int, metavar="N", help="samples for each problem")
    how.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    _add(how, "--top-p", type=float, metavar="P", help="nucleus; 1 keeps all tokens")
    _add(how, "--max-new-tokens", type=int, metavar="M", help="longest completion; a longer one is cut and counted")
    how.add_argument("--seed", type=int, default=0, help="seed of the run (default: %(default)s)")

    engine = parser.add_argument_group("how to run")
    _add(
        engine,
        "--batch-size",
        type=int,
        metavar="B",
        help=f"completions drawn at a time (default: {_default('batch_size')})",
    )
    engine.add_argument("--dtype", choices=DTYPES, help="precision (default: float32 on a CPU, bfloat16 on a GPU)")
    _add(
        engine, "--chat-template-kwargs", type=_json_object, metavar="JSON", help="e.g. '{\"enable_thinking\": false}'"
    )
    _add(engine, "--output-dir", type=Path, metavar="DIR", help="folder for the runs (default: eval_runs/MODEL)")
    return parser


def main(argv: list[str]) -> int:
    """Run the command and return its exit status.

    Raises:
        UserError: What the command asks cannot be done.
    """
    if argv == ["list"]:
        _print_list()
    else:
        _run(build_parser().parse_args(argv), argv)
    return 0


def _run(arguments: argparse.Namespace, argv: list[str]) -> None:
    suites = [*arguments.benchmark, *([arguments.suite] if arguments.suite else [])]
    if not suites:
        raise UserError("Nothing to run: pass --benchmark NAME or --suite NAME; `trl-opd eval list` shows the names.")
    benchmarks = list({benchmark.name: benchmark for name in suites for benchmark in load_suite(name)}.values())
    samplings = [replace(benchmark.protocol.sampling, **_given(arguments, Sampling)) for benchmark in benchmarks]
    options = EngineOptions(**_given(arguments, EngineOptions))
    for benchmark in benchmarks:
        load_rows(benchmark, arguments.data_dir, arguments.limit)  # all data are there before the first model is loaded

    # Slow to import, and not needed where the command has a mistake.
    from transformers.utils import logging as transformers_logging

    from trl_opd.evals.transformers_engine import TransformersEngine

    transformers_logging.disable_progress_bar()
    engine = TransformersEngine(arguments.model, options)
    folder = arguments.output_dir or _default_folder(arguments)
    summaries = [
        evaluate(
            benchmark,
            engine,
            folder / benchmark.name,
            n=arguments.n,
            sampling=sampling,
            seed=arguments.seed,
            limit=arguments.limit,
            data_dir=arguments.data_dir,
            command=shlex.join(["trl-opd", "eval", *argv]),
            progress=True,
        )
        for benchmark, sampling in zip(benchmarks, samplings, strict=True)
    ]
    Console().print(_table(arguments.model, summaries))
    Console().print(f"Completions, verdicts and manifest: {escape(str(folder))}", soft_wrap=True, highlight=False)


def _default_folder(arguments: argparse.Namespace) -> Path:
    parts = [arguments.model, *([arguments.adapter] if arguments.adapter else [])]
    return Path("eval_runs") / "-".join(part.strip("./").replace("/", "-") for part in parts)


def _given(arguments: argparse.Namespace, record: type) -> dict[str, Any]:
    """The fields of a dataclass that the command names."""
    values = {field.name: getattr(arguments, field.name) for field in fields(record)}
    return {name: value for name, value in values.items() if value is not None}


def _table(model: str, summaries: Sequence[Summary]) -> Table:
    """The metrics down, the benchmarks across."""
    table = Table(title=escape(model), caption="in %, intervals at 95 %", box=box.SIMPLE_HEAD)
    table.add_column("")
    for summary in summaries:
        table.add_column(escape(summary.benchmark), justify="right")
    columns = [_column(summary.metrics) for summary in summaries]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    return table


def _column(metrics: Metrics) -> dict[str, str]:
    most = max(metrics.pass_at_k, key=int)
    return {
        "problems x samples": f"{metrics.problems} x {metrics.n}",
        "accuracy": _percent(metrics.accuracy),
        "  with other samples (decoding)": _interval(metrics.decoding_interval),
        "  with other problems": _interval(metrics.problem_interval),
        "majority of the samples": _percent(metrics.majority_at_n),
        "pass@k, largest k": f"{_percent(metrics.pass_at_k[most])} @{most}",
        "cut at max_new_tokens": _percent(metrics.truncated_rate),
        "no answer found": _percent(metrics.no_answer_rate),
        "comparisons timed out / failed": f"{metrics.timeouts} / {metrics.errors}",
        "tokens a sample": f"{metrics.mean_tokens:.0f}",
    }


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{_percent(interval[0])} to {_percent(interval[1])}"


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


def _add(group: argparse._ArgumentGroup, flag: str, **settings: Any) -> None:
    """Add an option under both spellings, `--data-dir` and `--data_dir`."""
    group.add_argument(flag, f"--{flag[2:].replace('-', '_')}", **settings)


def _default(name: str) -> Any:
    default = next(field.default for field in fields(EngineOptions) if field.name == name)
    assert default is not MISSING, f"{name} has no default"
    return default


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value
