"""The parser of all commands: a mistake becomes one sentence with the nearest known name, never a page of usage."""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from trl_opd.errors import UserError
from trl_opd.suggest import suggest

_ARGUMENT = r"argument (?P<name>[^\s/]+)\S*: "
_CHOICE = re.compile(_ARGUMENT + r"invalid choice: '?(?P<value>.*?)'? \(choose from (?P<known>.*)\)")
_VALUE = re.compile(_ARGUMENT + "(?P<reason>.*)")
_MISSING = "the following arguments are required: "


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose refusals are `UserError`s, and which takes no option by a part of its name."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)
        self._given: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As its base has it."""
        self._given = list(args or [])
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As its base has it.

        Raises:
            `UserError`: If an option is unknown, missing or has a wrong value.
        """
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UserError(self._unknown(unknown[0]))
        return found

    def error(self, message: str) -> NoReturn:
        """Refuses.

        Raises:
            `UserError`: Always.
        """
        if message.startswith(_MISSING):  # most often since it is there under a wrong name
            for argument in self._given:
                if argument.startswith("--") and argument.split("=")[0] not in self.flags():
                    raise UserError(self._unknown(argument))
        raise UserError(f"{told(message)}; see {self.prog} --help.")

    def flags(self) -> set[str]:
        """The options that it takes."""
        return set(re.findall(r"--[\w-]+", self.format_help()))

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"{argument!r} is one argument too many; see {self.prog} --help."
        name = argument.split("=")[0]
        return f"There is no option {name}{suggest(name, self.flags())}; see {self.prog} --help."


def told(message: str) -> str:
    """What argparse says, as the beginning of a sentence."""
    if message.startswith(_MISSING):
        missing = re.sub(r"/[^\s,]+", "", message.removeprefix(_MISSING))  # one spelling of each
        return f"{missing} is missing" if "," not in missing else f"{missing} are missing"
    if match := _CHOICE.fullmatch(message):
        known = re.findall(r"[^\s,']+", match["known"])
        return f"{match['name']} cannot be {match['value']!r}{suggest(match['value'], known)}: use {', '.join(known)}"
    if match := _VALUE.fullmatch(message):
        return f"{match['name']}: {match['reason']}"
    return message[:1].upper() + message[1:]
