"""What a board can find: the smallest true difference that it reports in four of five repetitions.

The parts of the variance of a difference (`Components`) come from a board's own finished runs, or are stated typical
values. Repetitions are drawn from them, with the variances that the board itself would estimate; the interval is the
board's own (`trl_opd.boards.contrast`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from trl_opd.boards.contrast import LEVEL, Arm, degrees_of_freedom, residual_variance

POWER = 0.8
DRAWS = 20_000


@dataclass(frozen=True)
class Components:
    """Standard deviations, as shares of 1, of a model that adds them up.

    Args:
        seed (`float`):
            Of the accuracy of a method over training seeds, on endless problems.
        problem (`float`):
            Over problems, of the true difference between two methods: what pairing does not cancel.
        residual (`float`):
            Of the seed x problem effect: how much a problem's chance of a right answer moves from seed to seed.
        decoding (`float`):
            Of one sampled answer around its problem's chance of being right, sqrt(E[p (1 - p)]).
    """

    seed: float
    problem: float
    residual: float
    decoding: float


TYPICAL = Components(seed=0.01, problem=0.10, residual=0.10, decoding=0.35)
"""For a board without two finished seeds. `decoding` is that of abilities spread as Beta(0.5, 0.5), E[p (1 - p)] =
0.125; the others are assumptions of the order that the arithmetic board shows. A board prints what it assumes."""


def estimate_components(arms: Sequence[Arm], baseline: Arm) -> Components | None:
    """The components by the method of moments, averaged over methods that have two seeds or more.

    None where no method has two seeds, or where one answer a problem leaves decoding and residual in one; a part that
    is estimated below 0 is 0.

    Args:
        arms (`Sequence[Arm]`):
            The trained methods, without the baseline.
        baseline (`Arm`):
            What they are compared with.
    """
    others = [arm for arm in arms if len(arm.correct) > 1]
    if not others or len(baseline.correct) < 2 or baseline.correct.shape[2] < 2:
        return None
    seeded = [*others, baseline]
    decoding = np.mean([arm.correct.var(axis=2, ddof=1).mean() for arm in seeded])
    residual = np.mean([residual_variance(arm.by_seed_and_problem) for arm in seeded])
    residual -= decoding / baseline.correct.shape[2]
    seed = np.mean([_seed_variance(arm) for arm in seeded])
    problem = np.mean([_problem_variance(arm, baseline) for arm in others])
    return Components(*(float(np.sqrt(max(part, 0.0))) for part in (seed, problem, residual, decoding)))


def smallest_detectable(
    components: Components, seeds: int, problems: int, answers: int, comparisons: int = 1
) -> float | None:
    """Smallest true difference, as a share of 1, whose interval leaves out 0 with a chance of 80 %.

    Args:
        components (`Components`):
            What the variances are taken to be, alike in both methods.
        seeds (`int`), problems (`int`), answers (`int`):
            The design; None comes back for one seed, with which nothing can be said of methods.
        comparisons (`int`):
            With more than one, the level is 5 % / `comparisons`: what the first step of Holm's correction asks for.
    """
    if seeds < 2:
        return None
    cell = components.residual**2 + components.decoding**2 / answers
    seed = (components.seed**2 + cell / problems) / seeds
    problem = components.problem**2 / problems
    residual = 2 * cell / (seeds * problems)
    rng = np.random.default_rng(0)
    # What boards would estimate: each method's variance over seeds, and that over problems less the residual part.
    over_seeds = seed * _estimates(rng, seeds - 1, methods=2)
    over_problems = np.maximum(
        (problem + residual) * _estimates(rng, problems - 1)
        - residual * _estimates(rng, 2 * (seeds - 1) * (problems - 1)),
        0.0,
    )
    df, tail_df = degrees_of_freedom(over_seeds, np.full(2, seeds - 1), over_problems, problems - 1)
    quantile = stats.t.ppf(1 - (1 - LEVEL) / comparisons / 2, df if comparisons == 1 else tail_df)
    half = quantile * np.sqrt(over_seeds.sum(axis=0) + over_problems)
    error = rng.normal(0, np.sqrt(2 * seed + problem), DRAWS)
    return float(np.quantile(half - error, POWER))


def _estimates(rng: np.random.Generator, df: int, methods: int | None = None) -> np.ndarray:
    """Estimates of a variance of 1, `[DRAWS]`, or `[methods, DRAWS]`."""
    return rng.chisquare(df, DRAWS if methods is None else (methods, DRAWS)) / df


def _seed_variance(arm: Arm) -> float:
    table = arm.by_seed_and_problem
    return table.mean(axis=1).var(ddof=1) - residual_variance(table) / table.shape[1]


def _problem_variance(arm: Arm, baseline: Arm) -> float:
    """Over problems, of the true difference: what is seen, less what the residual of both adds to it."""
    residuals = sum(residual_variance(one.by_seed_and_problem) / len(one.correct) for one in (arm, baseline))
    return (arm.by_problem - baseline.by_problem).var(ddof=1) - residuals
