"""Finding the final answer in a completion: pure string functions, linear in the length of the text."""

import re

from trl_opd.verify.tool_use import tool_calls

_BOX_TOKENS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


def last_boxed(text: str) -> str | None:
    r"""The content of the `\boxed{...}` that opens last and is closed, or `None` where there is none.

    Braces balance and escaped braces (`\{`) do not count. One pass with a stack, since a degenerate completion may
    open thousands of boxes and close none.
    """
    open_boxes: list[int | None] = []  # where the content of each open brace starts; None for a brace that is no box
    start, content = -1, None
    for token in _BOX_TOKENS.finditer(text):
        symbol = token.group()
        if symbol == "{":
            open_boxes.append(None)
        elif symbol.startswith("\\boxed"):
            open_boxes.append(token.end())
        elif symbol == "}" and open_boxes:
            opened = open_boxes.pop()
            if opened is not None and opened > start:
                start, content = opened, text[opened : token.start()]
    return content


def last_number(text: str) -> str | None:
    """The last decimal number without its thousands separators, or `None` where there is none.

    A minus sign belongs to the number unless it follows a word or a closing bracket, as in `10-5`.
    """
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def boxed_or_last_number(text: str) -> str | None:
    """The last box, or the last number of a completion that has no box."""
    content = last_boxed(text)
    return last_number(text) if content is None else content


def tagged_letter(text: str) -> str | None:
    """The capital letter that is all there is after the last `<answer>`, up to `</answer>` or the end.

    A completion without the tag is taken as a whole. As the released code of SDPO reads SciKnowEval
    (https://huggingface.co/papers/2601.20802): a letter with its option's text beside it is no answer.
    """
    content = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    return content if len(content) == 1 and "A" <= content <= "Z" else None


EXTRACTIONS = {
    "boxed": last_boxed,
    "last-number": boxed_or_last_number,
    "letter": tagged_letter,
    "tool-calls": tool_calls,
}
"""The extraction rules by name, as benchmarks and rewards name them."""
