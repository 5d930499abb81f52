"""Every snippet of the documentation parses, and every command in it exists. What also runs is run in test_docs.py."""

import ast
import re
import shlex

import pytest
import yaml

from tests.docs.tables import DOCS
from trl_opd.cli.main import COMMANDS, main

ALL = [DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SNIPPETS = [
    pytest.param(language, text, id=f"{page.name}-{number}")
    for page in ALL
    for number, (language, text) in enumerate(re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.S | re.M))
]


@pytest.mark.parametrize(("language", "text"), SNIPPETS)
def test_snippet_parses(language, text):
    if language == "python":
        ast.parse(text)
    elif language == "yaml":
        assert yaml.safe_load(text) is not None
    elif language == "bash":
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["trl-opd"] and len(words) > 1:
                assert words[1] in COMMANDS or words[1].startswith("-"), line


def test_there_are_snippets_of_each_language():
    assert {"python", "yaml", "bash"} <= {parameter.values[0] for parameter in SNIPPETS}


@pytest.mark.parametrize("name", ["my_board", "first_board"])
def test_the_boards_of_the_documentation_are_accepted(name, tmp_path, monkeypatch, capsys):
    text = (DOCS / "add_a_board.md").read_text()
    (board,) = [one for one in re.findall(r"^```yaml\n(.*?)^```$", text, re.S | re.M) if f"name: {name}\n" in one]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "board.yaml").write_text(board)
    assert main(["board", "plan", "board.yaml"]) == 0
    assert "0 of" in capsys.readouterr().out
