"""Jobs on a real Ray cluster of this machine; it takes some ten seconds to start."""

import logging

import pytest

from tests.boards.outliving import killed_and_gone_on_with, quiet, stopped_by_hand
from tests.boards.test_launch import job_in, wait_for
from tests.boards.test_runner import GRPO, wait_until
from trl_opd.boards.attempts import attempts_of
from trl_opd.boards.launch import ClusterLost, LaunchSpec, make_executor
from trl_opd.boards.launch import ray as launch_ray
from trl_opd.boards.launch.process import LOST, TIMED_OUT
from trl_opd.boards.runner import run_board
from trl_opd.boards.runs import FINISHED, plan_runs, status_of
from trl_opd.boards.spec import load_spec
from trl_opd.errors import UserError

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.slow

RAY = {"executor": "ray", "workers": 2}


@pytest.fixture(scope="module")
def cluster():
    """A cluster that outlives the boards of the tests, as one of many machines does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        context = ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
            object_store_memory=80 * 2**20,
        )  # fmt: skip
        patch.setenv("RAY_ADDRESS", context.address_info["address"])
        yield
        ray.shutdown()


def test_two_runs_go_through_a_cluster_at_the_same_time(cluster, write_spec, launcher):
    spec = load_spec(write_spec(methods=[GRPO], seeds=[0], launch=RAY, environment={"FAKE_SECONDS": "0.02"}))
    assert run_board(spec, launcher, quiet()) == 0
    assert {run.name for run in plan_runs(spec) if status_of(run).state == FINISHED} == {"base", "grpo-seed0"}
    attempts = attempts_of(spec.runs_folder / "grpo-seed0")
    assert [(one["stage"], one["executor"], one["status"]) for one in attempts] == [
        ("train", "ray", "finished"),
        ("eval", "ray", "finished"),
    ]
    assert attempts[0]["job"] == f"{spec.runs_folder / 'grpo-seed0'}#1"


def test_failures_and_time_limits_are_those_of_the_subprocess(cluster, tmp_path):
    executor = make_executor(LaunchSpec("ray", workers=2))
    failing = executor.start(job_in(tmp_path / "a", "raise SystemExit(7)"))
    hanging = executor.start(job_in(tmp_path / "b", "import time; time.sleep(60)", timeout_seconds=0.6))
    assert wait_for(failing) == 7
    assert wait_for(hanging) == TIMED_OUT
    assert (tmp_path / "b" / "train.log").read_text().endswith("Stopped at the time limit of 0.01 minutes.\n")


def test_job_that_the_cluster_loses_is_a_failure_that_says_so(cluster, monkeypatch, tmp_path):
    monkeypatch.setattr(launch_ray, "DISK_PATIENCE_SECONDS", 0.0)
    executor = make_executor(LaunchSpec("ray"))
    job = job_in(tmp_path / "a", "")
    (job.folder / "ray").mkdir()
    (job.folder / "ray" / "attempt-1.json.part").symlink_to("/dev/full")
    assert wait_for(executor.start(job)) == LOST
    said = job.log.read_text().splitlines()[-1]
    assert said == "Ray lost the job: OSError: [Errno 28] No space left on device"
    wait_until(lambda: ray.available_resources().get("CPU") == 2)


def test_cluster_without_a_head_is_told_apart_from_a_lost_job(tmp_path, monkeypatch):
    def gone(*arguments, **options):
        raise ray.exceptions.RaySystemError("the head is gone")

    monkeypatch.setattr(ray, "wait", gone)
    with pytest.raises(ClusterLost, match="the head is gone"):
        launch_ray.RayHandle(ray, job_in(tmp_path / "a", ""), None, object()).poll()


def test_cluster_that_is_not_there_is_a_sentence(monkeypatch):
    def nowhere(**options):
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", nowhere)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match=r"no Ray cluster could be reached or started on 10\.0\.0\.1:6379: nobody"):
        make_executor(LaunchSpec("ray"))


def test_jobs_outlive_a_queue_that_is_killed_and_are_found_again(cluster, write_spec, launcher):
    spec_file = write_spec(methods=[GRPO], seeds=[0], launch=RAY, environment={"FAKE_SECONDS": "0.3"})
    assert "grpo-seed0: train found again, ray actor" in killed_and_gone_on_with(spec_file, launcher)


def test_interrupt_ends_the_jobs(cluster, write_spec, launcher):
    stopped_by_hand(write_spec(methods=[GRPO], seeds=[0], launch=RAY, environment={"FAKE_SECONDS": "1"}), launcher)


@pytest.mark.parametrize(
    ("launch", "sentence"),
    [
        (LaunchSpec("ray", gpus_per_run=3), "no node of the Ray cluster has 1 CPU and 3 GPU"),
        (
            LaunchSpec("ray", ray={"num_cpu": 2}),
            "Ray refuses the board's `ray` options: Invalid option keyword num_cpu",
        ),
        (LaunchSpec("ray", ray={"lifetime": "short"}), "`lifetime` is set by the board"),
    ],
)
def test_what_the_cluster_cannot_give_is_refused(cluster, launch, sentence):
    with pytest.raises(UserError, match=sentence):
        make_executor(launch)
