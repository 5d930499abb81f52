"""README says what is true: its links lead somewhere, its table is the board's, its commands and snippets parse."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from trl_opd.cli.main import COMMANDS
from trl_opd.methods import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert all((ROOT / link).exists() for link in links if not link.startswith("http")), links


def test_the_board_is_the_committed_one():
    shown = re.search(r"<!-- board:begin -->\n(.*?)<!-- board:end -->", README, re.DOTALL).group(1)
    title, _, table = (ROOT / "leaderboards" / "arithmetic" / "table.md").read_text().partition("\n")
    assert title == "# Arithmetic on the testbed"
    lines, footnote = table.strip().split("\n\n")[:2]  # what follows is linked: warnings, other benchmarks, costs
    assert shown.strip() == f"{lines}\n\n{footnote}"


def test_every_method_is_in_the_table():
    named = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert named == set(METHODS)


def test_python_snippets_parse_and_import_what_exists():
    import trl_opd

    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippets
    for snippet in snippets:
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module == "trl_opd":
                assert all(hasattr(trl_opd, alias.name) for alias in node.names)


def test_commands_name_what_exists():
    lines = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert words[1] in targets
        if words[0] == "trl-opd":
            assert words[1] in COMMANDS
        for word in words:
            if word.endswith(".yaml") or word.startswith("trainers/"):
                assert (ROOT / word).exists(), word
