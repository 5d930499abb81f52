"""Accuracies, their three uncertainties, and differences between methods on the same problems.

The interval is that of `trl_opd.boards.contrast`, which says what is paired and why it is no bootstrap. The verdict on
a method is taken from the p of that interval after Holm's correction over the lines that are compared with the
baseline: under equal methods, a board says "better" or "worse" of any of them in 5 % of the cases or fewer. So an
interval, which is for its own line alone, may leave out 0 where the verdict is still "not distinguishable".

One seed of a trained method says nothing about the next seed. Interval and verdict are then about these runs on other
problems of the kind, and say so (`scope` "runs").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from trl_opd.boards.contrast import LEVEL, Arm, contrast
from trl_opd.boards.schema import METHODS, RUNS
from trl_opd.evals.compare import sign_flip_p

BETTER, WORSE, NOT_DISTINGUISHABLE = "better", "worse", "not distinguishable"
IN_THESE_RUNS = " in these runs"


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
    """A mean accuracy with its 95 % interval, cut to [0, 1].

    `scope`: "methods" where the interval is over seeds and problems, "runs" where one seed leaves it to problems.
    """

    mean: float
    low: float
    high: float
    scope: str
    errors: StandardErrors


@dataclass(frozen=True)
class Difference:
    """Accuracy of a method minus that of another, on the same problems.

    `low`, `high`: 95 % interval over what `scope` says, cut to [-1, 1].
    `p`: the level at which that interval just touches 0; `p_tail`: with the degrees of freedom of the tail.
    `p_runs`: sign-flip permutation over problems. It asks whether these trained runs differ on problems of this kind,
    which says nothing about other seeds.
    `p_holm`, `p_runs_holm`: `p_tail` and `p_runs` after Holm's correction over the lines of the board; None where there
    was no family.
    `verdict`: "better", "worse" or "not distinguishable", from `p_holm` where there is one; with the words "in these
    runs" where the scope is "runs".
    """

    value: float
    low: float
    high: float
    scope: str
    p: float
    p_tail: float
    p_runs: float
    p_holm: float | None = None
    p_runs_holm: float | None = None

    @property
    def distinguishable(self) -> bool:
        return (self.p if self.p_holm is None else self.p_holm) < 1 - LEVEL

    @property
    def verdict(self) -> str:
        words = NOT_DISTINGUISHABLE if not self.distinguishable else (BETTER if self.value > 0 else WORSE)
        return words if self.scope == METHODS else words + IN_THESE_RUNS


def accuracy(arm: Arm) -> Accuracy:
    """Mean accuracy, its three standard errors and its interval.

    Where every answer of every run is right (or wrong) all variances are 0; the interval is then the exact binomial
    one over problems.
    """
    found = contrast((1, arm))
    errors = StandardErrors(_decoding_error(arm), _problems_error(arm), _seeds_error(arm))
    scope = METHODS if arm.speaks_of_seeds else RUNS
    if found.value in (0.0, 1.0):
        problems = arm.correct.shape[1]
        return Accuracy(found.value, *_exact_interval(round(found.value * problems), problems), scope, errors)
    half = found.half_width()
    return Accuracy(found.value, max(found.value - half, 0.0), min(found.value + half, 1.0), scope, errors)


def difference(arm: Arm, baseline: Arm, seed: int = 0) -> Difference:
    """`arm` minus `baseline`, paired by problem; `seed` draws the sign flips.

    Raises:
        UserError: if the two did not answer the same number of problems.
    """
    of_runs = not (arm.speaks_of_seeds and baseline.speaks_of_seeds)
    found = contrast((1, arm), (-1, baseline), fixed_runs=of_runs)
    half = found.half_width()
    return Difference(
        value=found.value,
        low=max(found.value - half, -1.0),
        high=min(found.value + half, 1.0),
        scope=RUNS if of_runs else METHODS,
        p=found.p_value(),
        p_tail=found.tail_p_value(),
        p_runs=sign_flip_p(arm.by_problem - baseline.by_problem, seed),
    )


def corrected(family: Mapping[str, Difference]) -> dict[str, Difference]:
    """The differences of all lines to one baseline, with Holm's correction over them."""
    by_interval = holm([one.p_tail for one in family.values()])
    by_runs = holm([one.p_runs for one in family.values()])
    return {
        name: replace(one, p_holm=p, p_runs_holm=p_runs)
        for (name, one), p, p_runs in zip(family.items(), by_interval, by_runs, strict=True)
    }


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
