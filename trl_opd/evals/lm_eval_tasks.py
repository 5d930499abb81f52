"""Our benchmarks as tasks of lm-evaluation-harness, with our own scorers: `lm_eval run --include_path FOLDER`.

`export` writes one YAML file and one file of rows for each benchmark, and a module of two functions that lm-eval calls.
Prompts are those of `trl-opd eval` when lm-eval is told `--apply_chat_template`, and every completion gets the verdict
that `trl-opd eval` gives it, since the same scorer judges it.
"""

import atexit
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark, Problem, load_benchmark
from trl_opd.evals.rows import load_rows
from trl_opd.evals.scorers import Scorer, make_scorer
from trl_opd.evals.suites import suites_dir

PREFIX = "trl_opd_"
"""What every task's name begins with, so that none hides a task of lm-eval's own."""

CALLED_BY_LM_EVAL = "from trl_opd.evals.lm_eval_tasks import keep_all, process_results  # noqa: F401\n"


def export(
    benchmarks: Sequence[Benchmark], folder: Path, data_dir: Path | None = None, limit: int | None = None
) -> list[str]:
    """Write the benchmarks as lm-eval tasks.

    Args:
        benchmarks (`Sequence[Benchmark]`): What to write; each must be one of the package's own, since the task finds
            its scorer by the benchmark's name.
        folder (`Path`): Made if it does not exist; pass it to lm-eval as `--include_path`.
        data_dir (`Path`, *optional*): Folder with local copies of the data.
        limit (`int`, *optional*): The first problems only.

    Returns:
        `list[str]`: The names of the tasks.

    Raises:
        UserError: The rows cannot be loaded, or the folder cannot be written.
    """
    problems = [load_rows(benchmark, data_dir, limit).problems for benchmark in benchmarks]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{PREFIX}calls.py").write_text(CALLED_BY_LM_EVAL, encoding="utf-8")
        for benchmark, rows in zip(benchmarks, problems, strict=True):
            _write_task(benchmark, rows, folder.resolve())
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another folder.") from error
    return [PREFIX + benchmark.name for benchmark in benchmarks]


def _write_task(benchmark: Benchmark, problems: list[Problem], folder: Path) -> None:
    name = PREFIX + benchmark.name
    rows = folder / f"{name}.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps(_doc(benchmark, problem)) + "\n")
    task = yaml.safe_dump(_task(benchmark, rows), sort_keys=False, allow_unicode=True)
    # lm-eval's own tags: safe_dump would quote them.
    task = task.replace("'!function ", "!function ").replace(".process_results'", ".process_results")
    (folder / f"{name}.yaml").write_text(task.replace(".keep_all'", ".keep_all"), encoding="utf-8")


def _doc(benchmark: Benchmark, problem: Problem) -> dict[str, str]:
    """A row as lm-eval reads it: strings alone, since its loader wants one type for each field."""
    turns = {turn["role"]: turn["content"] for turn in benchmark.messages(problem)}
    return {
        "id": problem.id,
        "benchmark": benchmark.name,
        "system": turns.get("system", ""),
        "prompt": turns["user"],
        "problem": problem.problem,
        "answer": problem.answer,
        "fields": json.dumps(dict(problem.fields)),
    }


def _task(benchmark: Benchmark, rows: Path) -> dict[str, Any]:
    sampling = benchmark.protocol.sampling
    decoding = {"do_sample": sampling.temperature > 0, "max_gen_toks": sampling.max_new_tokens, "until": []}
    if sampling.temperature > 0:
        decoding |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    return {
        "task": PREFIX + benchmark.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "generate_until",
        "description": "{{system}}",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": decoding,
        "repeats": benchmark.protocol.n,
        "filter_list": [
            {"name": "all", "filter": [{"function": "custom", "filter_fn": f"!function {PREFIX}calls.keep_all"}]}
        ],
        "process_results": f"!function {PREFIX}calls.process_results",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": name == "accuracy"}
            for name in ("accuracy", "no_answer")
        ],
        "metadata": {"version": 1},
    }


def keep_all(responses: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """lm-eval's filter that keeps all samples of every problem."""
    return [list(row) for row in responses]


def process_results(doc: dict[str, str], results: list[list[str]]) -> dict[str, float]:
    """What lm-eval calls with a row and its samples: the share that is right, and that without an answer."""
    problem = Problem(doc["id"], doc["problem"], doc["answer"], fields=json.loads(doc["fields"]))
    verdicts = [_scorer(doc["benchmark"]).score(completion, problem) for completion in results[0]]
    return {
        "accuracy": sum(verdict.correct for verdict in verdicts) / len(verdicts),
        "no_answer": sum(verdict.reason == "no answer" for verdict in verdicts) / len(verdicts),
    }


@cache
def _scorer(name: str) -> Scorer:
    scorer = make_scorer(load_benchmark(suites_dir() / f"{name}.yaml"))
    atexit.register(scorer.close)
    return scorer
