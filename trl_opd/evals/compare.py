"""Two runs on the same problems: the difference of their accuracies, problem by problem.

What makes a problem hard for both runs cancels in the difference, so its interval is narrower than two intervals laid
side by side (Miller, https://arxiv.org/abs/2411.00640, section 4.2). It says how far the difference would move with
other problems of the kind and other samples; of other training seeds it says nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from trl_opd.errors import UserError
from trl_opd.evals.metrics import Z_95, Interval
from trl_opd.evals.results import StoredRun
from trl_opd.evals.store import differences

PERMUTATIONS = 9_999
SAME = ("benchmark", "data", "scorer")
"""The settings that two runs must share for their difference to mean anything."""


@dataclass(frozen=True)
class Comparison:
    """Run B minus run A.

    Attributes:
        problem_ids (`list[str]`): The problems that both runs have, `P`.
        accuracy_a_P (`numpy.ndarray`), accuracy_b_P (`numpy.ndarray`): Share of correct samples, `[P]`.
        difference (`float`): Mean of B's accuracies minus mean of A's.
        interval (`tuple[float, float]` or `None`): 95 % interval, paired by problem and clustered by it, normal; none
            where all problems differ by the same.
        p (`float`): Two-sided, by flipping the signs of the problems' differences: exact where there are few.
        left_out (`list[str]`): Problems that one of the runs alone has.
    """

    problem_ids: list[str]
    accuracy_a_P: NDArray
    accuracy_b_P: NDArray
    difference: float
    interval: Interval | None
    p: float
    left_out: list[str]

    def won(self) -> list[str]:
        """The problems that B has right more often than A."""
        return self._where(self.accuracy_b_P > self.accuracy_a_P)

    def lost(self) -> list[str]:
        """The problems that B has right less often than A."""
        return self._where(self.accuracy_b_P < self.accuracy_a_P)

    def _where(self, mask_P: NDArray) -> list[str]:
        return [problem_id for problem_id, chosen in zip(self.problem_ids, mask_P, strict=True) if chosen]


def compare(a: StoredRun, b: StoredRun, *, allow_other_data: bool = False) -> Comparison:
    """Compare two finished runs.

    Args:
        a (`StoredRun`), b (`StoredRun`): The runs.
        allow_other_data (`bool`, defaults to `False`): Compare on the problems that both have, whatever their settings.

    Raises:
        UserError: A run is not finished, the runs had other problems or scorers, or they share fewer than two problems.
    """
    for run in (a, b):
        if run.summary is None:
            raise UserError(f"{run.folder} is not finished: give the command that began it again.")
    first, second = ({name: run.manifest["settings"].get(name) for name in SAME} for run in (a, b))
    found = differences(first, second)
    if found and not allow_other_data:
        raise UserError(
            f"{a.folder} and {b.folder} are not comparable ({'; '.join(found)}): pass --allow-other-data to compare "
            f"them on the problems that both have."
        )
    accuracy_a, accuracy_b = _accuracies(a), _accuracies(b)
    common = [problem_id for problem_id in accuracy_a if problem_id in accuracy_b]
    if len(common) < 2:
        raise UserError(f"{a.folder} and {b.folder} share {len(common)} problems: a comparison needs two.")
    a_P = np.array([accuracy_a[problem_id] for problem_id in common])
    b_P = np.array([accuracy_b[problem_id] for problem_id in common])
    difference_P = b_P - a_P
    error = difference_P.std(ddof=1) / np.sqrt(len(common))
    mean = float(difference_P.mean())
    interval = None if error == 0 else (float(mean - Z_95 * error), float(mean + Z_95 * error))
    left_out = sorted(accuracy_a.keys() ^ accuracy_b.keys())
    return Comparison(common, a_P, b_P, mean, interval, sign_flip_p(difference_P), left_out)


def sign_flip_p(difference_P: NDArray, seed: int = 0) -> float:
    """Two-sided p of "the sign of each problem's difference is a coin's", for the mean; `seed` draws the flips.

    Problems without a difference have no sign to flip and are left out, which changes no permutation's mean. Of a
    single one both signs are equally far from 0: p is 1, as where none moved.
    """
    moved = difference_P[difference_P != 0]
    if len(moved) < 2:
        return 1.0
    # Differences are multiples of 1 / n: without rounding, equal means would differ in their last bits.
    result = stats.permutation_test(
        (moved,),
        lambda sample, axis: np.round(sample.sum(axis=axis), 9),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=1_000,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _accuracies(run: StoredRun) -> Mapping[str, float]:
    correct: dict[str, list[bool]] = {}
    for (problem_id, _), verdict in sorted(run.verdicts.items()):
        correct.setdefault(problem_id, []).append(verdict["correct"])
    return {problem_id: float(np.mean(row)) for problem_id, row in correct.items()}
