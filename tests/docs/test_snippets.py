"""Every snippet of the documentation parses, and every command in it exists. What also runs is run in test_docs.py."""

import ast
import re
import shlex

import pytest
import yaml

from tests.docs.tables import DOCS
from trl_opd.cli.main import COMMANDS

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
