from __future__ import annotations

import re

from trl_opd.testbed.corpus import GUESS_SHARE, mixture, worked
from trl_opd.testbed.tasks import Problem, boxed_number

COUNT = 2000


def parts(example: dict) -> tuple[str, str]:
    (prompt,), (completion,) = example["prompt"], example["completion"]
    assert (prompt["role"], completion["role"]) == ("user", "assistant")
    return prompt["content"], completion["content"]


def test_corpora_are_deterministic_and_of_the_size_asked_for():
    for corpus in (worked, mixture):
        assert corpus(0, 50) == corpus(0, 50)
        assert corpus(0, 50) != corpus(1, 50)
        assert len(corpus(0, 50)) == 50


def test_corpora_hold_problems_of_the_train_split_only():
    for prompt, _ in map(parts, worked(0, COUNT) + mixture(0, COUNT)):
        assert Problem.parse(prompt.split("\n")[-1]).split == "train"


def test_plain_problems_are_answered_in_two_ways():
    plain = [(prompt, text) for prompt, text in map(parts, mixture(0, COUNT)) if "\n" not in prompt]
    guesses = [(prompt, text) for prompt, text in plain if "=" not in text]
    right = [boxed_number(text) == Problem.parse(prompt).answer for prompt, text in guesses]
    assert abs(len(guesses) / len(plain) - GUESS_SHARE) < 0.05
    assert 0 < sum(right) / len(right) < 0.15


def test_every_teacher_prompt_is_followed_by_the_worked_solution():
    teacher = [(prompt, text) for prompt, text in map(parts, mixture(0, COUNT)) if "\n" in prompt]
    assert all(text == Problem.parse(prompt.split("\n")[-1]).solution for prompt, text in teacher)
    headings = {tuple(re.findall(r"^[A-Z][a-z]+:$", prompt, re.MULTILINE)) for prompt, _ in teacher}
    assert headings == {
        ("Solution:", "Again:"),
        ("Example:", "Again:"),
        ("Feedback:", "Again:"),
        ("Example:", "Feedback:", "Again:"),
    }
