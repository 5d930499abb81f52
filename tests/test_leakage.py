"""What counts as quoting the teacher's privileged text."""

import pytest

from trl_opd.leakage import quotes

SECRET = "first we add three and four which makes seven and then we double it"


@pytest.mark.parametrize(
    ("completion", "prompt", "expected"),
    [
        ("so first we add three and four which makes seven .", "How much?", True),
        ("so first we add three and four which makes eight .", "How much?", True),
        ("so first we add three and four", "How much?", False),
        ("so first we add three and four which makes seven .", f"Hint: {SECRET}", False),
        ("seven", "How much?", False),
        ("", "", False),
    ],
)
def test_quotes(completion, prompt, expected):
    assert quotes(completion, SECRET, prompt) is expected
