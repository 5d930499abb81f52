"""`trl-opd board plan`: every run as it stands, what is left, and what it will cost and show."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from trl_opd.boards.costs import Estimate, estimate_rest
from trl_opd.boards.files import read_json
from trl_opd.boards.power import TYPICAL, smallest_detectable
from trl_opd.boards.runs import FINISHED, TRIAL, Run, plan_runs, status_of
from trl_opd.boards.spec import BoardSpec
from trl_opd.boards.table import duration
from trl_opd.boards.training_rows import fingerprint
from trl_opd.evals.suites import load_suite

#: Runs that stand alike are named one by one up to this many, then by the first and the last.
MOST_NAMED = 3


def print_plan(spec: BoardSpec, unchecked: Sequence[str], commands: bool, console: Console) -> None:
    """Print the board, its runs, the commands of what is left where they are asked for, and the estimates."""

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    runs = plan_runs(spec)
    say(f"{spec.title}: {len(spec.methods)} lines, {spec.budget.value} {_unit(spec)} each, seeds {_listed(spec.seeds)}")
    say(f"trained on {_rows(spec)}")
    for what in unchecked:
        say(f"not compared with the training rows: {what}" if what.startswith("the problems") else f"not read: {what}")
    say("")
    if commands:
        for run in runs:
            say(f"{run.name}: {standing(run)}")
            for stage in run.stages:
                if not stage.is_finished():
                    say(f"    {stage.command}")
    else:
        for (_, stands), group in groupby(runs, lambda run: (run.role, standing(run))):
            say(f"{_names([run.name for run in group])}: {stands}")
    say("")
    finished = sum(status_of(run).state == FINISHED for run in runs)
    say(f"{finished} of {len(runs)} runs finished, {spec.launch.workers} at a time, in {spec.folder}")
    say(cost(spec, estimate_rest(spec, runs)))
    say(detectable(spec))


def detectable(spec: BoardSpec) -> str:
    """What the design can show, in words: by the board's own runs where a report has measured them, or else assumed."""
    (benchmark,) = load_suite(spec.primary.benchmark)
    problems, answers = spec.primary.limit or benchmark.rows, spec.primary.n or benchmark.protocol.n
    design = f"{len(spec.seeds)} seed{'s' * (len(spec.seeds) > 1)} x {problems} problems x {answers} answers"
    stored = (read_json(spec.folder / "results.json") or {}).get("design", {})
    measured = [stored.get(key) for key in ("seeds", "problems", "answers")] == [len(spec.seeds), problems, answers]
    if measured and stored.get("smallest_detectable") is not None:
        smallest, source = stored["smallest_detectable"], f"by {stored['assumed_from']}"
    else:
        smallest = smallest_detectable(TYPICAL, len(spec.seeds), problems, answers)
        source = (
            f"assuming standard deviations of {100 * TYPICAL.seed:g} points between seeds and of "
            f"{100 * TYPICAL.problem:g} points between problems in what a method gains"
        )
    if smallest is None:
        return f"{design}: with one seed, differences are about the runs and say nothing of the methods"
    return f"{design} find a true difference of {100 * smallest:.1f} points with 80 % power, {source}"


def standing(run: Run) -> str:
    """How a run stands, in words."""
    status = status_of(run)
    if run.waiting_for and run.blocked is None:
        return f"waits for the {len(run.waiting_for)} trials of its learning rate"
    if status.error:
        return f"{status.state} in {status.stage}: {status.error}"
    rate = "" if run.learning_rate is None or run.role == TRIAL else f", learning rate {run.learning_rate:g}"
    left = [stage for stage in run.stages if not stage.is_finished()]
    stages = f", {len(left)} of {len(run.stages)} stages left" if 0 < len(left) < len(run.stages) else ""
    return f"{status.state}{rate}{stages}"


def cost(spec: BoardSpec, estimate: Estimate) -> str:
    """What is left, in words."""
    if not estimate.trainings + estimate.evaluations:
        return "nothing is left to do"
    what = f"left: {estimate.trainings} trainings and {estimate.evaluations} evaluations"
    if estimate.seconds is None:
        return f"{what}; their time is unknown, since here no {' and no '.join(estimate.unknown)} has finished yet"
    devices = spec.launch.gpus_per_run
    gpus = f", {estimate.seconds * devices / 3600:.1f} GPU-hours" if devices else ""
    return (
        f"{what}, about {duration(estimate.seconds)} of work{gpus}, {duration(estimate.seconds / spec.launch.workers)} "
        f"with {spec.launch.workers} at a time, by the {estimate.measured} stages that have finished"
    )


def _names(names: Sequence[str]) -> str:
    """Runs that stand alike, in the order of the plan."""
    return ", ".join(names) if len(names) <= MOST_NAMED else f"{names[0]} to {names[-1]} ({len(names)} runs)"


def _rows(spec: BoardSpec) -> str:
    found = fingerprint(spec.data)
    if "revision" in found:
        revision = found["revision"]
        return f"{found['name']} at " + (revision or "no fixed revision: name one with `dataset_revision` in `data`")
    return f"{found['name']}, SHA-256 {found['sha256'] or 'unknown: the file is not here'}"


def _unit(spec: BoardSpec) -> str:
    return spec.budget.unit.replace("_", " ")


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
