"""The texts that the testbed's checkpoints are made from: a prompt and the completion to imitate.

All problems come from the train split. A plain problem is answered in one of two ways: with worked steps, or with a
direct guess that is mostly wrong. After each prompt that a teacher reads (a reference solution, a demonstration,
feedback) come worked steps with the right answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from trl_opd.testbed.tasks import (
    DEMONSTRATION_AND_FEEDBACK_TEMPLATE,
    DEMONSTRATION_TEMPLATE,
    FEEDBACK_TEMPLATE,
    REFERENCE_TEMPLATE,
    Problem,
    boxed,
    draw,
    feedback,
)

GUESS_SHARE = 0.7
"""Share of direct guesses among the answers to a plain problem."""

GUESS_SPREAD = 8.0
"""Standard deviation of a guess about the right answer: about one guess in twenty is right."""

TEMPLATE_SHARES = {
    "{prompt}": 0.5,
    REFERENCE_TEMPLATE: 0.2,
    DEMONSTRATION_TEMPLATE: 0.1,
    FEEDBACK_TEMPLATE: 0.1,
    DEMONSTRATION_AND_FEEDBACK_TEMPLATE: 0.1,
}
"""How often the mixture shows each form of prompt."""

DIRECT_DEMONSTRATION_SHARE = 0.3
"""Share of demonstrations that are a lucky guess; the others are worked."""


def worked(seed: int, count: int) -> list[dict]:
    """`count` plain problems with worked steps."""
    problems = draw(random.Random(f"worked-{seed}"), "train")
    return [_example(problem.text, problem.solution) for problem, _ in zip(problems, range(count), strict=False)]


def mixture(seed: int, count: int) -> list[dict]:
    """`count` examples of all forms of prompt, plain problems answered in both ways."""
    rng = random.Random(f"mixture-{seed}")
    problems = draw(rng, "train")
    templates = rng.choices(list(TEMPLATE_SHARES), list(TEMPLATE_SHARES.values()), k=count)
    return [_mixed_example(rng, problem, template) for template, problem in zip(templates, problems, strict=False)]


def _mixed_example(rng: random.Random, problem: Problem, template: str) -> dict:
    guesses = template == "{prompt}" and rng.random() < GUESS_SHARE
    context = {
        "prompt": problem.text,
        "solution": problem.solution,
        "demonstration": _demonstration(rng, problem),
        "feedback": _feedback(rng, problem),
    }
    return _example(template.format(**context), _guess(rng, problem) if guesses else problem.solution)


def _example(prompt: str, completion: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def _guess(rng: random.Random, problem: Problem) -> str:
    return boxed(max(0, problem.answer + round(rng.gauss(0, GUESS_SPREAD))))


def _demonstration(rng: random.Random, problem: Problem) -> str:
    return boxed(problem.answer) if rng.random() < DIRECT_DEMONSTRATION_SHARE else problem.solution


def _feedback(rng: random.Random, problem: Problem) -> str:
    """Feedback on the first of some attempts that fails."""
    return next(filter(None, (feedback(problem.text, attempt) for attempt in _attempts(rng, problem))))


def _attempts(rng: random.Random, problem: Problem) -> Iterator[str]:
    """Attempts without end: guesses, worked steps with a slip that is carried on, and steps without an answer."""
    while True:
        kind = rng.choices(("guess", "slip", "unfinished"), (0.5, 0.4, 0.1))[0]
        if kind == "guess":
            yield _guess(rng, problem)
        elif kind == "slip":
            yield _slip(rng, problem)
        else:
            yield problem.solution.rsplit("\n", 1)[0]


def _slip(rng: random.Random, problem: Problem) -> str:
    wrong_step = rng.randrange(len(problem.steps))
    lines, total = [], problem.numbers[0]
    for index, number in enumerate(problem.numbers[1:]):
        result = total + number + (rng.choice((-10, -1, 1, 10)) if index == wrong_step else 0)
        lines.append(f"{total}+{number}={result}")
        total = result
    return "\n".join([*lines, boxed(total)])
