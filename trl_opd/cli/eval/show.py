"""`trl-opd eval show`: the problems of a run, or one sample with its verdict."""

from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from trl_opd.cli.eval.tables import percent, plain
from trl_opd.cli.parser import Parser
from trl_opd.errors import UserError
from trl_opd.evals.records import suggest
from trl_opd.evals.results import StoredRun, read_run, run_folder
from trl_opd.evals.store import key_of

DESCRIPTION = """\
Show the problems of a run, or with --id one sample: its prompt, its completion, the answer that was read in it and the
verdict.
"""

ANSWER_WIDTH, REASON_WIDTH = 20, 32


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="trl-opd eval show", description=DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, or one that holds a single run")
    parser.add_argument("--failures", action="store_true", help="only problems with a wrong sample, the worst first")
    parser.add_argument("--id", metavar="X", help="one sample of this problem")
    parser.add_argument(
        "--index",
        type=int,
        metavar="I",
        help="which of its samples (default: the first; with --failures the first wrong one)",
    )
    return parser


def main(argv: list[str]) -> int:
    """Print the table or the sample; returns the exit status.

    Raises:
        UserError: There is no such run, problem or sample.
    """
    arguments = build_parser().parse_args(argv)
    if arguments.index is not None and arguments.id is None:
        raise UserError("--index says which sample of a problem: name the problem with --id.")
    stored = read_run(run_folder(arguments.run))
    if not stored.verdicts:
        raise UserError(f"{arguments.run} has no verdicts yet: give the command that began it again.")
    if arguments.id is not None:
        _print_sample(Console(), stored, arguments.id, arguments.index, arguments.failures)
    else:
        Console().print(_problems(stored, arguments.failures))
    return 0


def _problems(stored: StoredRun, failures: bool) -> Table:
    rows: dict[str, list[dict[str, Any]]] = {}
    for key in sorted(stored.verdicts):
        rows.setdefault(key[0], []).append(stored.verdicts[key])
    cut = Counter(row["problem_id"] for row in stored.generations() if row["finish_reason"] == "length")
    share = {
        problem_id: sum(row["correct"] for row in verdicts) / len(verdicts) for problem_id, verdicts in rows.items()
    }
    shown = list(rows)
    if failures:
        shown = sorted((problem_id for problem_id in rows if share[problem_id] < 1), key=share.__getitem__)
    unfinished = "" if stored.summary else ", not finished"
    settings = stored.manifest["settings"]
    table = Table(
        title=plain(f"{settings['benchmark']}: {len(shown)} of {len(rows)} problems{unfinished}"),
        caption=plain(f"one sample: trl-opd eval show {stored.folder} --id ID --index I"),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("problem", overflow="fold", no_wrap=True)
    for heading in ("samples", "correct, %", "cut"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("usual answer", max_width=ANSWER_WIDTH, no_wrap=True, overflow="ellipsis")
    table.add_column("verdicts", overflow="fold")
    for problem_id in shown:
        verdicts = rows[problem_id]
        answers = Counter(row["extracted"] for row in verdicts if row["extracted"] is not None)
        reasons = Counter(row["reason"][:REASON_WIDTH] for row in verdicts)
        table.add_row(
            plain(problem_id),
            str(len(verdicts)),
            percent(share[problem_id]),
            str(cut[problem_id]),
            plain(" ".join(answers.most_common(1)[0][0].split()) if answers else "-"),
            plain(", ".join(f"{reason} {count}" for reason, count in reasons.most_common())),
        )
    return table


def _print_sample(console: Console, stored: StoredRun, problem_id: str, index: int | None, failures: bool) -> None:
    verdicts = {key[1]: verdict for key, verdict in sorted(stored.verdicts.items()) if key[0] == problem_id}
    if not verdicts:
        known = {key[0] for key in stored.verdicts}
        raise UserError(f"{stored.folder} has no verdict on a problem {problem_id!r}{_nearest(problem_id, known)}.")
    if index is None:
        wrong = [number for number, verdict in verdicts.items() if not verdict["correct"]]
        index = (wrong if failures and wrong else list(verdicts))[0]
    if index not in verdicts:
        raise UserError(f"{problem_id} has no sample {index}: it has {', '.join(map(str, verdicts))}.")
    generation = next(row for row in stored.generations() if key_of(row) == (problem_id, index))
    verdict = verdicts[index]
    others = sum(row["correct"] for row in verdicts.values())
    console.print(Rule(plain(f"{problem_id}, sample {index} ({others} of {len(verdicts)} samples are correct)")))
    prompt = generation["prompt"]
    _section(console, "prompt", "not recorded: the completion was drawn elsewhere" if prompt is None else prompt)
    _section(console, "completion", generation["completion"])
    extracted = verdict["extracted"]
    _section(console, "answer that was read", "none" if extracted is None else extracted)
    colour = "green" if verdict["correct"] else "red"
    reason = plain(verdict["reason"])  # it may quote the program's own error
    reason.stylize(colour)
    console.print(Text("verdict: ", style="bold"), reason, sep="", soft_wrap=True)
    for name in sorted(verdict.keys() - {"problem_id", "index", "correct", "extracted", "reason"}):
        if verdict[name] is not None:
            _section(console, name, verdict[name])
    facts = {"tokens": generation["tokens"], "ended by": generation["finish_reason"]}
    console.print(", ".join(f"{name}: {value}" for name, value in facts.items() if value is not None))


def _section(console: Console, title: str, text: object) -> None:
    console.print(Text(title, style="bold"))
    console.print(plain(text), soft_wrap=True)
    console.print()


def _nearest(name: str, known: set[str]) -> str:
    near = suggest(name, known)
    return near if "did you mean" in near else f": its ids are like {min(known)!r}"
