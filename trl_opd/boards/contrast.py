"""A signed sum of mean accuracies on the same problems, with an interval that holds with few training seeds.

Shapes: `correct` is `[S, N, K]`: S training seeds, N problems, K sampled answers to a problem.

**What is paired.** Problems are: every method answers the same N, so the difference is taken problem by problem and
what makes a problem hard for everyone cancels. Seeds are not: seed 0 of one method and seed 0 of another share no more
than seeds 0 and 1 do, so the seed variances of the two methods add, as in Welch's test.

**The interval.** With accuracy = method + problem + seed + seed x problem + decoding, the difference has the variance

    seeds     V_s = sum over both methods of  var_s(seed means) / S
    problems  V_p = var_i(mean difference on problem i) / N  -  V_r     (not below 0)

where V_r is the seed x problem and decoding part, which var_i and V_s both hold and which is therefore taken out once.
Few seeds on few problems may have equal means by chance, and V_s + V_p would be 0: V_r then stays in V_p.
The interval is Student's, with Satterthwaite's degrees of freedom (1946, https://doi.org/10.2307/3002019; S - 1 for
each method's seeds, N - 1 for the problems):

    value +- t(df) sqrt(V_s + V_p),      df = (V_s + V_p)^2 / (sum over methods V_m^2 / (S - 1) + V_p^2 / (N - 1))

Why this one: simulated boards with two methods, logistic abilities, method x problem and seed x problem effects, in
eleven settings of 2,000 boards each (`python -m tests.boards.coverage`; `tests/boards/test_stats.py` repeats 1,000 of
them). Nominal 95 %, lowest and highest setting:

    ==================================  ==============  ==============
    interval                                   2 seeds         3 seeds
    ==================================  ==============  ==============
    this one                             93.6 - 96.4 %   93.5 - 96.5 %
    this, with the normal quantile       78.8 - 89.6 %   85.2 - 92.6 %
    hierarchical bootstrap, percentile   66.0 - 99.0 %   82.7 - 98.8 %
    ==================================  ==============  ==============

The lowest of this one is always the setting in which one method's seeds spread four times as far as the other's; in
the others it is 94.0 % and more with two seeds, 94.4 % and more with three. A bootstrap over two or three seeds never
sees more spread than the few seeds happened to show: it holds too little wherever seeds matter, and too much where they
do not. docs/protocol.md has the settings one by one.

**The tail.** At 95 % these degrees of freedom are right; far out, where a correction for many comparisons reads, they
are too many, since few seeds estimate their own variance badly. Holm's correction therefore gets a p with fewer: the
harmonic mean of df_s (Welch's) and N - 1, weighted by the shares of the variance,

    1 / df = (V_s / df_s + V_p / (N - 1)) / (V_s + V_p)

With it, a board of six methods that all equal their baseline claimed a difference of any of them in 34 of 1,000
repetitions of the usual setting, in 15 with 30 problems x 32 answers, and in 34 where seeds matter most. With the
interval's own degrees of freedom the usual setting gave 68.

**No variance.** Where every problem shows the same difference (both methods all right, or one all wrong where the other
is all right) there is nothing to estimate a variance from. By the exact binomial a share of at most u of all problems
may show another one, which lies at most 1 + |value| away, so that the interval is value +- u (1 + |value|), with
u = 1 - 0.025^(1/N), and p is the level at which that touches 0, 2 (1 + |value|)^-N: the sign test's where |value| is 1.

**One seed.** A single run of a trained method says nothing of the next seed. The contrast of the *runs* holds the
trained models fixed: V_s is 0, V_p = var_i / N with everything in it, and the interval speaks of other problems alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from trl_opd.errors import UserError

LEVEL = 0.95
SMALLEST_P = 1e-12
#: A variance of shares below this is what rounding left of none.
ROUNDING = 1e-25
TINY = np.finfo(float).tiny


@dataclass(frozen=True, eq=False)
class Arm:
    """The verdicts of one method.

    Args:
        correct (`np.ndarray`):
            `[S, N, K]`, true where the answer was right.
        trained (`bool`):
            False for a model without a training seed, such as the untrained base: S is then 1 and the seed variance 0.
    """

    correct: NDArray
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
    def by_seed_and_problem(self) -> NDArray:
        """Share of right answers, `[S, N]`."""
        return self.correct.mean(axis=2)

    @property
    def by_problem(self) -> NDArray:
        """Share of right answers over seeds and answers, `[N]`."""
        return self.correct.mean(axis=(0, 2))

    @property
    def speaks_of_seeds(self) -> bool:
        """Whether an interval over seeds can be had: there are several, or none is needed."""
        return not self.trained or len(self.correct) > 1


@dataclass(frozen=True)
class Contrast:
    """A signed sum of arms, with the two variances of the module docstring and the degrees of freedom of their sum."""

    value: float
    problems: int
    seeds_variance: float
    problems_variance: float
    df: float
    tail_df: float

    @property
    def standard_error(self) -> float:
        return float(np.sqrt(self.seeds_variance + self.problems_variance))

    def half_width(self, level: float = LEVEL) -> float:
        """Half the width of the two-sided interval."""
        if self.standard_error == 0:
            return (1 - (0.5 - level / 2) ** (1 / self.problems)) * (1 + abs(self.value))
        return float(stats.t.ppf(0.5 + level / 2, self.df)) * self.standard_error

    def p_value(self) -> float:
        """The level at which the interval just touches 0, not below `SMALLEST_P`."""
        return self._p(self.df)

    def tail_p_value(self) -> float:
        """The p that a correction for many comparisons may read; never below `p_value`."""
        return self._p(self.tail_df)

    def _p(self, df: float) -> float:
        if self.standard_error == 0:
            return max(min(2 * (1 + abs(self.value)) ** -self.problems, 1.0), SMALLEST_P)
        return max(float(2 * stats.t.sf(abs(self.value) / self.standard_error, df)), SMALLEST_P)


def contrast(*signed_arms: tuple[int, Arm], fixed_runs: bool = False) -> Contrast:
    """The contrast of arms on the same problems.

    Args:
        signed_arms (`tuple[int, Arm]`):
            `(1, arm)` for a mean, `(1, arm), (-1, baseline)` for a difference.
        fixed_runs (`bool`):
            Hold the trained runs fixed: the interval is over problems alone.

    Raises:
        UserError: if the arms did not answer the same number of problems.
    """
    counts = {arm.correct.shape[1] for _, arm in signed_arms}
    if len(counts) > 1:
        raise UserError(
            f"A difference needs the same problems on both sides, but one has {min(counts)} and the other "
            f"{max(counts)}: evaluate both with the same settings."
        )
    seeded = [] if fixed_runs else [arm.by_seed_and_problem for _, arm in signed_arms if len(arm.correct) > 1]
    seed_variances = [_variance(table.mean(axis=1)) / len(table) for table in seeded]
    residuals = sum(residual_variance(table) / table.size for table in seeded)
    per_problem = sum(sign * arm.by_problem for sign, arm in signed_arms)
    problems = len(per_problem)
    over_problems = _variance(per_problem) / problems
    problems_variance = max(over_problems - residuals, 0.0)
    if sum(seed_variances) + problems_variance == 0:
        problems_variance = over_problems
    seeds_df = [len(table) - 1 for table in seeded]
    df, tail_df = degrees_of_freedom(np.array(seed_variances), np.array(seeds_df), problems_variance, problems - 1)
    return Contrast(
        value=float(per_problem.mean()),
        problems=problems,
        seeds_variance=float(sum(seed_variances)),
        problems_variance=float(problems_variance),
        df=float(df),
        tail_df=float(tail_df),
    )


def degrees_of_freedom(
    seeds_MR: NDArray, seeds_df_M: NDArray, problems_R: float | NDArray, problems_df: int
) -> tuple[NDArray, NDArray]:
    """Degrees of freedom of the interval and of the tail, `[R]` each.

    Args:
        seeds_MR (`np.ndarray`):
            Variance over the seeds of each of M methods, `[M]` or `[M, R]` for R repetitions; M may be 0.
        seeds_df_M (`np.ndarray`):
            Their degrees of freedom.
        problems_R (`float` or `np.ndarray`), problems_df (`int`):
            Variance over problems, and its degrees of freedom.
    """
    seeds_R = seeds_MR.sum(axis=0)
    total_R = np.maximum(seeds_R + problems_R, TINY)
    shares_MR, problem_share_R = seeds_MR / total_R, problems_R / total_R
    seeds_part_R = (shares_MR**2 / _column(seeds_df_M, shares_MR)).sum(axis=0)  # share^2 / Welch's df
    seed_share_R = np.maximum(seeds_R / total_R, TINY)
    df_R = 1 / np.maximum(seeds_part_R + problem_share_R**2 / problems_df, TINY)
    tail_df_R = 1 / np.maximum(seeds_part_R / seed_share_R + problem_share_R / problems_df, TINY)
    return df_R, tail_df_R


def _variance(values: NDArray) -> float:
    found = float(values.var(ddof=1))
    return found if found > ROUNDING else 0.0


def _column(values_M: NDArray, like: NDArray) -> NDArray:
    return values_M.reshape(-1, *[1] * (like.ndim - 1))


def residual_variance(table_SN: NDArray) -> float:
    """Variance of one cell of `[S, N]` around seed and problem: the seed x problem effect and the decoding."""
    seeds, problems = table_SN.shape
    residuals = table_SN - table_SN.mean(axis=0) - table_SN.mean(axis=1, keepdims=True) + table_SN.mean()
    return float((residuals**2).sum() / ((seeds - 1) * (problems - 1)))
