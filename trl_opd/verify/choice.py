"""Multiple choice: is the letter the right one?"""

from trl_opd.errors import UserError
from trl_opd.verify.base import Verdict
from trl_opd.verify.extraction import tagged_letter

RULES = "choice 1"
"""Raise it whenever extraction or comparison changes here."""


def verify_choice(completion: str, answer: str) -> Verdict:
    """Score one completion against a capital letter.

    Args:
        completion (`str`): The text to score, which is not trusted.
        answer (`str`): The reference letter.

    Raises:
        UserError: The reference is no capital letter.
    """
    reference = answer.strip()
    if len(reference) != 1 or not "A" <= reference <= "Z":
        raise UserError(
            f"The reference {reference!r} is no capital letter: give every row one of its options' letters."
        )
    letter = tagged_letter(completion)
    if letter is None:
        feedback = "No single letter was found between <answer> and </answer>."
        return Verdict(correct=False, extracted=None, reason="no answer", feedback=feedback)
    if letter != reference:
        return Verdict(False, letter, "wrong", f"The answer {letter} is not correct.")
    return Verdict(True, letter, "correct")
