r"""Small changes to an answer's text before math-verify reads it: pure string functions, each for what it misreads.

math-verify 0.9 takes `4.5e33` for 4.5 e 33 and `-1./3` for text, reads `1\,000` as a product, `3 1/2` as 2 and `7^{th}`
as a power, and knows no `\varnothing` and neither `sqrt(2)` nor `pi` without their backslash.
"""

import re

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SCIENTIFIC = re.compile(rf"(?<![\w.\\])({_NUMBER})[eE]([+-]?[0-9]{{1,4}})(?![\w.])")
_BARE_POINT = re.compile(r"(?<![.\d])([0-9]+)\.(?![0-9.])")
_GROUPS = re.compile(r"[+-]?[0-9]{1,3}(?:(?:\\[,!;: ]|\{,\}|~|\s)[0-9]{3})+(?:\.[0-9]+)?")
_GROUP_MARK = re.compile(r"\\[,!;: ]|\{,\}|~|\s")
_ORDINAL = re.compile(r"([0-9]+)\s*\^?\s*\{?\s*(?:\\(?:text|mathrm|textsuperscript)\s*\{)?\s*(?:st|nd|rd|th)\s*\}*")
_MIXED = re.compile(r"([+-]?[0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)")
_DOLLAR = re.compile(r"(?<!\\)\$")
_PI = re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])")
_ROOT = re.compile(r"(?<![\\a-zA-Z])sqrt(?=[({])")
_EMPTY_SET = re.compile(r"\\varnothing(?![a-zA-Z])")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{\w+\}")
_LAST_LETTERS = re.compile(r"(?<=[0-9}\s])([a-z]{1,3})$")
_COMMAND = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_SIZE = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg)[lr]?(?![a-zA-Z])")


def normalise(text: str) -> str:
    """The same answer in the spelling that math-verify reads rightly, without blanks at its ends."""
    text = _COLOUR.sub("", _DOLLAR.sub("", text)).strip()
    if _GROUPS.fullmatch(text):
        return _GROUP_MARK.sub("", text)
    if ordinal := _ORDINAL.fullmatch(text):
        return ordinal[1]
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text) if _MIXED.fullmatch(text) else text
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    text = _BARE_POINT.sub(r"\1", text)
    text = _EMPTY_SET.sub(r"\\emptyset", text)
    return _roots(_PI.sub(r"\\pi ", text)).strip()


def letters_kept(one: str, other: str) -> tuple[str, str]:
    r"""Both answers with the letters at their ends in braces where these are symbols.

    math-verify drops `t`, `m`, `ab` and many more from the end of an answer, as units: it reads `2t` as 2. They are
    symbols where the same letters occur before in the answer, or in the other one, and where the other ends in others.
    """
    ends = [_LAST_LETTERS.search(text) for text in (one, other)]
    differ = None not in ends and ends[0][1] != ends[1][1]
    return _kept(one, ends[0], other, differ), _kept(other, ends[1], one, differ)


def _kept(text: str, end: re.Match[str] | None, other: str, always: bool) -> str:
    if end is None:
        return text
    body = text[: end.start()]
    symbols = set(_COMMAND.sub("", body)) | set(_COMMAND.sub("", other))
    return f"{body}{{{end[1]}}}" if always or set(end[1]) <= symbols else text


def set_against_tuple(one: str, other: str) -> bool:
    r"""Whether one answer is a set in braces, `\{1, 2\}`, and the other a tuple or an interval, `(1, 2)`.

    math-verify takes them for equal.
    """
    kinds = {_bracket(one), _bracket(other)}
    return kinds == {"set", "tuple"}


def _bracket(text: str) -> str | None:
    """The kind of the one pair of brackets that a list with commas stands in."""
    text = _SIZE.sub("", text).strip()
    if text.startswith("\\{") and text.endswith("\\}") and "," in text and text.count("\\{") == 1:
        return "set"
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and "," in text and len(re.findall(r"[(\[]", text)) == 1:
        return "tuple"
    return None


def _roots(text: str) -> str:
    r"""`sqrt(...)` and `sqrt{...}` as `\sqrt{...}`, where the brackets balance."""
    parts, end = [], 0
    for match in _ROOT.finditer(text):
        close = _closing(text, match.end())
        if match.start() < end or close is None:
            continue
        parts += [text[end : match.start()], "\\sqrt{", text[match.end() + 1 : close], "}"]
        end = close + 1
    return "".join([*parts, text[end:]])


def _closing(text: str, start: int) -> int | None:
    """The position of the bracket that closes the one at `start`."""
    opening, closing = text[start], {"(": ")", "{": "}"}[text[start]]
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == opening) - (text[position] == closing)
        if depth == 0:
            return position
    return None
