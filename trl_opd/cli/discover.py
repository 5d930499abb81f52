"""`trl-opd discover --config recipe.yaml --key value ...`: SDPO at test time against best-of-k."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trl_opd.cli.train import check_recipe, make_trainer, named_functions, parse
from trl_opd.errors import UserError
from trl_opd.recipes import with_paths

USAGE = """usage: trl-opd discover --config RECIPE.yaml [--option value ...]

Search for the first right answer to each question of a dataset: rounds of attempts, and after each round one SDPO
update in which every attempt is read with its own feedback. Beside it, the same number of attempts with the weights
left as they are (best-of-k). Every question starts from the original weights. A search that was stopped goes on with
the question that it was at when the same command is given again.

what every search needs:
  --model_name_or_path   testbed/base, a folder, or a model on the hub
  --dataset_name         testbed, a .jsonl/.json/.parquet/.csv file, or a dataset on the hub; --dataset_limit N
  --reward_funcs         one that reports feedback, e.g. testbed_reward
  --output_dir           where run.json goes: every search, its cost, and discovery@k

how far it goes:
  --max_steps            rounds until a question is given up (default: {rounds})
  --num_generations      attempts in a round (default: {attempts}): batch size x gradient accumulation must give it

All options of 'trl-opd train sdpo' apply, with the paper's defaults for test time."""


def main(argv: list[str]) -> int:
    """Searches; returns the exit status.

    Raises:
        `UserError`: If an option, the model or the data cannot work.
    """
    if not argv:
        raise UserError("No recipe was given; name one with --config, or see --help.")
    if {"-h", "--help"} & set(argv):
        from trl_opd.discover import DiscoverConfig

        print(USAGE.format(rounds=DiscoverConfig.max_steps, attempts=DiscoverConfig.num_generations))
        return 0
    options = with_paths(argv)
    check_recipe(options, "sdpo")
    data_args, config, model_args = parse("DiscoverConfig", options)
    return _discover(data_args, config, model_args)


def _discover(data_args: Any, config: Any, model_args: Any) -> int:
    from trl_opd.run_log import RunFolder, differences

    if not model_args.model_name_or_path:
        raise UserError("model_name_or_path is missing; set it to testbed/base, a folder, or a model on the hub.")
    settings = differences(data_args, config, model_args)
    with RunFolder(Path(config.output_dir), "discover", settings) as folder:
        if not folder.finished:
            try:
                _search(folder, data_args, config, model_args)
            except BaseException as error:
                last_line = (str(error).strip().splitlines() or [""])[-1]
                # A folder whose run "failed" may be taken over by other settings: not one that holds results.
                status = "stopped" if folder.record.get("questions") else "failed"
                folder.write(status=status, error=f"{type(error).__name__}: {last_line}")
                raise
        if folder.primary:
            _print(folder.record, config.budget)
    return 0


def _search(folder: Any, data_args: Any, config: Any, model_args: Any) -> None:
    from trl_opd.data import load_training_data
    from trl_opd.discover import ARMS, DiscoverTrainer, discover, discovery
    from trl_opd.run_log import command, hardware, versions

    questions = load_training_data(data_args)
    given = named_functions(data_args)

    def start(settings: Any, question: Any) -> Any:
        return make_trainer(DiscoverTrainer, question, given, settings, model_args)

    records = list(folder.record.get("questions", []))
    folder.write(status="running", versions=versions(), command=command(), hardware=hardware(), error=None)
    for record in discover(config, questions, start, records):
        records.append(record)
        folder.write(questions=records)
        if folder.primary:
            found = ", ".join(f"{arm} {_attempt(record[arm], config.budget)}" for arm in ARMS)
            print(f"question {len(records)}/{len(questions)}: first success: {found}", flush=True)
    rows = discovery(records, config.num_generations, config.budget)
    folder.write(status="finished", discovery=rows)


def _attempt(search: dict[str, Any], budget: int) -> str:
    first = search["first_success"]
    return f"none in {budget}" if first is None else str(first)


def _print(record: dict[str, Any], budget: int) -> None:
    """Each question's first success, then discovery@k."""
    console = Console()
    table = Table(title="attempts until the first success", box=box.SIMPLE_HEAD)
    table.add_column("question", overflow="ellipsis", no_wrap=True)
    for heading in ("SDPO", "frozen model"):
        table.add_column(heading, justify="right", no_wrap=True)
    for question in record["questions"]:
        arms = (_attempt(question[arm], budget) for arm in ("sdpo", "best_of_k"))
        table.add_row(escape(_text(question["prompt"])), *arms)
    console.print(table)
    table = Table(title=f"success within k attempts, {len(record['questions'])} questions", box=box.SIMPLE_HEAD)
    for heading in ("k", "SDPO discovery@k", "frozen model best-of-k"):
        table.add_column(heading, justify="right")
    for row in record["discovery"]:
        table.add_row(str(row["k"]), *(f"{100 * row[arm]:.1f} %" for arm in ("sdpo", "best_of_k")))
    console.print(table)


def _text(prompt: Any) -> str:
    """The last turn, on one line."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return " ".join(text.split())
