"""Jobs on a Ray cluster (https://docs.ray.io), each an actor that lives until its subprocess has ended.

The actors are detached and have names, so that they outlive the board and a later board finds them. The cluster is
the one that `RAY_ADDRESS` or a running `ray start` names; without one, Ray starts on this machine and ends with the
board. Folders must be reachable under the same paths on every node.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trl_opd.boards.files import read_json, write_json
from trl_opd.boards.launch.process import LOST, ClusterLost, Job, first_line, run_to_end
from trl_opd.boards.launch.settings import LaunchSpec
from trl_opd.errors import UserError

NAMESPACE = "trl_opd.boards"
#: A shared disk may show the exit status of an actor some time after the actor has ended.
DISK_PATIENCE_SECONDS = 10.0


class RayExecutor:
    """Starts each job as an actor with the options of the board's `launch.ray`.

    Raises:
        UserError: if Ray is not installed, it refuses an option, or no node has what one run needs.
    """

    def __init__(self, launch: LaunchSpec):
        try:
            import ray
        except ImportError as error:
            raise UserError("launch: jobs on a Ray cluster need Ray: pip install 'trl-opd[ray]'.") from error
        self._ray = ray
        self.slots = launch.workers
        self._options = _options(launch)
        self._actor_class = ray.remote(_Actor)
        try:
            self._actor_class.options(**self._options)
        except (TypeError, ValueError) as error:
            raise UserError(f"launch: Ray refuses the board's `ray` options: {first_line(error)}") from error
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                where = os.environ.get("RAY_ADDRESS", "this machine")
                raise UserError(
                    f"launch: no Ray cluster could be reached or started on {where}: {first_line(error)}; mend "
                    "RAY_ADDRESS, or start the cluster."
                ) from error
        self._check_nodes()

    def start(self, job: Job) -> "RayHandle":
        _status_file(job).unlink(missing_ok=True)
        with _reached(self._ray):
            actor = self._actor_class.options(name=_name_of(job), **self._options).remote()
            return RayHandle(self._ray, job, actor, actor.run.remote(job))

    def attach(self, job: Job) -> "RayHandle | None":
        try:
            with _reached(self._ray):
                actor = self._ray.get_actor(_name_of(job), NAMESPACE)
        except ValueError:  # it has ended, or never was
            return RayHandle(self._ray, job, None, None) if _status_file(job).exists() else None
        return RayHandle(self._ray, job, actor, actor.__ray_ready__.remote())  # waits behind `run`

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._started_ray:
            self._ray.shutdown()

    def _check_nodes(self) -> None:
        needed = {"CPU": self._options["num_cpus"], "GPU": self._options["num_gpus"]}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(kind, 0) >= count for kind, count in needed.items()) for node in nodes):
            return
        self.close()
        wanted = " and ".join(f"{count:g} {kind}" for kind, count in needed.items() if count)
        raise UserError(f"launch: no node of the Ray cluster has {wanted}, so that no run would ever start.")


class RayHandle:
    """An actor at work on a job, or one that was found again.

    Args:
        ray: The library.
        job (`Job`): Its job.
        actor, pending: The actor and a call whose end is its end; None for one that ended before.
    """

    def __init__(self, ray: Any, job: Job, actor: Any, pending: Any):
        self._ray = ray
        self.job = job
        self.job_id = _name_of(job)
        self.where = "ray actor"
        self._actor = actor
        self._pending = pending
        self._ended: float | None = None
        self._stopped = False

    def poll(self) -> int | None:
        with _reached(self._ray):
            if self._pending is not None and not self._ray.wait([self._pending], timeout=0)[0]:
                return None
        stored = read_json(_status_file(self.job))
        if stored is not None:
            return stored["status"]
        if self._stopped:
            return LOST
        self._ended = self._ended or time.monotonic()
        if time.monotonic() - self._ended < DISK_PATIENCE_SECONDS:
            return None
        self.job.note(f"Ray lost the job: {self._reason()}")
        self.stop()  # an actor that could not store the status holds its devices still
        return LOST

    def stop(self) -> None:
        self._stopped = True
        if self._actor is not None:
            self._ray.kill(self._actor)  # the kernel ends the subprocess with it

    def _reason(self) -> str:
        try:
            self._ray.get(self._pending)
        except self._ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[-1]
        return "its actor ended without an exit status"


class _Actor:
    """Runs one job on its node, stores the exit status, and ends."""

    def run(self, job: Job) -> None:
        import ray

        write_json(_status_file(job), {"status": run_to_end(job)})
        ray.actor.exit_actor()


@contextmanager
def _reached(ray: Any) -> Iterator[None]:
    try:
        yield
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise ClusterLost(f"The Ray cluster does not answer ({first_line(error)})") from error


def _options(launch: LaunchSpec) -> dict[str, Any]:
    ours = {"num_gpus": launch.gpus_per_run, "namespace": NAMESPACE, "lifetime": "detached"}
    for name in ("name", *ours):
        if name in launch.ray:
            raise UserError(f"launch: ray `{name}` is set by the board: take it out of `ray`.")
    return {"num_cpus": 1, **launch.ray, **ours}


def _name_of(job: Job) -> str:
    return f"{job.folder}#{job.attempt}"


def _status_file(job: Job) -> Path:
    return job.folder / "ray" / f"attempt-{job.attempt}.json"
