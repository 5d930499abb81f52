"""The report: sections of lines and tables, what warns and what refuses, for people and for machines."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from trl_opd.cli.check.plan import Plan
from trl_opd.errors import UserError

#: Exit status of the check.
FINE, WARNED, REFUSED = 0, 1, 2

STATUS = {FINE: "fine", WARNED: "warnings", REFUSED: "refused"}


@dataclass
class Section:
    """A part of the report.

    Attributes:
        title: Its heading.
        lines: What is printed: texts, or anything that rich prints.
        facts: The same for machines.
        warnings: What will probably not do what is wanted, a sentence each.
        refused: What the run would be refused for, a sentence each.
    """

    title: str
    lines: list[RenderableType] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class Report:
    """Sections as they are made.

    Args:
        plan (`Plan`): What is checked.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.sections: dict[str, Section] = {}

    def add(self, name: str, title: str, make: Callable[[Plan], Section | None]) -> Section | None:
        """Makes a section. What it cannot be made for is a refusal, told once."""
        try:
            section = make(self.plan)
        except UserError as error:
            told = str(error)
            again = any(told in made.refused for made in self.sections.values())
            section = Section(title, ["not known, see above"]) if again else Section(title, refused=[told])
        if section is not None:
            self.sections[name] = section
        return section

    @property
    def refused(self) -> list[str]:
        return [told for section in self.sections.values() for told in section.refused]

    @property
    def warnings(self) -> list[str]:
        return [told for section in self.sections.values() for told in section.warnings]

    @property
    def status(self) -> int:
        """The exit status."""
        return REFUSED if self.refused else WARNED if self.warnings else FINE

    def as_json(self) -> str:
        """The whole for machines."""
        whole = {
            "method": self.plan.method,
            "status": STATUS[self.status],
            "refused": self.refused,
            "warnings": self.warnings,
            "sections": {name: section.facts for name, section in self.sections.items()},
        }
        return json.dumps(whole, indent=1, default=str)

    def write(self, path: Path) -> None:
        """Writes the whole for machines.

        Raises:
            `UserError`: If the file cannot be written.
        """
        try:
            path.write_text(self.as_json() + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); choose another file for --json.") from error

    def verdict(self) -> Text:
        """The last line."""
        if self.refused:
            return Text(f"refused: {len(self.refused)}, see above", style="bold red")
        if self.warnings:
            return Text(f"would run, with {len(self.warnings)} warning(s), see above", style="bold yellow")
        return Text("fine", style="bold green")


def print_section(section: Section, console: Console) -> None:
    """One section: its heading, and its lines below it."""
    lines = [Text(line) if isinstance(line, str) else line for line in section.lines]
    lines += [Text(f"warning: {told}", style="yellow") for told in section.warnings]
    lines += [Text(f"refused: {told}", style="red") for told in section.refused]
    console.print(Text(section.title, style="bold"))
    console.print(Padding(Group(*lines), (0, 0, 0, 2)))
