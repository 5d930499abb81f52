"""`trl-opd eval`: run benchmarks on a model, and what one does with the runs. One module for each job."""

from importlib import import_module

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
    if argv and argv[0] in COMMANDS:
        return import_module(f"{__name__}.{COMMANDS[argv[0]]}").main(argv[1:])
    if "--via" in argv:
        return import_module(f"{__name__}.lm_eval").main(argv)
    return import_module(f"{__name__}.run").main(argv)
