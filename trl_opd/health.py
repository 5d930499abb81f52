"""Signs that a run went wrong, read off its log rows: one table of thresholds, sentences and advice.

Pure Python over the rows of `log.jsonl` (or TRL's `log_history`), so that a trainer, a board or a notebook may ask.
A sign names a section of docs/troubleshooting.md, which says more.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]

#: Where the advice is, with the sign's `anchor` as the section.
PAGE = "docs/troubleshooting.md"

#: Share of the logged rows that "the start" and "the end" of a run are.
EDGE = 0.2
#: Rows that a comparison of start and end needs.
TREND_ROWS = 10

#: Entropy and divergence at the end, as shares of those at the start, below which both have fallen.
COLLAPSE_RATIO = 0.5
#: Rise of the mean reward that speaks against a collapse.
REWARD_RISE = 0.02
#: Length at the end over length at the start.
RUNAWAY_RATIO = 2.0
#: Share of rows with a signal at the end of the run.
LEAST_ACTIVE = 0.05
#: Share of groups whose rewards are all the same, and of completions that the limit cut, over the run.
MOST_ZERO_VARIANCE = 0.3
MOST_TRUNCATED = 0.3
#: Distance of the mean reward from 0 or 1 within which it is flat there.
FLAT = 0.01
#: Share of rows whose teacher had too long a context, or gave no answer, over the run.
MOST_DROPPED = 0.1
MOST_MISSING = 0.05


@dataclass(frozen=True)
class Advice:
    """What a sign is called in the documentation, and what to do.

    Attributes:
        anchor: Section of `PAGE`.
        when: What is seen, for the documentation.
        remedy: One sentence.
    """

    anchor: str
    when: str
    remedy: str


#: Name of a sign -> what the documentation says of it.
ADVICE: dict[str, Advice] = {
    "not_finite": Advice(
        "the-loss-or-the-gradient-is-not-finite",
        "`loss` or `grad_norm` is NaN or infinite",
        "Start again from the last good checkpoint with a lower learning_rate and a max_grad_norm.",
    ),
    "collapse": Advice(
        "entropy-and-divergence-both-fall",
        f"`entropy` and `distill/divergence` end below {COLLAPSE_RATIO:.0%} of their start, and `reward` rises by no "
        f"more than {REWARD_RISE:g}, or is not logged",
        "Compare pass@k with the start by trl-opd eval; if it fell, use a frozen teacher or a lower learning_rate, and "
        "an earlier checkpoint.",
    ),
    "runaway_length": Advice(
        "completions-grow-longer-and-longer",
        f"`completions/mean_length` ends above {RUNAWAY_RATIO:g} times its start",
        "Compare the stop tokens of student and teacher, and read the longest completions.",
    ),
    "inactive": Advice(
        "almost-no-row-has-a-signal",
        f"`signal/active_fraction` ends below {LEAST_ACTIVE:.0%}",
        "Read context/active_fraction and the rewards: data that are too hard or too easy, or a teacher with nothing "
        "to read, leave nothing to learn from.",
    ),
    "zero_variance": Advice(
        "the-rewards-of-a-group-are-all-the-same",
        f"`frac_reward_zero_std` is above {MOST_ZERO_VARIANCE:.0%} on average, with a policy gradient",
        "Choose problems nearer to what the model can do, or raise num_generations or the temperature.",
    ),
    "truncated": Advice(
        "completions-are-cut-at-the-limit",
        f"`completions/clipped_ratio` is above {MOST_TRUNCATED:.0%} on average",
        "Raise max_completion_length: a completion without its end teaches little and is scored as wrong.",
    ),
    "reward_at_zero": Advice(
        "the-reward-stays-at-0",
        f"`reward` is within {FLAT:g} of 0 in every step",
        "Score a few completions by hand: an answer format that the reward does not read is the usual cause.",
    ),
    "reward_at_one": Advice(
        "the-reward-stays-at-1",
        f"`reward` is within {FLAT:g} of 1 in every step",
        "Take harder problems, or check that the reward function can say no.",
    ),
    "dropped_contexts": Advice(
        "teacher-contexts-are-dropped",
        f"`context/dropped_fraction` is above {MOST_DROPPED:.0%} on average",
        "Raise max_teacher_length, or shorten what the teacher reads.",
    ),
    "missing_scores": Advice(
        "the-teacher-server-does-not-answer",
        f"`teacher/missing_fraction` is above {MOST_MISSING:.0%} on average",
        "Read the server's log; teacher_server_timeout and teacher_server_retries bound how long a row is waited for.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One sign in one run.

    Attributes:
        sign (`str`): Name in `ADVICE`.
        sentence (`str`): What was seen, with its numbers.
    """

    sign: str
    sentence: str

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return ADVICE[self.sign].remedy

    @property
    def see(self) -> str:
        """Page and section of the documentation."""
        return f"{PAGE}#{ADVICE[self.sign].anchor}"

    def record(self) -> dict[str, str]:
        """In a form that JSON holds."""
        return asdict(self) | {"remedy": self.remedy, "see": self.see}


def findings(rows: Iterable[Row]) -> list[Finding]:
    """The signs in the rows of a training log, in the order of `ADVICE`.

    Args:
        rows: Logged steps in order; rows without a loss (evaluations, summaries) are passed over.
    """
    steps = [row for row in rows if "loss" in row]
    found = {sign: rule(steps) for sign, rule in _RULES.items()} if steps else {}
    return [Finding(sign, found[sign]) for sign in ADVICE if found.get(sign)]


def summary(rows: Sequence[Row]) -> str:
    """The findings as text, for the end of a run."""
    logged = sum("loss" in row for row in rows)
    if not logged:
        return "health: unknown, since no step was logged; a smaller logging_steps logs some"
    found = findings(rows)
    if not found:
        return f"health: none of {len(ADVICE)} signs of trouble in {logged} logged steps"
    lines = [f"health: {len(found)} sign(s) of trouble"]
    for finding in found:
        lines += [f"  - {finding.sentence}", f"    {finding.remedy} See {finding.see}."]
    return "\n".join(lines)


def _values(rows: Sequence[Row], name: str) -> list[float]:
    """The finite values of a metric; a metric that a row lacks, or logged as None, is passed over."""
    return [row[name] for row in rows if row.get(name) is not None and math.isfinite(row[name])]


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = _values(rows, name)
    return fmean(values) if values else None


def _edges(rows: Sequence[Row], name: str) -> tuple[float, float] | None:
    """A metric's means at the start and at the end; None where there are too few values to compare."""
    values = _values(rows, name)
    if len(values) < TREND_ROWS:
        return None
    size = max(round(EDGE * len(values)), 1)
    return fmean(values[:size]), fmean(values[-size:])


def _not_finite(rows: Sequence[Row]) -> str | None:
    """A stored log has None for what was not finite, since JSON has no NaN."""
    names = ("loss", "grad_norm")
    bad = [
        row.get("step", "unknown")
        for row in rows
        if any(name in row and (row[name] is None or not math.isfinite(row[name])) for name in names)
    ]
    return f"Loss or gradient were not finite in {len(bad)} logged step(s), first at step {bad[0]}." if bad else None


def _collapse(rows: Sequence[Row]) -> str | None:
    entropy, divergence = _edges(rows, "entropy"), _edges(rows, "distill/divergence")
    if entropy is None or divergence is None:
        return None
    if any(end >= COLLAPSE_RATIO * start for start, end in (entropy, divergence)):
        return None
    reward = _edges(rows, "reward")
    if reward is not None and reward[1] - reward[0] > REWARD_RISE:
        return None
    told = "no reward was logged" if reward is None else f"the reward went from {reward[0]:.3g} to {reward[1]:.3g}"
    return (
        f"Entropy fell from {entropy[0]:.3g} to {entropy[1]:.3g} and the divergence from {divergence[0]:.3g} to "
        f"{divergence[1]:.3g} nats, and {told}: this may be collapse rather than convergence."
    )


def _runaway_length(rows: Sequence[Row]) -> str | None:
    edges = _edges(rows, "completions/mean_length")
    if edges is None or edges[1] <= RUNAWAY_RATIO * edges[0]:
        return None
    return f"Completions grew from {edges[0]:.0f} to {edges[1]:.0f} tokens on average."


def _inactive(rows: Sequence[Row]) -> str | None:
    values = _values(rows, "signal/active_fraction")
    if not values:
        return None
    share = fmean(values[-max(round(EDGE * len(values)), 1) :])
    return f"At the end only {share:.1%} of the rows had a signal." if share < LEAST_ACTIVE else None


def _zero_variance(rows: Sequence[Row]) -> str | None:
    if not any(_values(rows, "signal/pg_fraction")):
        return None  # only a policy gradient needs groups whose rewards differ
    share = _mean(rows, "frac_reward_zero_std")
    if share is None or share <= MOST_ZERO_VARIANCE:
        return None
    return f"In {share:.0%} of the groups all rewards were the same, so their policy gradient was zero."


def _above(name: str, most: float, sentence: str) -> Callable[[Sequence[Row]], str | None]:
    def rule(rows: Sequence[Row]) -> str | None:
        share = _mean(rows, name)
        return sentence.format(share=share) if share is not None and share > most else None

    return rule


def _flat_at(level: float) -> Callable[[Sequence[Row]], str | None]:
    def rule(rows: Sequence[Row]) -> str | None:
        values = _values(rows, "reward")
        flat = bool(values) and all(abs(value - level) <= FLAT for value in values)
        return f"The mean reward was {level:.0f} in all {len(values)} logged steps." if flat else None

    return rule


_RULES: dict[str, Callable[[Sequence[Row]], str | None]] = {
    "not_finite": _not_finite,
    "collapse": _collapse,
    "runaway_length": _runaway_length,
    "inactive": _inactive,
    "zero_variance": _zero_variance,
    "truncated": _above(
        "completions/clipped_ratio", MOST_TRUNCATED, "{share:.0%} of the completions were cut at the limit."
    ),
    "reward_at_zero": _flat_at(0.0),
    "reward_at_one": _flat_at(1.0),
    "dropped_contexts": _above(
        "context/dropped_fraction", MOST_DROPPED, "For {share:.0%} of the rows the teacher's input was too long."
    ),
    "missing_scores": _above(
        "teacher/missing_fraction", MOST_MISSING, "For {share:.0%} of the rows the teacher server gave no answer."
    ),
}
