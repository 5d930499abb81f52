"""The boards with results: what is committed is what their records give, without runs, data or weights."""

import json
from pathlib import Path

import pytest

from trl_opd.boards.spec import load_spec
from trl_opd.boards.verify import verify_board

BOARDS = Path(__file__).parents[2] / "leaderboards"


@pytest.mark.parametrize("name", ["arithmetic", "gsm8k-small"])
def test_the_published_board_is_complete_and_verifies(name):
    spec = load_spec(BOARDS / f"{name}.yaml")
    results = json.loads((spec.folder / "results.json").read_text())
    assert {run["status"] for run in results["runs"]} == {"finished"}
    assert verify_board(spec) == []
