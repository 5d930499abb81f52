"""Jobs through submitit, on its local cluster: the same submission, pickles and results as under Slurm."""

import os

import pytest

from tests.boards.outliving import killed_and_gone_on_with, quiet, stopped_by_hand
from tests.boards.test_runner import GRPO
from trl_opd.boards.attempts import attempts_of
from trl_opd.boards.launch import LaunchSpec, make_executor
from trl_opd.boards.runner import run_board
from trl_opd.boards.runs import plan_runs, status_of
from trl_opd.boards.spec import load_spec
from trl_opd.errors import UserError

submitit = pytest.importorskip("submitit")

#: Stand-ins for Slurm's commands, which run each job at once as a process group of its own.
SBATCH = """#!/bin/sh
cd "$SLURM_FAKE"
cp "$1" "$SLURM_FAKE/last.sbatch"
number=$(($(ls | grep -c pid) + 100))
SLURM_JOB_ID=$number SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 \\
    SLURM_JOB_NODELIST=here setsid sh -c 'cd "$OLDPWD"; exec sh "$0"' "$1" > /dev/null 2>&1 &
echo $! > $number.pid
echo "Submitted batch job $number"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
cd "$SLURM_FAKE"
for file in *.pid; do
    kill -0 "$(cat $file)" 2> /dev/null && state=RUNNING || state=COMPLETED
    echo "${file%.pid}|$state|here"
done
"""
SCANCEL = """#!/bin/sh
kill -KILL -- "-$(cat "$SLURM_FAKE/$1.pid")"
"""

LOCAL = {"executor": "slurm", "workers": 2, "timeout_minutes": 5, "slurm": {"cluster": "local"}}


def test_board_of_jobs_whose_queue_is_killed_finds_them_again(write_spec, launcher):
    """Nothing is started twice: the jobs outlive the queue, and the next queue waits for them."""
    spec_file = write_spec(methods=[GRPO], seeds=[0], launch=LOCAL, environment={"FAKE_SECONDS": "0.06"})
    assert "grpo-seed0: train found again, job " in killed_and_gone_on_with(spec_file, launcher)
    attempts = attempts_of(load_spec(spec_file).runs_folder / "grpo-seed0")
    assert [(one["stage"], one["executor"], one["status"]) for one in attempts] == [
        ("train", "slurm", "finished"),
        ("eval", "slurm", "finished"),
    ]
    assert all(one["job"].isdigit() for one in attempts)


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A folder with Slurm's commands in the path."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", SCANCEL)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("SLURM_FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_sbatch_gets_the_boards_parameters_and_jobs_are_found_again(cluster, write_spec, launcher):
    launch = {"executor": "slurm", "workers": 2, "timeout_minutes": 5, "gpus_per_run": 1}
    launch["slurm"] = {"slurm_partition": "long", "slurm_setup": ["export FROM_SETUP=1"]}
    spec_file = write_spec(methods=[GRPO], seeds=[0], launch=launch, environment={"FAKE_SECONDS": "0.06"})
    assert "grpo-seed0: train found again, job 10" in killed_and_gone_on_with(spec_file, launcher)
    batch = (cluster / "last.sbatch").read_text()
    for line in ("--gpus-per-node=1", "--job-name=small/grpo-seed0/eval", "--partition=long", "--time=15"):
        assert f"#SBATCH {line}\n" in batch
    assert "export FROM_SETUP=1" in batch


def test_what_sbatch_refuses_is_the_runs_error(cluster, write_spec, launcher):
    (cluster / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: lnog' >&2\nexit 1\n")
    launch = {"executor": "slurm", "timeout_minutes": 5, "slurm": {"slurm_partition": "lnog"}}
    spec = load_spec(write_spec(methods=[GRPO], seeds=[0], launch=launch))
    assert run_board(spec, launcher, quiet()) == 1
    for run in plan_runs(spec):
        error = status_of(run).error
        assert error.startswith("sbatch refused the job: ")
        assert "invalid partition specified: lnog" in error


def test_interrupt_cancels_the_jobs(write_spec, launcher):
    spec_file = write_spec(methods=[GRPO], seeds=[0], launch=LOCAL, environment={"FAKE_SECONDS": "1"})
    assert stopped_by_hand(spec_file, launcher).exitcode == 130


@pytest.mark.parametrize(
    ("slurm", "sentence"),
    [
        ({"cluster": "local", "mem_gb": "12 GB"}, 'refuses the board.s slurm settings: Parameter "mem_gb" expected'),
        ({"cluster": "local", "slurm_partitoin": "gpu"}, "Unknown argument 'partitoin'"),
        ({"cluster": "moon"}, "neither `slurm` nor `local`"),
        ({"cluster": "local", "timeout_min": 3}, "`timeout_min` is set by the board"),
    ],
)
def test_settings_that_submitit_refuses_are_told_before_anything_starts(slurm, sentence):
    with pytest.raises(UserError, match=sentence) as refusal:
        make_executor(LaunchSpec("slurm", timeout_minutes=5, slurm=slurm))
    assert "\n" not in str(refusal.value)


def test_without_slurm_the_board_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"submitit refuses the board's slurm settings: .*srun"):
        make_executor(LaunchSpec("slurm", timeout_minutes=5, slurm={"slurm_partition": "gpu"}))
