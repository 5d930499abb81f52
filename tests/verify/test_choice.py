import time

import pytest

from trl_opd.errors import UserError
from trl_opd.verify.choice import verify_choice

READ = [
    ("<reasoning>\nlong\n</reasoning>\n<answer>\nB\n</answer>", "B"),
    ("<answer>B</answer>", "B"),
    ("<answer> B \n\n</answer>\n", "B"),
    ("<answer>A</answer> no: <answer>B</answer>", "B"),  # the last one counts
    ("The form is <answer>X</answer>.\n<answer>\nB\n</answer> Done.", "B"),
    ("<answer>B", "B"),  # cut before the closing tag
    ("B", "B"),  # without a tag the completion is taken as a whole
    ("  D\n", "D"),
    ("B</answer>", "B"),
    ("<answer>E</answer>", "E"),  # a letter that is no option is an answer, and a wrong one
    ("<answer>b</answer>", None),
    ("<answer>B.</answer>", None),
    ("<answer>(B)</answer>", None),
    ("<answer>B: 1.69</answer>", None),
    ("<answer>\nA or B\n</answer>", None),
    ("<answer>AB</answer>", None),
    ("<answer>**B**</answer>", None),
    ("<answer></answer>", None),
    ("<answer>", None),
    ("The answer is B.", None),
    ("<ANSWER>B</ANSWER>", None),
    ("<answer>Β</answer>", None),  # a Greek capital beta
    ("", None),
]


@pytest.mark.parametrize(("completion", "letter"), READ)
@pytest.mark.parametrize("reference", ["A", "B"])
def test_the_letter_alone_within_the_last_tag_counts(completion, letter, reference):
    verdict = verify_choice(completion, reference)
    assert verdict.extracted == letter
    assert verdict.correct == (letter == reference)
    assert verdict.reason == ("no answer" if letter is None else "correct" if letter == reference else "wrong")


def test_feedback_never_names_the_right_letter():
    assert verify_choice("<answer>A</answer>", "B").feedback == "The answer A is not correct."
    assert "letter" in verify_choice("I think B", "B").feedback
    assert verify_choice("B", "B").feedback is None


@pytest.mark.parametrize("reference", ["", "b", "AB", "5"])
def test_a_reference_that_is_no_letter_is_refused(reference):
    with pytest.raises(UserError, match="is no capital letter"):
        verify_choice("B", reference)


def test_a_degenerate_completion_takes_no_time():
    start = time.perf_counter()
    verify_choice("<answer>" * 100_000, "A")
    assert time.perf_counter() - start < 1
