import time

import pytest

from trl_opd.verify.extraction import boxed_or_last_number, last_boxed, last_number


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}.", "5"),
        (r"first \boxed{5}, no: \boxed{7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),  # escaped braces need not balance
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5} and \boxed{7", "5"),  # a cut completion
        (r"} \boxed{5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{5", None),
        ("5", None),
        ("", None),
    ],
)
def test_last_boxed_reads_the_last_closed_box(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 5.", "5"),
        ("1,234,567 in all", "1234567"),
        ("1,2345", "2345"),
        ("so 3, 4", "4"),
        ("costs $18.50.", "18.50"),
        ("it is -5", "-5"),
        ("10-5", "5"),
        ("f(x)-5", "5"),
        ("= -5", "-5"),
        ("none", None),
        ("٣", None),  # digits of other scripts are no numbers here
    ],
)
def test_last_number_reads_decimals_without_separators(text, number):
    assert last_number(text) == number


def test_a_box_goes_before_a_later_number():
    assert boxed_or_last_number(r"\boxed{5} after 7 steps") == "5"
    assert boxed_or_last_number("after 7 steps") == "7"


@pytest.mark.parametrize("text", [r"\boxed{" * 15_000, "{" * 100_000, r"\boxed{" * 9_000 + "}" * 9_000, "1," * 50_000])
def test_extraction_is_linear_in_the_length(text):
    start = time.perf_counter()
    boxed_or_last_number(text)
    assert time.perf_counter() - start < 1
