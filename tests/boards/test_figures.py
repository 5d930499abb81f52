"""What the figures draw, and the static files."""

import re

import numpy as np
import pytest

from tests.boards.results_example import make_results
from trl_opd.boards import figures, series, table
from trl_opd.boards.figures import write_figures
from trl_opd.boards.page import ASSETS
from trl_opd.boards.series import CostPoint, learning_curves, line_styles, pareto_front, spread_labels


@pytest.fixture(scope="module")
def results():
    return make_results()


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(figures, "DPI", 40)


def with_curves(results, **columns) -> dict:
    """The board with the baseline's curves alone: one entry a seed, from columns of equal length."""
    seeds = len(next(iter(columns.values())))
    entries = [{key: values[seed] for key, values in columns.items()} | {"seed": seed} for seed in range(seeds)]
    return results | {"curves": {"grpo": entries}}


def test_smoothing_is_a_trailing_mean_over_a_twentieth(results):
    board = with_curves(results, seconds=[list(range(80))], reward=[list(np.arange(80.0))])
    band = learning_curves(board, "reward", "seconds")["grpo"]
    assert series.smoothing_window(80) == 4
    assert band.mean[0] == 0.0
    assert band.mean[-1] == pytest.approx(np.mean([76, 77, 78, 79]))


def test_band_runs_from_lowest_to_highest_seed_up_to_the_shortest(results):
    board = with_curves(results, seconds=[[0, 10], [0, 20]], reward=[[0.2, 0.2], [0.6, 0.6]])
    band = learning_curves(board, "reward", "seconds")["grpo"]
    assert (band.x[-1], band.seeds) == (10, 2)
    assert band.mean == pytest.approx(np.full(len(band.x), 0.4))
    assert (band.low.max(), band.high.min()) == pytest.approx((0.2, 0.6))


def test_a_failed_run_does_not_cut_the_curve_of_the_others(results):
    board = with_curves(results, seconds=[[0, 20], [0, 1]], reward=[[0.2, 0.2], [0.9, 0.9]])
    failed = [run | {"status": "failed"} if run["name"] == "grpo-seed1" else run for run in results["runs"]]
    band = learning_curves(board | {"runs": failed}, "reward", "seconds")["grpo"]
    assert (band.x[-1], band.seeds, band.high.max()) == (20, 1, pytest.approx(0.2))
    assert learning_curves(board | {"runs": []}, "reward", "seconds")["grpo"].seeds == 2


def test_steps_without_a_value_are_left_out(results):
    board = with_curves(results, seconds=[[1, None, 3]], reward=[[0.5, 0.9, None]])
    assert learning_curves(board, "reward", "seconds")["grpo"].mean == pytest.approx(np.full(series.GRID_POINTS, 0.5))
    assert learning_curves(with_curves(results, seconds=[[1]], reward=[[None]]), "reward", "seconds") == {}


def test_validation_is_placed_at_the_cost_of_its_step(results):
    board = with_curves(results, step=[[1, 2, 3]], seconds=[[10, 20, 30]], validation=[[[0, 0.1], [2, 0.5], [3, 0.4]]])
    band = learning_curves(board, "validation", "seconds")["grpo"]
    assert (band.x[0], band.x[-1]) == (0, 30)
    assert np.interp([0, 20, 30], band.x, band.mean) == pytest.approx([0.1, 0.5, 0.4], abs=0.01)


def test_validation_between_logged_steps_lies_between_their_costs(results):
    board = with_curves(results, step=[[10, 20]], seconds=[[10, 30]], validation=[[[5, 0.1], [15, 0.5], [23, 0.4]]])
    band = learning_curves(board, "validation", "seconds")["grpo"]
    assert (band.x[0], band.x[-1]) == (5, 30)
    assert np.interp([5, 20, 30], band.x, band.mean) == pytest.approx([0.1, 0.5, 0.4], abs=0.01)


def test_front_holds_what_nothing_beats():
    points = [CostPoint(str(i), cost, mean, 0, 1) for i, (cost, mean) in
              enumerate([(3, 0.5), (1, 0.4), (1, 0.3), (2, 0.4), (4, 0.5), (5, 0.9)])]  # fmt: skip
    assert [point.line for point in pareto_front(points)] == ["1", "0", "5"]


def test_unknown_cost_is_not_drawn_as_zero(results):
    row = next(row for row in results["rows"] if row["name"] == "opd")
    assert series.cost_of(row, "all_tokens") == 4096 * 30 + 2048 * 30
    row = row | {"training": row["training"] | {"teacher_tokens": None}}
    assert series.cost_of(row, "all_tokens") is None
    assert series.cost_points(results | {"rows": [row]}, "all_tokens") == []


def test_every_line_looks_different(results):
    template = results["rows"][1] | {"is_baseline": False}
    kinds = ["method"] * 12 + ["baseline"] * 7 + ["reference"] * 5
    rows = [template | {"name": f"{kind}{i}", "kind": kind} for i, kind in enumerate(kinds)]
    styles = line_styles({"rows": results["rows"][:2] + rows})
    assert styles["grpo"].colour is None
    looks = [(style.colour, style.dash, style.hollow) for style in styles.values()]
    assert len(set(looks)) == len(looks)


def test_labels_keep_their_order_and_distance():
    places = [5.0, 5.1, 5.2, 50.0]
    moved = spread_labels(places, 10, 0, 100)
    assert np.diff(moved).min() >= 10 - 1e-9
    assert moved[3] == 50.0
    assert moved[:3] == pytest.approx([0, 10, 20])
    assert np.diff(sorted(spread_labels([1.0] * 30, 10, 0, 100))) == pytest.approx(np.full(29, 100 / 29))
    assert spread_labels([], 10, 0, 100) == []


def test_files_are_written_and_the_same_again(results, tmp_path):
    first, second = (write_figures(results, tmp_path / name) for name in ("a", "b"))
    names = ["forest", "learning_curves", "pareto", "pass_at_k"]
    assert [path.name for path in first] == [name + suffix for name in names for suffix in (".svg", ".png")]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "a" / "forest.png").read_bytes()[:4] == b"\x89PNG"
    assert "<script" not in (tmp_path / "a" / "forest.svg").read_text()


def test_a_figure_without_data_is_removed_not_left_over(results, tmp_path):
    write_figures(results, tmp_path)
    for row in (bare := make_results())["rows"]:
        row["scores"] = {}
    assert [path.stem for path in write_figures(bare, tmp_path)] == ["learning_curves"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learning_curves.png", "learning_curves.svg"]


def test_dollars_and_control_characters_are_no_markup(results, tmp_path):
    for row in (odd := make_results())["rows"]:
        row["label"] = r"$\frac{1}{0$ \x07" + "\x07" + row["label"]
    assert len(write_figures(odd, tmp_path)) == 8


def test_page_and_files_share_one_palette():
    style = (ASSETS / "board.css").read_text()
    light = style[: style.index("@media")]
    assert tuple(re.findall(r"--line-\d: (#\w+)", light)) == figures.PALETTE


def test_numbers_are_written_for_people():
    assert table.percent(0.12345) == "12.3"
    assert (table.points(-0.031), table.points(0.031)) == ("\N{MINUS SIGN}3.1", "+3.1")
    assert (table.points(-0.0004), table.points(-0.0)) == ("+0.0", "+0.0")
    assert (table.tokens(950), table.tokens(122_880), table.tokens(2_500_000)) == ("950", "123 k", "2.5 M")
    assert (table.memory(None), table.memory(312 * 2**20)) == ("-", "312 MiB")
    assert (table.duration(61), table.duration(600), table.duration(9000)) == ("61 s", "10 min", "2.5 h")
    assert table.p_text(1e-5) == "< 0.001"
