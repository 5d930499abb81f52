"""Reading a stored run, finished or not, without writing to its folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_opd.errors import UserError
from trl_opd.evals.engines import Key
from trl_opd.evals.files import read_json, read_rows
from trl_opd.evals.store import FORMAT, MANIFEST, SUMMARY, generation_files, key_of, verdict_files


@dataclass(frozen=True)
class StoredRun:
    """What a run's folder holds.

    Attributes:
        folder (`Path`): The folder.
        manifest (`dict`): What decides the result, and who worked on it.
        summary (`dict` or `None`): The metrics of a finished run.
        verdicts (`dict[Key, dict]`): The verdicts of the scoring in force.
    """

    folder: Path
    manifest: dict[str, Any]
    summary: dict[str, Any] | None
    verdicts: dict[Key, dict[str, Any]]

    def generations(self) -> Iterator[dict[str, Any]]:
        """The completions, one at a time from the disk, in the order of their drawing."""
        return (row for file in generation_files(self.folder) for row in read_rows(file))


def run_folder(folder: Path) -> Path:
    """The folder of a run: `folder` itself, or the one in it where it holds a single run and is none."""
    inner = [path.parent for path in folder.glob(f"*/{MANIFEST}")]
    return inner[0] if len(inner) == 1 and not (folder / MANIFEST).exists() else folder


def read_run(folder: Path) -> StoredRun:
    """Read a run's manifest, summary and verdicts.

    Raises:
        UserError: The folder holds no run or one of another format, a line is damaged, or a verdict is stored twice.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        inner = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
        remedy = f"it holds the runs {', '.join(inner)}, pass one of them" if inner else "check the path"
        raise UserError(f"{folder} holds no run (no {MANIFEST}): {remedy}.")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder} holds a run of format {manifest.get('format')}, and this version reads {FORMAT}: evaluate "
            f"again, in another folder."
        )
    verdicts: dict[Key, dict[str, Any]] = {}
    for file in verdict_files(folder, manifest.get("scoring", "")):
        for row in read_rows(file):
            if key_of(row) in verdicts:
                raise UserError(f"{file} holds a second verdict on sample {row['index']} of {row['problem_id']}.")
            verdicts[key_of(row)] = row
    return StoredRun(folder, manifest, read_json(folder / SUMMARY), verdicts)


def count_generations(folder: Path) -> int:
    """The number of completions stored so far."""
    return sum(file.read_bytes().count(b"\n") for file in generation_files(folder))
