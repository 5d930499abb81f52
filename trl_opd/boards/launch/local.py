"""Jobs as subprocesses of the board itself: they die with it."""

import os

from trl_opd.boards.launch.process import Job, Process
from trl_opd.boards.launch.settings import LaunchSpec
from trl_opd.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"


class LocalExecutor:
    """As many subprocesses at a time as there are workers, each with devices of its own.

    Raises:
        UserError: if fewer devices are visible than the workers need together.
    """

    def __init__(self, launch: LaunchSpec):
        self.slots = launch.workers
        self.gpus_per_run = launch.gpus_per_run
        self.free = visible_devices() if launch.gpus_per_run else []
        needed = launch.workers * launch.gpus_per_run
        if len(self.free) < needed:
            raise UserError(
                f"launch: {launch.workers} workers with {launch.gpus_per_run} devices each need {needed}, but "
                f"{len(self.free)} are visible: lower `workers` or `gpus_per_run`."
            )

    def start(self, job: Job) -> "LocalHandle":
        devices, rest = self.free[: self.gpus_per_run], self.free[self.gpus_per_run :]
        handle = LocalHandle(self, job, devices)
        self.free = rest
        return handle

    def attach(self, job: Job) -> None:
        """Nothing: the kernel ended the subprocesses of an earlier board with it."""

    def close(self) -> None:
        """Nothing is held."""


class LocalHandle(Process):
    """A subprocess and its devices, which go back when it has ended."""

    def __init__(self, executor: LocalExecutor, job: Job, devices: list[str]):
        super().__init__(job, {VISIBLE: ",".join(devices)} if devices else None)
        self.where = f"device {','.join(devices)}" if devices else f"process {self.job_id}"
        self._executor = executor
        self._devices = devices

    def poll(self) -> int | None:
        status = super().poll()
        if status is not None:
            self._executor.free += self._devices
            self._devices = []
        return status


def visible_devices() -> list[str]:
    """Names of the devices that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch  # slow, and a board without devices needs none of it

    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    return named.split(",")[:count] if named else [str(index) for index in range(count)]
