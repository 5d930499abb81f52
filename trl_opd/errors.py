"""The one exception that a user's mistake raises, and the exit status of an interrupted command."""


class UserError(ValueError):
    """A setting or an input that cannot work, told in one sentence that says what to do.

    The command line prints it without a traceback and exits with status 2. It derives from `ValueError`, so that a
    script that drives the trainers needs no import of ours to catch it.
    """


#: Exit status of a command after Ctrl-C, as shells have it.
INTERRUPTED = 130
