"""The page of `results.json` of format 1, until the report writes format 2: see `page`.

Everything that a model, a file or a spec said goes through jinja2's autoescape. Behind that wall, the page's own
policy (`Content-Security-Policy`) lets only the one inline script and style sheet work, by their hashes, and forbids
requests.
"""

import base64
import hashlib
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from trl_opd.boards import figures_format1 as figures
from trl_opd.boards import table
from trl_opd.boards.spec import BASE_RUN

ASSETS = files(__package__) / "assets" / "format1"


def render_page(results: dict[str, Any]) -> str:
    """The page of a board, from its `results.json` alone."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": table.percent,
        "points": table.points,
        "p_text": table.p_text,
        "tokens": table.tokens,
        "memory": table.memory,
        "duration": table.duration,
    }
    script, style = _asset("board.js"), _asset("board.css")
    return environment.from_string(_asset("board.html.j2")).render(
        results=results,
        base=BASE_RUN,
        table=table,
        figures=figures,
        script=Markup(script),
        style=Markup(style),
        policy=f"default-src 'none'; img-src data:; script-src '{_hash(script)}'; style-src '{_hash(style)}'",
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
