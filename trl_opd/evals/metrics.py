"""From scored samples to numbers with intervals: pure numpy on `[P, n]` arrays, `P` problems with `n` samples each.

Where problems have unequal numbers of samples, a list of `P` rows stands for the array: every problem weighs the same.

Two uncertainties are told apart and never merged. The *decoding* interval holds the problems fixed: would other
samples of the same model give the same number? The *problem* interval takes each problem as a cluster of its samples,
drawn from a population of problems (Miller, https://arxiv.org/abs/2411.00640): would other problems give it? Both are
normal, at 95 %, and cut to [0, 1]. An interval that the data cannot give is `None`: one sample a problem tells nothing
of decoding and one problem nothing of problems, and a width of zero would say that all is known where nothing is.

Where all samples are right, or all wrong, the normal interval has no width; there the exact one of Clopper and Pearson
is given, of as many trials as there are problems, or samples for decoding. At these two ends it holds for problems of
any mixture of difficulties: were the mean below m, then all right would have a chance below m to the number of trials.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
MAJORITY_DRAWS = 64

Interval = tuple[float, float]
Rows = NDArray | Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Metrics:
    """What a run measured. Rates and accuracies are in [0, 1].

    Attributes:
        problems (`int`): `P`.
        n (`int`): Samples for each problem; the least, where they differ.
        accuracy (`float`): avg@n, the mean over problems of the share of correct samples.
        decoding_interval (`tuple[float, float]` or `None`): 95 % interval over decoding, problems fixed.
        problem_interval (`tuple[float, float]` or `None`): 95 % interval over problems, clustered by problem.
        pass_at_k (`dict[str, float]`): Unbiased pass@k, one of k samples is right, for k = 1, 2, 4, ... and n.
        pass_hat_k (`dict[str, float]`): Unbiased pass^k, all of k samples are right, for the same k.
        majority_at_k (`dict[str, float]`): Accuracy of the most frequent of k answers, for the same k.
        truncated_rate (`float` or `None`): Samples that the token limit cut, where it is known.
        no_answer_rate (`float`): Samples in which no answer was found.
        timeout_rate (`float`): Samples whose comparison, or whose tests, ran out of time, counted as wrong.
        timeouts (`int`): How many those are.
        errors (`int`): Comparisons that failed, counted as wrong.
        mean_tokens (`float` or `None`): Mean length of a sample in tokens, where it is known.
    """

    problems: int
    n: int
    accuracy: float
    decoding_interval: Interval | None
    problem_interval: Interval | None
    pass_at_k: dict[str, float]
    pass_hat_k: dict[str, float]
    majority_at_k: dict[str, float]
    truncated_rate: float | None
    no_answer_rate: float
    timeout_rate: float
    timeouts: int
    errors: int
    mean_tokens: float | None


def pass_at_k(correct_P: NDArray, n: int | NDArray, k: int) -> float:
    """Mean over problems of 1 - C(n - c, k) / C(n, k), the chance that k of the n samples hold a correct one.

    Args:
        correct_P (`numpy.ndarray`): Number `c` of correct samples of each problem, `[P]`.
        n (`int` or `numpy.ndarray`): Samples for each problem, one number or `[P]`.
        k (`int`): From 1 to the smallest `n`.
    """
    return 1 - pass_hat_k(np.broadcast_to(n, np.shape(correct_P)) - correct_P, n, k)


def pass_hat_k(correct_P: NDArray, n: int | NDArray, k: int) -> float:
    """pass^k, the mean over problems of C(c, k) / C(n, k): the chance that k of the n samples are all correct.

    After tau-bench (https://arxiv.org/abs/2406.12045); the arguments are those of `pass_at_k`.
    """
    n_P1 = np.broadcast_to(n, np.shape(correct_P))[:, None]
    assert 1 <= k <= n_P1.min(), f"{k} samples cannot be had from {n_P1.min()}"
    # C(c, k) / C(n, k) as a product of k factors, the j-th the chance that draw j is correct after correct ones.
    draws_K = np.arange(k)
    all_right_PK = np.clip(np.asarray(correct_P)[:, None] - draws_K, 0, None) / (n_P1 - draws_K)
    return float(all_right_PK.prod(axis=1).mean())


def decoding_interval(correct_PN: Rows) -> Interval | None:
    """95 % interval of the mean over decoding: SE^2 = (sum over problems of s_p^2 / n_p) / P^2, s_p^2 over n_p - 1."""
    if min(map(len, correct_PN)) < 2:
        return None
    variances_P = np.array([np.var(row, ddof=1) / len(row) for row in correct_PN])
    trials = len(correct_PN) * min(map(len, correct_PN))
    return _interval(_means(correct_PN).mean(), np.sqrt(variances_P.sum()) / len(correct_PN), trials)


def problem_interval(correct_PN: Rows) -> Interval | None:
    """95 % interval of the mean over problems: the clustered standard error, with the factor P / (P - 1).

    Every problem weighs the same, so that is the standard deviation of the problems' means over sqrt(P).
    """
    problems = len(correct_PN)
    if problems < 2:
        return None
    means_P = _means(correct_PN)
    return _interval(means_P.mean(), means_P.std(ddof=1) / np.sqrt(problems), problems)


def majority_at_k(correct_PN: Rows, answers: Sequence[Sequence[str | None]], k: int) -> float:
    """Accuracy of the most frequent of `k` answers to each problem; the earlier wins a tie, no answer is no vote.

    Where a problem has more samples, the mean over `MAJORITY_DRAWS` random choices of `k` of them, the same ones in
    every call.
    """
    rng = np.random.default_rng(0)
    wins = []
    for correct, votes in zip(correct_PN, answers, strict=True):
        orders = [range(k)] if len(votes) == k else [rng.permutation(len(votes))[:k] for _ in range(MAJORITY_DRAWS)]
        wins.append(np.mean([_majority([correct[i] for i in order], [votes[i] for i in order]) for order in orders]))
    return float(np.mean(wins))


def compute(
    correct_PN: Rows,
    answers: Sequence[Sequence[str | None]],
    reasons: Sequence[Sequence[str]],
    truncated_PN: Rows | None,
    tokens_PN: Rows | None,
    most_votes_only: bool = False,
) -> Metrics:
    """All metrics of a run.

    Args:
        correct_PN (`numpy.ndarray`): Verdicts, boolean, `[P, n]`.
        answers (`list[list[str | None]]`): The answers that were read, `[P, n]`.
        reasons (`list[list[str]]`): The reasons of the verdicts, `[P, n]`.
        truncated_PN (`numpy.ndarray`, *optional*): Whether the token limit cut the sample, boolean, `[P, n]`.
        tokens_PN (`numpy.ndarray`, *optional*): Tokens drawn, `[P, n]`.
        most_votes_only (`bool`, defaults to `False`): Leave out majority@k below n, which is drawn at random and slow.
    """
    flat = [reason for row in reasons for reason in row]
    n_P = np.array([len(row) for row in correct_PN])
    correct_P = np.array([np.sum(row) for row in correct_PN])
    n = int(n_P.min())
    ks = sorted({*(2**power for power in range(n.bit_length())), n})
    accuracy = float(_means(correct_PN).mean())
    return Metrics(
        problems=len(correct_PN),
        n=n,
        accuracy=accuracy,
        decoding_interval=decoding_interval(correct_PN),
        problem_interval=problem_interval(correct_PN),
        pass_at_k={str(k): pass_at_k(correct_P, n_P, k) for k in ks},
        pass_hat_k={str(k): pass_hat_k(correct_P, n_P, k) for k in ks},
        majority_at_k={
            str(k): accuracy if k == 1 else majority_at_k(correct_PN, answers, k)
            for k in (ks[-1:] if most_votes_only else ks)
        },
        truncated_rate=None if truncated_PN is None else float(np.mean(np.concatenate(truncated_PN))),
        no_answer_rate=flat.count("no answer") / len(flat),
        timeout_rate=flat.count("timeout") / len(flat),
        timeouts=flat.count("timeout"),
        errors=sum(reason.startswith("error") for reason in flat),
        mean_tokens=None if tokens_PN is None else float(np.mean(np.concatenate(tokens_PN))),
    )


def _means(rows: Rows) -> NDArray:
    return np.array([np.mean(row) for row in rows])


def _majority(correct_N: Sequence[bool], votes: Sequence[str | None]) -> bool:
    answers = [vote for vote in votes if vote is not None]
    if not answers:
        return False
    winner = max(dict.fromkeys(answers), key=answers.count)
    return bool(correct_N[votes.index(winner)])


def _interval(mean: float, standard_error: float, trials: int) -> Interval | None:
    if mean in (0, 1):
        bound = 0.025 ** (1 / trials)
        return (bound, 1.0) if mean == 1 else (0.0, 1 - bound)
    if standard_error == 0:
        return None
    half = Z_95 * standard_error
    return float(max(0, mean - half)), float(min(1, mean + half))
