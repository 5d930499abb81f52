"""The tables of defaults in docs, made from the configurations; `python -m tests.docs.tables` rewrites them.

A table stands between two markers. Option, default and meaning come from the dataclass; the column on the paper is
written by hand in the page and kept.
"""

import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import trl_opd
from trl_opd.defaults import trl_base
from trl_opd.methods import METHODS
from trl_opd.pages import pages

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- defaults:begin -->", "<!-- defaults:end -->"
_BETWEEN = re.compile(f"(?<={BEGIN}\n).*?(?={END})", re.DOTALL)
HEADER = ("Option", "Default", "Paper", "Meaning")

#: Method -> its page.
PAGES = pages()


def own_fields(name: str) -> list[Field]:
    """The options of a method that the configuration of TRL's which it extends lacks, or has with another default."""
    config = getattr(trl_opd, METHODS[name].config)
    inherited = {f.name: default(f) for f in fields(trl_base(config))}
    return [f for f in fields(config) if f.name not in inherited or default(f) != inherited[f.name]]


def default(field: Field) -> Any:
    """A field's default, made if it is made by a function."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def rows(page: str) -> list[list[str]]:
    """The cells of a page's table of defaults, without its header."""
    (table,) = _BETWEEN.findall(page)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.strip().splitlines()]
    return cells[2:]


def with_table(name: str, page: str) -> str:
    """A method's page with its table of defaults made anew; what it says about the paper is kept."""
    paper = {cells[0]: cells[2] for cells in rows(page)}
    lines = [HEADER, ("---",) * len(HEADER)]
    for f in own_fields(name):
        option = f"`{f.name}`"
        lines.append((option, _shown(default(f)), paper.get(option, ""), _escaped(f.metadata["help"])))
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return _BETWEEN.sub(lambda _: table, page)


def _shown(value: Any) -> str:
    return "the built-in text" if isinstance(value, str) and "\n" in value else f"`{_escaped(repr(value))}`"


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    for name, path in PAGES.items():
        path.write_text(with_table(name, path.read_text()))
