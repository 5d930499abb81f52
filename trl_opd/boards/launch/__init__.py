"""Where a board's subprocesses run: on this machine, under Slurm, or on a Ray cluster.

The queue knows runs and stages; an executor knows processes. Wherever a job runs, it is one subprocess with its own
log, its own time limit and the lock on its run's folder (`process`).
"""

from typing import Protocol

from trl_opd.boards.launch.process import ClusterLost, FolderBusy, Job
from trl_opd.boards.launch.settings import RAY, SLURM, LaunchSpec

__all__ = ["ClusterLost", "Executor", "FolderBusy", "Handle", "Job", "LaunchSpec", "make_executor"]


class Handle(Protocol):
    """One job that was started.

    Attributes:
        job_id (`str`): What its executor calls it: a process id, a Slurm job, a Ray actor.
        where (`str`): Device or job, for the live view.
    """

    job_id: str
    where: str

    def poll(self) -> int | None:
        """Exit status of a job that has ended, negative for the signal that killed it; None while it lasts."""

    def stop(self) -> None:
        """Begin to end it; `poll` tells when it is gone."""


class Executor(Protocol):
    """Starts jobs.

    Attributes:
        slots (`int`): Jobs that it is given at a time.
    """

    slots: int

    def start(self, job: Job) -> Handle:
        """Start a job.

        Raises:
            FolderBusy: if another process holds the run's folder; nothing was started.
            ClusterLost: if the cluster does not answer; so do `attach` and `Handle.poll`.
        """

    def attach(self, job: Job) -> Handle | None:
        """The job as an earlier board started it, if it outlived that board."""

    def close(self) -> None:
        """Let go of what the executor holds; running jobs are left alone."""


def make_executor(launch: LaunchSpec) -> Executor:
    """The executor that a board asks for.

    Raises:
        UserError: if its library is not installed, its cluster is not there, or too few devices are visible.
    """
    if launch.executor == SLURM:
        from trl_opd.boards.launch.slurm import SlurmExecutor  # submitit and Ray are extras

        return SlurmExecutor(launch)
    if launch.executor == RAY:
        from trl_opd.boards.launch.ray import RayExecutor

        return RayExecutor(launch)
    from trl_opd.boards.launch.local import LocalExecutor

    return LocalExecutor(launch)
