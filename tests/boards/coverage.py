"""Simulated boards whose truth is known: how often an interval holds it, and how often a claim is false.

    python -m tests.boards.coverage [BOARDS [SEEDS ...]]     the table in the docstring of trl_opd/boards/contrast.py

Abilities are logistic, with method x problem, seed and seed x problem effects; the truth of a setting is the mean over
all problems and all seeds, by quadrature.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from trl_opd.boards.contrast import Arm, Contrast, contrast


@dataclass(frozen=True)
class Setting:
    """Standard deviations are in logits; `seed_spreads` are those of the method and of the baseline."""

    problems: int = 60
    answers: int = 4
    seeds: int = 3
    mean: float = 0.0
    problem_spread: float = 1.5
    method_problem: float = 0.5
    seed_problem: float = 0.4
    seed_spreads: tuple[float, float] = (0.2, 0.2)
    gain: float = 0.0

    def true_difference(self) -> float:
        gained = self._true_accuracy(self.mean + self.gain, self.seed_spreads[0])
        return gained - self._true_accuracy(self.mean, self.seed_spreads[1])

    def _true_accuracy(self, mean: float, seed_spread: float) -> float:
        spread = np.sqrt(self.problem_spread**2 + self.method_problem**2 + self.seed_problem**2 + seed_spread**2)
        points, weights = np.polynomial.hermite_e.hermegauss(80)
        return float((weights / (1 + np.exp(-mean - spread * points))).sum() / weights.sum())


SETTINGS = {
    "as a usual board": Setting(),
    "30 problems x 32 answers": Setting(problems=30, answers=32),
    "512 problems x 4 answers": Setting(problems=512),
    "200 problems x 1 answer": Setting(problems=200, answers=1),
    "a gain of 1 logit": Setting(gain=1.0),
    "seeds do not matter": Setting(seed_spreads=(0.0, 0.0), seed_problem=0.0),
    "seeds matter most": Setting(seed_spreads=(0.8, 0.8)),
    "only seeds matter": Setting(seed_spreads=(0.8, 0.8), method_problem=0.0, seed_problem=0.0, answers=32),
    "one method's seeds spread x 4": Setting(seed_spreads=(0.8, 0.2)),
    "hard problems (7 % right)": Setting(mean=-4.0),
    "easy problems (93 % right)": Setting(mean=4.0),
}


def simulated_arm(rng: np.random.Generator, setting: Setting, abilities: np.ndarray, side: int) -> Arm:
    """One method; `side` 0 has the gain."""
    seeds, problems = setting.seeds, setting.problems
    logits = abilities + rng.normal(0, setting.method_problem, problems) + (setting.gain if side == 0 else 0.0)
    logits = logits + rng.normal(0, setting.seed_spreads[side], (seeds, 1))
    logits = logits + rng.normal(0, setting.seed_problem, (seeds, problems))
    return Arm(rng.random((seeds, problems, setting.answers)) < 1 / (1 + np.exp(-logits))[:, :, None])


def boards(rng: np.random.Generator, setting: Setting, count: int) -> Iterator[tuple[Arm, Arm]]:
    """`count` boards with a method and a baseline."""
    for _ in range(count):
        abilities = rng.normal(setting.mean, setting.problem_spread, setting.problems)
        yield simulated_arm(rng, setting, abilities, 0), simulated_arm(rng, setting, abilities, 1)


Interval = Callable[[Arm, Arm], tuple[float, float]]


def this_one(arm: Arm, baseline: Arm) -> tuple[float, float]:
    return _around(found := contrast((1, arm), (-1, baseline)), found.half_width())


def of_the_tail(arm: Arm, baseline: Arm) -> tuple[float, float]:
    found = contrast((1, arm), (-1, baseline))
    return _around(found, stats.t.ppf(0.975, found.tail_df) * found.standard_error)


def normal(arm: Arm, baseline: Arm) -> tuple[float, float]:
    found = contrast((1, arm), (-1, baseline))
    return _around(found, stats.norm.ppf(0.975) * found.standard_error)


def hierarchical_bootstrap(arm: Arm, baseline: Arm, draws: int = 500) -> tuple[float, float]:
    """Percentiles over resampled seeds (of each method) and resampled problems (the same for both)."""
    rng = np.random.default_rng(0)
    ours, theirs = arm.by_seed_and_problem, baseline.by_seed_and_problem
    seeds, problems = ours.shape
    weights = [rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds for _ in range(2)]
    chosen = rng.multinomial(problems, np.full(problems, 1 / problems), draws) / problems
    means = ((weights[0] @ ours - weights[1] @ theirs) * chosen).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


INTERVALS: dict[str, Interval] = {
    "this one": this_one,
    "of the tail": of_the_tail,
    "normal": normal,
    "bootstrap": hierarchical_bootstrap,
}


def coverage(setting: Setting, interval: Interval, count: int, seed: int = 0) -> float:
    """Share of boards whose interval holds the true difference."""
    truth = setting.true_difference()
    found = (interval(*pair) for pair in boards(np.random.default_rng(seed), setting, count))
    return float(np.mean([low <= truth <= high for low, high in found]))


def family_claims(setting: Setting, methods: int, count: int, seed: int = 0) -> Iterator[list[float]]:
    """The p that Holm's correction reads, of each of `methods` that equal the baseline, board by board."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        abilities = rng.normal(setting.mean, setting.problem_spread, setting.problems)
        baseline = simulated_arm(rng, setting, abilities, 1)
        others = (simulated_arm(rng, setting, abilities, 0) for _ in range(methods))
        yield [contrast((1, arm), (-1, baseline)).tail_p_value() for arm in others]


def _around(found: Contrast, half: float) -> tuple[float, float]:
    return found.value - half, found.value + half


def main(count: int, designs: list[int]) -> None:
    for seeds in designs:
        print(f"{seeds} seeds, {count} boards".ljust(32) + "".join(f"{name:>16}" for name in INTERVALS), flush=True)
        for name, setting in SETTINGS.items():
            shares = [coverage(replace(setting, seeds=seeds), interval, count) for interval in INTERVALS.values()]
            print(f"{name:<32}" + "".join(f"{100 * share:>16.1f}" for share in shares), flush=True)


if __name__ == "__main__":
    numbers = [int(one) for one in sys.argv[1:]]
    main(numbers[0] if numbers else 2_000, numbers[1:] or [2, 3, 5])
