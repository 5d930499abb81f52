"""SRPO: identities R1 to R7, and the fixture of its entropy weights."""

import math

import pytest
import torch

from tests.objectives.bench import VOCABULARY, assert_same, batch, group, has_context, step, token_mean
from trl_opd.divergences import entropy, generalized_jsd, truncated_support
from trl_opd.objectives.srpo import entropy_weights

FULL = {"divergence": "reverse_kl", "jsd_beta": None, "estimator": "full", "support_size": None}
SMALL = {"support_size": 3}
GRPO = {"loss_type": "dapo", "scale_rewards": "none", "epsilon_high": 0.28}
LENGTHS = [4, 2, 3, 1]
MIXED = [1.0, 1.0, 0.0, 0.0]


def random_entropies(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def test_the_defaults_are_those_of_the_paper(make):
    method = make("srpo")
    divergence = method.objective.divergence
    assert (divergence.kind, divergence.jsd_beta, divergence.support_size) == ("jsd", 0.5, 100)
    assert (method.objective.entropy_beta, method.objective.threshold) == (1.0, 0.5)
    assert (method.config.scale_rewards, method.config.epsilon_high) == ("none", 0.28)
    assert (method.config.teacher_weights, method.config.teacher_update_rate) == ("ema", 0.05)


@pytest.mark.parametrize("old", [False, True], ids=["first update", "later update"])
def test_r1_without_a_distilled_row_it_is_grpo(old, make):
    made = batch(group([0.5, 0.6, 0.8, 1.0], LENGTHS))
    if old:
        made = made.but(old_logps=made.sampled(made.student) + 0.3 * random_entropies(made.ids.shape) - 0.4)
    ours, grpo = step(make("srpo", **SMALL), made), step(make("grpo", **GRPO), made.but(scorers=[]))
    assert_same(ours, grpo)
    assert ours.gradient.abs().max() > 0
    assert not ours.signals.scored_rows().any()


def test_r1_equal_rewards_give_exactly_nothing(make):
    result = step(make("srpo", **SMALL), batch(group([1.0] * 4, LENGTHS)))
    assert result.loss == 0.0
    assert (result.gradient == 0).all()


@pytest.mark.parametrize("options", [FULL, SMALL], ids=["full", "topk"])
def test_r2_with_every_row_distilled_and_no_entropy_weight_it_is_sdpo(options, make):
    made = batch(group([0.0] * 4, LENGTHS, feedback=["no"] * 4))
    options = options | {"use_feedback": True}
    ours = step(make("srpo", **options, entropy_beta=0.0), made)
    assert ours.signals.scored_rows().all()
    assert_same(ours, step(make("sdpo", **options), made))


def test_r2_an_all_wrong_group_with_siblings_alone_gives_zero_gradient(make):
    result = step(make("srpo", **SMALL), batch(group([0.0] * 4, LENGTHS)))
    assert result.loss == 0.0
    assert (result.gradient == 0).all()
    assert result.signals.counted.all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_r3_mean_weight_is_one(beta):
    entropies = random_entropies((4, 5))
    distilled = torch.tensor([[1.0] * 5, [1.0] * 2 + [0.0] * 3, [0.0] * 5, [1.0] * 4 + [0.0]])
    weights = entropy_weights(entropies, distilled, beta)
    assert (weights * distilled).sum() / distilled.sum() == pytest.approx(1.0)
    torch.testing.assert_close(weights, entropy_weights(entropies + 7.0, distilled, beta))
    if beta == 0.0:
        assert (weights == 1.0).all()


def test_r3_equal_entropies_weigh_alike():
    distilled = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    weights = entropy_weights(torch.full((2, 3), 1.7), distilled, 1.0)
    torch.testing.assert_close(weights, torch.ones(2, 3))


def test_r3_the_mean_is_over_the_distilled_tokens_of_every_process():
    entropies = random_entropies((4, 5))
    distilled = torch.ones(4, 5)
    distilled[0, 3:], distilled[2] = 0.0, 0.0
    whole = entropy_weights(entropies, distilled, 1.0)
    halves = [slice(0, 2), slice(2, 4)]
    sums = [
        torch.stack([(torch.exp(-entropies[half]) * distilled[half]).sum(), distilled[half].sum()]) for half in halves
    ]
    for half, own in zip(halves, sums, strict=True):

        def gather(rows, own=own):
            torch.testing.assert_close(rows, own[None])
            return torch.stack(sums)

        torch.testing.assert_close(entropy_weights(entropies[half], distilled[half], 1.0, gather), whole[half])


def test_r3_without_a_distilled_token_the_weights_stay_finite():
    weights = entropy_weights(random_entropies((2, 3)), torch.zeros(2, 3), 1.0)
    assert (weights == 1.0).all()


def test_fixture_entropy_weights():
    weights = entropy_weights(torch.tensor([[0.1, 0.5, 2.0]], dtype=torch.float64), torch.ones(1, 3), 1.0)
    expected = torch.tensor([[1.648452489, 1.104990748, 0.246556763]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_r4_each_part_weighs_in_by_its_share_of_the_tokens(beta, make):
    made = batch(group(MIXED, LENGTHS))
    result = step(make("srpo", **SMALL, entropy_beta=beta), made)
    distilled = made.mask * torch.tensor([0, 0, 1, 1])[:, None]
    rewarded = made.mask - distilled
    p, q = made.student.log_softmax(-1), made.scorers[0].log_softmax(-1)
    student, teacher = truncated_support(p, q, 3, "student", tail=True)
    raw = torch.exp(-beta * entropy(q))
    weights = raw / token_mean(raw, distilled)
    distillation = token_mean(weights * generalized_jsd(student, teacher, 0.5), distilled)
    policy = token_mean(-made.rollouts.advantages[:, None].expand_as(raw), rewarded)
    share = (distilled.sum() / made.mask.sum()).item()
    assert result.loss == pytest.approx((1 - share) * policy + share * distillation, rel=1e-6)


def test_r4_the_policy_part_has_its_gradient_and_tokens_of_all_wrong_groups_dilute(make):
    rewards, lengths = [*MIXED, 0.0, 0.0, 0.0, 0.0], [*LENGTHS, 4, 4, 4, 4]
    made = batch(group(rewards, lengths, group_size=4))
    result = step(make("srpo", **SMALL), made)
    score = torch.eye(VOCABULARY).double()[made.ids] - made.student.softmax(-1)
    expected = -made.rollouts.advantages[:, None, None] * score * made.mask[..., None] / made.mask.sum()
    torch.testing.assert_close(result.gradient[:2], expected[:2], rtol=1e-6, atol=1e-9)
    assert (result.gradient[4:] == 0).all()


def test_r4_advantages_come_from_the_whole_group_the_distilled_rows_included(make):
    made = batch(group(MIXED, LENGTHS))
    result = step(make("srpo", **SMALL), made)
    assert made.rollouts.advantages.tolist() == [0.5, 0.5, -0.5, -0.5]
    assert result.signals.pg.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_r5_weights_fall_with_the_entropy_and_are_largest_for_a_certain_teacher(beta):
    entropies = torch.linspace(0.0, math.log(VOCABULARY), 9).double()[None]
    weights = entropy_weights(entropies, torch.ones_like(entropies), beta)[0]
    assert (weights[1:] < weights[:-1]).all()
    certain = torch.tensor([[50.0, 0.0, 0.0]], dtype=torch.float64).log_softmax(-1)
    assert entropy(certain).item() == pytest.approx(0.0, abs=1e-12)
    assert weights.argmax() == 0


@pytest.mark.parametrize(
    ("rewards", "distilled"),
    [
        ([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1]),  # right with and wrong with a demonstration
        ([1.0, 0.0, 0.0, 0.0], [0, 1, 1, 1]),  # a lone success has no demonstration and is right
        ([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0]),  # wrong without a demonstration
        ([0.5, 0.49, 0.0, 1.0], [0, 1, 1, 0]),  # one threshold for right and for demonstrations
        ([1.0, math.nan, 0.0, 0.0], [0, 0, 1, 1]),  # a row without a reward is neither right nor wrong
    ],
)
def test_r6_routing(rewards, distilled, make):
    method = make("srpo")
    rollouts = group(rewards)
    signals = method.objective.route(rollouts, has_context(method, rollouts))
    assert signals.kl.tolist() == distilled
    assert signals.pg.tolist() == [1 - z for z in distilled]
    assert signals.ce.tolist() == [0] * 4
    assert signals.counted.all()


@pytest.mark.parametrize("exclude_self", [True, False])
def test_r6_a_lone_success_is_never_its_own_teacher(exclude_self, make):
    method = make("srpo", exclude_self=exclude_self)
    rollouts = group([0.0, 1.0, 0.0, 0.0])
    assert has_context(method, rollouts).tolist() == [True, not exclude_self, True, True]
    signals = method.objective.route(rollouts, has_context(method, rollouts))
    assert signals.kl[1] == 0
    assert signals.pg[1] == 1


def test_r7_the_entropy_of_a_tail_bucket_is_a_lower_bound():
    logps = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(0)).double().mul(2).log_softmax(-1)
    full = entropy(logps)
    truncated = [entropy(truncated_support(logps, logps, k, "teacher", tail=True)[1]) for k in range(1, VOCABULARY)]
    for smaller, larger in zip(truncated, [*truncated[1:], full], strict=True):
        assert (smaller <= larger + 1e-12).all()
    assert (truncated[1] < full - 1e-3).all()
    torch.testing.assert_close(truncated[-1], full)


def test_r7_the_weights_use_the_entropy_over_the_whole_vocabulary(make):
    made = batch(group(MIXED, LENGTHS))
    result = step(make("srpo", support_size=2), made)
    distilled = made.mask * torch.tensor([0, 0, 1, 1])[:, None]
    expected = torch.exp(-entropy(made.scorers[0].log_softmax(-1)))
    expected = expected / token_mean(expected, distilled) * distilled
    torch.testing.assert_close(result.signals.kl, expected)
