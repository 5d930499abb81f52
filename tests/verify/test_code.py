"""The code scorer: forms of tests, extraction, comparison, time limits and feedback."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.verify.sandboxes import TIGHT, block, verifier
from trl_opd.errors import UserError
from trl_opd.verify.code import CodeVerifier
from trl_opd.verify.code_compare import close_value, same_text
from trl_opd.verify.code_dialects import make_problem
from trl_opd.verify.code_extraction import extract_code
from trl_opd.verify.rewards_code import code_reward
from trl_opd.verify.sandbox.guest import wire

HUMANEVAL = {
    "prompt": 'import math\n\ndef half(x: float) -> float:\n    """Half of x."""\n',
    "entry_point": "half",
    "canonical_solution": "    return x / 2\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n    assert abs(candidate(1) - 0.5) < 1e-9\n",
}
LEETCODE = {"test": "s = Solution()\nassert s.add(**{'a': 1, 'b': [2]}) == (3,)\n"}
TREE = {
    "test_setup_code": "root = Node(1)\nroot.left = Node(2)\n",
    "test_list": ["assert depth(root) == 2", "assert depth(root.left) == 1"],
}
TREE_CODE = (
    "class Node:\n    def __init__(self, v):\n        self.v, self.left = v, None\n"
    "def depth(n): return 0 if n is None else 1 + depth(n.left)"
)
CASES = [
    ("humaneval", HUMANEVAL, "def half(x): return x / 2", "correct"),
    ("humaneval", HUMANEVAL, "def half(x): return math.fabs(x) / 2", "correct"),  # the prompt's imports are there
    ("humaneval", HUMANEVAL, "def half(x): return x // 2", "wrong"),
    ("humaneval", HUMANEVAL, "def half(x): return [", "error: SyntaxError: '[' was never closed"),
    ("humaneval", HUMANEVAL, "def half(x): return y", "error: NameError: name 'y' is not defined"),
    ("mbpp", TREE, TREE_CODE, "correct"),
    ("mbpp", TREE, TREE_CODE.replace("1 +", "2 +"), "wrong"),
    ("leetcode", LEETCODE, "class Solution:\n    def add(self, a: int, b: List[int]): return (a + b[0],)", "correct"),
    ("leetcode", LEETCODE, "class Solution:\n    def add(self, a, b): return [a + b[0]]", "wrong"),
    ("stdin", {"tests": [{"input": "2 3\n", "output": "5\n"}]}, "print(sum(map(int, input().split())))", "correct"),
    ("stdin", {"tests": [{"input": "2 3\n", "output": "5\n"}]}, "print(6)\nexit()", "wrong"),
    (
        "stdin",
        {"tests": [{"input": "", "output": "5"}]},
        "print(5)\n1 / 0",
        "error: ZeroDivisionError: division by zero",
    ),
]


@pytest.mark.parametrize(("dialect", "fields", "code", "reason"), CASES)
def test_verdict(dialect, fields, code, reason):
    assert verifier("auto").verify(block(code), dialect, fields).reason == reason


def test_continuation_of_the_prompt_is_a_program():
    completion = "    return x / 2\n\nprint(half('x'))\n"
    assert verifier("auto").verify(completion, "humaneval", HUMANEVAL).correct


def test_expected_values_come_from_the_reference_solution():
    fields = {**HUMANEVAL, "base_input": [[4], [1]], "plus_input": [[1e300]], "atol": 0}
    judge = verifier("auto")
    assert judge.verify(block("def half(x): return x * 0.5"), "humanevalplus", fields).correct
    wrong = judge.verify(block("def half(x): return x * 0.5 if x < 9 else 1.0"), "humanevalplus", fields)
    assert wrong.reason == "wrong"
    assert wrong.feedback == "Wrong answer.\nInput: half(1e+300)\nExpected: 5e+299\nGot: 1.0"


def test_livecodebench_sample(shared):
    row = json.loads((shared / "data" / "livecodebench_format_sample.jsonl").read_text())
    right = (
        "for _ in range(int(input())):\n    s = input()\n"
        "    print('YES' if sum(map(str.__ne__, s, 'abc')) <= 2 else 'NO')"
    )
    judge = verifier("auto")
    assert judge.verify(block(right), "livecodebench", row).correct
    assert judge.verify(block(right.replace("'NO'", "'YES'")), "livecodebench", row).reason == "wrong"


def test_livecodebench_call_based():
    tests = [{"input": '[1, 2]\n"ab"', "output": "[3]"}, {"input": '[5]\n""', "output": "[5]"}]
    fields = {
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": json.dumps(tests[1:]),
        "metadata": '{"func_name": "total"}',
    }
    code = "class Solution:\n    def total(self, xs: List[int], s: str): return (sum(xs),)"
    judge = verifier("auto")
    assert judge.verify(block(code), "livecodebench", fields).correct
    assert judge.verify(block(code.replace("sum", "max")), "livecodebench", fields).reason == "wrong"


def test_private_tests_that_would_run_code_are_refused():
    import base64
    import pickle
    import zlib

    packed = base64.b64encode(zlib.compress(pickle.dumps(print))).decode()
    fields = {"public_test_cases": "[]", "private_test_cases": packed, "metadata": "{}"}
    with pytest.raises(UserError, match="only text is read"):
        make_problem("livecodebench", fields)


@pytest.mark.parametrize(
    ("got", "expected", "tolerance", "same"),
    [
        ("YES\n", "YES", 0, True),
        ("yes", "YES", 0, False),
        ("1.0 2", "1.00  2", 0, True),
        ("1 2", "1\n2", 0, False),
        (" 1 \n 2 \n", "1\n2", 0, True),
        ("0.3333333", "0.33333333", 0, False),
        ("0.3333333", "0.33333333", 1e-6, True),
        ("1000001", "1000002", 1e-6, False),
        ("nan", "0.5", 1e-6, False),
        ("", "1", 0, False),
    ],
)
def test_same_text(got, expected, tolerance, same):
    assert same_text(got, expected, tolerance) is same


def test_close_value_is_exact_but_for_floats():
    matches = close_value(0)
    assert matches([], 0.1 + 0.2, 0.3)
    assert matches([], [0.1 + 0.2], [0.3])
    assert not matches([], (0.3,), [0.3])
    assert not matches([], 1, 2)
    assert not matches([], [0.3], [0.3, 0.4])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```\ntext\n```python\nb\n```", "b"),
        ("```python\ndef f(): 1\n```\n```python\nprint(f())\n```", "def f(): 1"),
        ("```python\na\n```\n```bash\nls\n```", "a"),
        ("<think>```python\na\n```</think>\n```\nb\n```", "b"),
        ("```python\nx = 1\n", "x = 1"),
        ("    return 1\n", "    return 1"),
        ("<think>so</think>  ", None),
    ],
)
def test_extract_code(text, code):
    assert extract_code(text, ["f"]) == code


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 1, -(10**400), 1.5, float("inf"), "a\udc80ü", b"\x00", 1 + 2j, range(3)),
        *([1, (2, [])], {(1, 2): {3}, "a": None}, frozenset([1]), {}, set()),
    ],
)
def test_values_travel_unchanged(value):
    back = wire.loads(wire.dumps(value))
    assert back == value
    assert type(back) is type(value)


def test_big_values_are_compared_by_their_digest():
    big = list(range(wire.MAX_PARTS))
    line = wire.dumps(big)
    assert len(line) < 200
    assert wire.loads(line) == big
    assert wire.loads(line) != [*big[:-1], 0]


@pytest.mark.parametrize("line", [b'{"ref": 1, "x": 2}', b'{"eval": "1"}', b"[" * 10**6, b'{"dict": [[[], 1]]}', b"x"])
def test_lines_that_were_not_written_by_us_are_refused(line):
    with pytest.raises((ValueError, TypeError, LookupError, RecursionError)):
        wire.loads(line)


def test_a_name_of_a_builtin_is_the_programs_only_where_the_reference_has_it():
    fields = {"test_list": ["assert set(f(1)) == set([1])"]}
    cheat = "class set(list):\n    def __eq__(self, o): return True\ndef f(x): return []"
    assert verifier("auto").verify(block(cheat), "mbpp", fields).reason == "wrong"
    own = {"test_list": ["assert sum(1, 2) == 3"], "code": "def sum(a, b): return a + b"}
    assert verifier("auto").verify(block("def sum(x, y): return x + y"), "mbpp", own).correct


SLOW_REFERENCE = {
    "test_list": ["assert f(1) == 1"],
    "code": "import time\ndef f(x):\n    while time.process_time() < 0.3: pass\n    return x",
}


def test_time_limit_follows_the_reference_and_a_program_out_of_time_runs_again_alone():
    judge = verifier("auto", TIGHT)  # one second
    slow = SLOW_REFERENCE["code"].replace("0.3", "1.3")
    assert judge.verify(block(slow), "mbpp", {"test_list": SLOW_REFERENCE["test_list"]}).reason == "timeout"
    assert judge.verify(block(slow), "mbpp", SLOW_REFERENCE).correct


@pytest.mark.slow
def test_verdicts_do_not_depend_on_the_load():
    judge = verifier("auto", TIGHT)
    programs = [f"import time\ndef f(x):\n    while time.process_time() < {s}: pass\n    return x" for s in (0, 0.5, 3)]
    requests = [(block(program), "mbpp", {"test_list": ["assert f(1) == 1"]}) for program in programs]
    calm = [verdict.reason for verdict in judge.verify_all(requests)]
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        busy = [verdict.reason for verdict in judge.verify_all(requests)]
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert calm == busy == ["correct", "correct", "timeout"]


def test_many_threads_get_the_same_verdicts():
    judge = verifier("auto")
    tests = {"test_list": ["assert f(1) == 1"]}
    codes = [block("def f(x): return x"), block("def f(x): return 0")] * 6
    with ThreadPoolExecutor(4) as threads:
        verdicts = list(threads.map(lambda code: judge.verify(code, "mbpp", tests), codes))
    assert [verdict.correct for verdict in verdicts] == [True, False] * 6


@pytest.mark.parametrize(
    ("dialect", "fields", "message"),
    [
        ("cobol", {}, "unknown"),
        ("mbpp", {}, "no field 'test_list'"),
        ("mbpp", {"test_list": ["assert 1 == 1"]}, "calls? nothing"),
        ("stdin", {"tests": []}, "no tests"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(dialect, fields, message):
    with pytest.raises(UserError, match=message):
        make_problem(dialect, fields)


def test_code_reward():
    logged = {}
    rewards = code_reward(
        [block("def f(x): return x"), [{"role": "assistant", "content": block("print(2)")}], "no program"],
        tests=[["assert f(1) == 1"], json.dumps([{"input": "", "output": "1"}]), {"dialect": "mbpp", **TREE}],
        log_extra=logged.__setitem__,
    )
    assert rewards == [1.0, 0.0, 0.0]
    assert logged["feedback"][0] is None
    assert logged["feedback"][1] == "Wrong answer.\nExpected: 1\nGot: 2\n"
    with pytest.raises(UserError, match="'tests' column"):
        code_reward(["x"])


def test_packages_of_an_environment_in_tmp_are_seen(tmp_path):
    """A virtual environment may lie in /tmp, where the sandbox has a folder of its own."""
    from trl_opd.verify.sandbox.bubblewrap import Bubblewrap
    from trl_opd.verify.sandbox.interpreter import find_interpreter

    judge = verifier("bwrap")
    (tmp_path / "helper").mkdir()
    (tmp_path / "helper" / "__init__.py").write_text("ANSWER = 42\n")
    for parent in (tmp_path, *tmp_path.parents):
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    shown = replace(find_interpreter(), packages=(str(tmp_path / "helper"),), package_paths=(str(tmp_path),))
    backend = Bubblewrap(judge.backend.executable, shown)
    other = CodeVerifier(sandbox="bwrap")
    other.backend = backend
    fields = {"code": "def f():\n    return 42\n", "test_list": ["assert f() == 42"], "test_setup_code": ""}
    assert other.verify(block("import helper\ndef f():\n    return helper.ANSWER"), "mbpp", fields).correct
