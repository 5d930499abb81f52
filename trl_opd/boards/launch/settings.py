"""How the runs of a board are launched: the `launch` block of its YAML."""

from dataclasses import dataclass, field

from trl_opd.errors import UserError

LOCAL, SLURM, RAY = "local", "slurm", "ray"
EXECUTORS = (LOCAL, SLURM, RAY)

Option = str | int | float | bool | list


@dataclass(frozen=True)
class LaunchSpec:
    """Where runs are launched, how many at a time, and what happens when one fails.

    Args:
        executor (`str`):
            "local": subprocesses of the board; "slurm": jobs that submitit submits; "ray": actors on a Ray cluster.
        workers (`int`):
            Runs at a time: subprocesses, or jobs handed to the cluster.
        gpus_per_run (`int`):
            Devices that each run gets for itself; with 0 the local executor hands out none and hides none.
        timeout_minutes (`float`, *optional*):
            A stage (training, or one evaluation) that takes longer is stopped, which counts as a failed attempt.
        retries (`int`):
            How often a failed stage is tried again, each time from its last checkpoint, before the run is given up.
        slurm (`dict`):
            Parameters of submitit's `AutoExecutor`, such as `slurm_partition`; `cluster: local` runs without Slurm.
        ray (`dict`):
            Options of each run's Ray actor, such as `num_cpus`.

    Raises:
        UserError: if a value cannot work, or options are given for another executor.
    """

    executor: str = LOCAL
    workers: int = 1
    gpus_per_run: int = 0
    timeout_minutes: int | float | None = None
    retries: int = 1
    slurm: dict[str, Option] = field(default_factory=dict)
    ray: dict[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"launch: the executor {self.executor!r} is none of {', '.join(EXECUTORS)}.")
        if self.workers < 1:
            raise UserError(f"launch: `workers` is {self.workers}: with fewer than one nothing would ever run.")
        for name in ("gpus_per_run", "retries"):
            if getattr(self, name) < 0:
                raise UserError(f"launch: `{name}` is {getattr(self, name)}: give 0 or more.")
        if self.timeout_minutes is not None and self.timeout_minutes <= 0:
            raise UserError(f"launch: `timeout_minutes` is {self.timeout_minutes}: give more than 0, or leave it out.")
        if self.executor == SLURM and self.timeout_minutes is None:
            raise UserError("launch: Slurm wants to know how long a job may take: set `timeout_minutes`.")
        for name in (SLURM, RAY):
            if getattr(self, name) and self.executor != name:
                raise UserError(f"launch: `{name}` options do nothing with `executor: {self.executor}`: remove them.")
