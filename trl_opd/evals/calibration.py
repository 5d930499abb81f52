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
from trl_opd.evals.metrics import Interval
from trl_opd.evals.records import from_mapping, suggest
from trl_opd.evals.suites import suites_dir

CALIBRATED, UNCALIBRATED = "calibrated", "uncalibrated"


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


def status(benchmark: str, folder: Path | None = None) -> str:
    """ "calibrated" where every measurement of the benchmark holds its published score and there is one."""
    published = {(entry.benchmark, entry.model): entry for entry in load_published(folder)}
    measured = [entry for entry in load_measured(folder) if entry.benchmark == benchmark]
    held = [entry.holds(published[entry.benchmark, entry.model]) for entry in measured]
    return CALIBRATED if held and all(held) else UNCALIBRATED


def _measured(values: dict[str, Any]) -> Measured:
    interval = None if values["interval"] is None else tuple(values["interval"])
    return Measured(**{**values, "interval": interval})
