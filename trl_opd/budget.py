"""What ends a run besides its steps: generated tokens, or seconds of training."""

from typing import Any

import torch
from accelerate.utils import gather
from transformers import TrainerCallback

from trl_opd.errors import UserError

STEPS, TOKENS, SECONDS, EPOCHS = "max_steps", "max_generated_tokens", "max_train_seconds", "num_train_epochs"


class BudgetSpentError(Exception):
    """A resumed run had reached its end already; nothing is wrong."""


def check_budget(config: Any) -> None:
    """Refuses a budget that ends a run before it begins.

    Raises:
        `UserError`: Naming the option.
    """
    for name in (TOKENS, SECONDS):
        value = getattr(config, name, None)
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}, but a run needs more than nothing; set it, or leave it out.")


class BudgetCallback(TrainerCallback):
    """Stops after the step that reaches `max_generated_tokens` or `max_train_seconds`, with a checkpoint as at the last
    step of a run; `max_steps` and epochs still hold.

    What is spent is that of all sittings, so a resumed run stops where an undisturbed one would (to the second, where
    seconds are the budget). One that is resumed at its very end makes no further step.

    Args:
        trainer (`Resumable`): Whose costs to watch.

    Attributes:
        stopped_by (`str`): The option whose limit ended training, once it has ended.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.resumed = False
        self.stopped_by = EPOCHS

    def reached(self) -> str | None:
        """The option whose limit is reached, the same in every process; None while there is something left."""
        trainer, args = self.trainer, self.trainer.args
        spent = trainer.spent()
        tokens, seconds = getattr(args, TOKENS, None), args.max_train_seconds
        if tokens is not None and spent["generated_tokens"] >= tokens:
            return TOKENS
        if seconds is not None and self._slowest(spent["seconds"]) >= seconds:
            return SECONDS
        return STEPS if 0 < args.max_steps <= trainer.state.global_step else None

    def on_train_begin(self, args, state, control, **kwargs):
        self.resumed = state.global_step > 0

    def on_step_begin(self, args, state, control, **kwargs):
        if self.resumed and (reached := self.reached()):  # the loop itself asks only after a step
            self.stopped_by = reached
            raise BudgetSpentError
        self.resumed = False

    def on_step_end(self, args, state, control, **kwargs):
        if reached := self.reached():
            self.stopped_by = reached
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy == "steps"

    def _slowest(self, seconds: float) -> float:
        """Clocks differ between processes, and all must stop after the same step."""
        return float(gather(torch.tensor([seconds], device=self.trainer.accelerator.device)).max())
