"""From stored runs to everything that a board publishes; each artefact is made from `results.json` alone.

results.json, results.parquet, problems.parquet     every number, for programs
table.md, board.html, figures/                       for people
hub/<run>/<benchmark>.yaml                           for a model's page on the Hub
records/                                             what the numbers come from (`trl_opd.boards.archive`)
"""

from pathlib import Path

from trl_opd.boards import exports
from trl_opd.boards.collect import collect, publish
from trl_opd.boards.figures import write_figures
from trl_opd.boards.files import write_json, write_text
from trl_opd.boards.page import render_page
from trl_opd.boards.results import build_results
from trl_opd.boards.spec import BoardSpec
from trl_opd.boards.table import render_table


def write_report(spec: BoardSpec) -> dict[str, Path]:
    """Publish the records of the runs that are here, and write a board's artefacts from the records.

    The same records give the same bytes, but for the time in `made`.

    Returns:
        `dict[str, Path]`: "results", "table", "page", "parquet", "problems", "figures" and "hub".

    Raises:
        UserError: if nothing was ever run here, or a stored run is damaged.
    """
    publish(spec)
    results = build_results(spec, collect(spec))
    paths = artefacts(spec)
    write_json(paths["results"], results)
    write_text(paths["table"], render_table(results))
    write_text(paths["page"], render_page(results))
    exports.write_parquet(paths["parquet"], exports.score_rows(results))
    exports.write_parquet(paths["problems"], exports.problem_rows(results))
    write_figures(results, paths["figures"])
    exports.write_hub(results, paths["hub"])
    return paths


def artefacts(spec: BoardSpec) -> dict[str, Path]:
    """Where a board's artefacts lie."""
    names = {
        "results": "results.json",
        "table": "table.md",
        "page": "board.html",
        "parquet": "results.parquet",
        "problems": "problems.parquet",
        "figures": "figures",
        "hub": "hub",
    }
    return {what: spec.folder / name for what, name in names.items()}
