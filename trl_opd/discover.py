"""SDPO at test time: search for the first right answer to one hard question (https://huggingface.co/papers/2601.20802,
section 5).

A round is a number of attempts at the question and one SDPO update, in which the teacher reads each attempt's own
feedback: before the first success there is no demonstration. The search ends with the first attempt that the verifier
accepts; the weights are thrown away. discovery@k is the share of questions whose first success is among k attempts.
It stands beside best-of-k: the same trainer, seed and budget with a learning rate of 0, so that the start model makes
all attempts. Both searches make the same attempts in their first round; every question has random numbers of its own,
or one lucky draw would be counted for all of them.

The paper's loop is not in its released code, so this one is our reading. The round that succeeds still takes its
update, which nothing reads. Best-of-k pays for updates that change nothing: compare attempts, not seconds.
"""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from trl_opd.configs import SDPOConfig
from trl_opd.errors import UserError
from trl_opd.rollouts import Rollouts
from trl_opd.trainer import SDPOTrainer

#: The two searches: the learning rate's factor of each.
ARMS = {"sdpo": 1.0, "best_of_k": 0.0}


@dataclass
class DiscoverConfig(SDPOConfig):
    """
    Configuration of [`DiscoverTrainer`]: SDPO on a single question at test time, see [`HindsightConfig`].

    Defaults from SDPO (https://huggingface.co/papers/2601.20802, table 12, test time). Its budget of 2750 attempts is
    172 rounds of 16 here, 2752 attempts. `max_steps` counts rounds, `num_generations` the attempts in each.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "The initial learning rate for AdamW."})
    warmup_steps: float = field(default=0, metadata={"help": "Steps of linear warm-up."})
    max_steps: int = field(default=172, metadata={"help": "Rounds until a question is given up."})
    num_generations: int | None = field(default=16, metadata={"help": "Attempts in a round."})
    gradient_accumulation_steps: int = field(
        default=2, metadata={"help": "Micro-batches in a round: with the batch size of 8, 16 attempts."}
    )
    divergence: str = field(
        default="reverse_kl", metadata={"help": "Divergence from the teacher: forward_kl, reverse_kl or jsd."}
    )
    jsd_beta: float | None = field(
        default=None, metadata={"help": "The teacher's share in the mixture of divergence: jsd, between 0 and 1."}
    )
    support_size: int | None = field(default=20, metadata={"help": "Tokens in the support of estimator: topk."})
    advantage_clip: float | None = field(
        default=5.0, metadata={"help": "Clip on the log-ratios of the reverse KL, in nats. None for no clip."}
    )
    teacher_update_rate: float | None = field(
        default=0.01, metadata={"help": "The student's share in each ema update, or in the trust-region mean."}
    )
    use_demonstrations: bool = field(
        default=False, metadata={"help": "Whether the teacher reads a successful sibling; the search ends with one."}
    )
    use_feedback: bool = field(
        default=True, metadata={"help": "Whether the teacher reads the feedback that a reward function reported."}
    )
    save_strategy: str = field(default="no", metadata={"help": "A search keeps no checkpoint."})

    def __post_init__(self):
        if self.max_steps < 1:
            raise UserError(f"max_steps is {self.max_steps}, but a search needs at least one round; set a number.")
        super().__post_init__()
        if self.save_strategy != "no" or self.resume_from_checkpoint:
            raise UserError(
                "A search throws its weights away and keeps no checkpoint; set save_strategy: no, and leave "
                "resume_from_checkpoint out: the same command goes on with the next question."
            )
        updates = self.steps_per_generation * self.num_iterations / self.gradient_accumulation_steps
        if self.generation_batch_size != self.num_generations or updates != 1:
            raise UserError(
                f"A round is num_generations={self.num_generations} attempts at one question and one update, but the "
                f"sizes give {self.generation_batch_size} attempts and {updates:g} updates; set "
                "per_device_train_batch_size x gradient_accumulation_steps x processes to num_generations."
            )

    @property
    def budget(self) -> int:
        """Attempts at a question before it is given up."""
        return self.max_steps * self.num_generations


class DiscoverTrainer(SDPOTrainer):
    """[`SDPOTrainer`] on a dataset of one question, until an attempt's reward reaches `success_threshold`.

    Attributes:
        attempts (`int`): Attempts made so far, over all processes.
        first_success (`int`, *optional*): Number of the first successful attempt, from 1.
        solution (`str`, *optional*): Its text.
    """

    keeps_record = False  # of both arms and all questions there is one, the command's
    attempts: int = 0
    first_success: int | None = None
    solution: str | None = None

    def _rollouts(self, batch: dict[str, Tensor], mode: str) -> Rollouts:
        rollouts = super()._rollouts(batch, mode)
        everyone = gather_object(rollouts.own)
        for number, attempt in enumerate(everyone, start=self.attempts + 1):
            if self.first_success is None and attempt.reward >= self.args.success_threshold:
                self.first_success, self.solution = number, attempt.text
                self.control.should_training_stop = True
        self.attempts += len(everyone)
        return rollouts


@dataclass(frozen=True)
class Search:
    """What one search came to.

    Attributes:
        first_success (`int`, *optional*): Number of the first successful attempt, from 1; None within the budget.
        attempts (`int`): Attempts made, the rest of the last round included.
        solution (`str`, *optional*): The text of the first success.
        seconds, generated_tokens, teacher_tokens: What it cost.
    """

    first_success: int | None
    attempts: int
    solution: str | None
    seconds: float
    generated_tokens: int
    teacher_tokens: int


def search(trainer: DiscoverTrainer) -> Search:
    """Trains until the first success or the end of the budget."""
    trainer.train()
    return Search(trainer.first_success, trainer.attempts, trainer.solution, **trainer.spent())


def discover(
    config: DiscoverConfig,
    questions: Any,
    start: Callable[[DiscoverConfig, Any], DiscoverTrainer],
    done: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Both searches on each question in turn, each from the original weights.

    Args:
        config (`DiscoverConfig`): Of the SDPO arm.
        questions (`datasets.Dataset`): A row for each question.
        start (`Callable`): Makes the trainer for a configuration and a dataset of one row.
        done (`list[dict]`): The records of the first questions from an earlier sitting; they are not repeated.

    Yields:
        `dict`: The record of each further question: `prompt`, and a `Search` as a dictionary for each arm.

    Raises:
        `UserError`: If the earlier records are not about these questions.
    """
    for index, record in enumerate(done):
        if index >= len(questions) or record["prompt"] != questions[index]["prompt"]:
            raise UserError(
                f"Question {index + 1} is not the one that was searched in this output_dir before; choose another "
                "output_dir, or bring the data back."
            )
    for index in range(len(done), len(questions)):
        record = {"prompt": questions[index]["prompt"]}
        for arm in ARMS:
            record[arm] = asdict(search(start(_settings(config, arm, index), questions.select([index]))))
            clear_device_cache(garbage_collection=True)  # before the next model is loaded beside this one
        yield record


def _settings(config: DiscoverConfig, arm: str, index: int) -> DiscoverConfig:
    settings = copy.copy(config)
    settings.learning_rate = config.learning_rate * ARMS[arm]
    settings.seed = random.Random(f"{config.seed}-{index}").randrange(2**31)
    return settings


def discovery(records: list[dict[str, Any]], round_size: int, budget: int) -> list[dict[str, Any]]:
    """discovery@k of both arms, at 1, 2, 4, ... rounds and at the whole budget.

    Returns:
        `list[dict]`: Rows of `k` and, for each arm, the share of questions with a success among the first k attempts.
    """
    ks = [round_size]
    while ks[-1] < budget:
        ks.append(min(2 * ks[-1], budget))
    return [
        {"k": k} | {arm: _share([record[arm]["first_success"] for record in records], k) for arm in ARMS} for k in ks
    ]


def _share(firsts: list[int | None], k: int) -> float:
    return sum(first is not None and first <= k for first in firsts) / len(firsts)
