from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest

from trl_opd.evals.metrics import (
    Z_95,
    compute,
    decoding_interval,
    majority_at_k,
    pass_at_k,
    pass_hat_k,
    problem_interval,
)


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_pass_at_k_equals_the_mean_over_all_subsets(n):
    for correct in range(n + 1):
        samples = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            subsets = [any(subset) for subset in combinations(samples, k)]
            assert pass_at_k(np.array([correct]), n, k) == pytest.approx(np.mean(subsets), abs=1e-12)
            every = [all(subset) for subset in combinations(samples, k)]
            assert pass_hat_k(np.array([correct]), n, k) == pytest.approx(np.mean(every), abs=1e-12)


def test_pass_at_1_is_accuracy_and_large_n_does_not_overflow():
    correct = np.array([0, 100, 1024])
    assert pass_at_k(correct, 1024, 1) == pytest.approx(correct.mean() / 1024)
    assert 0.66 < pass_at_k(correct, 1024, 512) <= 1


def test_decoding_interval_matches_the_closed_form():
    correct = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)
    # Sample variances 1/3 and 1/4; each mean has a fourth of it; the mean of two problems a fourth of their sum.
    error = np.sqrt((1 / 3 + 1 / 4) / 4) / 2
    assert decoding_interval(correct) == pytest.approx((3 / 8 - Z_95 * error, 3 / 8 + Z_95 * error))


def test_problem_interval_matches_millers_clustered_sum():
    correct = np.random.default_rng(0).random((30, 8)) < 0.5
    mean, problems = correct.mean(), 30
    clusters = sum((row - mean).sum() ** 2 for row in correct.astype(float))
    error = np.sqrt(clusters) / correct.size * np.sqrt(problems / (problems - 1))
    assert problem_interval(correct) == pytest.approx((mean - Z_95 * error, mean + Z_95 * error))


def test_intervals_that_the_data_cannot_give_are_none():
    assert decoding_interval(np.array([[True], [False]])) is None
    assert problem_interval(np.array([[True, False]])) is None
    assert decoding_interval(np.array([[True, True], [False, False]])) is None
    assert problem_interval(np.array([[True, False], [False, True]])) is None


def test_all_right_and_all_wrong_get_the_exact_interval_and_no_width_of_zero():
    right, wrong = np.ones((5, 4), dtype=bool), np.zeros((5, 4), dtype=bool)
    for rows, interval, trials in [(right, problem_interval, 5), (right, decoding_interval, 20)]:
        exact = binomtest(trials, trials).proportion_ci(0.95, method="exact")
        assert interval(rows) == pytest.approx((exact.low, 1))
    exact = binomtest(0, 20).proportion_ci(0.95, method="exact")
    assert decoding_interval(wrong) == pytest.approx((0, exact.high))


@pytest.mark.parametrize("abilities", [[0.9] * 6, [1.0, 1.0, 1.0, 1.0, 0.7, 0.7], [1.0] * 5 + [0.4]])
def test_the_exact_interval_holds_for_problems_of_mixed_difficulty(abilities):
    """All 12 samples are right with a chance below 2.5 % wherever the interval does not hold the mean."""
    chance = np.prod(np.array(abilities) ** 2)
    low, _ = decoding_interval(np.ones((6, 2), dtype=bool))
    assert low <= np.mean(abilities) or chance <= 0.025


def test_intervals_stay_within_zero_and_one():
    low, high = problem_interval(np.array([[True], [True], [True], [False]]))
    assert 0 <= low < 0.75 < high <= 1
    assert high == 1


@pytest.mark.parametrize(("interval", "fixed"), [(decoding_interval, True), (problem_interval, False)])
def test_intervals_cover_in_95_of_100_cases(interval, fixed):
    rng = np.random.default_rng(0)
    covered = 0
    abilities = rng.beta(2, 2, size=60)
    for _ in range(1000):
        abilities = abilities if fixed else rng.beta(2, 2, size=60)
        low, high = interval(rng.random((60, 16)) < abilities[:, None])
        covered += low <= (abilities.mean() if fixed else 0.5) <= high
    assert 0.92 < covered / 1000 < 0.975


def test_majority_takes_the_most_frequent_answer_and_the_earlier_in_a_tie():
    correct = np.array([[0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=bool)
    answers = [["3", "5", "5", None], ["3", "5", "3", "5"], [None] * 4, [None, None, "7", None]]
    assert majority_at_k(correct, answers, 4) == 0.5


def test_majority_of_k_is_the_mean_over_choices_of_k():
    # Of three votes, two for the right answer: any two of them hold a right one that is never outvoted, and the first
    # drawn wins a tie; so right with chance 1/3 (both) + 2/3 * 1/2.
    assert majority_at_k([[True, True, False]], [["5", "5", "3"]], 2) == pytest.approx(2 / 3, abs=0.15)
    assert majority_at_k([[True] * 8], [["5"] * 8], 4) == 1
    assert majority_at_k([[False] * 8], [[None] * 8], 4) == 0
    votes = [["5", "3", "5", "3", "7", None]]
    assert majority_at_k([[True, False] * 3], votes, 2) == majority_at_k([[True, False] * 3], votes, 2)


def test_compute_counts_what_went_wrong():
    metrics = compute(
        correct_PN=np.array([[True, False, False], [True, False, False]]),
        answers=[["1", None, "2"], ["1", "2", "3"]],
        reasons=[["correct", "no answer", "timeout"], ["correct", "wrong", "error: ValueError"]],
        truncated_PN=np.array([[False, True, False], [False, False, False]]),
        tokens_PN=np.array([[1, 2, 3], [4, 5, 6]]),
    )
    assert (metrics.problems, metrics.n) == (2, 3)
    assert metrics.accuracy == pytest.approx(1 / 3)
    assert metrics.pass_at_k == pytest.approx({"1": 1 / 3, "2": 2 / 3, "3": 1})
    assert metrics.pass_hat_k == pytest.approx({"1": 1 / 3, "2": 0, "3": 0})
    assert metrics.majority_at_k.keys() == {"1", "2", "3"}
    assert (metrics.majority_at_k["1"], metrics.majority_at_k["3"]) == (pytest.approx(1 / 3), 1)
    assert metrics.timeout_rate == pytest.approx(1 / 6)
    assert metrics.truncated_rate == metrics.no_answer_rate == pytest.approx(1 / 6)
    assert (metrics.timeouts, metrics.errors, metrics.mean_tokens) == (1, 1, 3.5)


def test_unequal_numbers_of_samples_weigh_every_problem_the_same():
    correct = [[True, False], [True, True, False, False], [False, False]]
    metrics = compute(correct, [["1"] * len(row) for row in correct], [["wrong"]] * 3, None, None)
    assert metrics.n == 2
    assert metrics.accuracy == pytest.approx(1 / 3)
    error = np.sqrt(0.5 / 2 + (1 / 3) / 4) / 3
    assert metrics.decoding_interval == pytest.approx((0, 1 / 3 + Z_95 * error))
    # Of 2 samples with 1 right a pair always holds it, of 4 with 2 right in 5 cases of 6.
    assert metrics.pass_at_k == pytest.approx({"1": 1 / 3, "2": (1 + 5 / 6) / 3})
    assert metrics.mean_tokens is metrics.truncated_rate is None
