"""Teachers that are not loaded beside the student: what is refused, how they are reached and proven before step 1."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trl_opd.defaults import changed
from trl_opd.errors import UserError
from trl_opd.evals.models import model_sha256
from trl_opd.objectives.base import Objective
from trl_opd.scoring import Oracle
from trl_opd.teacher_cache import CachedTeacher, kind_for
from trl_opd.teacher_server import Client, Connection, ServerTeacher, check_tokenizer, probe
from trl_opd.teachers import evaluation_mode

#: The options that say that the teacher is elsewhere.
PLACES = ("teacher_cache", "teacher_server")

#: The least that makes sense of the options for a server; a time limit must be above it.
SERVER_LEAST = {"teacher_server_retries": 0, "teacher_server_concurrency": 1, "teacher_server_timeout": 1e-3}

#: Rows of the dataset that a server scores before the first step.
PROBE_ROWS = 4

#: Rows of the dataset that are rendered at a time when a cache is compared with them.
ROWS_AT_A_TIME = 256

#: The column of completions' token ids, one list for each rollout of the row's prompt.
COMPLETION_IDS = "completion_ids"

#: Prompts -> the token ids that the teacher reads.
Render = Callable[[list], list[list[int]]]


def place(config: Any) -> str | None:
    """The option that says where the teacher is; None where it is loaded here, or there is none."""
    return next((option for option in PLACES if getattr(config, option, None)), None)


def check_settings(config: Any, objective: Objective) -> None:
    """Refuses settings that a cached or served teacher cannot honour, and options that would be ignored.

    Raises:
        `UserError`: With the option and the way out.
    """
    for option, least in SERVER_LEAST.items():
        value = getattr(config, option, least)
        if value < least:
            raise UserError(f"{option} is {value}, but must be at least {least:g}.")
    if not getattr(config, "teacher_server", None):
        ignored = sorted(name for name in changed(config) if name.startswith("teacher_server_"))
        if ignored:
            raise UserError(f"{ignored[0]} would be ignored without teacher_server; set that, or remove it.")
    option = place(config)
    if option is None:
        return
    if objective.teacher != "external":
        raise UserError(f"{objective.name} has no external teacher, so {option} would be ignored; remove it.")
    if all(getattr(config, name) for name in PLACES):
        raise UserError("teacher_cache and teacher_server name the teacher twice; keep one of them.")
    if getattr(config, "weighting", "none") == "entropy":
        raise UserError(
            f"weighting: entropy needs the teacher's whole distribution at each rollout, which {option} does not give; "
            "use weighting: none or perplexity, or load the teacher here."
        )
    if config.use_teacher_template and config.teacher_model_name_or_path is None:
        raise UserError(
            "use_teacher_template reads the teacher's tokenizer; set teacher_model_name_or_path to its folder besides."
        )
    if option == "teacher_server" and kind_for(objective.divergence) == "hidden":
        raise UserError(
            f"A teacher server gives the sampled tokens and its own likeliest ones, which does not suffice for "
            f"estimator: {objective.divergence.estimator} as it is set; use estimator: k1, or topk with support_owner: "
            "teacher."
        )
    if option == "teacher_cache" and config.use_vllm:
        raise UserError("teacher_cache replays rollouts, and use_vllm draws new ones; remove use_vllm.")


def connect(config: Any, objective: Objective, tokenizer) -> Oracle | None:
    """The teacher that a configuration names, if it is elsewhere; nothing is loaded.

    Args:
        config: The trainer's configuration.
        objective (`Objective`): Whose divergence the scores are for.
        tokenizer (*optional*): The student's, where it is known before the student is loaded.

    Raises:
        `UserError`: If it is not there, or is another's.
    """
    option = place(config)
    if option is None:
        return None
    if option == "teacher_cache":
        cache = CachedTeacher(Path(config.teacher_cache), objective.divergence, config.temperature)
        named = config.teacher_model_name_or_path
        if named is not None:
            cache.check_teacher(named, model_sha256(Path(named)) if (Path(named) / "config.json").exists() else None)
        if tokenizer is not None:
            cache.check_tokenizer(tokenizer)
        return cache
    client = Client(
        Connection(
            url=config.teacher_server,
            model=config.teacher_server_model,
            timeout=config.teacher_server_timeout,
            retries=config.teacher_server_retries,
            concurrency=config.teacher_server_concurrency,
        )
    )
    if tokenizer is not None:
        check_tokenizer(client, tokenizer)
    size = objective.divergence.support_size if kind_for(objective.divergence) == "topk" else None
    return ServerTeacher(client, config.temperature, size)


def prove(oracle: Oracle, tokenizer, dataset: Any, render: Render, vocabulary: int, local: nn.Module | None) -> str:
    """What is checked once the student's tokenizer and prompts are known, and before the first step.

    Args:
        oracle (`Oracle`): The teacher.
        tokenizer: The student's.
        dataset: The rows to train on.
        render (`Callable`): Makes the teacher's prompt ids.
        vocabulary (`int`): Rows of the student's head.
        local (`nn.Module`, *optional*): A copy of the served teacher to compare with.

    Returns:
        `str`: One line on what was found.

    Raises:
        `UserError`: If the teacher's scores cannot be those of these rows.
    """
    if isinstance(oracle, CachedTeacher):
        oracle.check_tokenizer(tokenizer)
        oracle.check_rows(_pairs(dataset, render))
        found = oracle.manifest
        return f"teacher cache: {found.completions} completions scored by {found.teacher}, kind {found.kind}"
    check_tokenizer(oracle.client, tokenizer)
    return prove_server(oracle, render([row["prompt"] for row in islice(dataset, PROBE_ROWS)]), vocabulary, local)


def prove_server(oracle: ServerTeacher, sequences: list[list[int]], vocabulary: int, local: nn.Module | None) -> str:
    """Probes a server with some prompts' token ids; see `prove`."""
    compare = None if local is None else lambda rows: _local_logps(local, rows, oracle.temperature, vocabulary)
    differences = probe(oracle, sequences, vocabulary, compare)
    shown = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    return f"teacher server: {oracle.client.model}, mean differences in nats per token: {shown}"


def check_replay(dataset: Any, eval_dataset: Any, rollout_func: Any, config: Any) -> None:
    """Refuses rows that cannot be replayed, and other sources of rollouts.

    Raises:
        `UserError`: If there are no completions, another number of them than rollouts per prompt, or too long ones.
    """
    for name, given in (("eval_dataset", eval_dataset), ("rollout_func", rollout_func)):
        if given is not None:
            raise UserError(
                f"teacher_cache replays the rollouts of the cache and has none for {name}; remove it, and evaluate "
                "with trl-opd eval."
            )
    if COMPLETION_IDS not in (getattr(dataset, "column_names", None) or ()):
        raise UserError(
            f"teacher_cache replays rollouts, and train_dataset has no column {COMPLETION_IDS!r}; leave train_dataset "
            "out, or pass trl_opd.teacher_cache.load_rollouts(folder)."
        )
    stored = dataset[COMPLETION_IDS]
    numbers = {len(completions) for completions in stored}
    if numbers != {config.num_generations}:
        raise UserError(
            f"The cached rows hold {' or '.join(map(str, sorted(numbers)))} completions each, and num_generations is "
            f"{config.num_generations}; set it to that number."
        )
    longest, limit = max(len(ids) for completions in stored for ids in completions), config.max_completion_length
    if limit is not None and longest > limit:
        raise UserError(
            f"The longest cached completion has {longest} tokens, and max_completion_length is {limit}; raise it to "
            f"{longest}."
        )


def _pairs(dataset: Any, render: Render) -> Iterator[tuple[list[int], list[int]]]:
    for start in range(0, len(dataset), ROWS_AT_A_TIME):
        rows = dataset[start : start + ROWS_AT_A_TIME]
        for prompt_ids, completions in zip(render(rows["prompt"]), rows[COMPLETION_IDS], strict=True):
            for completion_ids in completions:
                yield prompt_ids, completion_ids


@torch.no_grad()
def _local_logps(
    model: nn.Module, sequences: list[list[int]], temperature: float, vocabulary: int
) -> list[list[float]]:
    """Log-probabilities of all tokens but the first, one sequence at a time."""
    found = []
    with evaluation_mode(model):
        for ids in sequences:
            row = torch.tensor([ids], device=model.device)
            logits = model(row).logits[0, :-1, :vocabulary].float() / temperature
            found.append(logits.log_softmax(-1).gather(-1, row[0, 1:, None]).squeeze(-1).tolist())
    return found


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Whatever draws inside leaves torch's random generators where they were."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)


def random_state() -> tuple[Tensor, Tensor | None]:
    """The states of torch's random generators, of the host and of this process's GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def restore_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    """Puts the generators back to where they were."""
    host, gpu = state
    torch.set_rng_state(host)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu)
