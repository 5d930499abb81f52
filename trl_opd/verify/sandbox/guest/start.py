"""The first of our code in a sandbox: confine this process, then play the task's role.

The task is JSON: `limits`, `uid`, `restrict` (see `confine`), `paths` of packages, `role` and what the role needs.
"""

import json
import sys

import confine


def main(text: str) -> None:
    """Confine and play."""
    task = json.loads(text)
    confine.set_limits(task.pop("limits"))
    uid, restriction = task.pop("uid"), task.pop("restrict")
    if uid is not None:
        confine.become(uid)
    if restriction is not None:
        confine.restrict(restriction)
    sys.path.extend(task.pop("paths"))
    role = task.pop("role")
    if role == "judge":
        sys.modules["judge"].play(task)
    else:
        sys.modules["program"].play(role, task)
