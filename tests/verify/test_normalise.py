import time

import pytest

from trl_opd.verify.normalise import letters_kept, normalise, set_against_tuple


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" $5$ ", "5"),
        (r"\$5", r"\$5"),
        ("4.5e-3", r"4.5 \times 10^{-3}"),
        ("2E8", r"2 \times 10^{8}"),
        ("x2e8", "x2e8"),
        ("2e", "2e"),
        ("5.", "5"),
        ("-1./3", "-1/3"),
        ("1...n", "1...n"),
        (r"1\,234\,567.5", "1234567.5"),
        ("1{,}000", "1000"),
        ("1 000", "1000"),
        ("1 00", "1 00"),
        ("3 1/2", r"3\frac{1}{2}"),
        ("-3 1/2", r"-3\frac{1}{2}"),
        ("x 1/2", "x 1/2"),
        ("21st", "21"),
        (r"7^{\text{th}}", "7"),
        ("sqrt(2+sqrt(3))", r"\sqrt{2+sqrt(3)}"),
        ("sqrt{2}/2", r"\sqrt{2}/2"),
        ("sqrt(2", "sqrt(2"),
        (r"\sqrt{2}", r"\sqrt{2}"),
        ("2pi", r"2\pi"),
        ("pie", "pie"),
        (r"\varnothing", r"\emptyset"),
        (r"\color{red}{5}", "{5}"),
    ],
)
def test_each_spelling_is_brought_to_the_one_that_is_read_rightly(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        ("2t", "3t", ("2{t}", "3{t}")),
        ("2t", "2s", ("2{t}", "2{s}")),
        ("5 m", "5", ("5 m", "5")),
        ("5 cm", "5 x", ("5 {cm}", "5 {x}")),
        (r"\frac{1}{m} t", r"\frac{t}{m}", (r"\frac{1}{m} {t}", r"\frac{t}{m}")),
        (r"\cos 2t + \sin 2t", "1", (r"\cos 2t + \sin 2{t}", "1")),
        (r"5 \text{ m}", "5 m", (r"5 \text{ m}", "5 m")),
        ("x", "5x", ("x", "5{x}")),
    ],
)
def test_last_letters_are_kept_where_they_are_symbols(one, other, kept):
    assert letters_kept(one, other) == kept
    assert letters_kept(other, one) == kept[::-1]


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        (r"\{1,2\}", "(1,2)", True),
        (r"\left\{1,2\right\}", "[1,2)", True),
        (r"\{1,2\}", "1,2", False),
        (r"\{1\}", "(1)", False),
        (r"\{1,2\}", "(1,2),(3,4)", False),
        ("(1,2)", "[1,2]", False),
    ],
)
def test_a_set_is_told_from_a_tuple(one, other, differ):
    assert set_against_tuple(one, other) == set_against_tuple(other, one) == differ


@pytest.mark.parametrize("text", ["sqrt(" * 400, "1 " * 1000, "1e" * 1000, "{" * 2000, "1," * 1000, "\\" * 2000])
def test_degenerate_answers_take_no_time(text):
    start = time.perf_counter()
    letters_kept(normalise(text[:2000]), "5x")
    assert time.perf_counter() - start < 0.5
