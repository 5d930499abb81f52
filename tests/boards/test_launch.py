"""Launch settings, the local executor, and one job as a subprocess."""

import dataclasses
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.boards.test_runner import alive, wait_until
from trl_opd.boards.launch import FolderBusy, Job, LaunchSpec, local, make_executor, process
from trl_opd.errors import UserError


def job_in(folder: Path, script: str, **changes) -> Job:
    """A job that runs a Python script."""
    folder.mkdir(exist_ok=True)
    settings = {"name": "board/run/train", "attempt": 1, "command": "trl-opd train", "directory": folder}
    settings |= {"argv": (sys.executable, "-S", "-c", script), "folder": folder, "log": folder / "train.log"}
    return Job(**settings | changes)


def wait_for(handle) -> int:
    deadline = time.monotonic() + 30
    while (status := handle.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return status


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"executor": "slrum"}, "'slrum' is none of local, slurm, ray"),
        ({"workers": 0}, "nothing would ever run"),
        ({"retries": -1}, "`retries` is -1"),
        ({"gpus_per_run": -1}, "`gpus_per_run` is -1"),
        ({"timeout_minutes": 0}, "`timeout_minutes` is 0"),
        ({"executor": "slurm"}, "set `timeout_minutes`"),
        ({"slurm": {"slurm_partition": "gpu"}}, "`slurm` options do nothing with `executor: local`"),
        ({"executor": "slurm", "timeout_minutes": 5, "ray": {"num_cpus": 2}}, "`ray` options do nothing"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence) as refusal:
        LaunchSpec(**settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("launch", "module", "extra"),
    [
        (LaunchSpec("slurm", timeout_minutes=5), "submitit", "slurm"),
        (LaunchSpec("ray"), "ray", "ray"),
    ],
)
def test_missing_extra_is_named(monkeypatch, launch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'trl-opd\[{extra}\]'"):
        make_executor(launch)


def test_devices_are_handed_out_once_and_come_back(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "visible_devices", lambda: ["4", "5", "6", "7", "9"])
    executor = make_executor(LaunchSpec(workers=2, gpus_per_run=2))
    script = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    jobs = [job_in(tmp_path / name, script) for name in ("a", "b", "c")]
    first, second = executor.start(jobs[0]), executor.start(jobs[1])
    assert (first.where, second.where) == ("device 4,5", "device 6,7")
    assert [wait_for(first), wait_for(second)] == [0, 0]
    assert wait_for(executor.start(jobs[2])) == 0
    given = [job.log.read_text().splitlines()[-1] for job in jobs]
    assert given == ["4,5", "6,7", "9,4"]
    assert sorted(executor.free) == ["4", "5", "6", "7", "9"]


def test_too_few_devices_are_refused(monkeypatch):
    monkeypatch.setattr(local, "visible_devices", lambda: ["0", "1", "2"])
    with pytest.raises(UserError, match="2 workers with 2 devices each need 4, but 3 are visible"):
        make_executor(LaunchSpec(workers=2, gpus_per_run=2))


@pytest.mark.parametrize(
    ("named", "count", "devices"), [(None, 2, ["0", "1"]), ("3,1", 2, ["3", "1"]), ("", 0, []), ("0,7", 1, ["0"])]
)
def test_visible_devices_are_those_of_this_process(monkeypatch, named, count, devices):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert local.visible_devices() == devices


def test_device_is_kept_where_a_folder_is_busy(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "visible_devices", lambda: ["0"])
    executor = make_executor(LaunchSpec(gpus_per_run=1))
    job = job_in(tmp_path / "a", "import time; time.sleep(60)")
    other = process.Process(job)
    with pytest.raises(FolderBusy):
        executor.start(job)
    assert executor.free == ["0"]
    other.stop()
    assert wait_for(other) == -15


def test_job_that_ignores_the_time_limit_is_killed(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "STOP_GRACE_SECONDS", 0.2)
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    job = job_in(tmp_path / "a", script, timeout_seconds=1.5)
    assert process.run_to_end(job) == process.TIMED_OUT
    assert job.log.read_text() == "\n$ trl-opd train\ndeaf\n\nStopped at the time limit of 0.025 minutes.\n"


def test_job_lays_its_environment_over_the_machines(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    script = "import os; print(os.environ['OMP_NUM_THREADS'], os.getcwd())"
    job = job_in(tmp_path / "a", script, environment={"OMP_NUM_THREADS": "1"})
    assert process.run_to_end(job) == 0
    assert job.log.read_text().splitlines()[-1] == f"1 {tmp_path / 'a'}"


def test_training_on_several_devices_is_a_process_for_each():
    assert process.on_devices(("trl-opd", "train"), 1) == ("trl-opd", "train")
    assert process.on_devices(("trl-opd", "train"), 0) == ("trl-opd", "train")
    command = process.on_devices(("trl-opd", "train"), 4)
    assert command[:6] == (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4")
    assert command[-3:] == ("0", "trl-opd", "train")


@pytest.mark.slow
def test_processes_of_torchrun_end_with_the_job(tmp_path):
    """Started from a process that is killed: neither torchrun nor its processes outlive it."""
    script = "import os, sys, time; print('rank', os.environ['RANK'], os.getpid(), flush=True); time.sleep(60)"
    job = job_in(tmp_path / "a", script)
    job = dataclasses.replace(job, argv=process.on_devices(job.argv, 2))
    queue = multiprocessing.get_context("spawn").Process(target=process.run_to_end, args=(job,))
    queue.start()

    def ranks() -> list[list[str]]:
        return [line.split() for line in job.log.read_text().splitlines() if line.startswith("rank")]

    wait_until(lambda: job.log.exists() and len(ranks()) == 2)
    queue.kill()
    queue.join()
    assert {rank for _, rank, _ in ranks()} == {"0", "1"}
    wait_until(lambda: not any(alive(int(pid)) for _, _, pid in ranks()))


def test_command_that_dies_with_its_parent_needs_one(tmp_path):
    """A parent that has died before the kernel was told is noticed."""
    ended = subprocess.run([*process.CHILD, "1", "true"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "The parent is gone.\n")
    assert subprocess.run([*process.CHILD, "0", "sh", "-c", "exit 3"]).returncode == 3
