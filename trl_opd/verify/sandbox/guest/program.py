"""The process of the program under test. It is told inputs and says outputs; what is right is decided elsewhere.

All of this module may be overwritten by the program, which gains nothing: it can only send values, and those it could
have returned anyway.
"""

import builtins
import os
import sys
import time

import wire

TEXT_LIMIT = 2000


def play(role: str, task: dict) -> None:
    """Run the program as a script, or serve calls of its functions."""
    builtins.exit = builtins.quit = sys.exit  # as the module site, which is not loaded, would have it
    if role == "script":
        run_script(task["sources"])
    elif role == "calls":
        answer_calls(task["sources"], task["function"], task["arguments"], task["replies"])
    else:
        serve(task["sources"], task["incoming"], task["outgoing"])


def run_script(sources: list[str]) -> None:
    """The sources in order, as one program that is `__main__`, with the streams of this process."""
    namespace = _namespace("__main__")
    del sys.argv[1:]
    try:
        _execute(sources, namespace)
    except SystemExit:
        raise
    except BaseException as error:
        sys.stderr.write(describe(error))
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(1)


def answer_calls(sources: list[str], function: str, arguments: list[str], replies: int) -> None:
    """Call one function, or one method of `Solution`, with each list of arguments; one line out for each."""
    session = Session(replies)
    _silence()
    if not session.load(sources):
        return
    try:
        called = session.function(function)
    except BaseException as error:
        session.fail(error)
        return
    for inputs in arguments:
        try:
            session.reply(called(*wire.loads(inputs)))
        except BaseException as error:
            session.fail(error)
    session.reply(time.process_time())


def serve(sources: list[str], requests: int, replies: int) -> None:
    """Answer requests, one line each, until there are no more."""
    session = Session(replies)
    _silence()
    if not session.load(sources):
        return
    with open(requests, "rb") as lines:
        for line in lines:
            try:
                session.reply(session.perform(wire.loads(line, session.objects.__getitem__)))
            except BaseException as error:
                session.fail(error)


class Session:
    """The program's names, the objects that the tests hold references to, and the line to the tests."""

    def __init__(self, replies: int) -> None:
        self.namespace = _namespace("solution")
        self.objects: list = []
        self.replies = replies

    def load(self, sources: list[str]) -> bool:
        """Execute the program's definitions."""
        try:
            _execute(sources, self.namespace)
        except BaseException as error:
            self.fail(error)
            return False
        self.reply(None)
        return True

    def function(self, name: str):
        """A method of the class `Solution` where the program has one, else a function."""
        solution = self.namespace.get("Solution")
        if solution is not None and hasattr(solution, name):
            return getattr(solution(), name)
        return self.find(name)

    def find(self, name: str):
        if name not in self.namespace:
            raise NameError(f"the program does not define {name!r}")
        return self.namespace[name]

    def perform(self, request: dict):
        """What a request asks: a name, the time spent, or something of an object."""
        operation = request["do"]
        if operation == "find":
            return self.find(request["name"])
        if operation == "cpu":
            return time.process_time()
        target = request["target"]
        if operation == "call":
            return target(*request["args"], **request["kwargs"])
        if operation == "get":
            return getattr(target, request["name"])
        if operation == "set":
            return setattr(target, request["name"], request["value"])
        return {"bool": bool, "len": len, "iterate": list, "item": lambda x: x[request["key"]]}[operation](target)

    def reply(self, value) -> None:
        self._send(b'["value",' + wire.dumps(value, self._reference) + b"]\n")

    def fail(self, error: BaseException) -> None:
        self._send(b'["error",' + wire.dumps(describe(error)) + b"]\n")

    def _reference(self, value) -> dict:
        self.objects.append(value)
        return [len(self.objects) - 1, type(value).__name__[:100]]

    def _send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.replies, data) :]


def describe(error: BaseException) -> str:
    """The lines of the program that an error came through, and its kind and text."""
    import traceback  # costs milliseconds, and is needed for failures alone

    try:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "<program>"][-5:]
        where = "".join(f"line {frame.lineno}, in {frame.name}\n" for frame in frames)
        message = "".join(traceback.format_exception_only(error)).strip()
    except BaseException:  # the text of an error is the program's code too
        where, message = "", type(error).__name__
    return (where + message)[-TEXT_LIMIT:]


def _namespace(name: str) -> dict:
    """A module of its own, under which dataclasses and pickling find the program's classes."""
    module = type(sys)(name)
    sys.modules[name] = module
    return module.__dict__


def _execute(sources: list[str], namespace: dict) -> None:
    for source in sources:
        exec(compile(source, "<program>", "exec", dont_inherit=True), namespace)


def _silence() -> None:
    """What the program prints goes nowhere, and it reads nothing."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
