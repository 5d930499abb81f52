"""The benchmarks compare equal work: a step of SDPO through the pipeline ends with the loss of TRL's SDPO trainer."""

from pathlib import Path

import pytest

from trl_opd.testbed.tokenizer import build_tokenizer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import _steps

    return _steps


def test_sdpo_s_loss_and_gradient_on_ragged_rollouts_are_trl_s(steps, monkeypatch):
    shape = steps.Shape(32, 64, 2, 2, 1, 16, vocabulary=max(128, len(build_tokenizer())))
    step = steps.Step(lengths=steps.ragged(rows=16, mean=12, cap=30), micro_batches=2)
    seen, whole_step = [], steps.whole_step
    monkeypatch.setattr(steps, "whole_step", lambda trainer, *rest: seen.append(trainer) or whole_step(trainer, *rest))
    losses = [float(steps.sdpo(ours, shape, step, "cpu")()) for ours in (False, True)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0] > 1e-3
    theirs, ours = ({name: p.grad for name, p in trainer.model.named_parameters()} for trainer in seen)
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() < 1e-3 * largest, name


def test_ragged_lengths_are_the_ones_that_are_named(steps):
    lengths = steps.ragged(rows=4000, mean=97, cap=512)
    assert max(lengths) == 512
    assert sum(lengths) / len(lengths) == pytest.approx(97, rel=0.07)
