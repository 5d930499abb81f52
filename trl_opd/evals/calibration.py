"""Does the harness reproduce what others published? A benchmark is calibrated when it does for a known model.

`published.yaml` names scores and their sources. A measurement is one finished run of ours on that model under that
protocol; it is kept beside it as JSON. The published score must lie in the run's 95 % interval over problems: two
honest harnesses differ in prompt, precision and library versions, and the interval says how much of a difference that
many problems can show at all.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark
from trl_opd.evals.metrics import Interval
from trl_opd.evals.records import from_mapping, suggest
from trl_opd.evals.results import StoredRun
from trl_opd.evals.suites import load_suite, names, suites_dir

CALIBRATED, UNCALIBRATED, OWN = "calibrated", "uncalibrated", "own"
"""The three states of a benchmark; nobody publishes scores on our own."""

LM_EVAL = "lm-eval/"
"""What the name of a run of a task of lm-eval begins with."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A score that somebody published.

    Attributes:
        benchmark (`str`): Name of the benchmark.
        model (`str`): The model's id on the Hub.
        score (`float`): In percent.
        source (`str`): Where it is published.
        protocol (`str`): How it was measured, in words.
    """

    benchmark: str
    model: str
    score: float
    source: str
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run of ours gave for a published score.

    Attributes:
        benchmark (`str`): Name of the benchmark.
        model (`str`): The published model that was measured.
        weights (`str`): Which weights were loaded: a hash, and how they differ from the published ones if they do.
        engine (`str`): What drew the completions.
        accuracy (`float`): In [0, 1].
        interval (`tuple[float, float]` or `None`): 95 % interval over problems, in [0, 1].
        problems (`int`): Number of problems.
        settings_sha256 (`str`): Hash of the run's settings.
        date (`str`): Day of the run.
        versions (`dict[str, str]`): Versions of the libraries that matter.
    """

    benchmark: str
    model: str
    weights: str
    engine: str
    accuracy: float
    interval: Interval | None
    problems: int
    settings_sha256: str
    date: str
    versions: dict[str, str]

    def holds(self, published: Published) -> bool:
        """Whether the interval holds the published score."""
        return self.interval is not None and self.interval[0] <= published.score / 100 <= self.interval[1]


def calibration_dir() -> Path:
    """The folder of the published and the measured scores."""
    return suites_dir() / "calibration"


def load_published(folder: Path | None = None) -> list[Published]:
    """All published scores that are known.

    Raises:
        UserError: The file holds something else.
    """
    path = (folder or calibration_dir()) / "published.yaml"
    return [
        from_mapping(Published, values, f"{path.name}: entry {number}")
        for number, values in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")), start=1)
    ]


def published_for(model: str, benchmarks: Iterable[str] = (), folder: Path | None = None) -> list[Published]:
    """The published scores of a model, on the named benchmarks or on all.

    Raises:
        UserError: There is none.
    """
    known = load_published(folder)
    of_model = [entry for entry in known if entry.model == model]
    if not of_model:
        raise UserError(
            f"No published score is known of {model!r}{suggest(model, {entry.model for entry in known})}; "
            "published.yaml in evals/calibration is where to add one."
        )
    wanted = set(benchmarks) or {entry.benchmark for entry in of_model}
    missing = wanted - {entry.benchmark for entry in of_model}
    if missing:
        raise UserError(f"No published score of {model} on {min(missing)!r} is known: add it to published.yaml.")
    return [entry for entry in of_model if entry.benchmark in wanted]


def record(measured: Measured, folder: Path | None = None) -> Path:
    """Keep a measurement, in place of an earlier one of the same model."""
    path = (folder or calibration_dir()) / f"{measured.benchmark}--{measured.model.replace('/', '--')}.json"
    path.write_text(json.dumps(asdict(measured), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path


def load_measured(folder: Path | None = None) -> list[Measured]:
    """All measurements that are kept."""
    files = sorted((folder or calibration_dir()).glob("*.json"))
    return [_measured(json.loads(path.read_text(encoding="utf-8"))) for path in files]


def status(benchmark: Benchmark, folder: Path | None = None) -> str:
    """The state of a benchmark: calibrated where it has measurements and each holds its published score."""
    if benchmark.source.builtin is not None:
        return OWN
    published = {(entry.benchmark, entry.model): entry for entry in load_published(folder)}
    measured = [entry for entry in load_measured(folder) if entry.benchmark == benchmark.name]
    held = [entry.holds(published[entry.benchmark, entry.model]) for entry in measured]
    return CALIBRATED if held and all(held) else UNCALIBRATED


def state_of(name: str) -> str | None:
    """The state of a benchmark by the name that a run has; None for a task of lm-eval."""
    if name in names():
        return status(load_suite(name)[0])
    return None if name.startswith(LM_EVAL) else UNCALIBRATED


def measurement(run: StoredRun, benchmark: Benchmark, model: str, weights: str) -> Measured:
    """What a finished run gives for a published score.

    Args:
        run (`StoredRun`): The run.
        benchmark (`Benchmark`): The benchmark that it ran.
        model (`str`): The published model.
        weights (`str`): Which weights were loaded, and how they differ from the published ones.

    Raises:
        UserError: The run is not finished, or not of the whole benchmark under its protocol.
    """
    if run.summary is None:
        raise UserError(f"{run.folder} is not finished: the same command of `trl-opd eval` continues it.")
    settings, metrics = run.manifest["settings"], run.summary["metrics"]
    protocol = {"n": benchmark.protocol.n, "sampling": asdict(benchmark.protocol.sampling), "comparable": True}
    other = [name for name, value in protocol.items() if settings.get(name, True) != value]
    excluded = len(settings.get("errata", {}).get("excluded", []))
    if other or metrics["problems"] != benchmark.rows - excluded:
        what = (
            f"other settings ({', '.join(other)})" if other else f"{metrics['problems']} of {benchmark.rows} problems"
        )
        raise UserError(
            f"{run.folder} has {what}: a benchmark is calibrated by a run of all its problems under its protocol."
        )
    session = run.manifest["sessions"][-1]
    return Measured(
        benchmark=benchmark.name,
        model=model,
        weights=weights,
        engine=settings["engine"]["engine"],
        accuracy=metrics["accuracy"],
        interval=None if metrics["problem_interval"] is None else tuple(metrics["problem_interval"]),
        problems=metrics["problems"],
        settings_sha256=run.summary["settings_sha256"],
        date=run.manifest["finished"][:10],
        versions={name: value for name, value in session["versions"].items() if value is not None},
    )


def _measured(values: dict[str, Any]) -> Measured:
    interval = None if values["interval"] is None else tuple(values["interval"])
    return Measured(**{**values, "interval": interval})
