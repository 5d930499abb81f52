"""The shape of `results.json`, format 2: what a report writes, and what the page, the table and the exports read.

Numbers are shares of 1, seconds, bytes, tokens or counts. JSON has no NaN: what is not known is null, is shown as `-`,
and never stands as 0. A *line* is a row of the board (`base`, a method with its settings); a *benchmark key* is the
benchmark's name, with a suffix where the suite holds it twice (`arithmetic`, `arithmetic/pass_at_k`).
"""

from typing import Any, Literal, TypedDict

FORMAT = 2

Kind = Literal["base", "baseline", "method", "reference"]
Purpose = Literal["primary", "secondary", "pass_at_k", "forgetting"]

METHODS, RUNS = "methods", "runs"
"""What an interval and a verdict are about: the methods (seeds and problems), or only the runs at hand (problems)."""


class Errors(TypedDict):
    """Standard errors of a mean accuracy, each a share of 1; null where the data cannot tell."""

    decoding: float | None
    problems: float
    seeds: float | None


class Accuracy(TypedDict):
    """A mean accuracy; `low` and `high` hold 95 % over what `scope` says."""

    mean: float
    low: float
    high: float
    scope: Literal["methods", "runs"]
    errors: Errors


class Difference(TypedDict):
    """A line's accuracy minus another's, paired by problem.

    `p` belongs to the interval and `p_runs` to sign flips over problems; `p_tail` is what Holm's correction over the
    lines reads, and the adjusted ones are null where there was no family: for the base and for differences to the base.
    `verdict`: "better", "worse" or "not distinguishable", followed by " in these runs" where `scope` is "runs".
    `distinguishable`: false where the page draws the line in grey.
    """

    value: float
    low: float
    high: float
    scope: Literal["methods", "runs"]
    p: float
    p_tail: float
    p_holm: float | None
    p_runs: float
    p_runs_holm: float | None
    verdict: str
    distinguishable: bool


class Majority(TypedDict):
    """Accuracy of the most frequent of `k` answers."""

    k: int
    value: float


class Score(TypedDict):
    """A line on one benchmark, over its finished and comparable runs."""

    accuracy: Accuracy | None
    difference: Difference | None  # to the baseline; null for the baseline itself
    to_base: Difference | None  # to the untrained base; null for the base itself
    majority: Majority | None
    pass_at_k: dict[str, float] | None  # k -> unbiased pass@k
    truncated: float | None
    no_answer: float | None
    mean_tokens: float | None


class Training(TypedDict):
    """Costs and signs of health of training; a row holds the means over its runs, null where one does not tell."""

    generated_tokens: float | None
    teacher_tokens: float | None
    seconds: float | None
    gpu_hours: float | None  # seconds x devices; null without a GPU
    peak_memory_bytes: float | None
    steps: float | None
    completion_length: float | None  # tokens, mean over the last fifth of the logged steps; so are the following
    truncated: float | None
    entropy: float | None
    active_fraction: float | None
    zero_variance: float | None  # of groups whose rewards are all alike, over steps with a policy gradient


class CheckpointScore(TypedDict):
    """Mean primary accuracy of one choice of checkpoint; `steps` holds the step of each run, by run name."""

    mean: float
    steps: dict[str, int]


class Checkpoint(TypedDict):
    """Both choices of checkpoint; `rule` says which one the board reports."""

    rule: Literal["last", "best"]
    last: CheckpointScore | None
    best: CheckpointScore | None


class Trial(TypedDict):
    """One learning-rate trial, failed ones too."""

    run: str
    learning_rate: float
    validation: float | None
    chosen: bool
    status: str
    error: str | None


class Row(TypedDict):
    """A line of the board."""

    name: str
    label: str
    method: str | None
    kind: Kind
    is_baseline: bool
    planned: int
    finished: int  # runs that are in the numbers
    runs: list[str]
    scores: dict[str, Score]  # benchmark key ->
    training: Training
    checkpoint: Checkpoint | None
    trials: list[Trial]
    learning_rate: float | None  # the chosen one, where there were trials
    warnings: list[str]


class RunResult(TypedDict):
    """A run, finished or not."""

    name: str
    role: Literal["base", "trial", "final"]
    line: str
    seed: int | None
    learning_rate: float | None
    status: str  # finished, failed, unfinished, missing, waiting
    stage: str | None
    error: str | None
    attempts: int | None
    not_comparable: str | None  # why its evaluation is kept out of the numbers
    accuracy: float | None  # on the primary benchmark
    scores: dict[str, float]
    commands: list[str]
    settings_hash: str
    config: dict[str, Any]  # the values that differ from the defaults
    overrides: dict[str, Any]
    versions: dict[str, str]
    hardware: str | None
    training: Training
    evaluation: dict[str, dict[str, Any]]  # benchmark key -> settings of the harness, hashes included
    files: dict[str, str]  # path below records/<run>/ -> SHA-256


class Curve(TypedDict):
    """What one seed logged: columns of equal length, null where a step did not log the value."""

    seed: int
    step: list[int]
    generated_tokens: list[float | None]
    seconds: list[float | None]
    reward: list[float | None]
    loss: list[float | None]
    entropy: list[float | None]
    validation: list[list[float]]  # [step, accuracy], empty without validation


class Answer(TypedDict):
    """The first answer of a line's first run to a problem."""

    run: str
    completion: str
    extracted: str | None
    reason: str
    correct: bool


class Problems(TypedDict):
    """Every problem of a benchmark; `share` holds the share of right answers in the order of `ids`, line by line."""

    ids: list[str]
    questions: dict[str, str]  # problem id -> prompt
    share: dict[str, list[float]]  # line ->
    answers: dict[str, dict[str, Answer]]  # problem id -> line ->; of a choice of problems where there are many


class Benchmark(TypedDict):
    """One entry of the suite."""

    key: str
    benchmark: str
    purpose: Purpose
    n: int | None
    limit: int | None
    seed: int
    max_new_tokens: int | None
    calibration: str | None  # calibrated, uncalibrated, own
    problems: int | None
    answers: int | None
    ks: list[int]


class Design(TypedDict):
    """What the board can find: the smallest true difference that it reports as one with 80 % power."""

    seeds: int
    problems: int | None
    answers: int | None
    smallest_detectable: float | None
    comparisons: int  # lines that Holm's correction is over
    smallest_detectable_holm: float | None  # the same at the level of its first step, 5 % / comparisons
    assumed: dict[str, float]  # the standard deviations that this rests on
    assumed_from: str  # in words: the board's own runs, or typical values


class Results(TypedDict):
    """A board."""

    format: int
    name: str
    title: str
    description: str
    notes: list[str]
    base_model: str
    data: dict[str, Any]
    budget: dict[str, Any]  # unit, value
    checkpoint_rule: str
    baseline: str
    seeds: list[int]
    level: float
    suite: list[Benchmark]
    primary: str
    design: Design
    made: str
    provenance: dict[str, Any]  # commit, versions, hardware: lists of what the runs name
    rows: list[Row]
    runs: list[RunResult]
    curves: dict[str, list[Curve]]
    problems: dict[str, Problems]
    files: dict[str, str]  # path below records/, of what belongs to no run -> SHA-256
    warnings: list[str]


def benchmark_of(results: Results, key: str) -> Benchmark:
    """The suite's entry of a benchmark key."""
    return next(entry for entry in results["suite"] if entry["key"] == key)


def primary_score(results: Results, row: Row) -> Score | None:
    """The row's score on the primary benchmark, None where it has none."""
    return row["scores"].get(results["primary"])
