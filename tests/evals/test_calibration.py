import json
from dataclasses import replace

import pytest

from trl_opd.errors import UserError
from trl_opd.evals.calibration import (
    Measured,
    Published,
    load_measured,
    load_published,
    measurement,
    published_for,
    record,
    status,
)
from trl_opd.evals.engines import Sampling
from trl_opd.evals.results import read_run
from trl_opd.evals.runner import evaluate
from trl_opd.evals.suites import load_suite, names

from .conftest import ScriptedEngine

ENTRY = {"benchmark": "sums", "model": "maker/small", "score": 61.6, "source": "a report", "protocol": "greedy"}
RUN = Measured(
    benchmark="sums",
    model="maker/small",
    weights="sha256 0",
    engine="scripted",
    accuracy=0.58,
    interval=(0.50, 0.66),
    problems=164,
    settings_sha256="0",
    date="2026-01-01",
    versions={},
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "published.yaml").write_text(json.dumps([ENTRY, ENTRY | {"model": "maker/large", "score": 70.7}]))
    return tmp_path


def test_a_benchmark_without_a_measurement_is_uncalibrated(folder, benchmark):
    assert status(benchmark, folder) == "uncalibrated"


def test_our_own_benchmarks_need_none(folder):
    assert status(load_suite("arithmetic")[0], folder) == "own"


def test_an_interval_that_holds_the_score_calibrates(folder, benchmark):
    record(RUN, folder)
    assert load_measured(folder) == [RUN]
    assert status(benchmark, folder) == "calibrated"


@pytest.mark.parametrize("interval", [(0.62, 0.70), (0.40, 0.61), None])
def test_an_interval_that_does_not_hold_it_does_not(folder, benchmark, interval):
    record(replace(RUN, interval=interval), folder)
    assert status(benchmark, folder) == "uncalibrated"


def test_every_measurement_must_hold(folder, benchmark):
    record(RUN, folder)
    record(replace(RUN, model="maker/large"), folder)  # 70.7 lies outside
    assert status(benchmark, folder) == "uncalibrated"


def test_a_later_measurement_takes_the_place_of_an_earlier_one(folder):
    record(replace(RUN, interval=None), folder)
    record(RUN, folder)
    assert load_measured(folder) == [RUN]


def test_unknown_models_and_benchmarks_are_refused(folder):
    assert [entry.score for entry in published_for("maker/small", folder=folder)] == [61.6]
    with pytest.raises(UserError, match="did you mean 'maker/small'"):
        published_for("maker/smal", folder=folder)
    with pytest.raises(UserError, match="on 'other'"):
        published_for("maker/small", ["other"], folder)


def test_the_packages_entries_name_benchmarks_and_measurements_of_the_package():
    published = load_published()
    assert {entry.benchmark for entry in published} <= set(names())
    assert all(isinstance(entry, Published) and 0 < entry.score <= 100 for entry in published)
    known = {(entry.benchmark, entry.model) for entry in published}
    assert {(entry.benchmark, entry.model) for entry in load_measured()} <= known


def test_a_finished_run_of_the_whole_benchmark_is_a_measurement(benchmark, sums_path, tmp_path):
    summary = evaluate(benchmark, ScriptedEngine(), tmp_path / "run", data_dir=sums_path.parent)
    found = measurement(read_run(tmp_path / "run"), benchmark, "maker/small", "sha256 1")
    assert (found.accuracy, found.interval) == (summary.metrics.accuracy, summary.metrics.problem_interval)
    assert (found.problems, found.settings_sha256) == (12, summary.settings_sha256)
    assert found.versions["numpy"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 5}, "5 of 12 problems"),
        ({"n": 2}, r"other settings \(n\)"),
        ({"sampling": Sampling(temperature=0.5, top_p=0.9, max_new_tokens=24)}, r"other settings \(sampling\)"),
    ],
)
def test_a_run_of_another_protocol_is_none(benchmark, sums_path, tmp_path, settings, message):
    evaluate(benchmark, ScriptedEngine(), tmp_path / "run", data_dir=sums_path.parent, **settings)
    with pytest.raises(UserError, match=message):
        measurement(read_run(tmp_path / "run"), benchmark, "maker/small", "sha256 1")
