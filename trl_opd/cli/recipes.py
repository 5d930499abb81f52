"""`trl-opd recipes list|show|copy`: the recipes and launch files that ship with the package."""

import argparse
import json
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trl_opd.cli.parser import Parser
from trl_opd.errors import UserError
from trl_opd.recipes import Recipe, Shipped, find, launch_files, recipes
from trl_opd.suggest import suggest

DESCRIPTION = """\
Recipes are YAML files of options, one for a method on a model, with the source of each number beside it. They ship with
the package, as do accelerate's launch configurations and a Slurm script.
"""

#: Recipes from which the list has a line a model, not an entry a recipe.
MANY = 20

EPILOG = """\
examples:
  trl-opd recipes list --model qwen3-4b
  trl-opd recipes show qwen3-4b/sdpo
  trl-opd recipes copy qwen3-4b/sdpo my_sdpo.yaml
  trl-opd recipes copy accelerate/fsdp2 .
  trl-opd train sdpo --config testbed/sdpo --output_dir runs/sdpo
"""


def build_parser() -> Parser:
    """The command's options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="trl-opd recipes", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    listing = actions.add_parser("list", help="what there is", description="What there is.")
    listing.add_argument("--model", help="recipes of one model")
    listing.add_argument("--method", help="recipes of one method")
    listing.add_argument("--json", action="store_true", help="for machines")
    listing.set_defaults(run=_list)
    showing = actions.add_parser("show", help="print one", description="Print one.")
    showing.add_argument("name", metavar="NAME", help="as in the list, such as qwen3-4b/sdpo")
    showing.set_defaults(run=_show)
    copying = actions.add_parser("copy", help="copy one, to change it", description="Copy one, to change it.")
    copying.add_argument("name", metavar="NAME", help="as in the list, such as qwen3-4b/sdpo or accelerate/ddp")
    copying.add_argument("destination", metavar="DEST", help="a new file, or a folder that is there")
    copying.add_argument("--force", action="store_true", help="overwrite a file")
    copying.set_defaults(run=_copy)
    return parser


def main(argv: list[str]) -> int:
    """Runs one action; returns the exit status.

    Raises:
        `UserError`: If a name is unknown, or the destination is there already or cannot be written.
    """
    arguments = build_parser().parse_args(argv)
    arguments.run(arguments)
    return 0


def _list(arguments: argparse.Namespace) -> None:
    chosen = _chosen(arguments.model, arguments.method)
    if arguments.json:
        print(json.dumps([_row(recipe) for recipe in chosen], indent=1))
        return
    console = Console()
    console.print(_summaries(chosen) if len(chosen) <= MANY else _by_model(chosen))
    if arguments.model is None and arguments.method is None:
        console.print(_launch_table(launch_files()))


def _by_model(chosen: list[Recipe]) -> Table:
    """A row a model, with the methods that there are recipes for."""
    table = Table(box=box.SIMPLE_HEAD, caption="what one does: trl-opd recipes list --model MODEL")
    table.add_column("model", no_wrap=True)
    table.add_column("methods; * was run here", overflow="fold")
    for model, group in groupby(chosen, key=lambda recipe: recipe.model):
        table.add_row(model, ", ".join(f"{recipe.method}{'*' if recipe.run_here else ''}" for recipe in group))
    return table


def _summaries(chosen: list[Recipe]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("recipe", "run here", "what"):
        table.add_column(heading, no_wrap=heading == "recipe", overflow="fold")
    for recipe in chosen:
        table.add_row(recipe.name, "yes" if recipe.run_here else "no", escape(recipe.summary))
    return table


def _row(recipe: Recipe) -> dict[str, str | bool]:
    return {
        "name": recipe.name,
        "model": recipe.model,
        "method": recipe.method,
        "run_here": recipe.run_here,
        "summary": recipe.summary,
        "path": str(recipe.path),
    }


def _chosen(model: str | None, method: str | None) -> list[Recipe]:
    every = recipes()
    for what, wanted, known in (
        ("model", model, {recipe.model for recipe in every}),
        ("method", method, {recipe.method for recipe in every}),
    ):
        if wanted is not None and wanted not in known:
            raise UserError(
                f"There are no recipes of the {what} {wanted!r}{suggest(wanted, known)}; there are "
                f"{', '.join(sorted(known))}."
            )
    chosen = [recipe for recipe in every if model in (None, recipe.model) and method in (None, recipe.method)]
    if not chosen:
        raise UserError(f"There is no recipe of {method} for {model}; `trl-opd recipes list` names those there are.")
    return chosen


def _launch_table(files: list[Shipped]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("to launch with", no_wrap=True)
    table.add_column("what", overflow="fold")
    for one in files:
        table.add_row(one.name, escape(one.summary))
    return table


def _show(arguments: argparse.Namespace) -> None:
    print(find(arguments.name).text(), end="")


def _copy(arguments: argparse.Namespace) -> None:
    source = find(arguments.name)
    destination = Path(arguments.destination)
    try:
        if destination.is_dir():
            destination /= source.path.name
        if destination.exists() and not arguments.force:
            raise UserError(f"{destination} is there already; name another file, or add --force to overwrite it.")
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_text(source.text(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{destination} cannot be written ({error.strerror}); name another destination.") from error
    print(f"{source.name} is in {destination}")
