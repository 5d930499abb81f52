"""What a run must remember besides the model and the optimizer, kept in every checkpoint."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trl_opd.errors import UserError

STATE_FILE = "trl_opd_state.json"

#: The averaged weights of the scorer of an index.
TEACHER_FILE = "trl_opd_teacher_{}.safetensors"


@dataclass
class PipelineState:
    """The method, and what has been spent so far.

    Attributes:
        method: Name of the method that the run trains with.
        generated_tokens: Completion tokens generated, over all processes.
        teacher_tokens: Tokens that scorers read, prompts included, over all processes.
        seconds: Wall-clock seconds of training, over all its sittings; those of validation do not count.
        validation: Pairs of a step and the accuracy on `eval_suite` after it, a mean over its benchmarks.
        validation_seconds: Wall-clock seconds that this took.
    """

    method: str
    generated_tokens: int = 0
    teacher_tokens: int = 0
    seconds: float = 0.0
    validation: list[list[float]] = field(default_factory=list)
    validation_seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Writes the state into a checkpoint, at once or not at all."""
        partial = folder / f"{STATE_FILE}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1))
        partial.replace(folder / STATE_FILE)

    @classmethod
    def load(cls, folder: Path, method: str) -> "PipelineState":
        """Reads the state of a checkpoint.

        Raises:
            `UserError`: If it belongs to another method.
        """
        state = cls(**json.loads((folder / STATE_FILE).read_text()))
        if state.method != method:
            raise UserError(
                f"{folder} is a checkpoint of {state.method} and cannot be resumed with {method}; choose another "
                "output_dir, or pass the checkpoint as the model to start a new run from its weights."
            )
        return state


def resumable(output_dir: str, checkpoint: str | bool) -> Path:
    """The checkpoint to resume from: the named one, or the newest in `output_dir` if `checkpoint` is True.

    Raises:
        `UserError`: If it is not there or was cut short.
    """
    folder = newest_checkpoint(output_dir) if checkpoint is True else Path(checkpoint)
    if folder is None or not (folder / STATE_FILE).exists():
        raise UserError(
            f"{folder or output_dir} holds no complete checkpoint of trl_opd to resume from; name another one, or "
            "start without resume_from_checkpoint."
        )
    return folder


def best_step(validation: Sequence[Sequence[float]]) -> int | None:
    """The step of the best of `[step, accuracy]` pairs, of equally good ones the earliest; None without any."""
    best = max(validation, key=lambda pair: (pair[1], -pair[0]), default=None)
    return best and int(best[0])


def rotate(output_dir: Path, limit: int | None, keep: Iterable[Path]) -> None:
    """Removes all but the newest `limit` complete checkpoints, and `keep`; those that were cut short go as well."""
    if not limit:
        return
    newest_first = sorted(output_dir.glob("checkpoint-*"), key=lambda path: -int(path.name.rsplit("-", 1)[1]))
    complete = [path for path in newest_first if (path / STATE_FILE).exists()]
    spared = {*complete[:limit], *keep}
    for path in newest_first:
        if path not in spared:
            shutil.rmtree(path)


def newest_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint that was written to its end; None where there is none."""
    complete = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{STATE_FILE}")]
    return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
