"""From the records of a board to `results.json`: every number of the page, the table and the exports."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from trl_opd.boards import archive, power, stats
from trl_opd.boards.archive import Evaluation, RunRecord
from trl_opd.boards.choices import BEST, LAST
from trl_opd.boards.collect import Collection
from trl_opd.boards.contrast import LEVEL, Arm
from trl_opd.boards.files import content_hash
from trl_opd.boards.runs import BASE, FINAL, FINISHED, TRIAL
from trl_opd.boards.schema import (
    FORMAT,
    Answer,
    Benchmark,
    Checkpoint,
    CheckpointScore,
    Design,
    Difference,
    Problems,
    Results,
    Row,
    RunResult,
    Score,
    Trial,
)
from trl_opd.boards.spec import BASE_RUN, BoardSpec, EvaluationSpec
from trl_opd.boards.training import curve_of, mean, mean_training, training_of, training_warnings
from trl_opd.evals.calibration import UNCALIBRATED, state_of
from trl_opd.evals.metrics import Metrics, compute
from trl_opd.state import best_step

#: Answers of a benchmark are laid out problem by problem until their text is this long; all are in the records.
ANSWER_CHARACTERS = 600_000
#: Shares of evaluation answers above which a row warns.
MOST_TRUNCATED = 0.1
MOST_WITHOUT_ANSWER = 0.1

Lines = Mapping[str, list[RunRecord]]


class ResultsBuilder:
    """One board's records, and what is computed of them once.

    Args:
        spec (`BoardSpec`), found (`Collection`):
            The board, and the records of its runs.
    """

    def __init__(self, spec: BoardSpec, found: Collection):
        self.spec = spec
        self.found = found
        self.entries = {spec.benchmark_key(entry): entry for entry in spec.evaluation}
        self.primary = spec.benchmark_key(spec.primary)
        final = [record for record in found.records if record.role in (BASE, FINAL)]
        names = [BASE_RUN, *(method.name for method in spec.methods)]
        self.lines: Lines = {name: [record for record in final if record.line == name] for name in names}
        self.metrics: dict[int, Metrics] = {}
        self.arms = {key: self._arms(key) for key in self.entries}
        self.differences = {key: self._differences(arms, spec.baseline) for key, arms in self.arms.items()}
        self.to_base = {key: self._differences(arms, BASE_RUN) for key, arms in self.arms.items()}

    def build(self, made: str | None = None) -> Results:
        """Everything, as JSON values; `made` is the time of the report, now by default."""
        spec = self.spec
        rows = [self._row(name) for name in self.lines]
        suite = [self._benchmark(key, entry) for key, entry in self.entries.items()]
        return {
            "format": FORMAT,
            "name": spec.name,
            "title": spec.title,
            "description": spec.description,
            "notes": spec.notes,
            "base_model": self._base_model(),
            "data": self._data(),
            "budget": asdict(spec.budget),
            "checkpoint_rule": spec.checkpoint.rule,
            "baseline": spec.baseline,
            "seeds": spec.seeds,
            "level": LEVEL,
            "suite": suite,
            "primary": self.primary,
            "design": self._design(),
            "made": made or datetime.now(UTC).isoformat(timespec="seconds"),
            "provenance": self._provenance(),
            "rows": rows,
            "runs": [self._run(record) for record in self.found.records],
            "curves": {
                name: [curve_of(record) for record in line if record.log]
                for name, line in self.lines.items()
                if name != BASE_RUN
            },
            "problems": {key: self._problems(key) for key in self.entries if self.arms[key]},
            "files": archive.shared_hashes(self.spec),
            "warnings": self._warnings(suite),
        }

    def published(self, record: RunRecord, key: str) -> Evaluation | None:
        """The evaluation of the checkpoint that the board's rule picks, where it is in the numbers."""
        return self._picked(record, key) if self.found.counts(record, key) else None

    def evaluations(self, name: str, key: str) -> list[tuple[RunRecord, Evaluation]]:
        """The runs of a line that are in the numbers of a benchmark."""
        pairs = [(record, self.published(record, key)) for record in self.lines[name]]
        return [(record, one) for record, one in pairs if one is not None]

    def metrics_of(self, one: Evaluation) -> Metrics:
        if id(one) not in self.metrics:
            self.metrics[id(one)] = metrics_of(one)
        return self.metrics[id(one)]

    def _arms(self, key: str) -> dict[str, Arm]:
        made = {name: [one.correct for _, one in self.evaluations(name, key)] for name in self.lines}
        return {name: Arm(np.stack(one), trained=name != BASE_RUN) for name, one in made.items() if one}

    def _differences(self, arms: Mapping[str, Arm], to: str) -> dict[str, stats.Difference]:
        """Of each line to another; Holm's correction is over the trained lines that are compared with the baseline."""
        if to not in arms:
            return {}
        found = {name: stats.difference(arm, arms[to]) for name, arm in arms.items() if name != to}
        if to == BASE_RUN:
            return found
        return found | stats.corrected({name: one for name, one in found.items() if name != BASE_RUN})

    def _row(self, name: str) -> Row:
        line = self.lines[name]
        counted = [record for record, _ in self.evaluations(name, self.primary)]
        method = next((method for method in self.spec.methods if method.name == name), None)
        choice = self.found.trials.get(name) or {}
        scores = {key: self._score(name, key) for key in self.entries if name in self.arms[key]}
        return {
            "name": name,
            "label": (method and method.label) or name,
            "method": method and method.method,
            "kind": method.kind if method else "base",
            "is_baseline": name == self.spec.baseline,
            "planned": len(line),
            "finished": len(counted),
            "runs": [record.name for record in line],
            "scores": scores,
            "training": mean_training(counted if method else []),
            "checkpoint": self._checkpoint(counted) if method and counted else None,
            "trials": self._trials(name, choice),
            "learning_rate": choice.get("learning_rate"),
            "warnings": self._row_warnings(counted, scores, choice) if counted else [],
        }

    def _score(self, name: str, key: str) -> Score:
        metrics = [self.metrics_of(one) for _, one in self.evaluations(name, key)]
        n = min(one.n for one in metrics)
        return {
            "accuracy": asdict(stats.accuracy(self.arms[key][name])),
            "difference": _plain(self.differences[key].get(name)),
            "to_base": _plain(self.to_base[key].get(name)),
            "majority": {"k": n, "value": mean([one.majority_at_k[str(n)] for one in metrics])} if n > 1 else None,
            "pass_at_k": {k: mean([one.pass_at_k[k] for one in metrics]) for k in metrics[0].pass_at_k},
            "truncated": mean([one.truncated_rate for one in metrics]),
            "no_answer": mean([one.no_answer_rate for one in metrics]),
            "mean_tokens": mean([one.mean_tokens for one in metrics]),
        }

    def _checkpoint(self, counted: list[RunRecord]) -> Checkpoint:
        steps = {record.name: int(record.training["steps"]) for record in counted if record.training.get("steps")}
        best = {record.name: best_step(record.training.get("validation", [])) for record in counted}
        last = self._checkpoint_score(counted, LAST, steps)
        known = self.spec.validation is not None and None not in best.values()
        return {
            "rule": self.spec.checkpoint.rule,
            "last": last,
            "best": self._checkpoint_score(counted, BEST, best) if known else None,
        }

    def _checkpoint_score(self, counted: list[RunRecord], which: str, steps: dict[str, int]) -> CheckpointScore | None:
        made = [record.evaluation(self.primary, record.picked_by(which)) for record in counted]
        value = mean([None if one is None else float(one.correct.mean()) for one in made])
        return None if value is None else {"mean": value, "steps": steps}

    def _trials(self, name: str, choice: Mapping[str, Any]) -> list[Trial]:
        chosen = choice.get("learning_rate")
        return [trial | {"chosen": trial["learning_rate"] == chosen} for trial in choice.get("trials", [])]

    def _row_warnings(
        self, counted: list[RunRecord], scores: Mapping[str, Score], choice: Mapping[str, Any]
    ) -> list[str]:
        return training_warnings(counted) + self._score_warnings(scores) + _edge_of_the_trials(choice)

    def _score_warnings(self, scores: Mapping[str, Score]) -> list[str]:
        told = []
        for key, score in scores.items():
            if (share := score["truncated"]) is not None and share > MOST_TRUNCATED:
                told.append(f"{share:.0%} of the answers to {key} were cut at the token limit.")
            if (share := score["no_answer"]) is not None and share > MOST_WITHOUT_ANSWER:
                told.append(f"In {share:.0%} of the answers to {key} no answer was found.")
        return told

    def _benchmark(self, key: str, entry: EvaluationSpec) -> Benchmark:
        one = next((one for name in self.lines for _, one in self.evaluations(name, key)), None)
        problems, answers = one.correct.shape if one else (None, None)
        return {
            "key": key,
            "benchmark": entry.benchmark,
            "purpose": entry.purpose,
            "n": answers or entry.n,
            "limit": entry.limit,
            "seed": entry.seed,
            "max_new_tokens": entry.max_new_tokens,
            "calibration": state_of(entry.benchmark),
            "problems": problems,
            "answers": answers,
            "ks": [int(k) for k in self.metrics_of(one).pass_at_k] if one else [],
        }

    def _design(self) -> Design:
        """What the planned seeds can find, with the variances of the board's own runs where they tell."""
        arms = self.arms[self.primary]
        trained = [arm for name, arm in arms.items() if name not in (BASE_RUN, self.spec.baseline)]
        found = power.estimate_components(trained, arms[self.spec.baseline]) if self.spec.baseline in arms else None
        components = found or power.TYPICAL
        shape = next(iter(arms.values())).correct.shape if arms else (0, None, None)
        design = (len(self.spec.seeds), shape[1], shape[2])
        comparisons = max(len(self.spec.methods) - 1, 1)
        known = arms and design[0] > 1
        return {
            "seeds": design[0],
            "problems": design[1],
            "answers": design[2],
            "smallest_detectable": power.smallest_detectable(components, *design) if known else None,
            "comparisons": comparisons,
            "smallest_detectable_holm": power.smallest_detectable(components, *design, comparisons) if known else None,
            "assumed": asdict(components),
            "assumed_from": "the board's own finished runs" if found else "typical values, not measured here",
        }

    def _run(self, record: RunRecord) -> RunResult:
        made = {key: one for key in self.entries if (one := self._picked(record, key)) is not None}
        scores = {key: float(one.correct.mean()) for key, one in made.items()}
        reasons = self.found.not_comparable.get(record.name, {})
        return {
            "name": record.name,
            "role": record.role,
            "line": record.line,
            "seed": record.seed,
            "learning_rate": record.learning_rate,
            "status": record.status,
            "stage": record.stage if record.status != FINISHED else None,
            "error": record.error,
            "attempts": record.attempts,
            "not_comparable": "; ".join(f"{key}: {reason}" for key, reason in reasons.items()) or None,
            "accuracy": scores.get(self.primary),
            "scores": scores,
            "commands": record.commands,
            "settings_hash": content_hash(record.identity),
            "config": record.training.get("config", {}),
            "overrides": record.overrides,
            "versions": record.training.get("versions", {}),
            "hardware": record.training.get("hardware"),
            "training": training_of(record),
            "evaluation": {key: one.settings for key, one in made.items()},
            "files": record.files,
        }

    def _picked(self, record: RunRecord, key: str) -> Evaluation | None:
        return record.evaluation(key, record.picked_by(self.spec.checkpoint.rule))

    def _base_model(self) -> str:
        """As the run of the base has it, wherever the model lies by now."""
        stored = next((record for record in self.lines[BASE_RUN] if record.files), None)
        return stored.identity["base_model"] if stored else archive.scrubbed(self.spec.base_model)

    def _data(self) -> dict[str, Any]:
        """The spec's rows; what they are is told by the runs that saw them, wherever the file lies by now."""
        seen = [record.identity["rows"] for record in self.found.records if record.files and "rows" in record.identity]
        told = {"dataset_name": seen[0]["name"], "rows": seen[0]} if seen else {}
        return archive.scrubbed(self.spec.data) | told

    def _provenance(self) -> dict[str, Any]:
        training = [record.training for record in self.found.records]
        versions: dict[str, set[str]] = {}
        for one in training:
            for name, version in one.get("versions", {}).items():
                versions.setdefault(name, set()).add(version)
        return {
            "commit": sorted({one["commit"] for one in training if one.get("commit")}),
            "versions": {name: sorted(found) for name, found in sorted(versions.items())},
            "hardware": sorted({one["hardware"] for one in training if one.get("hardware")}),
        }

    def _problems(self, key: str) -> Problems:
        shown = {name: self.evaluations(name, key)[0] for name in self.arms[key]}
        by_id = {name: {problem["id"]: problem for problem in one.problems} for name, (_, one) in shown.items()}
        ids = next(iter(shown.values()))[1].problem_ids
        answers: dict[str, dict[str, Answer]] = {}
        length = 0
        for problem in sorted(ids, key=lambda problem: (not _disagree(by_id, problem), problem)):
            answers[problem] = {name: _answer(record.name, by_id[name][problem]) for name, (record, _) in shown.items()}
            length += len(json.dumps(answers[problem]))
            if length > ANSWER_CHARACTERS:
                break
        prompts = self.found.prompts.get(key, {})
        return {
            "ids": ids,
            "questions": {problem: prompts[problem] for problem in ids if problem in answers and problem in prompts},
            "share": {name: arm.by_problem.tolist() for name, arm in self.arms[key].items()},
            "answers": {problem: answers[problem] for problem in ids if problem in answers},
        }

    def _warnings(self, suite: Sequence[Benchmark]) -> list[str]:
        told = [
            f"{entry['benchmark']} is uncalibrated: no published score was reproduced with this harness."
            for entry in {entry["benchmark"]: entry for entry in suite}.values()
            if entry["calibration"] == UNCALIBRATED
        ]
        final = [record for line in self.lines.values() for record in line]
        unfinished = [record for record in final if record.status != FINISHED]
        partial = [record for record in unfinished if any(self.published(record, key) for key in self.entries)]
        if absent := len(unfinished) - len(partial):
            told.append(f"{absent} of {len(final)} runs are not in the numbers: they are not finished.")
        if partial:
            told.append(f"{len(partial)} of {len(final)} runs lack an evaluation: their others are in the numbers.")
        failed = sum(record.role == TRIAL and record.status == "failed" for record in self.found.records)
        if failed:
            told.append(f"{failed} learning-rate trial(s) failed: a rate that does not train was not chosen.")
        if len(self.spec.seeds) < 2:
            told.append("One training seed: intervals and verdicts are about these runs, not about the methods.")
        if len({record.training.get("hardware") for record in final if record.training}) > 1:
            told.append("The runs were made on different hardware: compare tokens and steps, not seconds.")
        return told + self.found.apart


def build_results(spec: BoardSpec, found: Collection, made: str | None = None) -> Results:
    """`results.json` of a board, from its records alone; `made` is the time of the report, now by default."""
    return ResultsBuilder(spec, found).build(made)


def metrics_of(one: Evaluation) -> Metrics:
    """The harness's metrics, computed again from the published verdicts."""
    truncated, tokens = one.column("truncated"), one.column("tokens")
    return compute(
        correct_PN=one.column("correct"),
        answers=one.column("extracted"),
        reasons=one.column("reason"),
        truncated_PN=None if any(None in row for row in truncated) else truncated,
        tokens_PN=None if any(None in row for row in tokens) else tokens,
        most_votes_only=True,
    )


def _edge_of_the_trials(choice: Mapping[str, Any]) -> list[str]:
    """Whether trials chose the smallest or the largest rate, so that a better one may lie outside."""
    rates = sorted(trial["learning_rate"] for trial in choice.get("trials", []))
    chosen = choice.get("learning_rate")
    if len(rates) < 2 or chosen not in (rates[0], rates[-1]):
        return []
    end = "largest" if chosen == rates[-1] else "smallest"
    return [f"The chosen learning rate, {chosen:g}, is the {end} that was tried: a better one may lie beyond it."]


def _plain(one: stats.Difference | None) -> Difference | None:
    if one is None:
        return None
    return asdict(one) | {"verdict": one.verdict, "distinguishable": one.distinguishable}


def _disagree(by_id: Mapping[str, Mapping[str, dict[str, Any]]], problem: str) -> bool:
    return len({problems[problem]["correct"][0] for problems in by_id.values()}) > 1


def _answer(run: str, problem: Mapping[str, Any]) -> Answer:
    return {
        "run": run,
        "completion": problem["completion"],
        "extracted": problem["extracted"][0],
        "reason": problem["reason"][0],
        "correct": bool(problem["correct"][0]),
    }
