"""Training data: the testbed, a local file or a hub dataset, brought to the columns that trainers and rewards read."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_opd import user_code
from trl_opd.errors import UserError
from trl_opd.suggest import suggest

#: Suffix of a local file -> the loader of `datasets` that reads it.
FILE_LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass
class DataArguments:
    """
    Which rows to train on, and how a row becomes a prompt.

    Parameters:
        dataset_name (`str`):
            `"testbed"`, a path to a .jsonl, .json, .parquet or .csv file, or the id of a dataset on the hub.
        dataset_config (`str`, *optional*):
            Configuration of the hub dataset; a local file has none.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on; a local file is one split whatever its name.
        dataset_revision (`str`, *optional*):
            Commit, tag or branch of the hub dataset.
        dataset_limit (`int`, *optional*):
            Only the first so many rows.
        column_map (`str`, *optional*):
            JSON object {new column: existing column}, e.g. `{"solution": "answer"}`.
        answer_pattern (`str`, *optional*):
            Regular expression whose first group is cut out of the `answer` column, e.g. `"#### (.+)"`.
        prompt_template (`str`, *optional*):
            The user turn, with {column} placeholders; makes the `prompt` column. Without it the rows must have one.
        system_prompt (`str`, *optional*):
            System turn before it, with {column} placeholders as well.
        reward_funcs (`list[str]`, *optional*):
            Reward functions: `math_reward` (needs an `answer` column), `code_reward` (a `tests` column),
            `testbed_reward`, or dotted import paths.
        teacher_context (`str`, *optional*):
            Dotted path of a function that says what the teacher reads, see `trl_opd.contexts.FunctionContext`.
    """

    dataset_name: str = field(
        default=None,
        metadata={"help": "testbed, a path to a .jsonl/.json/.parquet/.csv file, or a dataset on the hub."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the hub dataset; a local file has none."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch of the hub dataset; a local file has none."}
    )
    dataset_limit: int | None = field(default=None, metadata={"help": "Only the first so many rows."})
    column_map: str | None = field(
        default=None, metadata={"help": 'JSON object {new column: existing column}, e.g. {"solution": "answer"}.'}
    )
    answer_pattern: str | None = field(
        default=None,
        metadata={"help": "Regular expression whose first group is cut out of the answer column, e.g. '#### (.+)'."},
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "The user turn, with {column} placeholders; makes the prompt column."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System turn before it, with {column} placeholders as well."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "math_reward (needs an answer column), code_reward (a tests column), testbed_reward, or dotted "
            "import paths."
        },
    )
    teacher_context: str | None = field(
        default=None, metadata={"help": "Dotted path of a function of yours that says what the teacher reads."}
    )


def load_training_data(arguments: DataArguments):
    """The rows that the arguments name, as a `datasets.Dataset`.

    Raises:
        `UserError`: If there are none, or if a column, pattern or placeholder does not fit them.
    """
    dataset = _load(arguments)
    if arguments.dataset_limit is not None and arguments.dataset_limit < 1:
        raise UserError(f"dataset_limit is {arguments.dataset_limit}, which leaves no rows; make it at least 1.")
    if arguments.dataset_limit is not None:
        dataset = dataset.select(range(min(arguments.dataset_limit, len(dataset))))
    if len(dataset) == 0:
        raise UserError(f"{arguments.dataset_name} gives no rows to train on; check its path, split and limit.")
    if arguments.column_map:
        dataset = _map_columns(dataset, arguments.column_map)
    if arguments.answer_pattern:
        dataset = _cut_answers(dataset, arguments.answer_pattern)
    if arguments.prompt_template:
        dataset = _build_prompts(dataset, arguments.prompt_template, arguments.system_prompt)
    elif arguments.system_prompt:
        raise UserError("system_prompt is used together with prompt_template only; set both, or neither.")
    return dataset


def _load(arguments: DataArguments):
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    name = arguments.dataset_name
    if not name:
        raise UserError("dataset_name is missing; set it to testbed, a path to a .jsonl file, or a hub dataset.")
    if name == "testbed":
        from trl_opd.testbed.tasks import rows

        return Dataset.from_list(rows(arguments.dataset_train_split))
    path = Path(name)
    if path.suffix in FILE_LOADERS:
        if not path.exists():
            raise UserError(f"There is no data file {name}; check the path in dataset_name.")
        return _load_file(path)
    try:
        return load_dataset(
            name,
            arguments.dataset_config,
            split=arguments.dataset_train_split,
            revision=arguments.dataset_revision,
        )
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"The dataset {name} could not be loaded ({reason}); check its id, configuration and split."
        ) from error


def _load_file(path: Path):
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if path.stat().st_size == 0:
        raise UserError(f"The data file {path} is empty; check how it was made.")
    try:
        return load_dataset(FILE_LOADERS[path.suffix], data_files=str(path), split="train")
    except (DatasetGenerationError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"The data file {path} cannot be read as {path.suffix[1:]} ({reason}); mend it.") from error


def _map_columns(dataset, column_map: str):
    try:
        mapping = json.loads(column_map)
    except json.JSONDecodeError as error:
        raise UserError(f'column_map is no JSON object ({error}); write it as {{"new": "existing"}}.') from error
    for existing in mapping.values():
        if existing not in dataset.column_names:
            raise UserError(
                f"column_map names the column {existing!r}, which the data lacks"
                f"{suggest(existing, dataset.column_names)}; it has {', '.join(dataset.column_names)}."
            )
    return dataset.map(
        lambda row: {new: row[existing] for new, existing in mapping.items()},
        remove_columns=[name for name in dataset.column_names if name not in mapping],
    )


def _cut_answers(dataset, pattern: str):
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"answer_pattern {pattern!r} is no regular expression ({error}); mend it.") from error
    if compiled.groups < 1:
        raise UserError(f"answer_pattern {pattern!r} has no group to cut out; put the answer into parentheses.")

    def cut(row: dict[str, Any]) -> dict[str, str]:
        found = compiled.search(row["answer"])
        if found is None:
            raise UserError(f"answer_pattern {pattern!r} matches nothing in the answer {row['answer']!r}; mend it.")
        return {"answer": found.group(1).strip()}

    if "answer" not in dataset.column_names:
        raise UserError("answer_pattern needs an answer column; make one with column_map.")
    return dataset.map(cut)


def _build_prompts(dataset, template: str, system_prompt: str | None):
    from trl_opd.contexts import fill  # imports torch, which whoever reads the arguments alone need not wait for

    placeholders = re.findall(r"\{(\w+)\}", template)
    if not set(placeholders) & set(dataset.column_names):
        raise UserError(
            "prompt_template holds no placeholder of a column; use one of "
            f"{', '.join(f'{{{column}}}' for column in dataset.column_names)}."
        )
    placeholders += re.findall(r"\{(\w+)\}", system_prompt or "")
    names = [name for name in dict.fromkeys(placeholders) if name in dataset.column_names]
    turns = [("system", system_prompt)] if system_prompt else []
    turns.append(("user", template))

    def build(row: dict[str, Any]) -> dict[str, Any]:
        values = {name: str(row[name]) for name in names}
        return {"prompt": [{"role": role, "content": fill(text, **values)} for role, text in turns]}

    return dataset.map(build)


def load_reward_functions(names: list[str] | None) -> list:
    """The reward functions of the given names.

    Raises:
        `UserError`: If a name is neither known nor a dotted path to a function.
    """
    from trl_opd.testbed.rewards import testbed_reward
    from trl_opd.verify.rewards import math_reward
    from trl_opd.verify.rewards_code import code_reward

    known = {"math_reward": math_reward, "code_reward": code_reward, "testbed_reward": testbed_reward}
    for name in names or []:
        if name not in known and "." not in name:
            raise UserError(
                f"There is no reward function {name!r}{suggest(name, known)}; use {', '.join(known)}, or the dotted "
                "path of a function."
            )
    return [known[name] if name in known else user_code.find(name, "reward function") for name in names or []]
