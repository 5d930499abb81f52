"""Do lm-eval and `trl-opd eval` say the same of the same generations?

    python benchmarks/lm_eval_cross_check.py RUN [--data-dir DIR] [--json FILE]

Takes a finished run of `trl-opd eval` and lets lm-eval judge its completions twice, through lm-eval's own evaluator and
a model that replays what is stored: once by our benchmark as a task of lm-eval, where every verdict must be the same,
and, for GSM8K, once by lm-eval's own task with its own extraction and comparison, where every difference is printed.
"""

import argparse
import json
import tempfile
from pathlib import Path

import lm_eval
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from trl_opd.evals.lm_eval_tasks import PREFIX, export
from trl_opd.evals.results import StoredRun, read_run
from trl_opd.evals.rows import load_rows
from trl_opd.evals.suites import load_suite

#: Our benchmark -> lm-eval's own task of the same problems, and the row that it reads in place of the Hub's.
OWN_TASKS = {
    "gsm8k": (
        "gsm8k/gsm8k-cot-zeroshot.yaml",
        lambda problem: {"id": problem.id, "question": problem.problem, "answer": f"#### {problem.answer}"},
    )
}


class Replay(LM):
    """A model that writes what is stored for the row that it is asked about."""

    def __init__(self, completions: dict[str, list[str]]) -> None:
        super().__init__()
        self.completions = completions

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        samples = {name: iter(texts) for name, texts in self.completions.items()}
        return [next(samples[request.doc["id"]]) for request in requests]

    def loglikelihood(self, requests, disable_tqdm: bool = False):
        raise NotImplementedError("no likelihoods are stored")

    loglikelihood_rolling = loglikelihood


def judge(task: str, folder: Path, model: Replay) -> list[dict]:
    """lm-eval's samples of a task in a folder."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(model=model, tasks=[task], task_manager=manager)["samples"][task]


def write_own_task(yaml_name: str, rows: list[dict], folder: Path) -> str:
    """lm-eval's own task on local rows; returns its name."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    original = Path(lm_eval.__file__).parent / "tasks" / yaml_name
    (folder / "own.yaml").write_text(
        f"include: {original}\ntask: own\ndataset_path: json\ndataset_name: null\ntraining_split: null\n"
        f"fewshot_split: null\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
    )
    return "own"


def compare(run: StoredRun, task: str, filter_name: str, samples: list[dict], metric: str) -> list[dict]:
    """Print and return the problems of which lm-eval says something else than the run."""
    judged = {row["doc"]["id"]: row[metric] for row in samples if row["filter"] == filter_name}
    ours: dict[str, list[bool]] = {name: [] for name in judged}
    for (name, _), verdict in run.verdicts.items():
        ours[name].append(verdict["correct"])
    shares = {name: sum(verdicts) / len(verdicts) for name, verdicts in ours.items()}
    different = [
        {"task": task, "filter": filter_name, "id": name, "lm_eval": judged[name], "ours": share}
        for name, share in shares.items()
        if share != judged[name]
    ]
    print(f"{task} ({filter_name}): {len(judged)} problems, {len(different)} differ")
    for row in different:
        read = run.verdicts[row["id"], 0]["extracted"]
        print(f"  {row['id']}: lm-eval {row['lm_eval']:g}, ours {row['ours']:g} (read {read!r})")
    return different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--data-dir", type=Path, help="folder with local copies of the data")
    parser.add_argument("--json", type=Path, help="write the differences to this file")
    options = parser.parse_args()
    run = read_run(options.run)
    (benchmark,) = load_suite(run.manifest["settings"]["benchmark"])
    problems = load_rows(benchmark, options.data_dir, run.summary["metrics"]["problems"]).problems
    completions: dict[str, list[str]] = {problem.id: [] for problem in problems}
    for row in sorted(run.generations(), key=lambda row: row["index"]):
        completions[row["problem_id"]].append(row["completion"])
    model = Replay(completions)
    with tempfile.TemporaryDirectory() as folder:
        export([benchmark], Path(folder), options.data_dir, len(problems))
        samples = judge(PREFIX + benchmark.name, Path(folder), model)
    differences = compare(run, PREFIX + benchmark.name, "all", samples, "accuracy")
    if benchmark.name in OWN_TASKS:
        yaml_name, as_row = OWN_TASKS[benchmark.name]
        with tempfile.TemporaryDirectory() as folder:
            samples = judge(write_own_task(yaml_name, list(map(as_row, problems)), Path(folder)), Path(folder), model)
        for name in dict.fromkeys(row["filter"] for row in samples):
            differences += compare(run, Path(yaml_name).stem, name, samples, "exact_match")
    if options.json:
        options.json.write_text(json.dumps(differences, indent=1) + "\n")


if __name__ == "__main__":
    main()
