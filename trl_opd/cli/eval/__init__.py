"""`trl-opd eval`: run benchmarks on a model, and what one does with the runs. One module for each job."""

import sys
from importlib import import_module

from trl_opd.errors import INTERRUPTED, UserError
from trl_opd.evals.records import suggest

#: First word -> module with a `main(argv) -> int`. Without one of them, benchmarks are run.
COMMANDS = {
    "list": "listing",
    "score": "score",
    "rescore": "rescore",
    "show": "show",
    "diff": "diff",
    "calibrate": "calibrate",
    "lm-eval-tasks": "lm_eval_tasks",
}


def main(argv: list[str]) -> int:
    """Run the command and return its exit status.

    Raises:
        UserError: What the command asks cannot be done.
    """
    try:
        return _command(argv)
    except KeyboardInterrupt:
        print(
            "\nStopped: what is drawn and scored is stored, and the same command goes on from there.", file=sys.stderr
        )
        return INTERRUPTED


def _command(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return import_module(f"{__name__}.{COMMANDS[argv[0]]}").main(argv[1:])
    if argv and not argv[0].startswith("-"):
        raise UserError(
            f"There is no command {argv[0]!r} of eval{suggest(argv[0], COMMANDS)}; a run has none, its options follow "
            f"`trl-opd eval` at once."
        )
    if "--via" in argv:
        return import_module(f"{__name__}.lm_eval").main(argv)
    return import_module(f"{__name__}.run").main(argv)
