"""A training run's own record: `run.json` (what it is and how far it got) and `log.jsonl` (one row per logged step)."""

import fcntl
import json
import os
import platform
import resource
import sys
import time
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from transformers import TrainerCallback

from trl_opd.defaults import changed
from trl_opd.errors import UserError
from trl_opd.state import newest_checkpoint

RECORD = "run.json"
LOG = "log.jsonl"
PACKAGES = ("trl-opd", "trl", "transformers", "torch", "accelerate", "peft", "datasets", "math-verify")
#: Keys of a configuration that say where and how a run is carried out, not what it computes.
CIRCUMSTANCES = ("output_dir", "resume_from_checkpoint", "logging_dir", "run_name")


def differences(*configs: Any) -> dict[str, Any]:
    """The fields of dataclasses whose values are not their defaults, in a form that JSON holds."""
    plain = (str, int, float, bool, list, dict, type(None))
    found: dict[str, Any] = {}
    for config in configs:
        given = changed(config)
        for name in (f.name for f in fields(config) if f.init and f.name in given and not f.name.startswith("_")):
            value = getattr(config, name)
            if not is_dataclass(value):
                found[name] = value if isinstance(value, plain) else str(value)
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


class RunFolder:
    """The folder of one run, held by one process at a time.

    Args:
        path (`Path`): The run's output folder; made if it is missing.
        method (`str`): Name of the method.
        config (`dict`): What the run computes: the values that differ from the defaults.

    Raises:
        `UserError`: If another process holds the folder, or another run's record lies in it.
    """

    def __init__(self, path: Path, method: str, config: dict[str, Any]):
        self.path = path
        self.identity = {
            "method": method,
            "config": {name: value for name, value in config.items() if name not in CIRCUMSTANCES},
        }
        #: Several processes train one run; the first of them keeps its books.
        self.primary = int(os.environ.get("RANK", "0")) == 0
        self._lock = self._take_lock() if self.primary else None
        self.record = self._read()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._lock is not None:
            self._lock.close()

    def _take_lock(self) -> IO[str]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "w")  # noqa: SIM115 held until the run ends
        except OSError as error:
            raise UserError(
                f"The output folder {self.path} cannot be written ({error.strerror}); choose another."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise UserError(
                f"Another process is training in {self.path}; wait for it, or choose another folder."
            ) from error
        return lock

    def _read(self) -> dict[str, Any]:
        file = self.path / RECORD
        if not file.exists():
            return {}
        record = json.loads(file.read_text())
        stored = {name: record[name] for name in self.identity}
        wanted = json.loads(json.dumps(self.identity, default=str))
        if stored == wanted:
            return record
        if record["status"] == "failed" and newest_checkpoint(self.path) is None:
            return {}  # nothing was trained yet: the mended command takes the folder over
        names = {"method"} if stored["method"] != wanted["method"] else _changed(stored["config"], wanted["config"])
        raise UserError(
            f"{self.path} holds a run with other settings ({', '.join(sorted(names))}); choose another output_dir, or "
            "remove that folder."
        )

    @property
    def finished(self) -> bool:
        return self.record.get("status") == "finished"

    def write(self, **facts: Any) -> None:
        """Updates the record, at once or not at all."""
        if not self.primary:
            return
        self.record = self.identity | self.record | facts
        partial = self.path / f"{RECORD}.partial"
        partial.write_text(json.dumps(self.record, indent=1, default=str))
        partial.replace(self.path / RECORD)

    def start(self, resumed_step: int) -> None:
        """Marks the run as running, and drops log rows after the step that it goes on from."""
        if not self.primary:
            return
        log = self.path / LOG
        rows = [line for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []
        kept = [line for line in rows if json.loads(line)["step"] <= resumed_step]
        log.write_text("".join(f"{line}\n" for line in kept))
        self.write(status="running", versions=versions(), command=sys.argv, hardware=hardware(), error=None)

    def append(self, row: dict[str, Any]) -> None:
        """Adds one row to the log."""
        with open(self.path / LOG, "a") as log:
            log.write(json.dumps(row) + "\n")


def _changed(stored: dict[str, Any], wanted: dict[str, Any]) -> set[str]:
    return {name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name)}


def hardware() -> str:
    """The accelerator, or the processor, that a run is carried out on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def peak_memory_bytes() -> int:
    """Highest memory of this process: allocated on the accelerator, or resident on the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class RunRecorder(TrainerCallback):
    """Writes the run's record and log as it trains, and prints one line for each logged step.

    Args:
        folder (`RunFolder`): Where to write.
        trainer (`OnPolicyTrainer`): Whose costs to read.
    """

    def __init__(self, folder: RunFolder, trainer):
        self.folder = folder
        self.trainer = trainer

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "loss" not in logs:
            return
        spent = self.trainer.spent()
        facts = {name: value for name, value in logs.items() if name not in spent}
        self.folder.append({"step": state.global_step, **spent, **facts})
        self.folder.write(step=state.global_step, total_steps=state.max_steps, **spent)
        print(_progress_line(state, logs, spent), flush=True)


def _progress_line(state, logs: dict[str, Any], spent: dict[str, Any]) -> str:
    left = (state.max_steps - state.global_step) * spent["seconds"] / max(state.global_step, 1)
    parts = [f"step {state.global_step}/{state.max_steps}", f"loss {logs['loss']:.4f}"]
    if logs.get("reward") is not None:
        parts.append(f"reward {logs['reward']:.3f}")
    if logs.get("distill/divergence") is not None:
        parts.append(f"divergence {logs['distill/divergence']:.4f}")
    parts += [f"{spent['generated_tokens']:,} tokens", f"{time.strftime('%H:%M:%S', time.gmtime(left))} left"]
    return "  ".join(parts)
