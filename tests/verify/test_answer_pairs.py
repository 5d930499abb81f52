r"""Hand-written pairs of answers and the verdict of a mathematician, in `answer_pairs.tsv`.

A line is two answers and `equal` or `different`, with tabs between. A fourth column names a deviation: there our
verdict is the opposite one, and the column says why. A `#` begins the heading of a section.
"""

import random
import string
from pathlib import Path

import pytest

from trl_opd.verify import MathVerifier

LINES = (Path(__file__).parent / "answer_pairs.tsv").read_text(encoding="utf-8").splitlines()
PAIRS = [tuple(line.split("\t")) for line in LINES if not line.startswith("#")]
ALPHABET = [
    *string.ascii_letters[:8],
    *string.digits,
    *"+-*/^_(){}[],.=<>|!%$\\ ",
    "\\frac",
    "\\sqrt",
    "\\boxed{",
    "\\{",
]


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier(timeout=10)
    yield verifier
    verifier.close()


def verdict(verifier, answer: str, reference: str) -> bool:
    """Whether the two are equal; an answer whose own braces would end the box early is compared as it is."""
    completion = rf"\boxed{{{answer}}}"
    found = verifier.verify(completion, reference)
    return found.correct if found.extracted == answer.strip() else verifier._compare(answer, reference) == "correct"


def test_the_table_is_whole():
    assert len(PAIRS) >= 150
    assert len({pair[:2] for pair in PAIRS}) == len(PAIRS)
    assert all(len(pair) in (3, 4) and pair[2] in ("equal", "different") for pair in PAIRS)
    assert all(pair[3].startswith("deviation: ") for pair in PAIRS if len(pair) == 4)


@pytest.mark.parametrize("pair", PAIRS, ids=[f"{pair[0]} ~ {pair[1]}" for pair in PAIRS])
def test_verdicts_are_those_of_a_mathematician_or_listed(verifier, pair):
    deviates = len(pair) == 4
    assert verdict(verifier, pair[0], pair[1]) == ((pair[2] == "equal") != deviates)


def test_verdicts_are_symmetric(verifier):
    for one, other, *_ in random.Random(0).sample(PAIRS, 60):
        assert verdict(verifier, one, other) == verdict(verifier, other, one)


@pytest.mark.parametrize("seed", range(3))
def test_random_strings_get_symmetric_verdicts_and_equal_themselves(verifier, seed):
    rng = random.Random(seed)
    answers = ["".join(rng.choices(ALPHABET, k=rng.randrange(1, 12))).strip() or "0" for _ in range(30)]
    for one, other in zip(answers, rng.sample(answers, len(answers)), strict=True):
        assert verifier._compare(one, other) == verifier._compare(other, one)
        assert verifier._compare(one, one) == "correct"


@pytest.mark.parametrize("seed", range(2))
def test_random_numbers_equal_their_other_spellings_and_no_other_number(verifier, seed):
    rng = random.Random(seed)
    for _ in range(12):
        mantissa, exponent = rng.randrange(100, 1000), rng.randrange(-30, 30)
        decimal = f"{mantissa / 100:.2f}"
        assert verdict(verifier, f"{decimal}e{exponent}", rf"{decimal} \times 10^{{{exponent}}}")
        assert not verdict(verifier, f"{decimal}e{exponent}", rf"{mantissa / 100 + 0.01:.2f} \times 10^{{{exponent}}}")
        top, bottom = rng.randrange(1, 999), rng.randrange(2, 99)
        assert verdict(verifier, f"{top}/{bottom}", rf"\frac{{{3 * top}}}{{{3 * bottom}}}")
        assert not verdict(verifier, f"{top}/{bottom}", rf"\frac{{{3 * top + 1}}}{{{3 * bottom}}}")
