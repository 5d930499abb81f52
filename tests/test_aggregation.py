"""Reductions against the formulas written out in plain Python, and their exactness when the batch is split."""

import pytest
import torch

from trl_opd.aggregation import MODES, Window, count, token_weights

ROWS, LENGTH, LONGEST, GROUP = 8, 6, 9, 2
#: Modes whose value does not depend on how a batch is split into shards of as many rows each.
SPLIT_INVARIANT = ("token-global", "seq-mean", "seq-mean-live", "dr", "prompt-sum")

Shards = list[list[tuple[torch.Tensor, torch.Tensor]]]


def batch(lengths=(6, 1, 3, 0, 2, 5, 4, 6), seed: int = 0):
    """Token losses and counted tokens, `[B, T]` each; row i has as many counted tokens as `lengths` says."""
    losses = torch.randn(len(lengths), LENGTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    counted = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    return losses, counted


def split(losses, counted, processes: int = 1, micro_batches: int = 1) -> Shards:
    """The rows dealt to processes and then to micro-batches, in order and in equal shares."""
    return [
        list(zip(mine.chunk(micro_batches), own.chunk(micro_batches), strict=True))
        for mine, own in zip(losses.chunk(processes), counted.chunk(processes), strict=True)
    ]


def step_loss(shards: Shards, mode: str) -> float:
    """What training makes of the shards: micro-batches are summed, processes averaged."""
    counts = sum(count(counted) for process in shards for _, counted in process)
    window = Window(
        tokens=counts[0],
        live_rows=counts[1],
        micro_batches=len(shards[0]),
        processes=len(shards),
        max_completion_length=LONGEST,
        group_size=GROUP,
    )
    per_process = [
        sum((token_weights(counted, mode, window).double() * losses).sum() for losses, counted in process)
        for process in shards
    ]
    return float(sum(per_process) / len(per_process))


def plain(losses, counted, mode: str) -> float:
    """The mode's formula over the whole batch at once, without a tensor operation."""
    rows = [
        [loss for loss, counts in zip(row_losses, row_counted, strict=True) if counts]
        for row_losses, row_counted in zip(losses.tolist(), counted.tolist(), strict=True)
    ]
    means = [sum(row) / len(row) for row in rows if row]
    total = sum(sum(row) for row in rows)
    return {
        "token-global": lambda: total / sum(len(row) for row in rows),
        "token-micro": lambda: total / sum(len(row) for row in rows),
        "seq-mean": lambda: sum(means) / len(rows),
        "seq-mean-live": lambda: sum(means) / len(means),
        "dr": lambda: total / (len(rows) * LONGEST),
        "prompt-sum": lambda: total / (len(rows) // GROUP),
    }[mode]()


@pytest.mark.parametrize("mode", MODES)
def test_one_batch_equals_the_plain_formula(mode):
    losses, counted = batch()
    assert step_loss(split(losses, counted), mode) == pytest.approx(plain(losses, counted, mode), rel=1e-6)


@pytest.mark.parametrize("mode", SPLIT_INVARIANT)
@pytest.mark.parametrize(("processes", "micro_batches"), [(1, 4), (1, 8), (2, 1), (4, 1), (2, 2), (2, 4)])
def test_c9_the_split_into_micro_batches_and_processes_changes_nothing(mode, processes, micro_batches):
    losses, counted = batch()
    shards = split(losses, counted, processes, micro_batches)
    assert step_loss(shards, mode) == pytest.approx(plain(losses, counted, mode), rel=1e-6)


@pytest.mark.parametrize("mode", ["token-global", "seq-mean-live"])
def test_c9_modes_with_a_global_denominator_are_exact_for_shards_of_unequal_rows(mode):
    losses, counted = batch()
    shards = [[(losses[:5], counted[:5]), (losses[5:], counted[5:])]]
    assert step_loss(shards, mode) == pytest.approx(plain(losses, counted, mode), rel=1e-6)


def test_c9_token_micro_is_the_mean_over_shards_and_not_the_whole():
    losses, counted = batch()
    shards = split(losses, counted, processes=2, micro_batches=2)
    means = [plain(*shard, "token-micro") for process in shards for shard in process]
    assert step_loss(shards, "token-micro") == pytest.approx(sum(means) / 4, rel=1e-6)
    assert abs(step_loss(shards, "token-micro") - plain(losses, counted, "token-micro")) > 1e-2


def test_token_micro_with_one_row_a_micro_batch_is_seq_mean():
    losses, counted = batch()
    shards = split(losses, counted, micro_batches=ROWS)
    assert step_loss(shards, "token-micro") == pytest.approx(plain(losses, counted, "seq-mean"), rel=1e-6)


def test_o7_token_micro_is_seq_mean_for_rows_of_one_length():
    losses, counted = batch(lengths=(4,) * ROWS)
    for micro_batches in (1, 4):
        shards = split(losses, counted, micro_batches=micro_batches)
        assert step_loss(shards, "token-micro") == pytest.approx(step_loss(shards, "seq-mean"), rel=1e-6)
    ragged = split(*batch())
    assert abs(step_loss(ragged, "token-micro") - step_loss(ragged, "seq-mean")) > 1e-2


@pytest.mark.parametrize(
    ("mode", "factor"),
    [("token-global", 1.0), ("seq-mean-live", 1.0), ("seq-mean", 0.5), ("dr", 0.5), ("prompt-sum", 0.5)],
)
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_s9_half_of_the_rows_masked(mode, factor, micro_batches):
    """The second half repeats the first: without it, only modes that count masked rows lose half of the loss."""
    losses, counted = batch(lengths=(6, 1, 3, 2))
    losses, counted = losses.repeat(2, 1), counted.repeat(2, 1)
    half = counted.clone()
    half[4:] = 0
    whole = step_loss(split(losses, counted, micro_batches=micro_batches), mode)
    masked = step_loss(split(losses, half, micro_batches=micro_batches), mode)
    assert masked == pytest.approx(factor * whole, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_token_that_is_not_counted_has_no_weight(mode):
    _, counted = batch()
    counted[0, 2] = 0
    window = Window(*count(counted), micro_batches=1, processes=1, max_completion_length=LONGEST, group_size=GROUP)
    weights = token_weights(counted, mode, window)
    assert weights.shape == counted.shape
    assert (weights[counted == 0] == 0).all()
    assert (weights[counted == 1] > 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_step_without_counted_tokens_weighs_nothing(mode):
    losses, counted = batch(lengths=(0, 0, 0, 0))
    assert step_loss(split(losses, counted, micro_batches=2), mode) == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_shard_leaves_the_other_finite(mode):
    losses, counted = batch(lengths=(0, 0, 5, 2))
    loss = step_loss(split(losses, counted, micro_batches=2), mode)
    expected = plain(losses[2:], counted[2:], mode) / 2 if mode == "token-micro" else plain(losses, counted, mode)
    assert loss == pytest.approx(expected, rel=1e-6)


def test_count_is_of_tokens_and_of_rows_that_have_any():
    _, counted = batch()
    assert count(counted).tolist() == [27.0, 7.0]


def test_an_unknown_mode_raises_and_names_the_known_ones():
    _, counted = batch()
    window = Window(*count(counted), micro_batches=1, processes=1, max_completion_length=LONGEST, group_size=GROUP)
    with pytest.raises(ValueError, match=r"token-mean.*token-global.*dr"):
        token_weights(counted, "token-mean", window)
