"""The rows that a board trains on: what they are, as a hash, and whether held-out problems are among them."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from trl_opd.data import FILE_LOADERS
from trl_opd.evals.records import file_sha256, json_sha256

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
