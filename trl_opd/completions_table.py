"""The table that `log_completions` prints, with every token's divergence from the teacher as a heat strip.

TRL's table shows rollouts; beside each, this one shows where the student and the teacher disagree, as the loss saw it
in the row's last update. On a terminal with colours the completion's own tokens carry them; elsewhere a strip of blocks
has one character for each token. What models and data wrote cannot steer the terminal: control characters are made
visible.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import Tensor

#: Ends of the levels of heat, in nats: fixed, so that the tables of two steps may be compared.
EDGES = (0.01, 0.1, 0.5, 2.0)
#: A colour for each level, from none to a red, by lightness alone for whoever sees no hues.
STYLES = ("", "black on #fee8c8", "black on #fdbb84", "white on #d7301f", "white on #7f0000")
BLOCKS = "·▂▄▆█"
DIGITS = "01234"
#: Column of TRL's tables (parquet, trackers) with each token's value; nan where a token is not distilled.
COLUMN = "token_divergence"


@dataclass(frozen=True)
class Strip:
    """One completion, token by token.

    Attributes:
        ids (`list[int]`): Tokens that the model generated.
        values (`list[float]`): Of each token, in nats; nan where it is not distilled.
    """

    ids: list[int]
    values: list[float]

    @property
    def known(self) -> list[float]:
        """The values of the distilled tokens."""
        return [value for value in self.values if value == value]


class Strips:
    """The strips of the rollouts that TRL keeps for its table, in its order.

    Args:
        size (`int`): How many rollouts TRL keeps.
    """

    def __init__(self, size: int | None):
        self._shown: deque[int] = deque(maxlen=size)
        self._drawn = 0
        self._found: dict[int, Strip] = {}
        self.quantity = "divergence"

    def number(self, rows: int, processes: int, process: int) -> Tensor:
        """Numbers of this process's rows of a new rollout batch, `[B]`; every process has as many."""
        first = self._drawn
        self._drawn += rows * processes
        self._shown.extend(range(first, self._drawn))
        return torch.arange(rows) + first + process * rows

    def add(
        self, numbers: Tensor, ids_BT: Tensor, mask_BT: Tensor, facts: dict[str, Tensor], distilled_N: Tensor
    ) -> None:
        """Takes up what the loss says of a micro-batch.

        Args:
            numbers (`torch.Tensor`): Of the rows, `[B]`.
            ids_BT, mask_BT (`torch.Tensor`): Completions, and which of their tokens the facts are about.
            facts (`dict`): Facts of these tokens, `[N]`, row by row.
            distilled_N (`torch.Tensor`): Tokens with divergence weight, bool.
        """
        if "distill/divergence" in facts:
            values = facts["distill/divergence"]
        elif "distill/log_ratio" in facts:  # the sampled estimators know no more of a token
            values, self.quantity = facts["distill/log_ratio"].abs(), "|ln p - ln q|"
        else:
            return
        values = torch.where(distilled_N, values.float(), torch.nan)
        lengths = mask_BT.sum(-1).tolist()
        for number, ids, mask, own in zip(numbers.tolist(), ids_BT, mask_BT, values.split(lengths), strict=True):
            self._found[number] = Strip(ids[mask].tolist(), [round(value, 4) for value in own.tolist()])

    def gathered(self) -> list[Strip | None]:
        """Those of the rollouts that are shown, over all processes; None where a row was in no update yet."""
        found = dict(gather_object(list(self._found.items())))
        self._found = {number: strip for number, strip in self._found.items() if number in self._shown}
        return [found.get(number) for number in self._shown]


def print_table(
    logs: dict[str, Any],
    strips: Sequence[Strip | None],
    tokenizer: Any,
    *,
    step: int,
    quantity: str,
    most: int | None = None,
    console: Console | None = None,
) -> None:
    """Prints some rollouts with their strips.

    Args:
        logs (`dict`): TRL's `_logs`: lists under "prompt", "completion" and "advantages", lists by name under "rewards"
            and "extra".
        strips (`Sequence[Strip]`): Of each rollout.
        tokenizer: The student's.
        step (`int`): For the title.
        quantity (`str`): What the strips show.
        most (`int`, *optional*): Only so many rollouts, chosen anew at each step.
        console (`Console`, *optional*): Where to print; standard output by default.
    """
    chosen = list(range(len(strips)))
    if most is not None and most < len(chosen):
        chosen = sorted(random.Random(step).sample(chosen, max(most, 0)))
    if not chosen:
        return
    console = console or Console()
    table = Table(header_style="bold", expand=True, show_lines=True, caption=_legend(console, quantity))
    for heading in ("Prompt", "Completion", quantity[:1].upper() + quantity[1:]):
        table.add_column(heading, overflow="fold")
    for heading in (*logs["rewards"], "Advantage"):
        table.add_column(heading, justify="right")
    extra = [name for name in logs["extra"] if name != COLUMN]
    for heading in extra:
        table.add_column(visible(heading), overflow="fold")
    for row in chosen:
        numbers = [*(values[row] for values in logs["rewards"].values()), logs["advantages"][row]]
        table.add_row(
            _said(logs["prompt"][row]),
            *_completion(logs["completion"][row], strips[row], tokenizer, console),
            *(f"{number:.2f}" for number in numbers),
            *(_said(logs["extra"][name][row]) for name in extra),
        )
    console.print(Panel(table, title=f"Step {step}", expand=False))


def visible(text: str) -> str:
    """Text that prints as it is: control characters and marks of direction are replaced by visible ones."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or not (
        code < 0x20 or 0x7F <= code < 0xA0 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    ):
        return character
    return chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"


def level(value: float) -> int:
    """The level of heat of a value in nats."""
    return sum(value >= edge for edge in EDGES)


def _said(entry: Any) -> Text:
    """A prompt, a completion or a column's entry: text, or a conversation."""
    if not isinstance(entry, list):
        return Text("" if entry is None else visible(str(entry)))
    text = Text()
    for number, turn in enumerate(entry):
        calls = "".join(f"{call['function']}" for call in turn.get("tool_calls") or ())
        text.append(f"{chr(10) if number else ''}{visible(turn['role'])}\n", style="bold")
        text.append(visible(f"{turn.get('content') or ''}{calls}"))
    return text


def _completion(completion: Any, strip: Strip | None, tokenizer: Any, console: Console) -> tuple[Text, Text]:
    """The two cells of a completion: its text, and its strip."""
    if strip is None or not strip.known:
        return _said(completion), Text("-")
    told = f"mean {fmean(strip.known):.3g}\nmax {max(strip.known):.3g}"
    if console.color_system is None or (isinstance(completion, list) and len(completion) > 1):
        return _said(completion), Text(f"{told}\n{_blocks(strip, console)}")
    text = Text()
    for piece, value in _pieces(strip, tokenizer):
        text.append(visible(piece), style="" if value is None else STYLES[level(value)])
    return text, Text(told)


def _pieces(strip: Strip, tokenizer: Any) -> list[tuple[str, float | None]]:
    """Texts of the tokens; those that only together make a character are one piece, as hot as the hottest of them."""
    pieces: list[tuple[str, float | None]] = []
    waiting: list[int] = []
    values: list[float] = []
    for number, (token, value) in enumerate(zip(strip.ids, strip.values, strict=True), start=1):
        waiting.append(token)
        values += [value] if value == value else []
        text = tokenizer.decode(waiting)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(waiting) < 4 and number < len(strip.ids):
            continue
        pieces.append((text, max(values, default=None)))
        waiting, values = [], []
    return pieces


def _blocks(strip: Strip, console: Console) -> str:
    signs = _signs(console)
    return "".join(signs[level(value)] if value == value else "_" for value in strip.values)


def _signs(console: Console) -> str:
    return BLOCKS if console.encoding.startswith("utf") else DIGITS


def _legend(console: Console, quantity: str) -> Text:
    ends = ["below 0.01", *(f"from {edge:g}" for edge in EDGES)]
    legend = Text(f"{quantity} of each token, in nats: ")
    for number, end in enumerate(ends):
        sign = "" if console.color_system else f"{_signs(console)[number]} "
        legend.append(f"{sign}{end}", style=STYLES[number] if console.color_system else "").append("  ")
    return legend
