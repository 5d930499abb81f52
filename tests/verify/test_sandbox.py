"""Choosing a sandbox, what it says of itself, and running it as another user."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.verify.sandboxes import skip_unless_broken
from trl_opd.errors import UserError
from trl_opd.verify import sandbox
from trl_opd.verify.sandbox import Limits, bubblewrap, describe, open_sandbox, probe
from trl_opd.verify.sandbox.guest import seccomp

ROOT = Path(__file__).parents[2]
NOBODY = "65534"


def test_unknown_name_is_refused():
    with pytest.raises(UserError, match="choose one of auto, bwrap"):
        open_sandbox("jail")


def test_a_backend_that_leaves_something_open_is_refused():
    with pytest.raises(probe.ProbeFailed, match="reading /etc/passwd") as error:
        probe.check(open_sandbox("none"))
    assert "network" in str(error.value)
    assert "new processes" in str(error.value)


def test_plain_subprocess_is_never_taken_unasked(monkeypatch):
    def fail(backend):
        raise probe.ProbeFailed("it leaves open: all")

    monkeypatch.setattr(sandbox, "check", fail)
    open_sandbox.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'trl-opd\[sandbox\]'"):
        open_sandbox("auto")
    open_sandbox.cache_clear()


def test_landlock_is_taken_where_bubblewrap_is_not_installed(monkeypatch):
    monkeypatch.setattr(bubblewrap.Bubblewrap, "find", staticmethod(lambda: None))
    open_sandbox.cache_clear()
    try:
        assert open_sandbox("auto").name == "landlock"
    except UserError as error:
        skip_unless_broken("landlock", error)
        raise
    finally:
        open_sandbox.cache_clear()


def test_what_is_in_force_is_recorded():
    record = describe(open_sandbox("none"), Limits())
    assert record["self_test"] == "not run"
    assert record["limits"]["cpu_seconds"] == Limits().cpu_seconds
    json.dumps(record)


def test_filter_is_whole_instructions():
    assert len(seccomp.build_filter()) % 8 == 0
    assert len(seccomp.build_filter(own_pid=1)) > len(seccomp.build_filter())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("name", ["bwrap", "landlock"])
def test_hostile_programs_as_an_ordinary_user(name, tmp_path):
    """The hostile programs once more, in an interpreter that all may run."""
    python = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin")
    if python is None or not os.stat(ROOT).st_mode & 0o001 or shutil.which("setpriv") is None:
        pytest.skip("needs an interpreter and a checkout that every user may read")
    binary = bubblewrap.Bubblewrap.find()
    if name == "bwrap" and binary is None:
        pytest.skip("bubblewrap is not installed")
    path = ":".join([*([str(Path(binary).parent)] if binary else []), "/usr/bin", "/bin"])
    done = subprocess.run(
        ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", python, "-c", _AS_USER, name],
        env={"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=200,
    )
    if "No sandbox can run" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout)
    assert verdicts.pop("harmless") == "correct"
    assert len(verdicts) >= 30
    assert "correct" not in verdicts.values(), verdicts


_AS_USER = """
import json, sys, types
sys.modules["pytest"] = types.ModuleType("pytest")  # only the programs are wanted of the test module
class Any:
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): return args[0] if args and callable(args[0]) and not kwargs else self
for name in ("mark", "fixture", "param", "skip"):
    setattr(sys.modules["pytest"], name, Any())
from tests.verify.test_sandbox_hostile import HOSTILE, TESTS
from tests.verify.sandboxes import TIGHT, block
from trl_opd.verify.code import CodeVerifier
judge = CodeVerifier(1, sys.argv[1], TIGHT)
skipped = {"infinite loop", "ignored signals"} | ({"threads"} if sys.argv[1] == "landlock" else set())
programs = {"harmless": "def f(x): return x * x"}
programs |= {name: code for name, code in HOSTILE.items() if name not in skipped}
constants = {"FOLDER": "/usr/share", "PORT": "1", "MARK": "mark", "answers": "doc"}
for key, value in constants.items():
    programs = {name: code.replace(key, value) for name, code in programs.items()}
print(json.dumps({name: judge.verify(block(code), "mbpp", TESTS).reason for name, code in programs.items()}))
"""
