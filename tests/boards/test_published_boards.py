"""The boards with results: what is committed is what their records give, without runs, data or weights."""

from pathlib import Path

import pytest

from trl_opd.boards.spec import load_spec
from trl_opd.boards.verify import verify_board

BOARDS = Path(__file__).parents[2] / "leaderboards"


@pytest.mark.parametrize("name", ["arithmetic", "gsm8k-small"])
def test_the_published_board_verifies(name):
    assert verify_board(load_spec(BOARDS / f"{name}.yaml")) == []
