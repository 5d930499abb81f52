"""What the evaluation commands print."""

import unicodedata
from collections.abc import Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trl_opd.evals.calibration import state_of
from trl_opd.evals.metrics import Interval, Metrics
from trl_opd.evals.runner import Summary


def summary_table(model: str, summaries: Sequence[Summary], seen: Mapping[str, bool] | None = None) -> Table:
    """The metrics down, the benchmarks across.

    Args:
        model (`str`): The model, for the title.
        summaries (`Sequence[Summary]`): The results.
        seen (`Mapping[str, bool]`, *optional*): Whether a benchmark was public in the model's training data.
    """
    table = Table(title=escape(model), caption="in %, intervals at 95 %", box=box.SIMPLE_HEAD)
    table.add_column("")
    for summary in summaries:
        table.add_column(escape(summary.benchmark), justify="right")
    columns = [_column(summary.metrics) for summary in summaries]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    states = [state_of(summary.benchmark) or "-" for summary in summaries]
    table.add_row("against published scores", *states)
    if seen:
        flags = ["yes" if seen[summary.benchmark] else "no" for summary in summaries]
        table.add_row("public before the model's cutoff", *flags)
    return table


def _column(metrics: Metrics) -> dict[str, str]:
    most = max(metrics.pass_at_k, key=int)
    return {
        "problems x samples": f"{metrics.problems} x {metrics.n}",
        "accuracy": percent(metrics.accuracy),
        "  with other samples (decoding)": shown_interval(metrics.decoding_interval),
        "  with other problems": shown_interval(metrics.problem_interval),
        "majority of the samples": f"{percent(metrics.majority_at_k[most])} @{most}",
        "pass@k, one of k is right": f"{percent(metrics.pass_at_k[most])} @{most}",
        "pass^k, all k are right": f"{percent(metrics.pass_hat_k[most])} @{most}",
        "cut at max_new_tokens": percent(metrics.truncated_rate),
        "no answer found": percent(metrics.no_answer_rate),
        "timed out / failed with an error": f"{metrics.timeouts} / {metrics.errors}",
        "tokens a sample": "-" if metrics.mean_tokens is None else f"{metrics.mean_tokens:.0f}",
    }


def plain(text: object) -> Text:
    """Text of a model or a file as it may be printed: neither markup nor control characters act on the terminal."""
    return Text("".join(map(_visible, str(text))))


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs"):
        return character
    return f"\\u{ord(character):04x}"


def percent(rate: float | None) -> str:
    """A rate in percent, a dash where it is not known."""
    return "-" if rate is None else f"{100 * rate:.1f}"


def shown_interval(interval: Interval | None) -> str:
    """An interval in percent, a dash where the data give none."""
    return "-" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"
