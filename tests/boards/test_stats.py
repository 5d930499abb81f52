"""Closed forms, and a simulation of whole boards in which the truth is known."""

import numpy as np
import pytest
from scipy import stats as reference

from trl_opd.boards.stats import NO_INTERVAL, NOT_DISTINGUISHABLE, Arm, accuracy, difference, holm, sign_flip_p
from trl_opd.errors import UserError


def random_arm(rng: np.random.Generator, seeds: int, problems: int, answers: int) -> Arm:
    return Arm(rng.random((seeds, problems, answers)) < rng.random((1, problems, 1)))


def test_standard_errors_match_closed_forms():
    correct = np.array([[[1, 0], [1, 1], [0, 0]], [[1, 1], [1, 1], [0, 1]]], dtype=bool)  # [2, 3, 2]
    result = accuracy(Arm(correct))
    assert result.mean == pytest.approx(8 / 12)
    # Two of the six cells have one right of two answers: variance 0.5 each, over 2 answers.
    assert result.errors.decoding == pytest.approx(np.sqrt(2 * 0.5 / 2) / 6)
    assert result.errors.problems == pytest.approx(np.std([0.75, 1.0, 0.25], ddof=1) / np.sqrt(3))
    assert result.errors.seeds == pytest.approx(np.std([3 / 6, 5 / 6], ddof=1) / np.sqrt(2))


def test_one_answer_or_one_seed_leaves_that_error_open():
    rng = np.random.default_rng(0)
    assert accuracy(random_arm(rng, 3, 20, 1)).errors.decoding is None
    one_seed = accuracy(random_arm(rng, 1, 20, 2))
    assert (one_seed.errors.seeds, one_seed.low, one_seed.high) == (None, None, None)
    result = difference(random_arm(rng, 1, 20, 2), random_arm(rng, 3, 20, 2))
    assert (result.low, result.p, result.verdict) == (None, None, NO_INTERVAL)


def test_untrained_model_has_the_t_interval_over_problems():
    arm = random_arm(np.random.default_rng(1), 1, 30, 4)
    untrained = Arm(arm.correct, trained=False)
    expected = reference.ttest_1samp(arm.by_problem, 0).confidence_interval(0.95)
    assert accuracy(untrained).low == pytest.approx(expected.low)
    assert accuracy(untrained).high == pytest.approx(expected.high)


def test_problems_without_spread_leave_welchs_interval_over_seeds():
    """Every problem alike within a seed: what is left is the spread of the seed means, which is Welch's test."""
    ours, baseline = ([8, 6, 7], [3, 5, 1])
    tables = [
        np.array([[[1] * right + [0] * (10 - right)] * 5 for right in means], dtype=bool) for means in (ours, baseline)
    ]
    result = difference(Arm(tables[0]), Arm(tables[1]))
    welch = reference.ttest_ind(np.array(ours) / 10, np.array(baseline) / 10, equal_var=False)
    expected = welch.confidence_interval(0.95)
    assert (result.low, result.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert result.p == pytest.approx(welch.pvalue, rel=1e-6)


def test_difference_is_paired_by_problem():
    """A constant gain on problems of very different difficulty is seen only by pairing."""
    base = np.repeat(np.arange(10)[:, None] >= np.arange(10)[None, :], 3, axis=0)[None]  # shares from 0.1 to 1
    lower = base.copy()
    lower[:, :, 0] = False
    result = difference(Arm(base, trained=False), Arm(lower, trained=False))
    assert (result.value, result.low, result.high) == (pytest.approx(0.1),) * 3
    assert result.verdict == "better"
    assert difference(Arm(lower, trained=False), Arm(base, trained=False)).verdict == "worse"


def test_order_of_seeds_plays_no_part():
    rng = np.random.default_rng(2)
    ours, baseline = random_arm(rng, 3, 25, 2), random_arm(rng, 3, 25, 2)
    turned = difference(Arm(ours.correct[::-1]), baseline)
    straight = difference(ours, baseline)
    assert (turned.low, turned.high, turned.p) == pytest.approx((straight.low, straight.high, straight.p))


def test_p_and_interval_agree():
    rng = np.random.default_rng(3)
    for _ in range(20):
        result = difference(random_arm(rng, 3, 15, 2), random_arm(rng, 3, 15, 2))
        assert (result.p < 0.05) == (not result.low <= 0 <= result.high)
        assert (result.verdict == NOT_DISTINGUISHABLE) == (result.low <= 0 <= result.high)


def test_all_right_keeps_an_honest_interval():
    result = accuracy(Arm(np.ones((3, 20, 2), dtype=bool)))
    assert result.high == 1.0
    assert result.low == pytest.approx(0.025 ** (1 / 20))


def test_no_difference_on_any_problem_is_no_proof_of_equality():
    wrong = Arm(np.zeros((2, 6, 2), dtype=bool))
    result = difference(wrong, wrong)
    assert (result.low, result.high) == pytest.approx((0.025 ** (1 / 6) - 1, 1 - 0.025 ** (1 / 6)))
    assert (result.p, result.verdict) == (1.0, NOT_DISTINGUISHABLE)


def test_sign_flip_is_exact_for_few_problems():
    assert sign_flip_p(np.array([0.5, 0.5, 1.0])) == pytest.approx(2 / 8)
    assert sign_flip_p(np.zeros(6)) == 1.0


def test_holm_matches_the_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("shape", [(2, 3), (0, 3, 1), (2, 1, 4)])
def test_tables_that_cannot_work_are_refused(shape):
    with pytest.raises(UserError):
        Arm(np.zeros(shape, dtype=bool))


def test_other_number_of_problems_is_refused():
    rng = np.random.default_rng(4)
    with pytest.raises(UserError, match="same problems"):
        difference(random_arm(rng, 2, 5, 1), random_arm(rng, 2, 6, 1))


def simulated_arm(rng, abilities, seeds, answers, seed_spread) -> Arm:
    """Logistic abilities with method x problem, seed and seed x problem effects."""
    problems = len(abilities)
    logits = abilities + rng.normal(0, 0.5, problems) + rng.normal(0, seed_spread, (seeds, 1))
    logits = logits + rng.normal(0, 0.4, (seeds, problems))
    return Arm(rng.random((seeds, problems, answers)) < 1 / (1 + np.exp(-logits))[:, :, None])


@pytest.mark.parametrize(("seeds", "seed_spread"), [(2, 0.2), (3, 0.2), (3, 0.6), (5, 0.2)])
def test_interval_holds_what_it_promises(seeds, seed_spread, monkeypatch):
    """Equal methods, 1,000 boards: 0 is inside about 95 times of 100, so a false verdict comes in 6 % at most."""
    monkeypatch.setattr("trl_opd.boards.stats.sign_flip_p", lambda differences, seed: 1.0)  # slow, and not tested here
    monkeypatch.setattr("trl_opd.boards.stats._Contrast.p_value", lambda contrast: 1.0)
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(1_000):
        abilities = rng.normal(0, 1.5, 60)
        ours, baseline = (simulated_arm(rng, abilities, seeds, 4, seed_spread) for _ in range(2))
        inside += difference(ours, baseline).verdict == NOT_DISTINGUISHABLE
    assert 940 <= inside <= (990 if seeds == 2 else 980)
