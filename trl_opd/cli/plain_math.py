"""The pages' formulas and diagrams as plain text, for a terminal."""

import re
from collections.abc import Iterator
from itertools import pairwise

#: Command -> what it stands for.
SYMBOLS = {
    "Omega": "Ω", "beta": "β", "ell": "ℓ", "epsilon": "ε", "lambda": "λ", "omega": "ω", "pi": "π", "rho": "ρ",
    "sigma": "σ", "tau": "τ", "theta": "θ", "varepsilon": "ε", "nabla": "∇", "partial": "∂", "sum": "Σ",
    "cdot": "·", "ge": "≥", "in": "∈", "le": "≤", "leftarrow": "←", "neq": "≠", "pm": "±", "propto": "∝", "sim": "~",
    "times": "×", "Vert": "||", "|": "||", "dots": "...", "ln": "ln ", "max": "max", "min": "min",
    "{": "{", "}": "}", "_": "_", ",": " ", ";": " ", " ": " ", "quad": "  ", "qquad": "\n", "\\": "\n",
    **dict.fromkeys(("bigl", "bigr", "Bigl", "Bigr", "left", "right", "mathbb"), ""),
}  # fmt: skip

#: Commands whose argument is text.
TEXTS = ("text", "mathrm", "operatorname", "texttt")

_TOKENS = re.compile(r"\\[a-zA-Z]+|\\.|\s+|.", re.DOTALL)
_OPERAND = re.compile(r"(?:∂ )?[\w̄]+(?:[_^](?:\{[^{}]*\}|\S))*(?:\([^()\s]*\))?")
_EDGE = re.compile(r"\s*-->\s*(?:\|(.+?)\|\s*)?")
_NODE = re.compile(r"(\w+)\s*(?:[\[{(]+\"?(.+?)\"?[\]})]+)?$")


def plain_math(tex: str) -> str:
    """A formula as text: Greek letters for their names, a / b for fractions, braces around long indices.

    Raises:
        `ValueError`: For a command that is not in `SYMBOLS`.
    """
    text = _read(iter(_TOKENS.findall(" ".join(tex.split()))))
    lines = (re.sub(r" +", " ", line).strip(" ,") for line in text.split("\n"))
    tight = (re.sub(r" (?=[,)\]⟧])|(?<=[(\[⟦]) ", "", line) for line in lines if line)
    # A fraction that is a whole side of an equation needs no parentheses.
    alone = (re.sub(r"(^|= )⟦([^⟦⟧]*)⟧$", r"\1\2", line) for line in tight)
    return "\n".join(line.replace("⟦", "(").replace("⟧", ")") for line in alone)


def _read(tokens: Iterator[str], end: str | None = None) -> str:
    """The text up to the token that ends it."""
    found = ""
    for token in tokens:
        if token == end:
            return found
        found += _one(token, tokens)
    return found


def _one(token: str, tokens: Iterator[str]) -> str:
    """What a token and its arguments stand for."""
    if token == "{":
        return _read(tokens, "}")
    if token in "_^":
        index = _argument(tokens).strip()
        return token + (index if re.fullmatch(r"-?\d+|\S", index) else f"{{{index}}}")
    if not token.startswith("\\"):
        return token
    name = token[1:]
    if name in TEXTS:
        return _argument(tokens)
    if name in ("frac", "tfrac"):
        return f"⟦{_whole(_argument(tokens))} / {_whole(_argument(tokens))}⟧"
    if name == "bar":
        return _argument(tokens) + "\N{COMBINING MACRON}"
    if name not in SYMBOLS:
        raise ValueError(f"the formula has {token}, which has no plain form")
    return SYMBOLS[name]


def _argument(tokens: Iterator[str]) -> str:
    """The next group or token, spaces before it left out."""
    token = next(tokens)
    while token.isspace():
        token = next(tokens)
    return _one(token, tokens)


def _whole(text: str) -> str:
    """An operand of a fraction, in parentheses unless it is one symbol with its indices or a call."""
    text = text.strip()
    return text if _OPERAND.fullmatch(text) else f"({text})"


def plain_diagram(mermaid: str) -> str:
    """A flow chart as lines of arrows, each node by its label."""
    lines = [line.strip() for line in mermaid.strip().splitlines()[1:]]
    chains = [(_EDGE.split(line)[0::2], _EDGE.findall(line)) for line in lines]
    labels = {}
    for nodes, _ in chains:
        for name, label in (_NODE.match(node.strip()).groups() for node in nodes):
            if label:
                labels[name] = label
    return "\n".join(_chain(nodes, edges, labels) for nodes, edges in chains)


def _chain(nodes: list[str], edges: list[str], labels: dict[str, str]) -> str:
    names = [_NODE.match(node.strip()).group(1) for node in nodes]
    shown = [labels.get(name, name) for name in names]
    text = shown[0]
    for (_, node), edge in zip(pairwise(shown), edges, strict=True):
        text += f" --({edge})--> {node}" if edge else f" --> {node}"
    return text
