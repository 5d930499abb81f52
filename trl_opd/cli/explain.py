"""`trl-opd explain METHOD`: the method's page of the documentation, on a terminal."""

import argparse
import html
import json
import re
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trl_opd.cli.parser import Parser
from trl_opd.cli.plain_math import plain_diagram, plain_math
from trl_opd.methods import METHODS, method
from trl_opd.pages import docs_dir, page_of, sections

DESCRIPTION = """\
Explain a method: its loss, what flows where, its defaults with the paper's values beside them, where paper and released
code disagree, pitfalls, and the logged metrics with what is healthy. The text is that of the documentation.
"""

#: Sections of a page that belong to the site alone.
LEFT_OUT = ("Try it",)

#: Sections of docs/concepts.md that every page's text refers to.
SHARED = ("Notation", "Metrics of every run")

WIDEST = 110

#: Columns of a table that a terminal of 80 characters holds side by side.
WIDEST_TABLE = 3

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TABLE = re.compile(r"((?:^\|.*\|$\n?)+)", re.MULTILINE)
_PLAIN = {"math": plain_math, "mermaid": plain_diagram}


def build_parser() -> Parser:
    """The command's options."""
    methods = "\n".join(f"  {name:<10}{entry.summary}" for name, entry in METHODS.items())
    parser = Parser(
        prog="trl-opd explain",
        description=DESCRIPTION,
        epilog=f"methods:\n{methods}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", metavar="METHOD", help="a method's name")
    parser.add_argument("--json", action="store_true", help="print the sections as a JSON object")
    return parser


def main(argv: list[str]) -> int:
    """Prints the explanation; returns the exit status.

    Raises:
        `UserError`: If there is no such method.
    """
    arguments = build_parser().parse_args(argv)
    found = explanation(arguments.method)
    if arguments.json:
        print(json.dumps({"method": arguments.method, "sections": found}, indent=1, ensure_ascii=False))
        return 0
    console = Console()
    width = min(console.width, WIDEST)
    console.print(Text(f"{arguments.method}: {method(arguments.method).summary}", style="bold"), width=width)
    for title, text in found.items():
        console.print(Text(f"\n{title}", style="bold underline"), width=width)
        for part in _parts(text):
            console.print(part, width=width)
    return 0


def explanation(name: str) -> dict[str, str]:
    """A method's sections by heading, as Markdown without formulas, diagrams or links that lead to other pages.

    Raises:
        `UserError`: If there is no such method, with the nearest known name.
    """
    own = sections(page_of(name).read_text())
    abstract = re.sub(r"\A# .*\n", "", own.pop(""))
    shared = sections((docs_dir() / "concepts.md").read_text())
    chosen = {"What it is": abstract} | {title: text for title, text in own.items() if title not in LEFT_OUT}
    chosen |= {title: shared[title] for title in SHARED}
    return {title: plain_markdown(text).strip() for title, text in chosen.items()}


def _parts(text: str) -> Iterator[Markdown | Table | Padding]:
    """What a section is printed as: its tables apart, whose names would be cut otherwise."""
    for part in _TABLE.split(text):
        if part.startswith("|"):
            rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in part.splitlines()]
            if len(rows[0]) > WIDEST_TABLE:
                yield from _listed(rows)
            else:
                yield _table(rows)
        elif part.strip():
            yield Markdown(part, hyperlinks=False)


def _listed(rows: list[list[str]]) -> Iterator[Padding]:
    """The rows of a wide table one below the other: a line of all cells but the last, and the last one below it."""
    headings = [_cell(heading).plain.lower() for heading in rows[0]]
    for row in rows[2:]:
        name, *facts, meaning = map(_cell, row)
        named = (Text.assemble(f"{heading} ", fact) for heading, fact in zip(headings[1:-1], facts, strict=True))
        yield Padding(Text.assemble(name, ": ", Text(", ").join(named)), (0, 0, 0, 2))
        yield Padding(meaning, (0, 0, 0, 6))


def _table(rows: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=any(cell.strip() for cell in rows[0]))
    cells = [list(map(_cell, row)) for row in (rows[0], *rows[2:])]
    for position, heading in enumerate(cells[0]):
        names = (word for row in cells if position == 0 for word in row[0].plain.split())
        table.add_column(heading, overflow="fold", min_width=max(map(len, names), default=None))
    for row in cells[1:]:
        table.add_row(*row)
    return table


def _cell(markdown: str) -> Text:
    """A cell's text, its code spans in another colour."""
    plain = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r"\1 (\2)", html.unescape(markdown.strip().replace(r"\|", "|")))
    parts = plain.split("`")
    return Text.assemble(*((part, "cyan" if index % 2 else "") for index, part in enumerate(parts)))


def plain_markdown(text: str) -> str:
    """Markdown with formulas and diagrams as text, without comments and without relative links."""
    found, end = "", 0
    for block in _FENCED.finditer(text):
        language, source = block.groups()
        shown = _PLAIN[language](source) if language in _PLAIN else source.rstrip()
        found += _plain_prose(text[end : block.start()]) + f"```text\n{shown}\n```"
        end = block.end()
    return found + _plain_prose(text[end:])


def _plain_prose(text: str) -> str:
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)
    # In a code span no sign of a formula is taken for Markdown; a bar would still end a table's cell.
    return re.sub(r"\$([^$\n]+)\$", lambda match: f"`{plain_math(match.group(1)).replace('||', '‖')}`", text)
