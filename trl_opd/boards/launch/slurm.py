"""Jobs under Slurm, through submitit (https://github.com/facebookincubator/submitit).

A job outlives the board that submitted it. Each attempt has a submitit folder of its own, so that a later board finds
the job by what lies there, even if the earlier one died right after the submission: submitit names the stored job by
its id, and a job whose submission was cut short finds nothing to run.
"""

import math
import os
import signal
from pathlib import Path

from trl_opd.boards.launch.process import LOST, Job, first_line, run_to_end
from trl_opd.boards.launch.settings import LOCAL, SLURM, LaunchSpec
from trl_opd.errors import UserError

#: Slurm's own limit lies this far behind ours, which must be the one that ends an attempt.
MARGIN_MINUTES = 10
SUBMITTED = "_submitted.pkl"


class SlurmExecutor:
    """Submits each job with the parameters of the board's `launch.slurm`.

    Raises:
        UserError: if submitit is not installed, Slurm is not there, or a parameter is unknown or the board's own.
    """

    def __init__(self, launch: LaunchSpec):
        try:
            import submitit
        except ImportError as error:
            raise UserError("launch: Slurm jobs need submitit: pip install 'trl-opd[slurm]'.") from error
        self._submitit = submitit
        self.slots = launch.workers
        given = dict(launch.slurm)
        self.cluster = given.pop("cluster", SLURM)
        ours = {"timeout_min": math.ceil(launch.timeout_minutes) + MARGIN_MINUTES}
        if launch.gpus_per_run:
            ours["gpus_per_node"] = launch.gpus_per_run
        self._check(given, ours)
        self.parameters = given | ours

    def start(self, job: Job) -> "SlurmHandle":
        """Submit a job.

        Raises:
            UserError: if sbatch refuses it.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self._submitit.AutoExecutor(_folder_of(job), self.cluster)
        executor.update_parameters(name=job.name, **self.parameters)
        try:
            return SlurmHandle(job, executor.submit(run_to_end, job))
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"sbatch refused the job: {_last_line(error)}") from error

    def attach(self, job: Job) -> "SlurmHandle | None":
        folder = _folder_of(job)
        for stored in folder.glob(f"*{SUBMITTED}"):
            job_id = stored.name.removesuffix(SUBMITTED)
            if self.cluster == LOCAL:
                return SlurmHandle(job, self._submitit.LocalJob(folder, job_id, process=_Controller(job_id)))
            return SlurmHandle(job, self._submitit.SlurmJob(folder, job_id))
        return None

    def close(self) -> None:
        """Nothing is held."""

    def _check(self, given: dict, ours: dict) -> None:
        if self.cluster not in (SLURM, LOCAL):
            raise UserError(f"launch: the slurm `cluster` {self.cluster!r} is neither `slurm` nor `local`.")
        for name in ("name", "timeout_min", "slurm_time", "gpus_per_node", "slurm_gpus_per_node"):
            if name in given:
                raise UserError(f"launch: slurm `{name}` is set by the board: take it out of `slurm`.")
        try:
            executor = self._submitit.AutoExecutor(Path.cwd(), self.cluster)  # the folder is not written yet
            executor.update_parameters(**given, **ours)
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"launch: submitit refuses the board's slurm settings: {first_line(error)}") from error


class SlurmHandle:
    """A submitted job, or one that was submitted before."""

    def __init__(self, job: Job, submitted):
        self.job = job
        self.job_id = submitted.job_id
        self._submitted = submitted
        self._stopped = False

    @property
    def where(self) -> str:
        return f"job {self.job_id} {self._submitted.state.lower()}"

    def poll(self) -> int | None:
        if not self._submitted.done():
            return None
        if self._stopped:
            return LOST
        error = self._submitted.exception()
        if error is None:
            return self._submitted.result()
        self.job.note(f"Job {self.job_id} ended without a result ({self._submitted.state}): {first_line(error)}")
        return LOST

    def stop(self) -> None:
        self._stopped = True
        self._submitted.cancel(check=False)


class _Controller:
    """The process of submitit's local cluster that an earlier board started, by its id."""

    def __init__(self, job_id: str):
        self.pid = int(job_id)

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def _folder_of(job: Job) -> Path:
    return job.folder / "slurm" / f"attempt-{job.attempt}"


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]
