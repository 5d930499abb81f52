"""The page's table of calibrations is that of the stored measurements."""

import re
from pathlib import Path

from trl_opd.evals.calibration import load_measured, load_published

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_table_holds_what_is_measured():
    published = {(entry.benchmark, entry.model): entry.score for entry in load_published()}
    rows = re.findall(r"^\| (\w+) \| .*? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|", PAGE, re.MULTILINE)
    told = {name: tuple(map(float, numbers)) for name, *numbers in rows}
    measured = {
        entry.benchmark: (
            published[entry.benchmark, entry.model],
            *(round(100 * value, 1) for value in (entry.accuracy, *entry.interval)),
        )
        for entry in load_measured()
    }
    assert told == measured
