"""Handing our own code and a task to a process that sees none of our files.

The code is compiled once, here, and travels with the task: the same interpreter runs on both sides, and neither files
nor a compilation stand between a program and its start.
"""

import json
import marshal
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from trl_opd.verify.sandbox.process import data_file

BOOT = """import marshal, sys  # trl-opd guest
with open(int(sys.argv[1]), "rb") as file:
    modules, task = marshal.load(file)
for name, code in modules:
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main(task)
"""
"""The program that `python -c` runs; its argument is the descriptor of a task file."""

_MODULES = {
    "judge": ("seccomp", "confine", "wire", "judge", "start"),
    "program": ("seccomp", "confine", "wire", "program", "start"),
}


def task_file(task: Mapping[str, Any]) -> int:
    """A descriptor of a task, see `guest/start.py`, with the modules that its role needs."""
    names = _MODULES["judge" if task["role"] == "judge" else "program"]
    modules = tuple((name, _compiled(name)) for name in names)
    return data_file(marshal.dumps((modules, json.dumps(task))), "task")


@cache
def _compiled(name: str) -> CodeType:
    path = Path(__file__).with_name("guest") / f"{name}.py"
    return compile(path.read_text(encoding="utf-8"), f"<{name}>", "exec")
