"""The command line: one subcommand per job, each loaded only when it is asked for."""

import os
import sys
from collections.abc import Callable
from importlib import import_module

from trl_opd import __version__
from trl_opd.errors import UserError

#: Subcommand -> (module with a `main(argv) -> int`, what it does).
COMMANDS = {
    "train": ("train", "train a model with one of the methods"),
    "check": ("check", "say what a recipe is refused for and how much memory it takes"),
    "eval": ("eval", "evaluate a model on a benchmark or a suite"),
    "cache": ("cache", "score a fixed set of rollouts once, to train without the teacher"),
    "discover": ("discover", "search for the first right answer to hard questions with SDPO"),
    "conformance": ("conformance", "compare the losses with recorded ones"),
    "board": ("board", "run a comparison of methods and write its leaderboard"),
}


def usage() -> str:
    lines = [f"  {name:<13}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: trl-opd COMMAND ...",
            "",
            "On-policy (self-)distillation on top of TRL, and the harness that compares the methods.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  --version  print the version",
            "  --debug    show the whole traceback of an error",
            "",
            "'trl-opd COMMAND --help' tells more.",
        ]
    )


def main(argv: list[str]) -> int:
    """Runs one subcommand; returns its exit status, 2 after a user's mistake."""
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    if argv[:1] == ["--version"]:
        print(f"trl-opd {__version__}")
        return 0
    if argv[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    try:
        return _command(argv)(argv[1:])
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _command(argv: list[str]) -> Callable[[list[str]], int]:
    known = ", ".join(COMMANDS)
    if not argv:
        raise UserError(f"No command was given; use one of {known}, or --help.")
    if argv[0] not in COMMANDS:
        raise UserError(f"There is no command {argv[0]!r}; use one of {known}, or --help.")
    # No message of a library on the way to the first line of ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return import_module(f"trl_opd.cli.{COMMANDS[argv[0]][0]}").main


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))
