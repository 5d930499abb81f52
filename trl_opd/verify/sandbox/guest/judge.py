"""The process of the tests. Names of the program under test stand for calls into the program's own process.

The program sends values, never code: what it returns is made of plain types here, so `==` and `assert` are Python's.
An object of another type is a `Remote`, which equals nothing but itself.
"""

import ast
import os

import wire

TEXT_LIMIT = 500


class ProgramError(Exception):
    """The program raised."""


class ProgramEnded(BaseException):
    """The program's process has ended or sent what is no answer. Not an `Exception`, which tests may catch."""


class Channel:
    """The line to the program."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests = requests
        self._replies = os.fdopen(replies, "rb")
        self.broken: str | None = None
        self.call: str | None = None

    def ask(self, **request) -> object:
        """Send a request and wait for its answer."""
        data = wire.dumps(request, _number_of) + b"\n"
        try:
            while data:
                data = data[os.write(self._requests, data) :]
        except BrokenPipeError:
            self._end("the program ended its process")
        return self.answer()

    def answer(self) -> object:
        """The value of the next line.

        Raises:
            ProgramError: The program raised.
            ProgramEnded: There is no such line.
        """
        line = self._replies.readline(wire.LINE_LIMIT)
        if not line.endswith(b"\n"):
            self._end(
                "the program ended its process" if len(line) < wire.LINE_LIMIT else "the program returned too much"
            )
        try:
            kind, value = wire.loads(line, self._remote)
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError):
            self._end("the program sent no value")
        if kind == "error":
            raise ProgramError(_clip(str(value)))
        return value

    def _remote(self, content) -> "Remote":
        number, kind = content
        return Remote(self, int(number), str(kind)[:100])

    def _end(self, why: str) -> None:
        self.broken = why
        raise ProgramEnded(why)


def _number_of(value):
    """The reference of a remote object; nothing else that tests hold can travel."""
    if isinstance(value, Remote):
        return object.__getattribute__(value, "_number")
    raise wire.Unsendable(f"tests cannot pass an object of type {type(value).__name__}")


class Remote:
    """An object of the program. Its truth, items and attributes are asked for; its equality is never."""

    __slots__ = ("_channel", "_kind", "_number")
    __hash__ = object.__hash__

    def __init__(self, channel: Channel, number: int, kind: str) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *args, **kwargs):
        shown = [_show(value) for value in args] + [f"{name}={_show(value)}" for name, value in kwargs.items()]
        self._channel.call = _clip(f"{self._kind}({', '.join(shown)})")
        return self._channel.ask(do="call", target=self, args=args, kwargs=kwargs)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._channel.ask(do="get", target=self, name=name)
        if isinstance(value, Remote):
            object.__setattr__(value, "_kind", name)
        return value

    def __setattr__(self, name, value):
        self._channel.ask(do="set", target=self, name=name, value=value)

    def __iter__(self):
        return iter(self._channel.ask(do="iterate", target=self))

    def __len__(self):
        return int(self._channel.ask(do="len", target=self))

    def __bool__(self):
        return bool(self._channel.ask(do="bool", target=self))

    def __getitem__(self, key):
        return self._channel.ask(do="item", target=self, key=key)

    def __repr__(self):
        return f"<{self._kind} object>"


class Watch:
    """Remembers both sides of the comparison that an `assert` makes last."""

    def __init__(self) -> None:
        self.sides: list = [None, None]
        self.source: str | None = None

    def enter(self, source):
        """Note which assertion is at work, as the condition `True`."""
        self.source, self.sides = source, [None, None]
        return True

    def side(self, index, value):
        """Note one side, and give it back."""
        self.sides[index] = (value,)
        return value


class _Observe(ast.NodeTransformer):
    """Rewrites `assert a == b` so that a watch sees `a` and `b`; what is evaluated, and when, stays as it was."""

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        text = ast.unparse(node.test)
        test = node.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            test.left = _watched("side", ast.Constant(0), test.left)
            test.comparators = [_watched("side", ast.Constant(1), test.comparators[0])]
        entered = _watched("enter", ast.Constant(_clip(text)))
        node.test = ast.BoolOp(ast.And(), [entered, test])
        return ast.fix_missing_locations(node)


def _watched(method: str, *arguments: ast.expr) -> ast.Call:
    watch = ast.Attribute(ast.Name("__watch__", ast.Load()), method, ast.Load())
    return ast.Call(watch, list(arguments), [])


def play(task: dict) -> None:
    """Run the tests and write the outcome as one line of JSON."""
    result = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # tests may print
    channel, watch = Channel(task["outgoing"], task["incoming"]), Watch()
    outcome = run_tests(task, channel, watch)
    if channel.broken is not None:
        outcome = {"reason": f"error: {channel.broken}"}
    outcome |= {"call": channel.call, "cpu_seconds": _cpu_seconds(channel)}
    os.write(result, wire.dumps(outcome) + b"\n")


def run_tests(task: dict, channel: Channel, watch: Watch) -> dict:
    """The outcome: a reason, and what is known of the failure."""
    namespace = {"__name__": "tests", "__watch__": watch}
    try:
        channel.answer()  # the program's definitions have been executed
        for source in task["preamble"]:
            exec(compile(source, "<tests>", "exec"), namespace)
        namespace |= {name: _found(channel, name) for name in task["names"]}
        for source in task["tests"]:
            exec(compile(_Observe().visit(ast.parse(source)), "<tests>", "exec"), namespace)
    except ProgramError as error:
        return {"reason": "error", "error": str(error)}
    except ProgramEnded:
        return {"reason": "error"}
    except AssertionError:
        return {"reason": "wrong", **_sides(watch)}
    except Exception as error:  # such as the length of what is no list
        return {"reason": "wrong", "error": _clip(f"{type(error).__name__}: {error}"), **_sides(watch)}
    return {"reason": "correct"}


def _cpu_seconds(channel: Channel) -> float | None:
    """What the program says of its processor time: only to be believed of a program that is trusted."""
    try:
        spent = channel.ask(do="cpu")
    except (ProgramError, ProgramEnded):
        return None
    return spent if isinstance(spent, float) else None


def _found(channel: Channel, name: str):
    value = channel.ask(do="find", name=name)
    if isinstance(value, Remote):
        object.__setattr__(value, "_kind", name)
    return value


def _sides(watch: Watch) -> dict:
    got, expected = watch.sides
    outcome = {"assertion": watch.source}
    if got is not None and expected is not None:
        outcome |= {"got": _show(got[0]), "expected": _show(expected[0])}
    return outcome


def _show(value) -> str:
    try:
        return _clip(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"<{type(value).__name__}>"


def _clip(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else f"{text[: TEXT_LIMIT // 2]} ... {text[-TEXT_LIMIT // 2 :]}"
