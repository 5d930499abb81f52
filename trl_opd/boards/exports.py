"""A board's numbers for other programs: parquet tables, and evaluation results for model pages on the Hub.

The Hub reads `.eval_results/*.yaml` of a model's repository (https://huggingface.co/docs/hub/eval-results): a score
each, of a data set that is a benchmark there. One file is written for each finished run and benchmark that has a data
set on the Hub, to be uploaded into that folder of the run's model; our built-in benchmarks have none and are left out.
"""

import shutil
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from trl_opd.boards.schema import Benchmark, Results, RunResult
from trl_opd.evals.suites import load_suite, names

DEFAULT_TASK = "default"


def score_rows(results: Results) -> list[dict[str, Any]]:
    """One row for each line, benchmark and finished run, with the line's numbers beside the run's own."""
    lines = {row["name"]: row for row in results["rows"]}
    rows = []
    for run in results["runs"]:
        for key, value in run["scores"].items():
            row = lines[run["line"]]
            score = row["scores"].get(key) or {}
            rows.append(
                {
                    "board": results["name"],
                    "line": run["line"],
                    "method": row["method"],
                    "kind": row["kind"],
                    "benchmark": key,
                    "run": run["name"],
                    "role": run["role"],
                    "seed": run["seed"],
                    "learning_rate": run["learning_rate"],
                    "not_comparable": run["not_comparable"],
                    "accuracy": value,
                    **_flat("line_", score.get("accuracy"), ("mean", "low", "high", "scope")),
                    **_flat("difference_", score.get("difference"), ("value", "low", "high", "p", "p_holm", "verdict")),
                    **run["training"],
                    "settings_hash": run["settings_hash"],
                }
            )
    return rows


def problem_rows(results: Results) -> list[dict[str, Any]]:
    """One row for each benchmark, line and problem: the share of right answers."""
    return [
        {"board": results["name"], "benchmark": key, "line": line, "problem": problem, "share": share}
        for key, problems in results["problems"].items()
        for line, shares in problems["share"].items()
        for problem, share in zip(problems["ids"], shares, strict=True)
    ]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows; pyarrow comes with `datasets`, and is loaded here since nothing else of a board needs it."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def read_parquet(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a parquet file, None where it is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException):
        return None


def write_hub(results: Results, folder: Path) -> list[Path]:
    """Write the Hub's files anew, see the module docstring; without any there is no folder."""
    if folder.exists():
        shutil.rmtree(folder)
    written = []
    for name, text in hub_texts(results).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def read_hub(folder: Path) -> dict[str, str]:
    """The Hub's files as `hub_texts` names them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text("utf-8", "replace") for path in files}


def hub_texts(results: Results) -> dict[str, str]:
    """Path below the folder `hub` -> the file's text."""
    return {
        f"{run}/{key.replace('/', '--')}.yaml": yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        for (run, key), entries in hub_entries(results).items()
    }


def hub_entries(results: Results) -> dict[tuple[str, str], list[EvalResultEntry]]:
    """Run and benchmark key -> the Hub's entries; `value` is accuracy in percent."""
    suite = {entry["key"]: entry for entry in results["suite"]}
    found = {}
    for run in results["runs"]:
        if run["role"] != "final" or run["not_comparable"]:
            continue
        for key, value in run["scores"].items():
            entry = _hub_entry(results, run, suite[key], value)
            if entry is not None:
                found[run["name"], key] = [entry]
    return found


def _hub_entry(results: Results, run: RunResult, entry: Benchmark, value: float) -> EvalResultEntry | None:
    benchmark = load_suite(entry["benchmark"])[0] if entry["benchmark"] in names() else None
    if benchmark is None or benchmark.source.hub is None:
        return None
    return EvalResultEntry(
        dataset_id=benchmark.source.hub,
        task_id=benchmark.source.config or DEFAULT_TASK,
        value=round(100 * value, 4),
        date=results["made"][:10],
        notes=_notes(run, entry, benchmark.rows),
    )


def _notes(run: RunResult, entry: Benchmark, rows: int) -> str:
    part = "" if entry["problems"] == rows else f" of {rows}"
    sampling = run["evaluation"].get(entry["key"], {}).get("sampling", {})
    drawn = ", ".join(f"{name} {value}" for name, value in sampling.items())
    text = f"{entry['problems']}{part} problems x {entry['answers']} answers, mean accuracy, trl_opd"
    return f"{text}; {drawn}" if drawn else text


def _flat(prefix: str, values: Any, wanted: tuple[str, ...]) -> dict[str, Any]:
    return {f"{prefix}{name}": None if values is None else values[name] for name in wanted}
