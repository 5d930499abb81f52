"""The board as one HTML file that needs nothing else: no request leaves it.

Everything that a model, a file or a spec said is untrusted. In the markup it goes through jinja2's autoescape; for the
figures it travels as JSON in an inert `<script type="application/json">`, and the page's scripts write it by
`textContent` alone. Behind that wall the page's own policy (`Content-Security-Policy`) lets only these scripts and
these style sheets work, by their hashes, and forbids every request.
"""

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from trl_opd.boards import page_data, series, table
from trl_opd.boards.files import encoded
from trl_opd.boards.schema import Results, benchmark_of

ASSETS = files(__package__) / "assets"
LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
SCRIPTS = ("page.js", "plots.js", "problems.js")
PLOT_STYLE_HASH = "sha256-jSYQUrW7J0b3jPqhZP9C2Xh1PyJKHKXd4s0fpGGKrww="
"""Hash of the one style element that Observable Plot 0.6.17 puts into each figure."""

UNSAFE_IN_SCRIPT = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&"}


def render_page(results: Results) -> str:
    """The page of a board, from its `results.json` alone."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": table.percent,
        "points": table.points,
        "p_text": table.p_text,
        "tokens": table.tokens,
        "memory": table.memory,
        "duration": table.duration,
        "number": number,
        "written": written,
    }
    scripts = [_asset(name) for name in LIBRARIES + SCRIPTS]
    style = _asset("board.css")
    page = environment.get_template("board.html.j2").render(
        results=results,
        view=page_data.PageView(results),
        table=table,
        series=series,
        primary=benchmark_of(results, results["primary"]),
        data=Markup(json_for_script(page_data.script_data(results))),
        scripts=[Markup(script) for script in scripts],
        style=Markup(style),
        policy="; ".join(
            (
                "default-src 'none'",
                "img-src data:",
                f"script-src {' '.join(map(_hash, scripts))}",
                f"style-src {_hash(style)} '{PLOT_STYLE_HASH}'",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
    )
    return encoded(page).decode()


def json_for_script(value: Any) -> str:
    """JSON that cannot end, or open, anything in the markup around it: ASCII without `<`, `>` and `&`."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(UNSAFE_IN_SCRIPT)


def number(value: float | None) -> str:
    """A plain number of at most three digits."""
    return table.ABSENT if value is None else f"{value:.3g}"


def written(value: Any) -> str:
    """A setting as it would stand in a file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
