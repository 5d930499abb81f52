"""Is a published board what its records say? Hashes are taken again, and every number is computed again.

Nothing is trained, and no weights are needed: the records beside the board are enough (`trl_opd.boards.archive`).
"""

import math
from pathlib import Path
from typing import Any

from trl_opd.boards import archive, exports
from trl_opd.boards.collect import collect
from trl_opd.boards.files import encoded, read_json
from trl_opd.boards.page import render_page
from trl_opd.boards.report import artefacts
from trl_opd.boards.results import build_results
from trl_opd.boards.schema import FORMAT, Results
from trl_opd.boards.spec import BoardSpec
from trl_opd.boards.table import render_table
from trl_opd.errors import UserError

#: Numbers may differ by what another version of a numerical library makes of the same sum.
TOLERANCE = 1e-9
#: Differences that are told of each key of the results.
MOST_TOLD = 5


def verify_board(spec: BoardSpec) -> list[str]:
    """What is wrong with a published board, one sentence each; empty where all is right.

    Raises:
        UserError: if there is no `results.json` of this format.
    """
    paths = artefacts(spec)
    stored = read_json(paths["results"])
    if stored is None or stored.get("format") != FORMAT:
        raise UserError(
            f"{paths['results']} is missing or not of format {FORMAT}: write it by `trl-opd board report SPEC`."
        )
    if lost := sorted(Results.__annotations__.keys() - stored.keys()):
        return [f"results.json has no {', '.join(lost)}: get it back from version control, or write the report again."]
    wrong = _files(spec, stored)
    try:
        again = build_results(spec, collect(spec), stored["made"])
    except UserError as error:
        return [*wrong, str(error)]
    for key in sorted(stored.keys() | again.keys()):
        found = differences(*({key: one[key]} if key in one else {} for one in (stored, again)))
        wrong += [f"results.json: {text}" for text in found[:MOST_TOLD]]
        if len(found) > MOST_TOLD:
            wrong.append(f"results.json: {len(found) - MOST_TOLD} more values of {key} are not what the records give.")
    return wrong + _artefacts(paths, stored)


def differences(stored: Any, again: Any, where: str = "") -> list[str]:
    """Where two JSON values differ: counts by anything, other numbers by more than `TOLERANCE`."""
    if isinstance(stored, dict) and isinstance(again, dict):
        keys = sorted(stored.keys() | again.keys())
        return [
            text
            for key in keys
            for text in (
                differences(stored[key], again[key], f"{where}.{key}".lstrip("."))
                if key in stored and key in again
                else [f"{where}.{key} is {'not in' if key in stored else 'only in'} what the records give.".lstrip(".")]
            )
        ]
    if isinstance(stored, list) and isinstance(again, list) and len(stored) == len(again):
        return [
            text
            for number, pair in enumerate(zip(stored, again, strict=True))
            for text in differences(*pair, f"{where}[{number}]")
        ]
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (stored, again))
    counts = numbers and stored % 1 == again % 1 == 0
    if numbers and not counts and math.isclose(stored, again, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        return []
    return [] if stored == again else [f"{where} is {_short(stored)}, but the records give {_short(again)}."]


def _files(spec: BoardSpec, stored: Results) -> list[str]:
    """Files of the records whose hash is another than the results say, and those that are not there or not known."""
    folder = archive.records_folder(spec)
    expected = {f"{run['name']}/{path}": sha for run in stored["runs"] for path, sha in run["files"].items()}
    expected |= stored["files"]
    found = archive.shared_hashes(spec)
    for run in stored["runs"]:
        if run["files"] and (folder / run["name"]).is_dir():
            found |= {f"{run['name']}/{path}": sha for path, sha in archive.hashes(folder / run["name"]).items()}
    wrong = [f"records/{path} is missing." for path in sorted(expected.keys() - found.keys())]
    wrong += [f"records/{path} is not in results.json." for path in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    return wrong + [f"records/{path} has another SHA-256." for path in both if found[path] != expected[path]]


def _artefacts(paths: dict[str, Path], stored: Results) -> list[str]:
    wrong = []
    for what, made in (("table", render_table), ("page", render_page)):
        text = paths[what].read_text(encoding="utf-8", errors="replace") if paths[what].exists() else None
        if text != encoded(made(stored)).decode():
            wrong.append(f"{paths[what].name} is {'missing' if text is None else 'not what results.json gives'}.")
    for what, rows in (("parquet", exports.score_rows), ("problems", exports.problem_rows)):
        if not paths[what].exists():
            wrong.append(f"{paths[what].name} is missing.")
        elif differences(exports.read_parquet(paths[what]), rows(stored)):
            wrong.append(f"{paths[what].name} is not what results.json gives.")
    if exports.read_hub(paths["hub"]) != exports.hub_texts(stored):
        wrong.append("hub/ is not what results.json gives.")
    return wrong


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
