"""The first code in a sandbox: read the task from a file descriptor, confine this process, play the role.

The descriptor's number is the only argument. The task is JSON: `limits`, `uid`, `restrict` (see `confine`), `paths` of
packages, `role` and what the role needs.
"""

import json
import os
import sys


def read_task(descriptor: int) -> dict:
    """The task, whose descriptor is closed."""
    with open(descriptor, "rb") as file:
        return json.loads(file.read())


def main(descriptor: int) -> None:
    """Load our modules, confine, play."""
    task = read_task(descriptor)
    sys.path.insert(0, os.path.dirname(__file__))
    import confine
    import judge
    import program

    del sys.path[0]

    confine.set_limits(task.pop("limits"))
    uid, restriction = task.pop("uid"), task.pop("restrict")
    if uid is not None:
        confine.become(uid)
    if restriction is not None:
        confine.restrict(restriction)
    sys.path.extend(task.pop("paths"))
    role = task.pop("role")
    if role == "judge":
        judge.play(task)
    else:
        program.play(role, task)


main(int(sys.argv[1]))
