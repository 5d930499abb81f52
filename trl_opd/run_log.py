"""A training run's own record: `run.json` (what it is and how far it got) and `log.jsonl` (one row per logged step).

Evaluations on an `eval_dataset` go to `eval_log.jsonl`, whatever `report_to` says.
"""

import fcntl
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from transformers import TrainerCallback

from trl_opd import health
from trl_opd.budget import SECONDS, TOKENS
from trl_opd.defaults import changed
from trl_opd.errors import UserError
from trl_opd.state import newest_checkpoint

RECORD = "run.json"
LOG = "log.jsonl"
EVAL_LOG = "eval_log.jsonl"
PACKAGES = ("trl-opd", "trl", "transformers", "torch", "accelerate", "peft", "datasets", "math-verify")
#: Keys of a configuration that say where and how a run is carried out, not what it computes.
CIRCUMSTANCES = ("output_dir", "resume_from_checkpoint", "logging_dir", "run_name", "eval_suite_data_dir")
#: Keys whose values are nobody's business: they are left out of the record, which may be pushed to the hub.
SECRETS = ("hub_token", "push_to_hub_token")


def differences(*configs: Any) -> dict[str, Any]:
    """The fields of dataclasses whose values are not their defaults, in a form that JSON holds."""
    plain = (str, int, float, bool, list, dict, type(None))
    found: dict[str, Any] = {}
    for config in configs:
        given = changed(config)
        for name in (f.name for f in fields(config) if f.init and f.name in given and not f.name.startswith("_")):
            value = getattr(config, name)
            if not is_dataclass(value) and name not in SECRETS:
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


def command() -> list[str]:
    """The command line of this process, without secrets."""
    shown, hide = [], False
    for word in sys.argv:
        option, equals, _ = word.lstrip("-").partition("=")
        secret = word.startswith("--") and option in SECRETS
        shown.append("..." if hide else f"--{option}=..." if secret and equals else word)
        hide = secret and not equals
    return shown


class RunBooks:
    """The record and the log of one run, in its output folder.

    Args:
        path (`Path`): The run's output folder; made when training starts.
        method (`str`): Name of the method.
        config (`dict`): What the run computes: the values that differ from the defaults.
    """

    def __init__(self, path: Path, method: str, config: dict[str, Any]):
        self.path = path
        self.identity = {
            "method": method,
            "config": {name: value for name, value in config.items() if name not in CIRCUMSTANCES},
        }
        #: Several processes train one run; the first of them keeps its books.
        self.primary = int(os.environ.get("RANK", "0")) == 0
        self.record: dict[str, Any] = {}

    def make_folder(self) -> None:
        """Makes the output folder.

        Raises:
            `UserError`: If that cannot be.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error

    def write(self, **facts: Any) -> None:
        """Updates the record, at once or not at all."""
        if not self.primary:
            return
        self.record = self.identity | self.record | facts
        self._replace(RECORD, json.dumps(self.record, indent=1, default=str))

    def start(self, resumed_step: int) -> None:
        """Marks the run as running, and drops log rows after the step that it goes on from.

        A run that does not go on from anything leaves what lies there under names with a number.
        """
        if not self.primary:
            return
        self.make_folder()
        if resumed_step == 0:
            self._set_aside()
        self._go_on(resumed_step)

    def append(self, row: dict[str, Any], log: str = LOG) -> None:
        """Adds one row to a log."""
        with open(self.path / log, "a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The logged steps so far, those of earlier sittings included."""
        return _whole_rows(self.path / LOG)

    def _replace(self, name: str, text: str) -> None:
        """Writes a file at once or not at all: a full disk leaves the old one."""
        partial = self.path / f"{name}.partial"
        partial.write_text(text)
        partial.replace(self.path / name)

    def _set_aside(self) -> None:
        earlier = [self.path / name for name in (RECORD, LOG, EVAL_LOG) if (self.path / name).exists()]
        number = 1
        while any(path.with_stem(f"{path.stem}.{number}").exists() for path in earlier):
            number += 1
        for path in earlier:
            path.rename(path.with_stem(f"{path.stem}.{number}"))

    def _go_on(self, resumed_step: int) -> None:
        for name in (LOG, EVAL_LOG):
            kept = [row for row in _whole_rows(self.path / name) if row["step"] <= resumed_step]
            if name == LOG or (self.path / name).exists():
                self._replace(name, "".join(json.dumps(row) + "\n" for row in kept))
        self.write(
            status="running",
            versions=versions(),
            commit=commit(),
            command=command(),
            hardware=hardware(),
            gpus=gpus(),
            error=None,
        )

    def _not_writable(self, error: OSError) -> UserError:
        return UserError(f"The output folder {self.path} cannot be written ({error.strerror}); choose another.")


class RunFolder(RunBooks):
    """The folder of one run of the command line, held by one process at a time.

    Args:
        path, method, config: As for `RunBooks`; the folder is made if it is missing.

    Raises:
        `UserError`: If another process holds the folder, or another run's record lies in it.
    """

    def __init__(self, path: Path, method: str, config: dict[str, Any]):
        super().__init__(path, method, config)
        self._lock = self._take_lock() if self.primary else None
        self.record = self._read()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._lock is not None:
            self._lock.close()

    def start(self, resumed_step: int) -> None:
        """Marks the run as running, and drops log rows after the step that it goes on from."""
        if self.primary:
            self._go_on(resumed_step)

    def _take_lock(self) -> IO[str]:
        self.make_folder()
        try:
            lock = open(self.path / ".lock", "w")  # noqa: SIM115 held until the run ends
        except OSError as error:
            raise self._not_writable(error) from error
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
        try:
            record = json.loads(file.read_text())
            stored = {name: record[name] for name in self.identity}
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{file} is no record of a run by this version; choose another output_dir, or remove that folder."
            ) from error
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


def _whole_rows(log: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last one that a kill cut short is left out."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _changed(stored: dict[str, Any], wanted: dict[str, Any]) -> set[str]:
    return {name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name)}


def hardware() -> str:
    """The accelerator, or the processor, that a run is carried out on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def gpus() -> int:
    """Accelerators that the run's processes train on, one each; those of a server are not among them."""
    return int(os.environ.get("WORLD_SIZE", "1")) if torch.cuda.is_available() else 0


def commit() -> str | None:
    """Commit of the code, with `-dirty` where files differ from it; None where it is not a checkout with git."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    described = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
        capture_output=True,
        text=True,
    )
    return described.stdout.strip() or None


def peak_memory_bytes() -> int:
    """Highest memory of this process: allocated on the accelerator, or resident on the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class RunRecorder(TrainerCallback):
    """Keeps a trainer's books while it trains, and says at the end whether it went well.

    Args:
        trainer (`OnPolicyTrainer`): Whose steps and costs to write.

    Attributes:
        books (`RunBooks`): Where to write.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.books = RunBooks(Path(trainer.args.output_dir), trainer.method, differences(trainer.args))
        self._commanded = self._sitting = False
        self._first, self._started = 0, 0.0

    def obey(self, folder: RunFolder) -> None:
        """Writes into the command line's folder, which calls the run finished itself, and prints a line for a step."""
        self.books, self._commanded = folder, True

    @contextmanager
    def sitting(self, resumed_step: int) -> Iterator[None]:
        """Inside, the trainer trains."""
        self.books.start(resumed_step)
        if self.trainer.data_facts:
            self.books.write(data=self.trainer.data_facts)
        self._first, self._started = resumed_step, time.monotonic()
        self._sitting = True
        try:
            yield
        except BaseException as error:
            last_line = (str(error).strip().splitlines() or [""])[-1]
            self.books.write(status="failed", error=f"{type(error).__name__}: {last_line}")
            raise
        finally:
            self._sitting = False
        self._close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not self._sitting or not state.is_world_process_zero:
            return
        if "loss" not in logs:
            if any(name.startswith("eval_") for name in logs):
                self.books.append({"step": state.global_step, **logs}, EVAL_LOG)
            return
        spent = self.trainer.spent()
        facts = {name: value for name, value in logs.items() if name not in spent}
        self.books.append({"step": state.global_step, **spent, **facts})
        self.books.write(step=state.global_step, total_steps=state.max_steps, **spent)
        if self._commanded:
            pace = (time.monotonic() - self._started) / max(state.global_step - self._first, 1)
            print(_progress_line(state, logs, spent, None if _has_another_end(args) else pace), flush=True)

    def _close(self) -> None:
        if not self.books.primary:
            return
        rows = self.books.rows()
        print(health.summary(rows), flush=True)
        self.books.write(
            **({} if self._commanded else {"status": "finished"}),
            steps=self.trainer.state.global_step,
            stopped_by=self.trainer.budget.stopped_by,
            validation=self.trainer.pipeline_state.validation,
            validation_seconds=round(self.trainer.pipeline_state.validation_seconds, 2),
            peak_memory_bytes=peak_memory_bytes(),
            health=[finding.record() for finding in health.findings(rows)],
            **self.trainer.spent(),
        )


def _has_another_end(args: Any) -> bool:
    """Whether tokens or seconds end the run, so that its steps do not tell what is left."""
    return any(getattr(args, name, None) is not None for name in (TOKENS, SECONDS))


def _progress_line(state, logs: dict[str, Any], spent: dict[str, Any], seconds_per_step: float | None) -> str:
    """One line for a logged step; without a pace the end is not known by steps."""
    end = "" if seconds_per_step is None else f"/{state.max_steps}"
    parts = [f"step {state.global_step}{end}", f"loss {logs['loss']:.4f}"]
    if logs.get("reward") is not None:
        parts.append(f"reward {logs['reward']:.3f}")
    if logs.get("distill/divergence") is not None:
        parts.append(f"divergence {logs['distill/divergence']:.4f}")
    parts.append(f"{spent['generated_tokens']:,} tokens")
    if seconds_per_step is not None:
        left = timedelta(seconds=round((state.max_steps - state.global_step) * seconds_per_step))
        parts.append(f"{left} left")
    return "  ".join(parts)
