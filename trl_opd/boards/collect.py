"""Read what the runs of a board stored. Nothing is run, and what is not there is reported as missing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trl_opd.boards.files import content_hash, read_json, read_rows
from trl_opd.boards.runs import FINISHED, TRAIN, Run, Stage, Status, status_of
from trl_opd.errors import UserError
from trl_opd.evals.results import StoredRun, read_run

# What a run may differ in without its evaluation being another one: the model and the engine that ran it.
OF_THE_MODEL = ("engine",)


@dataclass(frozen=True)
class RunRecord:
    """One run as it is stored.

    Args:
        run (`Run`), status (`Status`):
            Which run, and how it stands.
        training (`dict`):
            Contents of `run.json`; empty where there is none.
        log (`list[dict]`):
            Logged steps in order, each once: where a resumed run logged a step again, the later row counts.
        manifest (`dict`), metrics (`dict`):
            Of the evaluation; empty while it is not finished.
        problem_ids (`tuple[str, ...]`), correct (`np.ndarray`, *optional*):
            Sorted problems and the verdicts `[N, K]` of a finished evaluation.
        answers (`dict`):
            The first answer to each problem with its verdict, by problem id.
        not_comparable (`str`, *optional*):
            Why this evaluation is kept out of the statistics.
    """

    run: Run
    status: Status
    training: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    problem_ids: tuple[str, ...] = ()
    correct: np.ndarray | None = None
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_comparable: str | None = None

    @property
    def counts(self) -> bool:
        """Whether the statistics may use this run."""
        return self.correct is not None and self.not_comparable is None


def collect(runs: Sequence[Run]) -> list[RunRecord]:
    """Read every run, and mark the evaluations that differ from the board's in more than the model.

    Raises:
        UserError: if a finished evaluation lacks verdicts or holds one twice.
    """
    records = [_read(run) for run in runs]
    return _marked(records)


def _read(run: Run) -> RunRecord:
    stages = {stage.kind: stage for stage in run.stages}
    training, log = {}, []
    if TRAIN in stages:
        training = read_json(stages[TRAIN].folder / "run.json") or {}
        log = _last_of_each_step(read_rows(stages[TRAIN].folder / "log.jsonl"))
    status = status_of(run)
    if status.state != FINISHED:
        return RunRecord(run, status, training, log)
    primary = next((stage for stage in run.stages if stage.entry and stage.entry.purpose == "primary"), None)
    if primary is None:
        return RunRecord(run, status, training, log)
    return RunRecord(run, status, training, log, **_read_evaluation(primary))


def _read_evaluation(stage: Stage) -> dict[str, Any]:
    stored = read_run(stage.folder)
    problem_ids, correct = _verdict_table(stored)
    first = {problem: row for (problem, index), row in stored.verdicts.items() if index == 0}
    written = {row["problem_id"]: row for row in stored.generations() if row["index"] == 0}
    return {
        "manifest": stored.manifest,
        "metrics": stored.summary["metrics"],
        "problem_ids": problem_ids,
        "correct": correct,
        "answers": {
            problem: {
                "prompt": written[problem]["prompt"],
                "completion": written[problem]["completion"],
                "correct": bool(first[problem]["correct"]),
                "extracted": first[problem]["extracted"],
                "reason": first[problem]["reason"],
            }
            for problem in problem_ids
            if problem in written
        },
    }


def _verdict_table(stored: StoredRun) -> tuple[tuple[str, ...], np.ndarray]:
    """Sorted problem ids and `[N, K]` verdicts.

    Raises:
        UserError: if the rows do not fill the table exactly once.
    """
    verdict_of = {key: bool(row["correct"]) for key, row in stored.verdicts.items()}
    problem_ids = tuple(sorted({problem for problem, _ in verdict_of}))
    answers = 1 + max((index for _, index in verdict_of), default=-1)
    keys = [(problem, index) for problem in problem_ids for index in range(answers)]
    if not keys or len(verdict_of) != len(keys) or any(key not in verdict_of for key in keys):
        raise UserError(
            f"{stored.folder} says that it is finished, but its {len(verdict_of)} verdicts do not fill "
            f"{len(problem_ids)} problems x {answers} answers once each: move the folder away to evaluate again."
        )
    return problem_ids, np.array([verdict_of[key] for key in keys]).reshape(len(problem_ids), answers)


def _last_of_each_step(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_step = {row["step"]: row for row in rows}
    return [by_step[step] for step in sorted(by_step)]


def _marked(records: list[RunRecord]) -> list[RunRecord]:
    """Compare each evaluation with the one that most runs share."""
    keys = {record.run.name: _comparable_key(record) for record in records if record.correct is not None}
    if len(set(keys.values())) < 2:
        return records
    common = Counter(keys.values()).most_common(1)[0][0]
    reference = next(record for record in records if keys.get(record.run.name) == common)
    return [
        record
        if keys.get(record.run.name, common) == common
        else replace(record, not_comparable=_what_differs(record, reference))
        for record in records
    ]


def _comparable_settings(record: RunRecord) -> dict[str, Any]:
    settings = record.manifest.get("settings", {})
    return {key: value for key, value in settings.items() if key not in OF_THE_MODEL}


def _comparable_key(record: RunRecord) -> str:
    return content_hash([_comparable_settings(record), record.problem_ids, record.correct.shape])


def _what_differs(record: RunRecord, reference: RunRecord) -> str:
    ours, theirs = _comparable_settings(record), _comparable_settings(reference)
    different = [key for key in sorted(ours.keys() | theirs) if ours.get(key) != theirs.get(key)]
    return f"evaluated with another {', '.join(different or ['set of problems'])} than most runs"
