"""Accuracies, their three uncertainties, and differences between methods on the same problems.

Shapes: `correct` is `[S, N, K]`: S training seeds, N problems, K sampled answers to a problem.

**What is paired.** Problems are: every method answers the same N, so the difference is taken problem by problem and
what makes a problem hard for everyone cancels. Seeds are not: seed 0 of one method and seed 0 of another share no more
than seeds 0 and 1 do, so the seed variances of the two methods add, as in Welch's test.

**The interval.** With accuracy = method + problem + seed + seed x problem + decoding, the difference has the variance

    seeds     V_s = sum over both methods of  var_s(seed means) / S
    problems  V_p = var_i(mean difference on problem i) / N  -  V_r     (not below 0)

where V_r is the seed x problem and decoding part, which var_i and V_s both hold and which is therefore taken out once.
The half-width adds the two squared half-widths, each with the quantile of its own degrees of freedom:

    h^2 = t(df_s)^2 V_s + t(N - 1)^2 V_p,      df_s = Welch's, between S - 1 and 2 (S - 1)

(Graybill and Wang 1980, https://doi.org/10.1080/01621459.1980.10477565; the square-and-add of Zou and Donner 2008,
https://doi.org/10.1002/sim.3095.) Why this one, over simulated boards with two methods, logistic abilities, method x
problem and seed x problem effects (`tests/boards/test_stats.py` holds the reduced simulation; nominal 95 %, range over
seven settings of 2,000 boards each):

    ====================================  =============  =============  =============
    interval                                    2 seeds        3 seeds        5 seeds
    ====================================  =============  =============  =============
    this one                              96.3 - 98.5 %  93.7 - 97.3 %  95.2 - 96.5 %
    V_s + V_p, Satterthwaite's df         93.6 - 98.1 %  93.0 - 98.6 %  94.7 - 98.1 %
    V_s + V_p, normal quantile            78.5 - 95.5 %  83.8 - 96.4 %  90.8 - 96.0 %
    ====================================  =============  =============  =============

The lowest of each range has one method whose seeds spread four times as far as the other's. A bootstrap over two or
three seeds behaves as the last line: it never sees more spread than the few seeds happened to show.

One seed of a trained method says nothing about the next seed: there is then no interval, and the reason is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from trl_opd.errors import UserError

LEVEL = 0.95
NOT_DISTINGUISHABLE = "not distinguishable"
NO_INTERVAL = "no interval: one seed"
PERMUTATIONS = 9_999


@dataclass(frozen=True)
class Arm:
    """The verdicts of one method.

    Args:
        correct (`np.ndarray`):
            `[S, N, K]`, true where the answer was right.
        trained (`bool`):
            False for a model without a training seed, such as the untrained base: S is then 1 and the seed variance 0.
    """

    correct: np.ndarray
    trained: bool = True

    def __post_init__(self):
        if self.correct.ndim != 3 or 0 in self.correct.shape:
            raise UserError(
                f"Verdicts must fill a table of seeds x problems x answers, but its shape is {self.correct.shape}."
            )
        if self.correct.shape[1] < 2:
            raise UserError("One problem has no spread between problems: evaluate on at least two.")
        assert self.trained or len(self.correct) == 1, "an untrained model has one row"

    @property
    def by_seed_and_problem(self) -> np.ndarray:
        """Share of right answers, `[S, N]`."""
        return self.correct.mean(axis=2)

    @property
    def by_problem(self) -> np.ndarray:
        """Share of right answers over seeds and answers, `[N]`."""
        return self.correct.mean(axis=(0, 2))


@dataclass(frozen=True)
class StandardErrors:
    """Three standard errors of one mean accuracy, each as a share of 1; None where the data cannot tell.

    `decoding`: the same runs and problems, answers sampled again (needs two answers a problem).
    `problems`: the same runs, other problems of the kind; holds the decoding noise too.
    `seeds`: the same problems, other training seeds; holds the decoding noise too (needs two seeds).
    """

    decoding: float | None
    problems: float
    seeds: float | None


@dataclass(frozen=True)
class Accuracy:
    """A mean accuracy with its 95 % interval over seeds and problems (None with one seed), cut to [0, 1]."""

    mean: float
    low: float | None
    high: float | None
    errors: StandardErrors


@dataclass(frozen=True)
class Difference:
    """Accuracy of a method minus that of the baseline, on the same problems.

    `low`, `high`: 95 % interval over seeds and problems, cut to [-1, 1]; None with one seed.
    `p`: the level at which that interval just touches 0; None with one seed.
    `p_runs`: sign-flip permutation over problems. It asks whether these trained runs differ on problems of this kind,
    which says nothing about other seeds: the verdict is taken from the interval, never from it.
    `p_holm`, `p_runs_holm`: after Holm's correction over the methods of the board.
    `verdict`: "better", "worse", "not distinguishable" (the interval holds 0), or why there is none.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    p_runs: float
    verdict: str
    p_holm: float | None = None
    p_runs_holm: float | None = None


@dataclass(frozen=True)
class _Contrast:
    """A signed sum of arms, with the two variances of the module docstring and their degrees of freedom."""

    value: float
    seeds_variance: float
    seeds_df: float
    problems_variance: float
    problems_df: int

    def half_width(self, level: float) -> float:
        upper = 0.5 + level / 2
        return float(
            np.sqrt(
                stats.t.ppf(upper, self.seeds_df) ** 2 * self.seeds_variance
                + stats.t.ppf(upper, self.problems_df) ** 2 * self.problems_variance
            )
        )

    def p_value(self) -> float:
        if self.value == 0:
            return 1.0
        smallest = 1e-12
        if self.half_width(1 - smallest) <= abs(self.value):
            return smallest
        return float(optimize.brentq(lambda p: self.half_width(1 - p) - abs(self.value), smallest, 1.0))


def accuracy(arm: Arm) -> Accuracy:
    """Mean accuracy, its three standard errors and its interval.

    Where every answer of every run is right (or wrong) all variances are 0; the interval is then the exact binomial
    one over problems.
    """
    contrast = _contrast([(1, arm)])
    errors = StandardErrors(_decoding_error(arm), _problems_error(arm), _seeds_error(arm))
    if arm.trained and len(arm.correct) < 2:
        return Accuracy(contrast.value, None, None, errors)
    if contrast.value in (0.0, 1.0):
        problems = arm.correct.shape[1]
        return Accuracy(contrast.value, *_exact_interval(round(contrast.value * problems), problems), errors)
    half = contrast.half_width(LEVEL)
    return Accuracy(contrast.value, max(contrast.value - half, 0.0), min(contrast.value + half, 1.0), errors)


def difference(arm: Arm, baseline: Arm, seed: int = 0) -> Difference:
    """`arm` minus `baseline`, paired by problem; `seed` draws the sign flips.

    Where no problem shows any difference all variances are 0; the interval is then plus and minus the largest share of
    problems that could differ, by the exact binomial.

    Raises:
        UserError: if the two did not answer the same number of problems.
    """
    if arm.correct.shape[1] != baseline.correct.shape[1]:
        raise UserError(
            f"A difference needs the same problems on both sides, but one has {arm.correct.shape[1]} and the other "
            f"{baseline.correct.shape[1]}: evaluate both with the same settings."
        )
    contrast = _contrast([(1, arm), (-1, baseline)])
    p_runs = sign_flip_p(arm.by_problem - baseline.by_problem, seed)
    if any(one.trained and len(one.correct) < 2 for one in (arm, baseline)):
        return Difference(contrast.value, None, None, None, p_runs, NO_INTERVAL)
    half = contrast.half_width(LEVEL)
    if half == 0 and contrast.value == 0:
        half = _exact_interval(0, arm.correct.shape[1])[1]
    low, high = contrast.value - half, contrast.value + half
    verdict = NOT_DISTINGUISHABLE if low <= 0 <= high else ("better" if contrast.value > 0 else "worse")
    return Difference(contrast.value, max(low, -1.0), min(high, 1.0), contrast.p_value(), p_runs, verdict)


def sign_flip_p(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p that the per-problem `differences` `[N]` are symmetric around 0; exact for few problems."""
    test = stats.permutation_test(
        (differences,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=1_000,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: rejecting where it is at most alpha keeps the family's error at most alpha."""
    order = np.argsort(p_values)
    ordered = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(ordered), 1.0)
    return adjusted.tolist()


def _exact_interval(hits: int, problems: int) -> tuple[float, float]:
    interval = stats.binomtest(hits, problems).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)


def _contrast(signed_arms: Sequence[tuple[int, Arm]]) -> _Contrast:
    trained = [arm.by_seed_and_problem for _, arm in signed_arms if arm.trained and len(arm.correct) > 1]
    seed_variances = [table.mean(axis=1).var(ddof=1) / len(table) for table in trained]
    residuals = sum(_residual_variance(table) for table in trained)
    per_problem = sum(sign * arm.by_problem for sign, arm in signed_arms)
    problems = len(per_problem)
    return _Contrast(
        value=float(per_problem.mean()),
        seeds_variance=float(sum(seed_variances)),
        seeds_df=_welch_df(seed_variances, [len(table) - 1 for table in trained]),
        problems_variance=float(max(per_problem.var(ddof=1) / problems - residuals, 0.0)),
        problems_df=problems - 1,
    )


def _welch_df(variances: Sequence[float], dfs: Sequence[int]) -> float:
    """Degrees of freedom of a sum of variances; where all are 0 (or there is none) the count plays no part."""
    if not sum(variances):
        return float(max(sum(dfs), 1))
    return float(sum(variances) ** 2 / sum(v**2 / df for v, df in zip(variances, dfs, strict=True)))


def _residual_variance(table: np.ndarray) -> float:
    """Seed x problem and decoding part of the variance of the mean of `table` `[S, N]`."""
    seeds, problems = table.shape
    residuals = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return float((residuals**2).sum() / ((seeds - 1) * (problems - 1)) / (seeds * problems))


def _decoding_error(arm: Arm) -> float | None:
    seeds, problems, answers = arm.correct.shape
    if answers < 2:
        return None
    variances = arm.correct.var(axis=2, ddof=1) / answers
    return float(np.sqrt(variances.sum()) / (seeds * problems))


def _problems_error(arm: Arm) -> float:
    per_problem = arm.by_problem
    return float(per_problem.std(ddof=1) / np.sqrt(len(per_problem)))


def _seeds_error(arm: Arm) -> float | None:
    seeds = len(arm.correct)
    if not arm.trained or seeds < 2:
        return None
    return float(arm.by_seed_and_problem.mean(axis=1).std(ddof=1) / np.sqrt(seeds))
