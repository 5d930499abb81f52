"""The options of `trl-opd eval` that say which rows are read."""

import argparse
import json

import pytest

from trl_opd.cli.eval import main
from trl_opd.cli.eval.options import window
from trl_opd.errors import UserError

from .conftest import sums, write_benchmark


@pytest.fixture
def command(student_path, tmp_path):
    errata = [{"id": "sum-0", "why": "wrong", "source": "seen", "answer": "7"}]
    path = write_benchmark(tmp_path / "data", sums(2), errata=errata)
    given = ["--model", student_path, "--benchmark", str(path), "--data-dir", str(path.parent)]
    return [*given, "--output-dir", str(tmp_path / "out"), "--n", "1", "--max-new-tokens", "4"]


def settings(tmp_path) -> dict:
    return json.loads((tmp_path / "out" / "sums" / "manifest.json").read_text())["settings"]


def test_errata_and_a_cutoff_are_recorded_and_shown(command, tmp_path, capsys):
    assert main([*command, "--cutoff", "2024-01"]) == 0
    assert "public before the model's cutoff" in capsys.readouterr().out
    assert settings(tmp_path)["errata"] == {"corrected": ["sum-0"], "excluded": []}
    assert settings(tmp_path)["comparable"] is True
    with pytest.raises(UserError, match="errata"):
        main([*command, "--no-errata"])  # other settings need another folder


def test_other_data_are_recorded_as_not_comparable(command, tmp_path):
    with (tmp_path / "data" / "sums.jsonl").open("a") as file:
        file.write(json.dumps({"id": "more", "problem": "1+1=?", "answer": "2"}) + "\n")
    with pytest.raises(UserError, match="pass --allow-other-data"):
        main(command)
    assert not (tmp_path / "out").exists()
    assert main([*command, "--allow-other-data"]) == 0
    assert settings(tmp_path)["comparable"] is False
    assert settings(tmp_path)["problems"] == 3


@pytest.mark.parametrize(("change", "message"), [(["--window", "2025-02:"], "no dates"), (["--cutoff", "24"], "month")])
def test_a_window_without_dates_and_a_cutoff_that_is_none_are_refused(command, change, message):
    with pytest.raises(UserError, match=message):
        main([*command, *change])


@pytest.mark.parametrize(
    ("text", "months"),
    [
        ("2025-02:2025-05", ("2025-02", "2025-05")),
        (":2025-05-17", (None, "2025-05-17")),
        ("2025-02:", ("2025-02", None)),
    ],
)
def test_a_window_is_two_months_either_of_which_may_be_left_out(text, months):
    assert window(text) == months


@pytest.mark.parametrize("text", ["2025-02", "2025:2026", "2025-2:2025-05", "x:y"])
def test_another_window_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="not two months"):
        window(text)
