"""Geometry of the figures and how numbers are written."""

import numpy as np
import pytest

from trl_opd.boards import table
from trl_opd.boards.figures import Axis, _mean_curve, _smoothed, learning_curves, style_of


def seed_curve(seed: int, tokens: list, reward: list) -> dict:
    return {"seed": seed, "generated_tokens": tokens, "reward": reward}


def test_axis_maps_ends_and_keeps_ticks_inside():
    axis = Axis(0.0, 123_000.0, 46, 508)
    assert (axis(0.0), axis(123_000.0)) == (46.0, 508.0)
    assert all(0 <= tick <= 123_000 for tick in axis.ticks())


def test_smoothing_is_a_trailing_mean_over_a_twentieth():
    reward = list(np.arange(40.0))
    x, smooth = _smoothed(seed_curve(0, list(range(40)), reward), "generated_tokens")
    assert smooth[:3] == pytest.approx([0.0, 0.5, 1.5])
    assert smooth[-1] == pytest.approx(38.5)
    assert len(x) == 40


def test_band_runs_from_lowest_to_highest_seed_up_to_the_shortest():
    curves = [seed_curve(0, [0, 10], [0.2, 0.2]), seed_curve(1, [0, 20], [0.6, 0.6])]
    curve = _mean_curve(curves, "generated_tokens")
    assert curve["x"][-1] == 10
    assert curve["mean"] == pytest.approx(np.full(len(curve["x"]), 0.4))
    assert (curve["low"].max(), curve["high"].min()) == pytest.approx((0.2, 0.6))


def test_baseline_is_drawn_on_top_in_the_texts_colour():
    rows = [{"name": name} for name in ("base", "opd", "grpo")]
    curves = {name: [seed_curve(0, [0, 10], [0.1, 0.2])] for name in ("opd", "grpo")}
    results = {"baseline": "grpo", "rows": rows, "curves": curves}
    drawn = learning_curves(results, "generated_tokens")["series"]
    assert (drawn[-1]["name"], drawn[-1]["style"]) == ("grpo", "series-reference")
    assert style_of(results, "opd") == "series-0"


def test_nothing_logged_draws_nothing():
    results = {"baseline": "grpo", "rows": [], "curves": {"grpo": [seed_curve(0, [1, 2], [None, None])]}}
    assert learning_curves(results, "generated_tokens") is None


def test_time_axis_has_one_unit():
    results = {"baseline": "grpo", "rows": [], "curves": {"grpo": [{"seconds": [0, 400], "reward": [0.1, 0.2]}]}}
    drawn = learning_curves(results, "seconds")
    assert drawn["label"] == "Training time, minutes"
    assert [label for _, label in drawn["x_ticks"]] == ["0", "2", "4", "6"]


def test_numbers_are_written_for_people():
    assert table.percent(0.12345) == "12.3"
    assert (table.points(-0.031), table.points(0.031)) == ("\N{MINUS SIGN}3.1", "+3.1")
    assert (table.tokens(950), table.tokens(122_880), table.tokens(2_500_000)) == ("950", "123 k", "2.5 M")
    assert (table.memory(None), table.memory(312 * 2**20)) == ("-", "312 MiB")
    assert (table.duration(61), table.duration(600), table.duration(9000)) == ("61 s", "10 min", "2.5 h")
    assert table.p_text(1e-5) == "< 0.001"
