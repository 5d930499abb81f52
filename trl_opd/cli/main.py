"""The command line: one subcommand per job, each loaded only when it is asked for."""

import os
import sys
from collections.abc import Callable
from importlib import import_module

from trl_opd import __version__
from trl_opd.errors import INTERRUPTED, UserError
from trl_opd.suggest import suggest
from trl_opd.versions import check_versions

#: Subcommand -> (module with a `main(argv) -> int`, what it does).
COMMANDS = {
    "train": ("train", "train a model with one of the methods"),
    "check": ("check", "say what a recipe would do: refusals, what is read, lengths, rewards, memory, time, disk"),
    "explain": ("explain", "explain a method: its loss, defaults, pitfalls and metrics"),
    "eval": ("eval", "evaluate a model on a benchmark or a suite"),
    "cache": ("cache", "score a fixed set of rollouts once, to train without the teacher"),
    "discover": ("discover", "search for the first right answer to hard questions with SDPO"),
    "conformance": ("conformance", "compare the losses with recorded ones"),
    "board": ("board", "run a comparison of methods and write its leaderboard"),
    "recipes": ("recipes", "list, show or copy the recipes that ship with the package"),
}

#: Exit status after a mistake of the user.
MISTAKE = 2


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
    """Runs one subcommand; returns its exit status, 2 after a user's mistake, 130 after Ctrl-C.

    Mistakes are `UserError`s, and files or servers that cannot be reached; `--debug` lets both through with their
    traceback. Anything else is a mistake of ours, and its traceback is always shown.
    """
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
    except (UserError, OSError) as error:
        if debug:
            raise
        print(f"error: {_told(error)}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        if debug:
            raise
        print("\nStopped: the same command goes on from what is stored, if anything is.", file=sys.stderr)
        return INTERRUPTED


def _told(error: UserError | OSError) -> str:
    if isinstance(error, UserError):
        return str(error)
    reason = " ".join(str(error).split()) or type(error).__name__
    if error.filename is not None and error.strerror is not None:
        return f"{error.filename} cannot be used ({error.strerror}); choose another path."
    return f"{reason.rstrip('.')}; mend that, or add --debug to see where it came from."


def _command(argv: list[str]) -> Callable[[list[str]], int]:
    known = ", ".join(COMMANDS)
    if not argv:
        raise UserError(f"No command was given; use one of {known}, or --help.")
    if argv[0] not in COMMANDS:
        raise UserError(f"There is no command {argv[0]!r}{suggest(argv[0], COMMANDS)}; use one of {known}, or --help.")
    # No message of a library on the way to the first line of ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_versions()
    return import_module(f"trl_opd.cli.{COMMANDS[argv[0]][0]}").main


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))
