"""The testbed's problems: sums of two or three two-digit numbers, to be worked one addition at a time.

    problem     23+45+61=?
    solution    23+45=68
                68+61=129
                \\boxed{129}

A problem belongs to a split by a hash of its sorted numbers: the splits are disjoint by construction, and a problem
is never in another split than its reorderings. Of the 737 100 problems the hash puts 589 734 into `train`, 74 170 into
`validation` and 73 196 into `test`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

from trl_opd.errors import UserError

# What a teacher reads comes before the problem, so that the end of its prompt is the prompt that the student reads.
REFERENCE_TEMPLATE = "Solution:\n{solution}\nAgain:\n{prompt}"
DEMONSTRATION_TEMPLATE = "Example:\n{demonstration}\nAgain:\n{prompt}"
FEEDBACK_TEMPLATE = "Feedback:\n{feedback}\nAgain:\n{prompt}"
DEMONSTRATION_AND_FEEDBACK_TEMPLATE = "Example:\n{demonstration}\nFeedback:\n{feedback}\nAgain:\n{prompt}"

MAX_ROWS = 20_000
"""Most rows of one call: far below the size of the smallest split, so that drawing without repetition stays fast."""

_HASH_BUCKETS = 10
_PROBLEM = re.compile(r"[1-9][0-9](\+[1-9][0-9]){1,2}=\?")
_STEP = re.compile(r"([0-9]{1,6})\+([0-9]{1,6})=([0-9]{1,6})")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(r"[0-9]{1,6}")


@dataclass(frozen=True)
class Split:
    """The hash buckets that a split owns and the number of rows that it has by default."""

    buckets: range
    default_count: int


SPLITS = {
    "train": Split(range(2, _HASH_BUCKETS), default_count=4096),
    "validation": Split(range(1, 2), default_count=256),
    "test": Split(range(1), default_count=512),
}


@dataclass(frozen=True)
class Problem:
    """A sum of two or three numbers from 10 to 99."""

    numbers: tuple[int, ...]

    @property
    def text(self) -> str:
        """What the user asks, as in `23+45+61=?`."""
        return "+".join(map(str, self.numbers)) + "=?"

    @property
    def totals(self) -> tuple[int, ...]:
        """The running totals: the first number, then the result of each step."""
        return tuple(accumulate(self.numbers))

    @property
    def answer(self) -> int:
        """The sum."""
        return self.totals[-1]

    @property
    def steps(self) -> list[tuple[int, int, int]]:
        """The additions in order, each as (total so far, number to add, new total)."""
        return [(before, after - before, after) for before, after in pairwise(self.totals)]

    @property
    def solution(self) -> str:
        """The worked reference: a line for each step, then the boxed answer."""
        lines = [f"{total}+{number}={result}" for total, number, result in self.steps]
        return "\n".join([*lines, boxed(self.answer)])

    @property
    def split(self) -> str:
        """The one split that holds this problem and all its reorderings."""
        key = "+".join(map(str, sorted(self.numbers)))
        bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % _HASH_BUCKETS
        return next(name for name, split in SPLITS.items() if bucket in split.buckets)

    @classmethod
    def parse(cls, text: str) -> Problem:
        """Read a problem back from its text.

        Raises:
            UserError: if the text is not a problem of the testbed.
        """
        if not _PROBLEM.fullmatch(text):
            raise UserError(f"{text!r} is not a problem of the testbed: pass the 'problem' field of one of its rows.")
        return cls(tuple(map(int, text.removesuffix("=?").split("+"))))


def boxed(answer: int) -> str:
    """The form in which an answer is given, as in `\\boxed{129}`."""
    return f"\\boxed{{{answer}}}"


def draw(rng: random.Random, split: str) -> Iterator[Problem]:
    """Problems of one split without end, repetitions included; half have two numbers and half have three."""
    while True:
        problem = Problem(tuple(rng.randint(10, 99) for _ in range(rng.choice((2, 3)))))
        if problem.split == split:
            yield problem


def rows(split: str, count: int | None = None, seed: int = 0) -> list[dict]:
    """Distinct problems of one split, as rows of a dataset.

    The same arguments give the same rows, and fewer rows are a prefix of more.

    Args:
        split (`str`):
            `"train"`, `"validation"` or `"test"`.
        count (`int`, *optional*):
            Number of rows, at most `MAX_ROWS`; the split's `default_count` in `SPLITS` if left out.
        seed (`int`, *optional*, defaults to `0`):
            Which problems, and in which order.

    Returns:
        `list[dict]`: Rows with the fields `id`, `prompt` (a list of one user message), `problem` (the text of that
        message), `solution` (the worked reference) and `answer`.

    Raises:
        UserError: if the split is unknown or the count is not from 1 to `MAX_ROWS`.
    """
    if split not in SPLITS:
        raise UserError(f"The testbed has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    count = SPLITS[split].default_count if count is None else count
    if not 1 <= count <= MAX_ROWS:
        raise UserError(f"The testbed gives 1 to {MAX_ROWS} rows at a time: count={count} is not in that range.")
    distinct: dict[Problem, None] = {}
    for problem in draw(random.Random(f"{split}-{seed}"), split):
        distinct[problem] = None
        if len(distinct) == count:
            break
    return [_row(problem) for problem in distinct]


def _row(problem: Problem) -> dict:
    return {
        "id": f"{problem.split}-{problem.text.removesuffix('=?')}",
        "prompt": [{"role": "user", "content": problem.text}],
        "problem": problem.text,
        "solution": problem.solution,
        "answer": str(problem.answer),
    }


def boxed_number(completion: str) -> int | None:
    """The number in the last box of a completion, or `None` if there is no box or no number in it."""
    boxes = _BOXED.findall(completion)
    return int(boxes[-1]) if boxes and _NUMBER.fullmatch(boxes[-1]) else None


def feedback(problem: str, completion: str) -> str | None:
    """One sentence on the first thing that is wrong in a completion, as an environment would give it.

    It repeats what the completion wrote and what a step had to add, and never gives the right result of a step or the
    answer away.

    Args:
        problem (`str`):
            The `problem` field of a row.
        completion (`str`):
            The text that the model wrote.

    Returns:
        `str` or `None`: `None` if the boxed answer is right, whatever the steps are.

    Raises:
        UserError: if `problem` is not a problem of the testbed.
    """
    task = Problem.parse(problem)
    answer = boxed_number(completion)
    if answer == task.answer:
        return None
    claims = [tuple(map(int, claim)) for claim in _STEP.findall(completion)]
    wrong = next(filter(None, map(_step_feedback, range(1, len(claims) + 1), claims, task.steps)), None)
    if wrong is not None:
        return wrong
    if answer is None:
        return "No answer in \\boxed{}."
    if len(claims) != len(task.steps):
        first = min(len(claims), len(task.steps)) + 1
        missing = len(claims) < len(task.steps)
        return f"Step {first} is {'missing' if missing else 'one too many'}: {task.text[:-2]} is not {answer}."
    return f"The answer is wrong: {task.text[:-2]} is not {answer}."


def contexts(row: dict) -> dict[str, str]:
    """Each form of prompt for one row, filled with texts that a run would meet: its feedback is on a direct guess.

    Args:
        row (`dict`): A row of `rows`.

    Returns:
        `dict[str, str]`: The name of each form, and the user message.
    """
    answer = int(row["answer"])
    fields = {
        "prompt": row["problem"],
        "solution": row["solution"],
        "demonstration": row["solution"],
        "feedback": feedback(row["problem"], boxed(answer + 3)),
    }
    lucky = fields | {"demonstration": boxed(answer)}
    return {
        "plain": row["problem"],
        "reference": REFERENCE_TEMPLATE.format(**fields),
        "demonstration": DEMONSTRATION_TEMPLATE.format(**fields),
        "direct demonstration": DEMONSTRATION_TEMPLATE.format(**lucky),
        "feedback": FEEDBACK_TEMPLATE.format(**fields),
        "demonstration and feedback": DEMONSTRATION_AND_FEEDBACK_TEMPLATE.format(**fields),
    }


def _step_feedback(index: int, claim: tuple[int, int, int], step: tuple[int, int, int]) -> str | None:
    """What is wrong with one claimed addition, or `None`; the two numbers may come in either order."""
    left, right, result = claim
    if {left, right} != set(step[:2]):
        return f"Step {index} is wrong: it has to add {step[0]} and {step[1]}."
    if result != step[2]:
        return f"Step {index} is wrong: {left}+{right} is not {result}."
    return None
