"""Finding the program in a completion: pure string functions, linear in the length of the text.

The text is never parsed as Python here, since a hostile program may bring a parser down.
"""

import re
from collections.abc import Collection
from textwrap import dedent

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+.-]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_LANGUAGES = ("", "python", "python3", "py", "py3")
_END_OF_THOUGHT = "</think>"
_AFTER_FUNCTION = re.compile(r"\n(?:class|def|#|if|print|@|```|<)")


def extract_code(text: str, names: Collection[str] = ()) -> str | None:
    """The program of a completion, or `None` where there is none.

    Of the fenced blocks of Python, or of no named language, after a model's thoughts (`</think>`): the last one that
    defines one of `names`, else the last one. A block that is never closed runs to the end. Where there is no block,
    the text itself.

    Args:
        text (`str`): The completion.
        names (`Collection[str]`): Functions or classes that the tests call.
    """
    answer = text.rpartition(_END_OF_THOUGHT)[2]
    blocks = [_code(match) for match in _FENCE.finditer(answer) if match["language"].lower() in _LANGUAGES]
    defining = [block for block in blocks if any(defines(block, name) for name in names)]
    chosen = (defining or blocks or [answer])[-1]
    return chosen.strip("\n") if chosen.strip() else None


def defines(code: str, name: str) -> bool:
    """Whether a program has a function, a class or a variable of this name, not indented."""
    return (
        re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*=[^=]", code, re.MULTILINE) is not None
    )


def complete(prompt: str, code: str, name: str) -> list[str]:
    """A program from the head of a function and a completion, which repeats the function or continues it.

    A continuation ends where the function does, as in HumanEval's protocol.

    Returns:
        `list[str]`: Sources to be executed in this order; the head's imports and helpers are always there.
    """
    if defines(code, name):
        return [prompt, code]
    end = _AFTER_FUNCTION.search(code)
    return [prompt + (code[: end.start()] if end else code)]


def _code(match: re.Match[str]) -> str:
    return dedent(match["code"]) if match["indent"] else match["code"]
