"""lm-evaluation-harness's own tasks, kept in our format: the same folder, verdicts, metrics and intervals.

lm-eval draws and scores; we keep every completion and what its metric said of it. One of the task's metrics has to be
a verdict, 0 or 1 for each problem. Its requests are cached in the run's folder, so a run that was killed goes on where
it was.
"""

from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trl_opd.errors import UserError
from trl_opd.evals.calibration import LM_EVAL
from trl_opd.evals.lm_eval_engine import LmEvalEngine
from trl_opd.evals.metrics import compute
from trl_opd.evals.records import json_sha256, suggest
from trl_opd.evals.runner import Summary
from trl_opd.evals.store import RunStore


def evaluate_task(
    task: str,
    engine: LmEvalEngine,
    out_dir: Path,
    *,
    metric: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    include_path: Path | None = None,
    chat: bool = True,
    command: str | None = None,
) -> Summary:
    """Let lm-eval run one of its tasks, and keep what it found.

    Args:
        task (`str`): lm-eval's name of the task; no group of tasks.
        engine (`LmEvalEngine`): The backend and the model.
        out_dir (`Path`): Folder of the run.
        metric (`str`, *optional*): "NAME,FILTER" of the metric that is the verdict; the task's first by default.
        limit (`int`, *optional*): The first problems only.
        seed (`int`, defaults to `0`): Seed of the sampling.
        include_path (`Path`, *optional*): Folder with more tasks.
        chat (`bool`, defaults to `True`): Whether prompts are put into the model's chat template.
        command (`str`, *optional*): The command line, for the manifest.

    Raises:
        UserError: The task is unknown or a group, cannot be loaded, executes code outside a sandbox, or has no verdict
            for each problem.
    """
    loaded = _load(task, include_path)
    settings = {
        "benchmark": LM_EVAL + task,
        "engine": engine.identity(),
        "limit": limit,
        "seed": seed,
        "chat": chat,
        "scorer": {"lm_eval": version("lm-eval"), "metric": metric, "task_version": _version(loaded)},
    }
    with RunStore(out_dir, settings, {"command": command, **engine.details()}) as store:
        if store.summary is None:
            results = _run(loaded, engine, store.folder, limit, seed, chat)
            rows = _verdicts(task, results["samples"][task], metric)
            _keep(store, engine, rows)
            summary = Summary(LM_EVAL + task, json_sha256(settings), _metrics(rows))
            store.finish({**asdict(summary), "lm_eval": _plain(results["results"][task]), "metric": rows[0]["metric"]})
        return Summary.from_json(store.summary)


def _load(task: str, include_path: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise UserError(f"{include_path} is no folder: --include-path takes one with lm-eval's YAML files.")
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    if task not in manager.all_subtasks:
        if task in manager.all_tasks:
            raise UserError(f"lm-eval's {task!r} is a group of tasks: name its tasks one by one.")
        raise UserError(f"lm-eval has no task {task!r}{_nearest(task, manager.all_subtasks)}.")
    try:
        loaded = manager.load([task])["tasks"][task]
    except (ConnectionError, FileNotFoundError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"lm-eval cannot load the task {task} ({text}): connect to the Hub, or name a task whose data are local "
            "with --include-path."
        ) from error
    if getattr(loaded, "UNSAFE_CODE", False):
        raise UserError(
            f"lm-eval's task {task} executes what the model writes without a sandbox: run our benchmark of that name."
        )
    if loaded.config.repeats != 1:
        raise UserError(
            f"lm-eval's task {task} draws {loaded.config.repeats} samples and gives one value for all of them: only "
            "tasks with a verdict for each sample can be kept."
        )
    return loaded


def _nearest(task: str, known: list[str]) -> str:
    near = get_close_matches(task, known, n=1)
    return f": did you mean {near[0]!r}" if near else ""


def _version(loaded: Any) -> Any:
    return (loaded.config.metadata or {}).get("version")


def _run(loaded: Any, engine: LmEvalEngine, folder: Path, limit: int | None, seed: int, chat: bool) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    return simple_evaluate(
        model=engine.backend_model,
        tasks=[loaded],
        use_cache=str(folder / "lm_eval_cache"),
        limit=limit,
        apply_chat_template=chat,
        torch_random_seed=seed,
        numpy_random_seed=seed,
        random_seed=seed,
    )


def _verdicts(task: str, samples: list[dict[str, Any]], metric: str | None) -> list[dict[str, Any]]:
    """One row a problem: what was read, what was written, and what the metric says of it."""
    names = list(dict.fromkeys(f"{name},{sample['filter']}" for sample in samples for name in sample["metrics"]))
    chosen = metric or names[0]
    if chosen not in names:
        raise UserError(f"lm-eval's task {task} has no metric {chosen!r}{suggest(chosen, names)}.")
    name, _, used_filter = chosen.partition(",")
    rows = [_row(sample, name, chosen) for sample in samples if sample["filter"] == used_filter]
    if any(row["value"] not in (0, 1) for row in rows):
        raise UserError(
            f"The metric {chosen} of lm-eval's task {task} is no yes or no for each problem: pass another with "
            f"--metric ({', '.join(names)})."
        )
    return sorted(rows, key=lambda row: row["number"])


def _row(sample: Mapping[str, Any], name: str, metric: str) -> dict[str, Any]:
    arguments = sample["arguments"]
    chosen = _choice(sample) if len(arguments) > 1 or not isinstance(sample["resps"][0][0], str) else 0
    drawn = isinstance(sample["resps"][0][0], str)
    answer = sample["filtered_resps"][0] if drawn else arguments[chosen][1]
    return {
        "number": sample["doc_id"],
        "prompt": arguments[0][0],
        "completion": sample["resps"][0][0] if drawn else arguments[chosen][1],
        "extracted": answer if isinstance(answer, str) else str(answer),
        "limit": arguments[0][1].get("max_gen_toks") if drawn else None,
        "drawn": drawn,
        "value": sample[name],
        "metric": metric,
    }


def _choice(sample: Mapping[str, Any]) -> int:
    """The continuation that the model finds likeliest, of those that it was given."""
    likelihoods = [float(response[0][0]) for response in sample["resps"]]
    return max(range(len(likelihoods)), key=likelihoods.__getitem__)


def _keep(store: RunStore, engine: LmEvalEngine, rows: list[dict[str, Any]]) -> None:
    """Store what is not stored yet: a run may have been killed in here."""
    for row in rows:
        key = {"problem_id": str(row["number"]), "index": 0}
        row["tokens"] = engine.count_tokens(row["completion"]) if row["drawn"] else 0
        row["cut"] = row["limit"] is not None and row["tokens"] >= row["limit"]
        if (key["problem_id"], 0) not in store.drawn:
            text = {"prompt": row["prompt"], "completion": row["completion"], "tokens": row["tokens"]}
            store.add_generation({**key, **text, "finish_reason": "length" if row["cut"] else "stop"})
        if (key["problem_id"], 0) not in store.scored:
            verdict = {"correct": bool(row["value"]), "extracted": row["extracted"], "reason": _reason(row)}
            store.add_verdict({**key, **verdict}, store.writer)


def _reason(row: Mapping[str, Any]) -> str:
    return "correct" if row["value"] else "wrong"


def _metrics(rows: list[dict[str, Any]]) -> Any:
    import numpy as np

    return compute(
        correct_PN=np.array([[bool(row["value"])] for row in rows]),
        answers=[[row["extracted"]] for row in rows],
        reasons=[[_reason(row)] for row in rows],
        truncated_PN=np.array([[row["cut"]] for row in rows]),
        tokens_PN=np.array([[row["tokens"]] for row in rows]),
    )


def _plain(results: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's own numbers, as far as they are JSON."""
    return {name: value for name, value in results.items() if isinstance(value, (int, float, str))}
