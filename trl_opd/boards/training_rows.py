"""The rows that a board trains on: what they are, as a hash, and whether held-out problems are among them."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from trl_opd.boards.spec import BoardSpec, ValidationSpec
from trl_opd.data import FILE_LOADERS, DataArguments, load_training_data
from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Problem
from trl_opd.evals.records import file_sha256, json_sha256
from trl_opd.evals.rows import load_rows
from trl_opd.evals.suites import load_suite

TESTBED = "testbed"


def fingerprint(data: dict[str, Any]) -> dict[str, str | None]:
    """What identifies the rows of a board's `data`, wherever they lie.

    Returns:
        `dict`: `name` (of the file, or of the dataset), and `sha256` of the file's bytes or of the built-in rows, None
        where the file is not here; for a dataset on the hub, which is not read for this, `revision` in its place.
    """
    name = data["dataset_name"]
    if name == TESTBED:
        return {"name": name, "sha256": _testbed_sha256(data.get("dataset_train_split", "train"))}
    path = Path(name)
    if path.suffix in FILE_LOADERS:
        return {"name": path.name, "sha256": _file_sha256(path, path.stat().st_mtime_ns) if path.is_file() else None}
    return {"name": name, "revision": data.get("dataset_revision")}


@lru_cache
def _testbed_sha256(split: str) -> str:
    from trl_opd.testbed.tasks import rows

    return json_sha256(rows(split))


@lru_cache
def _file_sha256(path: Path, modified: int) -> str:
    return file_sha256(path)


def local_rows(data: dict[str, Any]) -> Iterable[dict[str, Any]] | None:
    """The training rows as a `datasets.Dataset`, None where they are on the hub, or their file is not here.

    Raises:
        UserError: if the file does not hold what `data` says.
    """
    return load_training_data(DataArguments(**data)) if fingerprint(data).get("sha256") else None


def check_held_out(spec: BoardSpec, rows: Iterable[dict[str, Any]] | None) -> list[str]:
    """Refuse problems that are also trained on, in the validation set and in the suite alike.

    Args:
        spec (`BoardSpec`):
            The board.
        rows (`Dataset`, *optional*):
            Its training rows, see `local_rows`; what is on the hub is not fetched for this.

    Returns:
        `list[str]`: What could not be compared, in words.

    Raises:
        UserError: naming the benchmark and a problem; or that data which should be on this machine are not.
    """
    if rows is None:
        return [f"the training rows, {spec.data['dataset_name']}, which are not on this machine"]
    trained = _texts(rows)
    unread = []
    for entry in [*([spec.validation] if spec.validation else []), *spec.evaluation]:
        problems = _problems(entry)
        if problems is None:
            unread.append(f"the problems of {entry.benchmark}, which are not on this machine")
            continue
        shared = [problem.id for problem in problems if problem.problem.strip() in trained]
        if shared:
            raise UserError(
                f"{spec.path.name}: {len(shared)} of the {len(problems)} problems of {entry.benchmark} are among the "
                f"training rows ({shared[0]} first): hold them out, for instance with `dataset_limit` in `data`."
            )
    return unread


def _texts(rows: Iterable[dict[str, Any]]) -> set[str]:
    """Every text in the rows, prompts included."""
    texts: set[str] = set()
    for row in rows:
        texts.update(value.strip() for value in row.values() if isinstance(value, str))
        texts.update(turn["content"].strip() for turn in _turns(row.get("prompt")))
    return texts


def _turns(prompt: Any) -> list[dict[str, str]]:
    return prompt if isinstance(prompt, list) else []


def _problems(entry: ValidationSpec) -> list[Problem] | None:
    (benchmark,) = load_suite(entry.benchmark)
    if entry.data_dir is None and benchmark.source.builtin is None:
        return None
    return load_rows(benchmark, entry.data_dir, entry.limit).problems
