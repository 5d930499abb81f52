"""`trl-opd check METHOD --config RECIPE`: what a run would do, on one screen, before a GPU-hour is spent."""

import re
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from trl_opd.cli import train
from trl_opd.cli.check import estimator, parity, reading, refusals, rehearsal, resources
from trl_opd.cli.check.plan import Plan
from trl_opd.cli.check.report import Report, Section, print_section
from trl_opd.cli.parser import Parser
from trl_opd.errors import UserError
from trl_opd.methods import METHODS, method
from trl_opd.recipes import with_paths

USAGE = """usage: trl-opd check [METHOD] --config RECIPE.yaml [--option value ...]

Say what a run would do, before it is started: what is refused, which options act, what the gradient is, row 0 as the
student and as the teacher read it, stop ids, vocabularies, templates and thinking flags of both, lengths against
limits, rewards of a few rollouts, servers, memory and time of a step, and disk.

METHOD may be left out where the recipe is called METHOD.yaml or says 'trl-opd train METHOD' in its first lines. All
options of 'trl-opd train METHOD' apply. 'trl-opd train' prints a short form by itself.

options:
  --sample, --no-sample      rehearse one step on 8 rollouts, which loads the models (default: if they are small)
  --rows N                   rows that are rendered to learn lengths (default: 512)
  --processes N              devices, all strategies side by side (default: 1)
  --strategy NAME            single, ddp, fsdp2, zero2 or zero3 alone
  --device_gib SIZE          memory of a device, for vLLM's share and to say what fits (default: 80)
  --device_tflops SPEED      of its matrix products, for the time of a step (default: measured if it is this machine's)
  --prompt_tokens N          length of prompts for memory and time (default: the longest of the rows)
  --teacher_prompt_tokens N  length of what the teacher reads before a completion (default: the longest of the rows, and
                             as long as a completion more where it reads a demonstration)
  --json [FILE]              the report for machines, in place of the screen, or into a file besides

exit status: 0 fine, 1 warnings, 2 refused or a mistake in the command"""

#: Name -> title and maker, in order. What follows a refusal of the options themselves would repeat it.
FIRST = {
    "refusals": ("Refusals", refusals.refusals),
    "options": ("Options that differ from the method's defaults and act", refusals.options),
}
SECTIONS: dict[str, tuple[str, Callable[[Plan], Section | None]]] = {
    "estimator": ("Estimator", estimator.estimator),
    "reading": ("Row 0", reading.reading),
    "models": ("Models", reading.models),
    "lengths": ("Lengths in tokens", reading.lengths),
    "memory": ("Memory of one device, GiB (estimated from shapes)", resources.memory),
    "disk": ("Disk", resources.disk),
    "parity": ("Parity", parity.parity),
    "rollouts": ("Rollouts", rehearsal.rollouts),
    "time": ("Time of a step", resources.step_time),
}

#: What a refused run is still told; the rest may not be there to be looked at.
AFTER_A_REFUSAL = ("estimator",)

WIDEST = 140

_NAMED = re.compile(r"^#.*\btrl-opd train (\w+)", re.MULTILINE)


def main(argv: list[str]) -> int:
    """Prints the report; returns the exit status.

    Raises:
        `UserError`: If the command itself has a mistake.
    """
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    plan = make_plan(argv)
    report = Report(plan)
    silent = plan.options.json == "-"
    console = Console(quiet=silent)
    console = Console(quiet=silent, width=min(console.width, WIDEST))
    console.print(Text(f"check {plan.method}: {method(plan.method).summary}", style="bold"))
    for name, (title, make) in (FIRST | SECTIONS).items():
        if report.refused and name not in (*FIRST, *AFTER_A_REFUSAL):
            continue
        section = report.add(name, title, make)
        if section is not None:
            print_section(section, console)
    console.print(report.verdict())
    if silent:
        print(report.as_json())
    elif plan.options.json is not None:
        report.write(Path(plan.options.json))
    return report.status


def make_plan(argv: list[str]) -> Plan:
    """The plan that a command line describes.

    Raises:
        `UserError`: If no method or no recipe is named, or an option is wrong.
    """
    import torch

    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    for name in ("processes", "rows"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}, but must be at least 1.")
    if options.json not in (None, "-") and not Path(options.json).absolute().parent.is_dir():
        raise UserError(f"{options.json} cannot be written (its folder is not there); choose another file for --json.")
    named = rest.pop(0) if rest and not rest[0].startswith("-") else None
    rest = with_paths(rest)
    named = _method_of(rest) if named is None else named
    entry = method(named)
    train.check_recipe(rest, named)
    train.check_flags(rest, entry.config, also=parser.flags())
    given = train.named_options(rest)
    options.elsewhere = not torch.cuda.is_available() and not _for_a_cpu(rest)
    if options.elsewhere:  # a recipe for GPUs is checked on a machine without one
        rest = [*rest, "--use_cpu", "true"]
    if "output_dir" not in given:
        rest = [*rest, "--output_dir", "runs"]
    return Plan(named, *train.parse(entry.config, rest), options, named=given)


def _parser() -> Parser:
    from trl_opd.cli.check.plan import ROWS
    from trl_opd.memory import STRATEGIES

    parser = Parser(prog="trl-opd check", add_help=False)
    parser.add_argument("--sample", action="store_true", default=None)
    parser.add_argument("--no-sample", dest="sample", action="store_false")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", choices=STRATEGIES)
    parser.add_argument("--device_gib", type=float, default=80.0)
    parser.add_argument("--device_tflops", type=float)
    parser.add_argument("--prompt_tokens", type=int)
    parser.add_argument("--teacher_prompt_tokens", type=int)
    parser.add_argument("--json", nargs="?", const="-")
    return parser


def _recipe_text(options: list[str]) -> str:
    """The recipe as it lies on the disk; nothing where none is named."""
    if "--config" not in options[:-1]:
        return ""
    path = Path(options[options.index("--config") + 1])
    return path.read_text() if path.is_file() else ""


def _method_of(options: list[str]) -> str:
    """The method that a recipe is for, by its file's name or its first lines.

    Raises:
        `UserError`: If neither says it.
    """
    if options[-1:] == ["--config"]:
        raise UserError("--config is followed by nothing; name a YAML file.")
    if "--config" not in options[:-1]:
        known = ", ".join(METHODS)
        raise UserError(f"Nothing to check: name a method ({known}) and a recipe, as in trl-opd check sdpo --config X.")
    path = Path(options[options.index("--config") + 1])
    if not path.is_file():
        raise UserError(f"There is no recipe {path}; check the path after --config.")
    said = _NAMED.search(path.read_text())
    for name in (path.stem, said[1] if said else ""):
        if name in METHODS:
            return name
    raise UserError(
        f"{path} does not say its method; put it before the options, as in trl-opd check sdpo --config {path}."
    )


def _for_a_cpu(options: list[str]) -> bool:
    """Whether the run itself is for a machine without an accelerator."""
    asked = " ".join(options).replace("=", " ")
    return "--use_cpu true" in asked or bool(re.search(r"^use_cpu:\s*true", _recipe_text(options), re.MULTILINE))
