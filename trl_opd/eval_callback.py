"""Evaluation during training: a suite on the current weights every few steps, stored as runs of the harness."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl.models import unwrap_model_for_generation

from trl_opd.compat import synced_engine
from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark
from trl_opd.evals.engines import EngineOptions
from trl_opd.evals.live_model import LiveEngine
from trl_opd.evals.live_vllm import LiveVLLMEngine
from trl_opd.evals.rows import load_rows
from trl_opd.evals.runner import Summary, evaluate, requests_of
from trl_opd.evals.suites import load_suite
from trl_opd.offsite import kept_random_state

FOLDER = "evaluations"


def suite_of(config: Any) -> list[Benchmark]:
    """The benchmarks that a configuration asks to be run during training, with their data checked; none is fine.

    Raises:
        UserError: The suite is unknown, its data are not there, or the settings do not go together.
    """
    if config.eval_suite is None:
        others = ("eval_suite_steps", "eval_suite_n", "eval_suite_limit", "eval_suite_max_new_tokens")
        given = [name for name in (*others, "eval_suite_data_dir") if getattr(config, name) is not None]
        if given:
            raise UserError(f"{given[0]} would be ignored without eval_suite: name a benchmark or a suite, or drop it.")
        return []
    if config.eval_suite_steps is None or config.eval_suite_steps < 1:
        raise UserError(
            f"eval_suite_steps is {config.eval_suite_steps}: set how many steps lie between two runs of "
            f"{config.eval_suite}, at least 1."
        )
    benchmarks = [_configured(benchmark, config) for benchmark in load_suite(config.eval_suite)]
    for benchmark in benchmarks:
        load_rows(benchmark, _data_dir(config), config.eval_suite_limit)
    return benchmarks


class EvalSuiteCallback(TrainerCallback):
    """Runs a suite after every `eval_suite_steps` steps, and after the last, and logs `eval/<benchmark>/avg@n` with the
    step's metrics. Their mean over the suite's benchmarks is kept with the run, whose best checkpoint by it is not
    rotated out; its seconds are not counted as training.

    The first process draws and writes `<output_dir>/evaluations/step-<n>-<fingerprint>/<benchmark>/`; the others wait
    for it. Where each process has a vLLM engine of its own (`vllm_mode: colocate` without tensor parallelism), it draws
    with that, after the weight sync of the step, which the next rollouts then need no more. Everywhere else, also
    beside a vLLM server, it draws with `generate` on the unwrapped model. Weights and random numbers are left as they
    were.

    Args:
        trainer (`OnPolicyTrainer`): The trainer.
        benchmarks (`list[Benchmark]`): What to run, see `suite_of`.

    Raises:
        UserError: The weights are spread over the processes, or a prompt and the longest completion do not fit into
            the engine or into the model's context.
    """

    def __init__(self, trainer: Any, benchmarks: list[Benchmark]) -> None:
        plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            raise UserError(
                "eval_suite needs whole weights in one process, which FSDP and ZeRO-3 do not have: drop it, and run "
                "`trl-opd eval` on the checkpoints."
            )
        self.trainer = trainer
        self.benchmarks = benchmarks
        self.uses_vllm = trainer.use_vllm and trainer.vllm_mode == "colocate" and trainer.vllm_tensor_parallel_size == 1
        self._check_lengths(trainer.args)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.eval_suite_steps and not control.should_training_stop:
            return
        trainer = self.trainer
        with trainer.off_the_clock(), kept_random_state(), self._drawing(args) as engine:
            if trainer.accelerator.is_main_process:
                self._note(self._evaluate(engine, args, state.global_step), state.global_step)
            trainer.accelerator.wait_for_everyone()

    def _note(self, summaries: list[Summary], step: int) -> None:
        for summary in summaries:
            # Logged with the step's own metrics: a log of its own would take what they have gathered so far.
            name = f"eval/{summary.benchmark}/avg@{summary.metrics.n}"
            self.trainer._metrics["train"][name].append(summary.metrics.accuracy)
        mean = sum(summary.metrics.accuracy for summary in summaries) / len(summaries)
        self.trainer.pipeline_state.validation.append([step, mean])

    def _check_lengths(self, args: Any) -> None:
        """What does not fit is refused before the first step."""
        engine = self._engine(self.trainer.model)
        for benchmark in self.benchmarks:
            problems = load_rows(benchmark, _data_dir(args), args.eval_suite_limit).problems
            engine.batches(requests_of(benchmark, problems, 1, args.seed), benchmark.protocol.sampling)

    @contextmanager
    def _drawing(self, args: Any) -> Iterator[LiveEngine | LiveVLLMEngine]:
        """The engine with the weights of now, ready to draw; every process enters."""
        trainer = self.trainer
        if self.uses_vllm:
            with synced_engine(trainer):
                yield self._engine(trainer.accelerator.unwrap_model(trainer.model_wrapped))
            return
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model:
            engine = self._engine(model)
            with engine.drawing():
                yield engine

    def _engine(self, model: Any) -> LiveEngine | LiveVLLMEngine:
        trainer = self.trainer
        name = f"{trainer.args.output_dir} at step {trainer.state.global_step}"
        options = EngineOptions(chat_template_kwargs=trainer.args.chat_template_kwargs or {})  # as in training
        if self.uses_vllm:
            return LiveVLLMEngine(trainer.vllm_generation.llm, model, trainer.processing_class, name, options)
        return LiveEngine(model, trainer.processing_class, name, options)

    def _evaluate(self, engine: Any, args: Any, step: int) -> list[Summary]:
        folder = Path(args.output_dir) / FOLDER / f"step-{step}-{engine.local.fingerprint[:8]}"
        return [
            evaluate(
                benchmark,
                engine,
                folder / benchmark.name,
                seed=args.seed,
                limit=args.eval_suite_limit,
                data_dir=_data_dir(args),
                workers=1,
            )
            for benchmark in self.benchmarks
        ]


def _configured(benchmark: Benchmark, config: Any) -> Benchmark:
    changes = {"n": config.eval_suite_n, "max_new_tokens": config.eval_suite_max_new_tokens}
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(benchmark, protocol=replace(benchmark.protocol, **given))


def _data_dir(config: Any) -> Path | None:
    return None if config.eval_suite_data_dir is None else Path(config.eval_suite_data_dir)
