"""`trl-opd conformance`: what it prints and writes, and its exit status."""

import json

import pytest

from tests.test_conformance import copy_of, make_inputs, record, write
from trl_opd.cli.conformance import main
from trl_opd.errors import UserError

CASES = [
    {"method": "opsd", "beta": 0},
    {"method": "sdpo", "alpha": 0.5, "top_k": 3, "add_tail": True, "is_clip": 2.0},
    {"method": "exopd_sampled", "lam": 1.25},
]


@pytest.fixture(scope="module")
def block():
    return record(make_inputs(0), CASES)


def test_a_reproduced_file_gives_status_0_and_a_row_per_method_and_path(block, tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert main([str(write(tmp_path / "f.json", block)), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    for case in CASES:
        assert printed.count(case["method"]) == 2
    assert printed.count("pass") == 6
    assert "FAIL" not in printed
    rows = json.loads(out.read_text())
    assert [(row["method"], row["path"]) for row in rows[:2]] == [("opsd", "dense"), ("opsd", "tiled")]
    assert all(row["passed"] and row["gradient_error"] < 1e-9 for row in rows)


def test_one_wrong_number_gives_status_1_and_names_the_case(block, tmp_path, capsys):
    wrong = copy_of(block)
    wrong["cases"][1]["loss"] += 1e-6
    path = str(write(tmp_path / "f.json", wrong))
    assert main([path]) == 1
    printed = capsys.readouterr().out
    assert "block 0, case 1 (sdpo), tiled: loss error 1.00e-06" in printed
    assert printed.count("FAIL (1)") == 2
    assert main([path, "--tolerance", "1e-5"]) == 0


def test_markup_in_a_file_is_printed_as_it_is(block, tmp_path, capsys):
    odd = copy_of(block)
    odd["cases"][0]["method"] = "[red]opsd"
    assert main([str(write(tmp_path / "f.json", odd))]) == 1
    assert "[red]opsd" in capsys.readouterr().out


def test_cases_that_show_nothing_are_pointed_out(tmp_path, capsys):
    case = {"method": "sdpo", "alpha": 1, "aggregation": "seq-mean-token-mean"}
    idle = record(make_inputs(0, has_teacher=[0, 0, 0, 0]), [case])
    assert main([str(write(tmp_path / "f.json", idle))]) == 0
    printed = capsys.readouterr().out
    assert "an empty denominator: 1 cases" in printed
    assert "sdpo: no case has a live token" in printed


def test_many_failures_are_counted_where_they_are_not_printed(tmp_path, capsys):
    block = record(make_inputs(0), CASES[:1] * 15)
    for case in block["cases"]:
        case["loss"] += 1.0
    assert main([str(write(tmp_path / "f.json", block))]) == 1
    assert "and 10 more failures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["missing.json"], "cannot be read"),
        (["FILE", "--tolerance", "-1"], "--tolerance"),
        (["FILE", "--json", "/"], "/"),
    ],
)
def test_what_cannot_work_is_a_user_error(block, tmp_path, options, fragment):
    path = str(write(tmp_path / "f.json", block))
    with pytest.raises(UserError, match=fragment):
        main([path if option == "FILE" else option for option in options])
