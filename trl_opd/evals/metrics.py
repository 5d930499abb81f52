"""From scored samples to numbers with intervals: pure numpy on `[P, n]` arrays, `P` problems with `n` samples each.

Two uncertainties are told apart and never merged. The *decoding* interval holds the problems fixed: would other
samples of the same model give the same number? The *problem* interval takes each problem as a cluster of its samples,
drawn from a population of problems (Miller, https://arxiv.org/abs/2411.00640): would other problems give it? Both are
normal, at 95 %, and cut to [0, 1]. An interval that the data cannot give is `None`: one sample a problem tells nothing
of decoding and one problem nothing of problems, and a width of zero would say that all is known where nothing is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054

Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """What a run measured. Rates and accuracies are in [0, 1].

    Attributes:
        problems (`int`): `P`.
        n (`int`): Samples for each problem.
        accuracy (`float`): avg@n, the mean over all samples.
        decoding_interval (`tuple[float, float]` or `None`): 95 % interval over decoding, problems fixed.
        problem_interval (`tuple[float, float]` or `None`): 95 % interval over problems, clustered by problem.
        pass_at_k (`dict[str, float]`): Unbiased pass@k for k = 1, 2, 4, ... up to n.
        majority_at_n (`float`): Accuracy of the most frequent answer of each problem.
        truncated_rate (`float`): Samples that the token limit cut.
        no_answer_rate (`float`): Samples in which no answer was found.
        timeouts (`int`): Comparisons that ran out of time, counted as wrong.
        errors (`int`): Comparisons that failed, counted as wrong.
        mean_tokens (`float`): Mean length of a sample in tokens.
    """

    problems: int
    n: int
    accuracy: float
    decoding_interval: Interval | None
    problem_interval: Interval | None
    pass_at_k: dict[str, float]
    majority_at_n: float
    truncated_rate: float
    no_answer_rate: float
    timeouts: int
    errors: int
    mean_tokens: float


def pass_at_k(correct_P: NDArray, n: int, k: int) -> float:
    """Mean over problems of 1 - C(n - c, k) / C(n, k), the chance that k of the n samples hold a correct one.

    Args:
        correct_P (`numpy.ndarray`): Number `c` of correct samples of each problem, `[P]`.
        n (`int`): Samples for each problem.
        k (`int`): From 1 to `n`.
    """
    assert 1 <= k <= n, f"pass@{k} cannot be had from {n} samples"
    # C(n - c, k) / C(n, k) as a product of k factors, the j-th the chance that draw j is wrong after wrong ones.
    draws_K = np.arange(k)
    all_wrong_PK = np.clip(n - np.asarray(correct_P)[:, None] - draws_K, 0, None) / (n - draws_K)
    return float(1 - all_wrong_PK.prod(axis=1).mean())


def decoding_interval(correct_PN: NDArray) -> Interval | None:
    """95 % interval of the mean over decoding: SE^2 = sum over problems of s_p^2 / n, over P^2, s_p^2 with n - 1."""
    problems, n = correct_PN.shape
    if n < 2:
        return None
    return _interval(correct_PN.mean(), np.sqrt((correct_PN.var(axis=1, ddof=1) / n).sum()) / problems)


def problem_interval(correct_PN: NDArray) -> Interval | None:
    """95 % interval of the mean over problems: the clustered standard error, with the factor P / (P - 1).

    With `n` samples in every cluster that is the standard deviation of the problems' means over sqrt(P).
    """
    problems = correct_PN.shape[0]
    if problems < 2:
        return None
    return _interval(correct_PN.mean(), correct_PN.mean(axis=1).std(ddof=1) / np.sqrt(problems))


def majority_at_n(correct_PN: NDArray, answers: list[list[str | None]]) -> float:
    """Accuracy of each problem's most frequent answer string. The earlier wins a tie; no answer is no vote."""
    return float(np.mean([_majority(correct, votes) for correct, votes in zip(correct_PN, answers, strict=True)]))


def compute(
    correct_PN: NDArray,
    answers: list[list[str | None]],
    reasons: list[list[str]],
    truncated_PN: NDArray,
    tokens_PN: NDArray,
) -> Metrics:
    """All metrics of a run.

    Args:
        correct_PN (`numpy.ndarray`): Verdicts, boolean, `[P, n]`.
        answers (`list[list[str | None]]`): The answers that were read, `[P, n]`.
        reasons (`list[list[str]]`): The reasons of the verdicts, `[P, n]`.
        truncated_PN (`numpy.ndarray`): Whether the token limit cut the sample, boolean, `[P, n]`.
        tokens_PN (`numpy.ndarray`): Tokens drawn, `[P, n]`.
    """
    problems, n = correct_PN.shape
    flat = [reason for row in reasons for reason in row]
    ks = [2**power for power in range(n.bit_length())]
    return Metrics(
        problems=problems,
        n=n,
        accuracy=float(correct_PN.mean()),
        decoding_interval=decoding_interval(correct_PN),
        problem_interval=problem_interval(correct_PN),
        pass_at_k={str(k): pass_at_k(correct_PN.sum(axis=1), n, k) for k in ks},
        majority_at_n=majority_at_n(correct_PN, answers),
        truncated_rate=float(truncated_PN.mean()),
        no_answer_rate=flat.count("no answer") / len(flat),
        timeouts=flat.count("timeout"),
        errors=sum(reason.startswith("error") for reason in flat),
        mean_tokens=float(tokens_PN.mean()),
    )


def _majority(correct_N: NDArray, votes: list[str | None]) -> bool:
    answers = [vote for vote in votes if vote is not None]
    if not answers:
        return False
    winner = max(dict.fromkeys(answers), key=answers.count)
    return bool(correct_N[votes.index(winner)])


def _interval(mean: float, standard_error: float) -> Interval | None:
    if standard_error == 0:
        return None
    half = Z_95 * standard_error
    return float(max(0, mean - half)), float(min(1, mean + half))
