"""`trl-opd eval score`: score completions that were drawn elsewhere."""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from trl_opd.cli.eval.options import add_data_options, add_option, add_scoring_options, one_benchmark
from trl_opd.cli.eval.tables import plain, summary_table
from trl_opd.cli.parser import Parser
from trl_opd.errors import UserError
from trl_opd.evals.external import GivenCompletions, score_generations
from trl_opd.evals.records import file_sha256, json_sha256
from trl_opd.evals.results import read_run
from trl_opd.evals.runner import Summary

DESCRIPTION = """\
Score completions that were drawn elsewhere, with the verdicts, metrics and files of any other run.

FILE holds one JSON object a line: {"id": ..., "completion": ...}, several with one id for several samples. A row may
also hold index, tokens and finish_reason. Rows with an unknown id are counted and not scored; problems without a row
are counted and left out of the metrics.
"""

IDS_SHOWN = 3
"""Examples of unknown or missing ids in a message; all of them are in the JSON file."""


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="trl-opd eval score", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", metavar="BENCHMARK", help="a name, see `trl-opd eval list`, or a YAML file")
    parser.add_argument("--generations", type=Path, required=True, metavar="FILE", help="the completions, JSON lines")
    add_data_options(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write samples, metrics and counts there")
    add_option(
        parser, "--output-dir", type=Path, metavar="RUN", help="folder of the run (default: below eval_runs/scored)"
    )
    add_scoring_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Score the file and print the metrics; returns the exit status.

    Raises:
        UserError: The benchmark, its data or the file are not as they should be.
    """
    arguments = build_parser().parse_args(argv)
    benchmark = one_benchmark(arguments.benchmark)
    if arguments.window:
        benchmark = benchmark.within(*arguments.window)
    if not arguments.generations.is_file():
        raise UserError(f"There is no file {arguments.generations}: check the path after --generations.")
    if arguments.json is not None and arguments.json.is_dir():
        raise UserError(f"{arguments.json} is a folder: --json takes the name of a file.")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UserError(f"The folder of {arguments.json} does not exist: make it, or choose another file for --json.")
    folder = arguments.output_dir or _default_folder(arguments) / benchmark.name
    summary, given = score_generations(
        benchmark,
        arguments.generations,
        folder,
        limit=arguments.limit,
        data_dir=arguments.data_dir,
        errata=arguments.errata,
        allow_other_data=arguments.allow_other_data,
        workers=arguments.workers,
        sandbox=arguments.sandbox,
        command=shlex.join(["trl-opd", "eval", "score", *argv]),
        progress=True,
    )
    for line in notes(given):
        print(line, file=sys.stderr)
    Console().print(summary_table(arguments.generations.name, [summary]))
    Console().print(plain(f"Completions, verdicts and manifest: {folder}"), soft_wrap=True)
    if arguments.json is not None:
        whole = arguments.limit is None and arguments.window is None
        text = json.dumps(report(folder, summary, given, whole), indent=1)
        try:
            arguments.json.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{arguments.json} cannot be written ({error.strerror}): choose another.") from error
    return 0


def notes(given: GivenCompletions) -> list[str]:
    """What of the file does not fit the benchmark, a line each."""
    lines = []
    if given.unknown_rows:
        lines.append(
            f"{given.unknown_rows} rows have an id that no problem scored here has ({_some(given.unknown_ids)}): "
            f"they are not scored."
        )
    if given.missing_ids:
        lines.append(
            f"{len(given.missing_ids)} problems have no completion ({_some(given.missing_ids)}): the metrics are over "
            f"the others."
        )
    if given.least < given.most:
        lines.append(
            f"Problems have {given.least} to {given.most} completions: each problem weighs the same in the metrics, "
            f"and pass@k ends at k = {given.least}."
        )
    return lines


def report(folder: Path, summary: Summary, given: GivenCompletions, whole: bool) -> dict[str, Any]:
    """All that was found out, for the JSON file; `whole` says that no option left out problems."""
    stored = read_run(folder)
    fields = ("correct", "extracted", "reason")
    samples = [
        {"id": key[0], "index": key[1], **{field: stored.verdicts[key][field] for field in fields}}
        for key in given.generations
    ]
    return {
        "benchmark": summary.benchmark,
        "comparable": whole and not given.missing_ids and stored.manifest["settings"].get("comparable", True),
        "settings_sha256": summary.settings_sha256,
        "metrics": asdict(summary.metrics),
        "counts": {
            "samples": len(samples),
            "problems": summary.metrics.problems,
            "least_samples_of_a_problem": given.least,
            "most_samples_of_a_problem": given.most,
            "unknown_rows": given.unknown_rows,
            "unknown_ids": len(given.unknown_ids),
            "missing_ids": len(given.missing_ids),
        },
        "unknown_ids": given.unknown_ids,
        "missing_ids": given.missing_ids,
        "samples": samples,
    }


def _some(ids: list[str]) -> str:
    shown = ", ".join(map(repr, ids[:IDS_SHOWN]))
    return shown if len(ids) <= IDS_SHOWN else f"{shown}, ..."


def _default_folder(arguments: argparse.Namespace) -> Path:
    """Another file, the file with other rows, or another choice of problems is another run."""
    path, choice = arguments.generations, [arguments.limit, arguments.window, arguments.errata]
    run = json_sha256([file_sha256(path), *choice, arguments.allow_other_data])
    return Path("eval_runs") / "scored" / f"{path.stem}-{run[:8]}"
