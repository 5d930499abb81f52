"""One training step on a few rollouts: what rewards, teacher and gradient really do, and how long they take."""

import copy
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_opd.cli import train
from trl_opd.cli.check.plan import Plan
from trl_opd.cli.check.report import Section

#: Rollouts that are drawn at least, and prompts.
ROLLOUTS, PROMPTS = 8, 4

#: Parameters of student and scorers together up to which a step is rehearsed unasked.
SMALL = 100_000_000

#: Share of truncated rollouts from which it is worth a word.
TRUNCATED = 0.3

#: What of a rollout is shown.
SHOWN = 300


@dataclass
class Rehearsal:
    """What one step left behind.

    Attributes:
        rewards: Weighted sum of its rewards for each rollout; nan where no function scored it.
        completions: Their texts.
        tokens: Their lengths.
        metrics: What the trainer logged.
        drawing, learning: Seconds for drawing and scoring rollouts, and for loss, gradient and update.
    """

    rewards: list[float] = field(default_factory=list)
    completions: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    drawing: float = 0.0
    learning: float = 0.0


def wanted(plan: Plan) -> bool:
    """Whether a step is rehearsed: as asked, or where the models are small and here."""
    from trl_opd.cli.check.resources import run_of

    if plan.options.sample is not None:
        return plan.options.sample
    run = run_of(plan)("single")
    models = run.student.parameters + sum(scorer.parameters for scorer in run.scorers)
    return models <= SMALL and not plan.config.use_vllm


def rehearse(plan: Plan) -> Rehearsal:
    """Trains one step in a folder that is thrown away.

    Raises:
        `UserError`: For whatever the trainer refuses.
    """
    found = Rehearsal()
    with tempfile.TemporaryDirectory(prefix="trl-opd-check-") as folder, _quiet():
        config = _shrunk(plan.config, Path(folder))
        prompts = config.generation_batch_size // config.num_generations
        dataset = plan.dataset.select(range(min(prompts, len(plan.dataset))))
        functions = train.named_functions(plan.data)
        trainer = train.make_trainer(plan.trainer_class, dataset, functions, config, plan.model)
        _watch(trainer, found)
        start = time.monotonic()
        trainer.keeps_record = False  # a rehearsal is no run
        trainer.train()
        found.learning = time.monotonic() - start - found.drawing
        for row in trainer.state.log_history:
            found.metrics |= {name: value for name, value in row.items() if isinstance(value, int | float)}
    return found


def _shrunk(config: Any, folder: Path) -> Any:
    """The configuration for one step of few rollouts that leaves nothing behind."""
    size = config.num_generations * max(PROMPTS, math.ceil(ROLLOUTS / config.num_generations))
    rows = math.gcd(size, config.per_device_train_batch_size)
    small = copy.deepcopy(config)
    changes = {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": size // rows,
        "steps_per_generation": size // rows,
        "generation_batch_size": size,
        "num_iterations": 1,
        "max_steps": 1,
        "logging_strategy": type(config.logging_strategy)("steps"),
        "logging_steps": 1,
        "save_strategy": type(config.save_strategy)("no"),
        "eval_strategy": type(config.eval_strategy)("no"),
        "load_best_model_at_end": False,
        "report_to": [],
        "push_to_hub": False,
        "log_completions": False,
        "resume_from_checkpoint": None,
        "eval_suite": None,
    }
    for name, value in changes.items():
        setattr(small, name, value)
    return small


def _watch(trainer: Any, found: Rehearsal) -> None:
    """Lets a trainer note rewards, texts and times as it goes."""
    scored, drawn = trainer._calculate_rewards, trainer._generate_and_score_completions

    def calculate(inputs, prompts, completions, completion_ids_list):
        from trl_opd.rollouts import text_of

        gathered = scored(inputs, prompts, completions, completion_ids_list)
        if trainer.has_rewards:
            sums = (gathered * trainer.reward_weights.to(gathered.device)).nansum(-1)
            sums[gathered.isnan().all(-1)] = math.nan
            found.rewards += sums.tolist()
        found.completions += map(text_of, completions)
        found.tokens += map(len, completion_ids_list)
        return gathered

    def generate(inputs):
        start = time.monotonic()
        batch = drawn(inputs)
        found.drawing += time.monotonic() - start
        return batch

    trainer._calculate_rewards, trainer._generate_and_score_completions = calculate, generate


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, libraries log errors only."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def rollouts(plan: Plan) -> Section | None:
    """What a rehearsed step showed."""
    if plan.off_policy:
        return None
    title, made = "Rollouts", plan.rehearsal
    if made is None:
        return Section(title, ["not drawn: the models are large or sampled by vLLM; --sample draws a few"])
    metrics = made.metrics
    mean = sum(made.tokens) / len(made.tokens)
    truncated = metrics.get("completions/clipped_ratio", 0.0)
    facts = {"rewards": made.rewards, "tokens": made.tokens, "metrics": metrics, "first": made.completions[0]}
    lines = [
        f"first of {len(made.tokens)}: {_shown(made.completions[0])}",
        f"length: mean {mean:.0f} tokens, {truncated:.0%} cut at max_completion_length",
    ]
    warnings = []
    if made.rewards:
        size = plan.config.num_generations
        groups = (made.rewards[start : start + size] for start in range(0, len(made.rewards), size))
        lines.insert(1, "rewards: " + " | ".join(" ".join(f"{reward:g}" for reward in group) for group in groups))
        warnings += _reward_warnings(made.rewards)
    if plan.objective.teacher != "none":
        active = metrics.get("context/active_fraction", math.nan)
        divergence = metrics.get("distill/divergence", metrics.get("distill/log_ratio", math.nan))
        lines.append(f"teacher: reads {active:.0%} of them, divergence {divergence:.4f} nats a token")
    lines.append(f"gradient: norm {metrics.get('grad_norm', math.nan):.3g}, loss {metrics.get('loss', math.nan):.4g}")
    if metrics.get("grad_norm") == 0.0:
        warnings.append(
            "The gradient of the rehearsed step is zero: none of its rollouts gave a signal (see docs/methods for when "
            "the method has one)."
        )
    if truncated > TRUNCATED:
        warnings.append(
            f"{truncated:.0%} of the rollouts were cut at max_completion_length={plan.config.max_completion_length}: "
            "raise it, or look whether the model ends its turns."
        )
    return Section(title, lines, facts, warnings)


def _reward_warnings(rewards: list[float]) -> list[str]:
    """All alike: no method that compares rollouts can learn from that."""
    number, first = len(rewards), rewards[0]
    if any(math.isnan(reward) for reward in rewards):
        return [f"{sum(map(math.isnan, rewards))} of {number} rollouts were scored by no reward function."]
    if any(reward != first for reward in rewards):
        return []
    advice = {
        0.0: "look at the rollout above (template, format, length, answer column), or take easier rows",
        1.0: "the rows are too easy, or the reward is",
    }.get(first, "a reward that never changes teaches nothing")
    return [f"All {number} rewards are {first:g}: {advice}."]


def _shown(text: str) -> str:
    """A rollout as it may be printed, on one line."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}... ({len(line)} characters)"
