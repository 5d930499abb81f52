"""What a design can find: against closed forms, and against repetitions with the board's own interval."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from trl_opd.boards.contrast import Arm, contrast
from trl_opd.boards.power import TYPICAL, Components, estimate_components, smallest_detectable

COMPONENTS = Components(seed=0.02, problem=0.10, residual=0.10, decoding=0.30)


def arms(rng: np.random.Generator, seeds: int, problems: int, answers: int, gain: float) -> tuple[Arm, Arm]:
    """A method and a baseline of the additive model that `Components` describes."""
    shared = rng.normal(0.5, 0.3, problems)

    def one(shift: float) -> Arm:
        mean = shared + rng.normal(0, COMPONENTS.problem / np.sqrt(2), problems) + shift
        cells = (
            mean + rng.normal(0, COMPONENTS.seed, (seeds, 1)) + rng.normal(0, COMPONENTS.residual, (seeds, problems))
        )
        return Arm(cells[:, :, None] + rng.normal(0, COMPONENTS.decoding, (seeds, problems, answers)))

    return one(gain), one(0.0)


def test_the_smallest_detectable_difference_is_found_in_four_of_five_boards():
    gain = smallest_detectable(COMPONENTS, seeds=3, problems=40, answers=4)
    rng = np.random.default_rng(1)
    found = [contrast((1, ours), (-1, theirs)) for ours, theirs in (arms(rng, 3, 40, 4, gain) for _ in range(1_500))]
    assert np.mean([one.value > one.half_width() for one in found]) == pytest.approx(0.8, abs=0.03)


def test_many_seeds_and_problems_give_the_normal_closed_form():
    """(1.96 + 0.84) standard errors."""
    gain = smallest_detectable(Components(0.01, 0.0, 0.0, 0.0), seeds=2_000, problems=10_000, answers=1)
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert gain == pytest.approx(z * 0.01 * np.sqrt(2 / 2_000), rel=0.02)


def test_problems_alone_give_the_paired_t_closed_form():
    gain = smallest_detectable(Components(0.0, 0.2, 0.0, 0.0), seeds=3, problems=20, answers=1)
    error = 0.2 / np.sqrt(20)
    power = stats.nct.sf(stats.t.ppf(0.975, 19), 19, gain / error)
    assert power == pytest.approx(0.8, abs=0.01)


def test_more_of_anything_finds_less_and_more_comparisons_find_more():
    usual = smallest_detectable(TYPICAL, 3, 30, 8)
    assert smallest_detectable(TYPICAL, 5, 30, 8) < usual
    assert smallest_detectable(TYPICAL, 3, 90, 8) < usual
    assert smallest_detectable(TYPICAL, 3, 30, 32) < usual
    assert smallest_detectable(TYPICAL, 3, 30, 8, comparisons=6) > usual
    assert smallest_detectable(TYPICAL, 1, 30, 8) is None


def test_components_are_estimated_from_a_boards_own_runs():
    rng = np.random.default_rng(2)
    drawn = [estimate_components([ours], theirs) for ours, theirs in (arms(rng, 8, 200, 6, 0.1) for _ in range(40))]
    variances = np.mean([np.square(astuple(one)) for one in drawn], axis=0)
    assert np.sqrt(variances) == pytest.approx(astuple(COMPONENTS), rel=0.1)


def test_components_need_two_seeds_and_two_answers():
    rng = np.random.default_rng(3)
    for seeds, answers in ((1, 4), (3, 1)):
        ours, theirs = arms(rng, seeds, 20, answers, 0.0)
        assert estimate_components([ours], theirs) is None
