"""Start a command that dies with its parent: `child.py PARENT_PID COMMAND...`, with 0 for whoever the parent is.

Run as a script, without site-packages, so that it costs a few milliseconds. The kernel kills the process when the
parent dies, even by `kill -9` (Linux; elsewhere the lock on the run's folder alone keeps two writers apart). The lock
is an open file that this process was handed: it stays held, through the `exec`, until the last that has it is gone.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]) or os.getppid(), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the line above
            sys.exit("The parent is gone.")
    os.execvp(command[0], command)


main()
