"""SCOPE: identities P1 to P9, and the fixtures of its weights."""

import math
from dataclasses import replace

import pytest
import torch

from tests.objectives.bench import VOCABULARY, Batch, assert_same, batch, group, step
from trl_opd.objectives.scope import branch_weights
from trl_opd.rollouts import Scores

REWARDS = [1.0, 0.0, 1.0, 0.0]
LENGTHS = [4, 2, 3, 1]
NLL = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)


@pytest.fixture
def made():
    return batch(group(REWARDS, LENGTHS))


def everyone(number: int):
    return torch.ones(1, number, dtype=torch.bool)


def score_function(made: Batch):
    """d ln p(y) / dz, `[B, T, V]`."""
    onehot = torch.eye(VOCABULARY, dtype=torch.float64)[made.ids]
    return (onehot - made.student.softmax(-1)) * made.mask[..., None]


def nll(made: Batch, logits: torch.Tensor):
    return -(made.sampled(logits) * made.mask).sum(-1) / made.mask.sum(-1)


def constant_nll(values: list[float], lengths: list[int]) -> torch.Tensor:
    """Logits whose token 0 has the given negative log-likelihood at every position of the row."""
    first = torch.tensor([-value for value in values], dtype=torch.float64)
    rest = torch.log1p(-first.exp())
    return torch.stack([first, rest], -1)[:, None].expand(-1, max(lengths), 2).clone()


def test_the_defaults_are_those_of_the_paper(make):
    config = make("scope").config
    assert (config.weight_temperature, config.weight_norm, config.length_norm) == (1.0, "sum1", "sum")
    assert (config.student_direction, config.teacher_direction) == ("perplexing", "confident")
    assert (config.estimator, config.divergence, config.aggregation) == ("k1", "reverse_kl", "prompt-sum")


def test_the_loss_is_the_paper_s_sum_per_prompt(make):
    """Two prompts: weighted likelihood of right rollouts, weighted sampled reverse KL of wrong ones, token sums."""
    made = batch(group([*REWARDS, 1.0, 0.0, 0.0, 0.0], [*LENGTHS, 2, 2, 4, 3], group_size=4))
    result = step(make("scope"), made)
    student, teacher = nll(made, made.student), nll(made, made.scorers[0])
    right = made.rollouts.rewards >= 0.5
    weights = torch.zeros(8, dtype=torch.float64)
    for start in (0, 4):
        rows = torch.arange(start, start + 4)
        own_right, own_wrong = rows[right[rows]], rows[~right[rows]]
        weights[own_right] = student[own_right].softmax(0)
        weights[own_wrong] = (-teacher[own_wrong]).softmax(0)
    log_ratio = made.sampled(made.student) - made.sampled(made.scorers[0])
    pull = torch.where(right[:, None], -torch.ones_like(log_ratio), log_ratio)
    expected = (weights[:, None] * pull)[..., None] * score_function(made) / 2
    torch.testing.assert_close(result.gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("norm", "weight"), [("sum1", 0.5), ("mean1", 1.0)])
def test_p1_an_infinite_temperature_weighs_alike(norm, weight, make, made):
    result = step(make("scope", weight_temperature=math.inf, weight_norm=norm), made)
    assert result.signals.ce.tolist() == pytest.approx([weight, 0, weight, 0])
    assert result.signals.kl.tolist() == pytest.approx([0, weight, 0, weight])
    log_ratio = made.sampled(made.student) - made.sampled(made.scorers[0])
    pull = torch.where(torch.tensor(REWARDS)[:, None] > 0, -torch.ones_like(log_ratio), log_ratio)
    torch.testing.assert_close(result.gradient, weight * pull[..., None] * score_function(made), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("perplexities", "sign", "expected"),
    [((1.2, 2.6, 3.8), 1, (0.158, 0.342, 0.500)), ((4.5, 2.9, 1.7), -1, (0.192, 0.298, 0.510))],
    ids=["right", "wrong"],
)
def test_p2_the_figure_of_the_paper(perplexities, sign, expected):
    scores = sign * torch.tensor([perplexities]).log()
    weights = branch_weights(scores, everyone(3), 1.0)
    assert weights[0].tolist() == pytest.approx(expected, abs=1e-3)  # the figure's third decimals add up to 1
    by_perplexity = torch.tensor(perplexities) ** sign
    torch.testing.assert_close(weights[0], by_perplexity / by_perplexity.sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_p2_perplexity_to_the_power_is_a_softmax(temperature):
    weights = branch_weights(NLL[None], everyone(3), temperature)
    powers = NLL.exp() ** (1 / temperature)
    torch.testing.assert_close(weights[0], powers / powers.sum())


@pytest.mark.parametrize(
    ("sign", "temperature", "expected"),
    [
        (1, 1.0, (0.236118841, 0.288396204, 0.475484955)),
        (-1, 1.0, (0.431906476, 0.353615115, 0.214478409)),
        (1, 0.5, (0.152741138, 0.227863003, 0.619395859)),
        (1, 2.0, (0.283749244, 0.313591412, 0.402659344)),
    ],
)
def test_fixture_weights(sign, temperature, expected):
    weights = branch_weights(sign * NLL[None], everyone(3), temperature)
    torch.testing.assert_close(weights[0], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [(1.0, (0.236118841, 0.288396204, 0.475484955)), (0.0, (0.431906476, 0.353615115, 0.214478409))],
)
def test_fixture_weights_through_the_objective(reward, expected, make):
    lengths = [3, 1, 2]
    logits = constant_nll(NLL.tolist(), lengths)
    made = Batch(group([reward] * 3, lengths), torch.zeros(3, 3, dtype=torch.long), logits, [logits.clone()])
    signals = step(make("scope"), made).signals
    branch, other = (signals.ce, signals.kl) if reward else (signals.kl, signals.ce)
    assert branch.tolist() == pytest.approx(expected, abs=1e-7)
    assert (other == 0).all()


@pytest.mark.parametrize("rewards", [[1.0, 0.0, 0.0, 0.0], [0.0] * 4, [1.0] * 4, REWARDS])
def test_p3_each_branch_sums_to_one_and_an_empty_one_is_zero(rewards, make):
    signals = step(make("scope"), batch(group(rewards, LENGTHS))).signals
    right = int(sum(rewards))
    for weights, members in ((signals.ce, right), (signals.kl, 4 - right)):
        assert weights.isfinite().all()
        assert weights.sum().item() == pytest.approx(1.0 if members else 0.0)
        assert (weights > 0).sum() == members
        if members == 1:
            assert weights.max().item() == pytest.approx(1.0)


def test_p3_single_member_has_weight_one_under_either_norm(make):
    for norm in ("sum1", "mean1"):
        signals = step(make("scope", weight_norm=norm), batch(group([1.0, 0.0, 0.0, 0.0], LENGTHS))).signals
        assert signals.ce.tolist() == pytest.approx([1, 0, 0, 0])
    assert signals.kl.sum().item() == pytest.approx(3.0)


def test_p4_a_small_temperature_picks_one_and_ties_are_split(make, made):
    signals = step(make("scope", weight_temperature=1e-7), made).signals
    student, teacher = nll(made, made.student), nll(made, made.scorers[0])
    assert signals.ce.tolist() == [float(row == max((0, 2), key=lambda r: student[r])) for row in range(4)]
    assert signals.kl.tolist() == [float(row == min((1, 3), key=lambda r: teacher[r])) for row in range(4)]
    tied = branch_weights(torch.tensor([[0.4, 0.9, 0.9]]), everyone(3), 1e-7)
    assert tied[0].tolist() == [0.0, 0.5, 0.5]


def test_p5_the_right_branch_is_weighted_cross_entropy_whoever_the_teacher_is(make, made):
    result = step(make("scope"), made)
    weights = nll(made, made.student)[[0, 2]].softmax(0)
    expected = -weights[:, None, None] * score_function(made)[[0, 2]]
    torch.testing.assert_close(result.gradient[[0, 2]], expected, rtol=1e-6, atol=1e-9)
    other = step(make("scope"), made.but(scorers=[batch(made.rollouts, seed=8).student]))
    assert torch.equal(other.gradient[[0, 2]], result.gradient[[0, 2]])
    assert not torch.equal(other.gradient[[1, 3]], result.gradient[[1, 3]])


def test_p5_likelihood_keeps_the_importance_weight_of_later_updates(make, made):
    """The paper's -rho has the gradient -rho grad ln p; the weights stay those of the rollout-time policy."""
    first = step(make("scope", weight_temperature=math.inf), made)
    later = made.but(old_logps=made.sampled(made.student) - math.log(3.0))
    result = step(make("scope", weight_temperature=math.inf), later)
    torch.testing.assert_close(result.gradient, 3.0 * first.gradient, rtol=1e-6, atol=1e-9)


def test_p6_uniform_wrong_weights_are_opd_on_the_wrong_rows(make, made):
    result = step(make("scope", weight_temperature=math.inf, aggregation="token-global"), made)
    opd = step(make("opd", estimator="k1", aggregation="token-global"), made)
    torch.testing.assert_close(result.gradient[[1, 3]], opd.gradient[[1, 3]] / 2, rtol=1e-6, atol=1e-9)


def test_p7_an_all_wrong_group_of_uniform_mean_weights_is_opd(make):
    made = batch(group([0.0] * 4, LENGTHS))
    ours = step(make("scope", weight_temperature=math.inf, weight_norm="mean1", aggregation="token-global"), made)
    assert_same(ours, step(make("opd", estimator="k1", aggregation="token-global"), made))


def test_p8_a_common_shift_changes_no_weight():
    for member in (everyone(3), torch.tensor([[True, False, True]])):
        torch.testing.assert_close(branch_weights(NLL[None], member, 0.7), branch_weights(NLL[None] + 3, member, 0.7))


@pytest.mark.parametrize("reward", [1.0, 0.0])
def test_p8_duplicated_tokens_change_no_weight(reward, make):
    def signals(lengths):
        logits = constant_nll(NLL.tolist(), lengths)
        ids = torch.zeros(3, max(lengths), dtype=torch.long)
        found = step(make("scope"), Batch(group([reward] * 3, lengths), ids, logits, [logits.clone()])).signals
        return found.ce if reward else found.kl

    torch.testing.assert_close(signals([2, 1, 3]), signals([4, 1, 3]))


def test_p9_directions(make):
    lengths = [2, 2, 2]
    ids = torch.zeros(3, 2, dtype=torch.long)

    def weights(reward, raised, **options):
        values = constant_nll([0.5 + raised, 0.5, 0.5], lengths)
        flat = constant_nll([0.5] * 3, lengths)
        student, teacher = (values, flat) if reward else (flat, values)
        signals = step(make("scope", **options), Batch(group([reward] * 3, lengths), ids, student, [teacher])).signals
        return (signals.ce if reward else signals.kl)[0].item()

    assert weights(1.0, 0.4) > weights(1.0, 0.0) == pytest.approx(1 / 3)
    assert weights(0.0, 0.4) < weights(0.0, 0.0) == pytest.approx(1 / 3)
    assert weights(1.0, 0.4, student_direction="confident") < 1 / 3
    assert weights(0.0, 0.4, teacher_direction="perplexing") > 1 / 3


def test_length_norm_divides_each_rollout_by_its_own_tokens(make, made):
    total, mean = (step(make("scope", length_norm=norm), made) for norm in ("sum", "mean"))
    lengths = torch.tensor(LENGTHS)[:, None, None]
    torch.testing.assert_close(mean.gradient, total.gradient / lengths, rtol=1e-6, atol=1e-9)


def test_a_rollout_without_a_reward_feeds_nothing(make):
    result = step(make("scope"), batch(group([1.0, math.nan, 0.0, 0.0], LENGTHS)))
    assert (result.gradient[1] == 0).all()
    assert result.gradient.isfinite().all()
    assert result.signals.kl.sum().item() == pytest.approx(1.0)


def test_a_wrong_row_that_the_teacher_cannot_read_leaves_its_branch(make, made):
    readable = torch.tensor([True, False, True, True])
    result = step(make("scope"), made, readable)
    assert result.signals.kl.tolist() == pytest.approx([0, 0, 0, 1])


def test_groups_that_straddle_processes_are_weighed_whole(make):
    """Every process sees the gathered members and scores, and keeps the weights of its own rows."""
    objective = make("scope").objective
    made = batch(group([*REWARDS, *REWARDS], [*LENGTHS, *LENGTHS], group_size=4))
    whole = made.rollouts
    logps, teacher = (made.sampled(side) for side in (made.student, made.scorers[0]))

    def process(rows: slice, sent: list, everyone: list | None = None):
        def gather(own):
            sent.append(own)
            return own.new_zeros(8, 2) if everyone is None else everyone.pop(0)

        part = replace(
            whole, examples=whole.examples[rows], own=whole.own[rows], mask=whole.mask[rows], logps=logps[rows],
            gather=gather, first=rows.start,
        )  # fmt: skip
        signals = objective.route(part, torch.ones(len(part), dtype=torch.bool))
        return objective.weigh(part, signals, Scores(logps=[teacher[rows]]))

    processes = [slice(0, 3), slice(3, 8)]
    sent = [[], []]
    for rows, own in zip(processes, sent, strict=True):
        process(rows, own)
    gathered = [torch.cat(parts) for parts in zip(*sent, strict=True)]
    found = [process(rows, [], list(gathered)) for rows in processes]
    expected = step(make("scope"), made).signals
    torch.testing.assert_close(torch.cat([signals.ce for signals in found]), expected.ce)
    torch.testing.assert_close(torch.cat([signals.kl for signals in found]), expected.kl)
