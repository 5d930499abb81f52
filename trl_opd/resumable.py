"""What every trainer here adds to a TRL trainer: whole checkpoints, and an account of what a run has cost."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file

from trl_opd.budget import BudgetCallback, BudgetSpentError
from trl_opd.eval_callback import EvalSuiteCallback
from trl_opd.evals.benchmark import Benchmark
from trl_opd.run_log import RunRecorder
from trl_opd.state import TEACHER_FILE, PipelineState, best_step, resumable, rotate


class Resumable:
    """Put before a TRL trainer among the bases.

    Attributes:
        method (`str`): Name of the method.
        keeps_record (`bool`): Whether `run.json` and `log.jsonl` are written into `output_dir`.
        recorder (`RunRecorder`): Who writes them.
        budget (`BudgetCallback`): Who ends the run.
        pipeline_state (`PipelineState`): What has been spent, kept in every checkpoint; a subclass makes it.
        scorers (`Sequence`): Those whose state belongs into a checkpoint.
        data_facts (`dict`, *optional*): What became of the data before training, for the run's record.
    """

    method: ClassVar[str]
    keeps_record: ClassVar[bool] = True
    recorder: RunRecorder
    budget: BudgetCallback
    pipeline_state: PipelineState
    scorers: Sequence[Any] = ()
    data_facts: dict[str, int] | None = None

    def _add_callbacks(self, suite: list[Benchmark]) -> None:
        """Budget, validation and books, in this order: the step that ends a run is validated, and both are noted."""
        self.budget = BudgetCallback(self)
        self.add_callback(self.budget)
        if suite:
            self.add_callback(EvalSuiteCallback(self, suite))
        self.recorder = RunRecorder(self)
        self.add_callback(self.recorder)

    def _save_checkpoint(self, model, trial):
        # Old checkpoints go only when the new one is complete: a kill in between must leave one to resume from.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        output_dir = Path(self._get_output_dir(trial=trial))
        self._save_pipeline(output_dir / f"checkpoint-{self.state.global_step}")
        if self.args.should_save:
            rotate(output_dir, limit, keep=self._best_checkpoints(output_dir))

    def _best_checkpoints(self, output_dir: Path) -> list[Path]:
        """Those that are kept however old they are: the best by `eval_suite`, and by a metric of transformers'."""
        named = self.state.best_model_checkpoint
        validated = best_step(self.pipeline_state.validation)
        return [
            *([Path(named)] if named else []),
            *([] if validated is None else [output_dir / f"checkpoint-{validated}"]),
        ]

    def _save_pipeline(self, folder: Path) -> None:
        """The scorers' state, and last our own: a checkpoint without it was cut short and is not resumed from."""
        self.pipeline_state.seconds = self.spent()["seconds"]
        for index, scorer in enumerate(self.scorers):
            if state := scorer.state(keep=self.args.should_save):
                save_file(state, folder / TEACHER_FILE.format(index))
        if self.args.should_save:
            self.pipeline_state.save(folder)

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        step = 0
        if resume_from_checkpoint:
            folder = resumable(self.args.output_dir, resume_from_checkpoint)
            resume_from_checkpoint, step = str(folder), int(folder.name.rsplit("-", 1)[1])
            self.pipeline_state = PipelineState.load(folder, self.method)
            for index, scorer in enumerate(self.scorers):
                scorer.load(folder / TEACHER_FILE.format(index))
        self._started, self._seconds_before = time.monotonic(), self.pipeline_state.seconds
        self._off_the_clock = 0.0
        with (
            self.recorder.sitting(step) if self.keeps_record else nullcontext(),
            suppress(BudgetSpentError),
        ):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Inside, the run is validated and not trained: its seconds are counted apart."""
        started = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - started
            self._off_the_clock += elapsed
            self.pipeline_state.validation_seconds += elapsed

    def spent(self) -> dict[str, float]:
        """What training has cost so far, earlier sittings included: seconds, generated tokens, teacher tokens."""
        return {
            "seconds": round(self._seconds_before + time.monotonic() - self._started - self._off_the_clock, 2),
            "generated_tokens": self.pipeline_state.generated_tokens,
            "teacher_tokens": self.pipeline_state.teacher_tokens,
        }
