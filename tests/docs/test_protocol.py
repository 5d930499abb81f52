"""The noise budget in docs/protocol.md is what the code gives, and its coverage table what the simulation gives."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.boards.coverage import SETTINGS, coverage, this_one
from trl_opd.boards.power import TYPICAL, smallest_detectable

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) x (\d+) \| (.+) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("problems", "answers", "cells"), ROWS)
def test_noise_budget(problems, answers, cells):
    shown = [float(cell) for cell in cells.split(" | ")]
    n, k = int(problems), int(answers)
    error = TYPICAL.decoding / np.sqrt(n * k)
    designs = [(seeds, comparisons) for comparisons in (1, 6) for seeds in (3, 5)]
    found = [smallest_detectable(TYPICAL, seeds, n, k, comparisons) for seeds, comparisons in designs]
    assert [100 * error, *(100 * one for one in found)] == pytest.approx(shown, abs=0.051)


def test_there_are_rows():
    assert ("30", "32") in {row[:2] for row in ROWS}


@pytest.mark.slow
def test_a_row_of_the_coverage_table():
    assert "| 30 problems x 32 answers | 95.0 |" in PAGE
    assert coverage(SETTINGS["30 problems x 32 answers"], this_one, 2_000) == pytest.approx(0.950, abs=0.0006)
