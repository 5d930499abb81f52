"""The site's pages: links lead somewhere or stop the build, formulas become MathML, every page has its place."""

import importlib.util
from pathlib import Path

import pytest

from tests.docs.tables import DOCS

pytest.importorskip("latex2mathml")


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_formula_of_the_documentation_can_be_read(build):
    for page in DOCS.rglob("*.md"):
        text = build._prose(page.read_text(), lambda prose, page=page: build.formulas(prose, page))
        assert "```math" not in text


def test_a_formula_in_code_is_left_alone(build):
    assert build.formulas("`$HOME` and $x$", DOCS / "index.md").startswith("`$HOME` and <span><math")


def test_a_formula_with_an_unknown_command_stops_the_build(build):
    with pytest.raises(build.BrokenDocs, match="nosuchcommand"):
        build.formulas(r"$\nosuchcommand{x}$", DOCS / "index.md")


def test_a_link_out_of_docs_leads_to_a_page_that_shows_the_file(build):
    shown: set[Path] = set()
    text = build.relinked("[code](../../trl_opd/loss.py)", DOCS / "methods" / "grpo.md", shown)
    assert text == "[code](../source/trl_opd/loss.py.md)"
    assert shown == {Path("trl_opd/loss.py")}


def test_a_link_that_leads_nowhere_stops_the_build(build):
    with pytest.raises(build.BrokenDocs, match="no_such_file"):
        build.relinked("[code](../no_such_file.py)", DOCS / "index.md", set())


@pytest.mark.parametrize(
    ("nav", "what"),
    [
        (["a.md", "gone.md", {"last": "b.md"}], "names pages that are not there: gone.md"),
        (["a.md", {"last": "a.md"}], "lacks pages: b.md"),
    ],
)
def test_a_navigation_that_does_not_fit_stops_the_build(build, tmp_path, nav, what):
    (tmp_path / "a.md").write_text("# a\n")
    (tmp_path / "b.md").write_text("# b\n")
    with pytest.raises(build.BrokenDocs, match=what):
        build._navigation(nav, tmp_path, [], [])
