"""Where the pages on the methods lie, which the site shows and `trl-opd explain` prints."""

import re
from pathlib import Path

from trl_opd.methods import METHODS, method

#: Methods whose page is not docs/methods/NAME.md.
ELSEWHERE = {"mix": "mixing.md"}


def docs_dir() -> Path:
    """The folder of the pages: package data in an installed wheel, `docs/` in a checkout of the repository."""
    package = Path(__file__).resolve().parent
    installed = package / "_docs"
    return installed if installed.is_dir() else package.parent / "docs"


def page_of(name: str) -> Path:
    """The page of a method.

    Raises:
        `UserError`: If there is no such method, with the nearest known name.
    """
    method(name)
    return docs_dir() / ELSEWHERE.get(name, f"methods/{name}.md")


def pages() -> dict[str, Path]:
    """Every method's page."""
    return {name: page_of(name) for name in METHODS}


def sections(text: str) -> dict[str, str]:
    """The texts under the headings of the second level, by heading; what comes before the first has the name ""."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))
