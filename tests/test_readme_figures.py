"""The README's table of memory and speed is that of the committed results."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_ratio_in_the_readme_is_one_of_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Memory and speed")[1].split("\n## ")[0]
    told = re.findall(r"^\| .+ \| ([\d.]+) (?:GiB|s) \| ([\d.]+) (?:GiB|s) \| ([\d.]+) \|$", text, re.MULTILINE)
    files = [ROOT / "benchmarks" / "results" / f"{name}.json" for name in ("loss_memory", "step_speed")]
    rows = [row for file in files for row in json.loads(file.read_text())["rows"]]
    known = {(f"{row['theirs']:.3g}", f"{row['ours']:.3g}", f"{row['ratio']:.3f}") for row in rows}
    assert len(told) == 8
    assert set(told) <= known


def test_every_target_of_the_results_is_met():
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        for row in json.loads(file.read_text())["rows"]:
            assert row["met"] in (True, None), row["figure"]
            assert row["target"] is None or row["ratio"] <= row["target"], row["figure"]
