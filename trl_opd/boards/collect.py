"""From the folders of runs to records, and from records to what a report may use.

A run is taken from its folder where that is finished, or where no finished record of it is stored; elsewhere its record
stands, so that a board can be reported where `runs/` is not (a fresh clone, or after `make clean`). A record that was
made with other settings or other rows than the spec's is kept apart: it stays on the disk, is in no number, and is
told of. What is not there at all is reported as missing.
"""

import math
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trl_opd.boards import archive
from trl_opd.boards.archive import Evaluation, RunRecord
from trl_opd.boards.choices import BEST, LAST, Trial, chosen_rate, judged
from trl_opd.boards.files import content_hash, read_json, read_rows
from trl_opd.boards.runs import (
    EVAL,
    FINISHED,
    MISSING,
    TRAIN,
    TRIAL,
    UNFINISHED,
    WAITING,
    Run,
    Stage,
    choice_of,
    plan_runs,
    status_of,
)
from trl_opd.boards.spec import BASE_RUN, BoardSpec
from trl_opd.errors import UserError
from trl_opd.evals.records import file_sha256
from trl_opd.evals.results import StoredRun, read_run
from trl_opd.evals.store import generation_files, verdict_files

# What a run may differ in without its evaluation being another one: the model and the engine that ran it.
OF_THE_MODEL = ("engine",)
SESSION = ("versions", "machine", "device", "device_name", "batch_size", "gpus")


@dataclass(frozen=True)
class Collection:
    """The records of a board's runs, in the order of its plan.

    Args:
        records (`list[RunRecord]`):
            One for each planned run, missing ones too.
        not_comparable (`dict[str, dict[str, str]]`):
            Run name -> benchmark key -> why this evaluation is in no number.
        trials (`dict`):
            What the trials of each line chose.
        prompts (`dict[str, dict[str, str]]`):
            Benchmark key -> problem id -> prompt.
        apart (`list[str]`):
            A sentence for each record that is kept apart.
    """

    records: list[RunRecord]
    not_comparable: dict[str, dict[str, str]]
    trials: dict[str, Any]
    prompts: dict[str, dict[str, str]]
    apart: list[str]

    def counts(self, record: RunRecord, key: str) -> bool:
        """Whether the evaluation of a run on a benchmark is in the numbers."""
        return key not in self.not_comparable.get(record.name, {})


def publish(spec: BoardSpec) -> None:
    """Write the records of all runs that have a folder, and leave the others as they are.

    Raises:
        UserError: if nothing was ever run here, or a finished evaluation lacks verdicts or holds one twice.
    """
    runs = plan_runs(spec)
    if all(status_of(run).state in (MISSING, WAITING) for run in runs) and not archive.stored_names(spec):
        raise UserError(
            f"No run of {spec.name} was started here, so there is nothing to report: use `board run` first."
        )
    prompts: dict[str, dict[str, str]] = {}
    for run in runs:
        if _to_write(spec, run):
            archive.write_record(spec, _read(spec, run))
            prompts |= _prompts(spec, run, prompts)
    archive.write_prompts(spec, prompts)
    choices = {method.name: choice_of(spec, method) for method in spec.methods}
    archive.write_trials(spec, {name: asdict(choice) for name, choice in choices.items() if choice is not None})


def collect(spec: BoardSpec) -> Collection:
    """What the records hold of the spec's runs. Nothing is run, and nothing is read but the records.

    Raises:
        UserError: if a file of a record is missing or damaged.
    """
    runs = plan_runs(spec)
    records, apart = [], []
    for run in runs:
        stored = archive.read_record(spec, run.name)
        different = [] if stored is None else _differences(stored.identity, run.identity)
        if different:
            apart.append(
                f"The record of {run.name} was made with other settings ({', '.join(different)}): it is kept apart."
            )
        records.append(_absent(run) if stored is None or different else stored)
    unknown = sorted(set(archive.stored_names(spec)) - {run.name for run in runs})
    if unknown:
        apart.append(f"Records of runs that the spec does not name are kept apart: {', '.join(unknown)}.")
    records, told = _with_the_same_rows(records)
    records = [_as_asked(spec, record) for record in records]
    keys = [spec.benchmark_key(entry) for entry in spec.evaluation]
    trials, other_trials = _trials_of(spec, records)
    return Collection(
        records=records,
        not_comparable=_not_comparable(records, keys),
        trials=trials,
        prompts={key: archive.read_prompts(spec, key) for key in keys},
        apart=apart + told + other_trials,
    )


def _to_write(spec: BoardSpec, run: Run) -> bool:
    """Whether the folder of a run is taken: where it is finished, or where no finished record would lose by it."""
    state = status_of(run).state
    if state in (MISSING, WAITING):
        return False
    if state == FINISHED:
        return True
    stored = archive.read_record(spec, run.name)
    if stored is None or stored.status != FINISHED or _differences(stored.identity, run.identity):
        return True
    kept = _as_asked(spec, stored)  # a spec that asks for more than before makes it unfinished
    here = [stage for stage in run.stages if stage.is_finished()]
    evaluated = {(spec.benchmark_key(stage.entry), stage.checkpoint) for stage in here if stage.kind == EVAL}
    trained = all(stage in here for stage in run.stages if stage.kind == TRAIN)
    return kept.status != FINISHED and trained and evaluated >= {(one.key, one.checkpoint) for one in kept.evaluations}


def _differences(stored: dict[str, Any], planned: dict[str, Any]) -> list[str]:
    """The settings in which a record differs from the plan.

    The learning rate that trials chose is not known where their runs are not, and the hash of rows that are not at
    hand is not either: neither is held against the record.
    """
    planned = archive.scrubbed(planned)
    keys = sorted(stored.keys() | planned)
    different = [key for key in keys if not archive.same_setting(stored.get(key), planned.get(key))]
    if planned.get("learning_rate") is None and "learning_rate" in different:
        different.remove("learning_rate")
    if "rows" in different and (planned.get("rows") or {}).get("sha256", "") is None:
        different.remove("rows")
    return different


def _with_the_same_rows(records: list[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """Of trained runs, those that saw the rows that most of them saw; the others are missing, and told of."""
    hashes = {record.name: content_hash(record.identity["rows"]) for record in records if record.identity.get("rows")}
    of_stored = Counter(hashes[record.name] for record in records if record.files and record.name in hashes)
    if len(of_stored) < 2:
        return records, []
    common = of_stored.most_common(1)[0][0]
    other = [record.name for record in records if record.files and hashes.get(record.name, common) != common]
    kept = [_emptied(record) if record.name in other else record for record in records]
    return kept, [f"The record of {name} was made with other training rows: it is kept apart." for name in other]


def _as_asked(spec: BoardSpec, record: RunRecord) -> RunRecord:
    """The record with the evaluations that the spec asks for; one that lacks some is not finished."""
    asked = {spec.benchmark_key(entry): _entry(spec, entry) for entry in spec.evaluation}
    found = [one for one in record.evaluations if asked.get(one.key) == one.entry]
    wanted = {(key, record.picked_by(spec.checkpoint.rule)) for key in asked}
    wanted |= {(spec.benchmark_key(spec.primary), record.picked_by(rule)) for rule in (LAST, BEST)}
    made = {(one.key, one.checkpoint) for one in found}
    if record.status == FINISHED and record.role != TRIAL and not wanted <= made:
        return replace(record, evaluations=found, status=UNFINISHED, stage=EVAL)
    return replace(record, evaluations=found)


def _trials_of(spec: BoardSpec, records: Sequence[RunRecord]) -> tuple[dict[str, Any], list[str]]:
    """What the trials of each line chose, where the records of these trials give the same; and what is kept apart."""
    kept, apart = {}, []
    for name, choice in archive.read_trials(spec).items():
        trials = [one for one in records if one.role == TRIAL and one.line == name]
        again = [_judged(spec, one) for one in trials]
        told = [(one["run"], one["learning_rate"], one["validation"]) for one in choice["trials"]]
        if [(one.run, one.learning_rate, one.validation) for one in again] == told and (
            choice["learning_rate"] == chosen_rate(again)
        ):
            kept[name] = choice
        else:
            apart.append(f"What the trials of {name} chose is not what their records give: it is kept apart.")
    return kept, apart


def _judged(spec: BoardSpec, record: RunRecord) -> Trial:
    validation = record.training.get("validation", []) if record.status == FINISHED else []
    return Trial(record.name, record.learning_rate, judged(validation, spec.checkpoint.rule), record.status)


def _entry(spec: BoardSpec, entry: Any) -> dict[str, Any]:
    return entry.settings() | spec.drawing


def _emptied(record: RunRecord) -> RunRecord:
    return replace(record, status=MISSING, stage=None, error=None, training={}, log=[], evaluations=[], files={})


def _absent(run: Run) -> RunRecord:
    """What is planned and has no record; its commands are told by `board plan`."""
    return replace(_outline(run, MISSING, None, None), commands=[])


def _outline(run: Run, state: str, stage: str | None, error: str | None) -> RunRecord:
    return RunRecord(
        name=run.name,
        role=run.role,
        line=run.method.name if run.method else BASE_RUN,
        method=run.method.method if run.method else None,
        seed=run.seed,
        learning_rate=run.learning_rate,
        status=state,
        identity=run.identity,
        stage=stage,
        error=error,
        commands=[stage.command for stage in run.stages],
        overrides=run.method.overrides if run.method else {},
    )


def _read(spec: BoardSpec, run: Run) -> RunRecord:
    """A run from its folder."""
    status = status_of(run)
    attempts = (read_json(run.folder / "state.json") or {}).get("attempts")
    return replace(
        _outline(run, status.state, status.stage, status.error),
        attempts=None if attempts is None else len(attempts),
        training=finite(read_json(run.train_folder / "run.json") or {}),
        log=finite(_last_of_each_step(read_rows(run.train_folder / "log.jsonl"))),
        evaluations=[
            _read_evaluation(spec, stage) for stage in run.stages if stage.kind == EVAL and stage.is_finished()
        ],
    )


def _read_evaluation(spec: BoardSpec, stage: Stage) -> Evaluation:
    stored = read_run(stage.folder)
    session = stored.manifest.get("sessions", [{}])[-1]
    scoring = stored.manifest.get("scoring", "")
    files = [*generation_files(stage.folder), *verdict_files(stage.folder, scoring)]
    return Evaluation(
        key=spec.benchmark_key(stage.entry),
        checkpoint=stage.checkpoint,
        entry=_entry(spec, stage.entry),
        settings=stored.manifest["settings"],
        session={name: session[name] for name in SESSION if name in session},
        sources={str(path.relative_to(stage.folder)): file_sha256(path) for path in files},
        problems=_problems(stored),
    )


def _problems(stored: StoredRun) -> list[dict[str, Any]]:
    """One entry for each problem, sorted.

    Raises:
        UserError: if the verdicts do not fill a table of problems x answers exactly once.
    """
    ids = sorted({problem for problem, _ in stored.verdicts})
    answers = 1 + max((index for _, index in stored.verdicts), default=-1)
    keys = {(problem, index) for problem in ids for index in range(answers)}
    written = {(row["problem_id"], row["index"]): row for row in stored.generations()}
    complete = stored.verdicts.keys() == keys <= written.keys() and len(ids) == stored.summary["metrics"]["problems"]
    if not keys or not complete:
        raise UserError(
            f"{stored.folder} says that it is finished, but its {len(stored.verdicts)} verdicts do not fill "
            f"{len(ids)} problems x {answers} answers once each: move the folder away to evaluate again."
        )
    return [
        {
            "id": problem,
            **{
                name: [stored.verdicts[problem, index][name] for index in range(answers)]
                for name in ("correct", "extracted", "reason")
            },
            "tokens": [written[problem, index]["tokens"] for index in range(answers)],
            "truncated": [_truncated(written[problem, index]["finish_reason"]) for index in range(answers)],
            "completion": written[problem, 0]["completion"],
        }
        for problem in ids
    ]


def _truncated(finish_reason: str | None) -> bool | None:
    return None if finish_reason is None else finish_reason == "length"


def _prompts(spec: BoardSpec, run: Run, known: Container[str]) -> dict[str, dict[str, str]]:
    """The prompts of a run's evaluations, but for those that an earlier run has told: all read the same."""
    stages = [stage for stage in run.stages if stage.kind == EVAL and stage.is_finished()]
    return {
        spec.benchmark_key(stage.entry): {
            row["problem_id"]: row["prompt"] for row in read_run(stage.folder).generations() if row["index"] == 0
        }
        for stage in stages
        if spec.benchmark_key(stage.entry) not in known
    }


def _last_of_each_step(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps in order; where a resumed run logged a step again, the later row counts."""
    by_step = {row["step"]: row for row in rows}
    return [by_step[step] for step in sorted(by_step)]


def finite(value: Any) -> Any:
    """The value with None for what is not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _not_comparable(records: Sequence[RunRecord], keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """Compare each evaluation with the one that most runs share."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        made = [(record.name, one) for record in records for one in record.evaluations if one.key == key]
        counts = Counter(_comparable_key(one) for _, one in made)
        if len(counts) < 2:
            continue
        common = counts.most_common(1)[0][0]
        reference = next(one for _, one in made if _comparable_key(one) == common)
        for name, one in made:
            if _comparable_key(one) != common:
                found.setdefault(name, {})[key] = _what_differs(one, reference)
    return found


def _comparable_settings(one: Evaluation) -> dict[str, Any]:
    return {key: value for key, value in one.settings.items() if key not in OF_THE_MODEL}


def _comparable_key(one: Evaluation) -> str:
    return content_hash([_comparable_settings(one), one.problem_ids, one.correct.shape])


def _what_differs(one: Evaluation, reference: Evaluation) -> str:
    ours, theirs = _comparable_settings(one), _comparable_settings(reference)
    different = [key for key in sorted(ours.keys() | theirs) if ours.get(key) != theirs.get(key)]
    return f"evaluated with another {', '.join(different or ['set of problems'])} than most runs"
