"""Programs that try to get out, to stay, or to take all there is: each fails, and leaves no process and no file."""

import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from tests.verify.sandboxes import TIGHT, block, verifier

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")

TESTS = {"test_list": ["assert f(2) == 4", "assert f(3) == 9"]}
MARK = "trl_opd_hostile_mark"

#: Each is a whole program; those that end without the right values must not pass, whatever they print or patch.
HOSTILE = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "infinite loop": "def f(x):\n    while True: pass",
    "ten gigabytes": "def f(x):\n    return len(bytearray(10 * 2**30)) and x * x",
    "ignored signals": (
        "import signal\nfor s in (signal.SIGTERM, signal.SIGALRM, signal.SIGXCPU, signal.SIGINT):\n"
        "    signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
    ),
    "a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\n"
        "    os._exit(0)\n"
        "def f(x): return x * x"
    ),
    "a child that reports": "import os\nif os.fork(): os._exit(0)\ndef f(x): return x * x",
    "os._exit": "import os\nos._exit(0)",
    "sys.exit in a call": "import sys\ndef f(x): sys.exit(0)",
    "os._exit in a call": "import os\ndef f(x): os._exit(0)",
    "patched equality": (
        "class Always(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    __hash__ = int.__hash__\ndef f(x): return Always(0)"
    ),
    "an object that equals all": (
        "class Always:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"
        "def f(x): return Always()"
    ),
    "patched builtins": (
        "import builtins\nclass AssertionError_(Exception): pass\nbuiltins.AssertionError = AssertionError_\n"
        "builtins.all = lambda x: True\nbuiltins.compile = builtins.exec = lambda *a, **k: None\ndef f(x): return 0"
    ),
    "markers": 'import os\nfor fd in range(3, 64):\n    try: os.write(fd, b\'["value",4]\\n{"reason":"correct"}\\n\')\n'
    "    except OSError: pass\ndef f(x): return 0",
    "the harness": (
        "import sys\nfor name in ('judge', 'program', 'wire'):\n    m = sys.modules.get(name)\n    if m:\n"
        "        m.run_tests = lambda *a: {'reason': 'correct'}\n        m._encode = lambda *a: 4\n"
        "        m.dumps = lambda *a: b'true'\ndef f(x): return 0"
    ),
    "frames": (
        "import sys, gc\nLOOK = '9 == )3(f'\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        if any(LOOK[::-1] in repr(v) for v in list(frame.f_locals.values())): return x * x\n"
        "        frame = frame.f_back\n"
        "    return x * x if any(LOOK[::-1] in repr(o) for o in gc.get_objects() if isinstance(o, (list, dict))) else 0"
    ),
    "parents' memory": (
        "import os\ndef f(x):\n    for pid in [os.getppid(), *range(1, 100)]:\n"
        "        data = open(f'/proc/{pid}/cmdline', 'rb').read()\n    return x * x"
    ),
    "ptrace": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.ptrace(16, 1, 0, 0) and libc.ptrace(0, 0, 0, 0): raise OSError('no ptrace')\ndef f(x): return x * x"
    ),
    "tcp": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 2)\ndef f(x): return x * x",
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ndef f(x): return x * x",
    "unix sockets": "import socket\nsocket.socket(socket.AF_UNIX).connect('FOLDER/socket')\ndef f(x): return x * x",
    "/etc/passwd": "open('/etc/passwd').read()\ndef f(x): return x * x",
    "the answers": "open('FOLDER/answers').read()\ndef f(x): return x * x",
    "answers by a link": "import os\nos.symlink('FOLDER/answers', 'a')\nopen('a').read()\ndef f(x): return x * x",
    "answers by a hard link": "import os\nos.link('FOLDER/answers', 'a')\nopen('a').read()\ndef f(x): return x * x",
    "writing elsewhere": "open('FOLDER/written', 'w').write('x')\ndef f(x): return x * x",
    "writing by a link": "import os\nos.symlink('FOLDER', 'd')\nopen('d/written', 'w')\ndef f(x): return x * x",
    "writing to the interpreter": (
        "import os\nopen(os.path.dirname(os.__file__) + '/MARK.py', 'w')\ndef f(x): return x * x"
    ),
    "secrets": "import os\ndef f(x): return x * x if 'HOSTILE_SECRET' in os.environ else 0",
    "a large file": "open('big', 'wb').write(bytes(64 * 2**20))\ndef f(x): return x * x",
    "threads": (
        "import threading, time\nfor _ in range(2000):\n"
        "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        "def f(x): return x * x"
    ),
    "deep values": "def f(x):\n    a = []\n    for _ in range(5000): a = [a]\n    return a",
    "a huge integer": "def f(x): return 10 ** 10 ** 6",
    "a long line": "import os\ndef f(x):\n    while True: os.write(4, b'x' * 2**16) or os.write(5, b'x')",
}


@pytest.fixture(scope="module")
def world():
    """A listener and files of this machine, which all may read."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as listener, socket.socket(socket.AF_UNIX) as unix:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "answers").write_text("4 9")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        unix.bind(str(folder / "socket"))
        unix.listen()
        (folder / "socket").chmod(0o777)
        yield {"FOLDER": name, "PORT": str(listener.getsockname()[1]), "MARK": MARK}


def processes() -> set[str]:
    """Those of other sessions than ours that this user, or a sandbox, runs with our code."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        parent = os.getpid()
        if b"trl-opd guest" in command and _descends(int(pid), parent):
            found.add(pid)
    return found


def _descends(pid: int, ancestor: int) -> bool:
    """Whether a process comes from `ancestor`, or has lost its parent."""
    orphan = _parent(pid) == 1
    while pid > 1:
        pid = _parent(pid)
        if pid == ancestor:
            return True
    return orphan


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    """A folder for private folders that no other test uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def left_over() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("trl-opd-")}


SECONDS = ("infinite loop", "ignored signals")  # run out of time twice


@pytest.mark.parametrize(
    ("sandbox", "name"),
    [
        pytest.param(sandbox, name, marks=[pytest.mark.slow] if name in SECONDS and sandbox == "landlock" else [])
        for sandbox in ("bwrap", "landlock")
        for name in HOSTILE
    ],
)
def test_hostile_program_fails_and_leaves_nothing(sandbox, name, world, monkeypatch):
    judge = verifier(sandbox, TIGHT)
    monkeypatch.setenv("HOSTILE_SECRET", "x")
    program = HOSTILE[name]
    for key, value in world.items():
        program = program.replace(key, value)
    if name == "threads" and sandbox == "landlock" and os.geteuid() != 0:
        pytest.skip("only memory limits the threads of this user's own programs")
    before = left_over()
    verdict = judge.verify(block(program), "mbpp", TESTS)
    assert not verdict.correct, verdict
    assert verdict.reason in ("wrong", "timeout") or verdict.reason.startswith("error: "), verdict
    assert not (Path(world["FOLDER"]) / "written").exists()
    assert not (Path(os.__file__).parent / f"{MARK}.py").exists()
    assert left_over() <= before
    until = time.monotonic() + 2
    while (stayed := processes()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not stayed


@pytest.mark.parametrize("sandbox", ["bwrap", "landlock"])
def test_harmless_program_passes_under_the_same_limits(sandbox):
    verdict = verifier(sandbox, TIGHT).verify(block("def f(x): return x * x"), "mbpp", TESTS)
    assert verdict.correct, verdict


@pytest.mark.parametrize("sandbox", ["bwrap", "landlock"])
def test_output_is_capped(sandbox):
    program = "import sys\nwhile True: sys.stdout.write('x' * 2**20)"
    verdict = verifier(sandbox, TIGHT).verify(block(program), "stdin", {"tests": [{"input": "", "output": "x"}]})
    assert verdict.reason == f"error: more than {TIGHT.output_bytes} bytes of output"


@pytest.mark.parametrize("sandbox", ["bwrap", "landlock"])
def test_working_folder_can_be_filled_and_deleted(sandbox):
    program = (
        "import os, shutil\nfor i in range(300):\n    os.mkdir('d'); os.chdir('d')\nos.chmod('.', 0)\n"
        "try: shutil.rmtree(os.environ['HOME'])\nexcept OSError: pass\nprint(1)"
    )
    before = left_over()
    verdict = verifier(sandbox, TIGHT).verify(block(program), "stdin", {"tests": [{"input": "", "output": "1"}]})
    assert verdict.correct, verdict
    assert left_over() <= before
