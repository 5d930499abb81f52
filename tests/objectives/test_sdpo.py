"""SDPO: identities S1 to S9 (S5, the moving average, is in tests/test_teachers.py)."""

import pytest
import torch

from tests.objectives.bench import (
    VOCABULARY,
    assert_same,
    batch,
    group,
    has_context,
    jsd,
    kl,
    reverse_gradient,
    step,
    token_mean,
)

#: Two groups of four: in the first every row has a successful sibling, in the second nobody succeeded.
REWARDS = [1.0, 1.0, 0.0, 0.0] + [0.0] * 4
LENGTHS = [4, 2, 3, 1, 4, 4, 2, 1]
FULL = {"divergence": "reverse_kl", "jsd_beta": None, "estimator": "full", "support_size": None}
TOPK = {"support_size": 3}


@pytest.fixture
def made():
    return batch(group(REWARDS, LENGTHS, group_size=4))


@pytest.fixture
def all_read():
    return batch(group([1.0, 1.0, 0.0, 0.0], [4, 2, 3, 1]))


def test_the_defaults_are_those_of_the_paper(make):
    method = make("sdpo")
    divergence = method.objective.divergence
    assert (divergence.kind, divergence.jsd_beta) == ("jsd", 0.5)
    assert (divergence.estimator, divergence.support_size, divergence.support_tail) == ("topk", 100, True)
    assert divergence.support_owner == "student"
    assert (method.config.teacher_weights, method.config.teacher_update_rate) == ("ema", 0.05)
    assert (method.config.success_threshold, method.config.exclude_self) == (0.5, True)
    assert method.objective.importance_cap == 2.0


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_the_loss_is_the_token_mean_of_the_divergence_over_rows_with_something_to_read(share, make, made):
    method = make("sdpo", jsd_beta=share, estimator="full", support_size=None)
    result = step(method, made)
    read = made.mask * torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])[:, None]
    assert result.loss == pytest.approx(token_mean(jsd(made.student, made.scorers[0], share), read), rel=1e-6)
    assert (result.gradient[~read.bool()] == 0).all()
    assert (result.gradient[read.bool()] != 0).any(-1).all()


@pytest.mark.parametrize("kind", [{"divergence": "reverse_kl", "jsd_beta": None}, {"jsd_beta": 0.5}])
def test_s1_topk_of_all_tokens_but_one_is_the_full_loss(kind, make, made):
    full = step(make("sdpo", **kind, estimator="full", support_size=None), made)
    assert_same(step(make("sdpo", **kind, support_size=VOCABULARY - 1), made), full)
    clamped = step(make("sdpo", **kind, support_size=VOCABULARY), made)
    assert clamped.loss == pytest.approx(full.loss, abs=1e-5)
    torch.testing.assert_close(clamped.gradient, full.gradient, atol=1e-5, rtol=0)
    assert step(make("sdpo", **kind, support_size=2), made).loss < full.loss


def test_s2_the_reverse_kl_is_a_policy_gradient_over_the_vocabulary(make, all_read):
    result = step(make("sdpo", **FULL), all_read)
    assert result.loss == pytest.approx(token_mean(kl(all_read.student, all_read.scorers[0]), all_read.mask), rel=1e-6)
    p, q = all_read.student.log_softmax(-1), all_read.scorers[0].log_softmax(-1)
    score = torch.eye(VOCABULARY).double() - p.exp()[..., None, :]  # d ln p(v) / dz, [B, T, v, z]
    expected = -torch.einsum("btv,btvz->btz", p.exp() * (q - p), score) * all_read.mask[..., None]
    torch.testing.assert_close(result.gradient, expected / all_read.mask.sum(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("ratio", "factor"), [(1.0, 1.0), (4.0, 2.0), (1.5, 1.5), (0.25, 0.25)])
@pytest.mark.parametrize("options", [FULL, TOPK], ids=["full", "topk"])
def test_s3_the_importance_weight_is_capped_from_above_alone(options, ratio, factor, make, all_read):
    method = make("sdpo", **options)
    first = step(method, all_read)
    old = all_read.sampled(all_read.student) - torch.tensor(ratio).double().log()
    later = step(method, all_read.but(old_logps=old))
    assert later.loss == pytest.approx(factor * first.loss, rel=1e-6)
    torch.testing.assert_close(later.gradient, factor * first.gradient, rtol=1e-6, atol=1e-9)


FAILED = "wrong answer"


@pytest.mark.parametrize(
    ("rewards", "feedback", "options", "read"),
    [
        ([0.0, 0.0, 0.0], None, {}, [0, 0, 0]),
        ([0.0, 1.0, 0.0], None, {}, [1, 0, 1]),
        ([0.0, 1.0, 0.0], None, {"exclude_self": False}, [1, 1, 1]),
        ([1.0, 1.0, 0.0], None, {}, [1, 1, 1]),
        ([0.0, 0.0, 0.0], [FAILED, None, ""], {"use_feedback": True}, [1, 0, 0]),
        ([0.0, 1.0, 0.0], [FAILED, FAILED, None], {"use_feedback": True}, [1, 1, 1]),
        ([0.0, 1.0, 0.0], [FAILED, None, None], {"use_feedback": True, "use_demonstrations": False}, [1, 0, 0]),
    ],
)
def test_s4_only_rows_with_something_to_read_carry_signal(rewards, feedback, options, read, make):
    method = make("sdpo", **FULL, **options)
    made = batch(group(rewards, feedback=feedback))
    assert has_context(method, made.rollouts).int().tolist() == read
    result = step(method, made)
    assert result.signals.kl.tolist() == read
    assert result.signals.counted.int().tolist() == read
    assert (result.gradient != 0).flatten(1).any(-1).int().tolist() == read
    if not any(read):
        assert result.loss == 0.0


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_s6_the_trust_region_is_the_normalised_geometric_mean(rate, make, all_read):
    method = make("sdpo", **FULL, teacher_weights="trust-region", teacher_update_rate=rate)
    two = batch(all_read.rollouts, scorers=2, seed=1)
    start, live = (scorer.log_softmax(-1) for scorer in two.scorers)
    target = method.objective.target([start, live])
    geometric = start.exp() ** (1 - rate) * live.exp() ** rate
    torch.testing.assert_close(target.exp(), geometric / geometric.sum(-1, keepdim=True))
    extrapolated = make("exopd", extrapolation=rate).objective
    torch.testing.assert_close(target, extrapolated.target([live, start]).log_softmax(-1))
    if rate in (0.0, 1.0):
        torch.testing.assert_close(target, live if rate else start)
    result = step(method, two)
    torch.testing.assert_close(
        result.gradient,
        reverse_gradient(two.student, target) * two.mask[..., None] / two.mask.sum(),
        rtol=1e-6,
        atol=1e-9,
    )


GRPO = {"loss_type": "dapo", "scale_rewards": "none", "epsilon_high": 0.28}


def test_s7_lambda_1_is_grpo_and_lambda_0_is_sdpo(make, made):
    alone = step(make("sdpo", **FULL), made)
    assert_same(step(make("sdpo", **FULL, grpo_lambda=0.0), made), alone)
    rewards_alone = step(make("sdpo", **FULL, grpo_lambda=1.0), made)
    assert_same(rewards_alone, step(make("grpo", **GRPO), made.but(scorers=[])))
    assert not rewards_alone.signals.scored_rows().any()


def test_s7_in_between_both_parts_share_the_denominator_of_all_tokens(make, made):
    mix = step(make("sdpo", **FULL, grpo_lambda=0.9), made)
    rewards, distilled = step(make("grpo", **GRPO), made.but(scorers=[])), step(make("sdpo", **FULL), made)
    share = made.mask[:4].sum() / made.mask.sum()
    torch.testing.assert_close(
        mix.gradient, 0.9 * rewards.gradient + 0.1 * share * distilled.gradient, rtol=1e-6, atol=1e-9
    )
    assert mix.loss == pytest.approx(0.9 * rewards.loss + 0.1 * share.item() * distilled.loss, rel=1e-6)


@pytest.mark.parametrize("options", [{"support_size": 3}, FULL], ids=["topk", "full"])
def test_s8_a_teacher_that_says_the_same_gives_no_loss_and_no_gradient(options, make, all_read):
    result = step(make("sdpo", **options), all_read.but(scorers=[all_read.student.clone()]))
    assert result.loss == pytest.approx(0.0, abs=1e-12)
    assert result.gradient.abs().max() < 1e-12


@pytest.mark.parametrize(("aggregation", "factor"), [("seq-mean", 0.5), ("seq-mean-live", 1.0), ("token-global", 1.0)])
def test_s9_rows_with_nothing_to_read_dilute_the_mean_over_rows_alone(aggregation, factor, make):
    method = make("sdpo", **FULL, aggregation=aggregation)
    half = batch(group(REWARDS, LENGTHS, group_size=4))
    first = half.but(
        rollouts=group(REWARDS[:4], LENGTHS[:4]), ids=half.ids[:4], student=half.student[:4],
        scorers=[half.scorers[0][:4]],
    )  # fmt: skip
    whole, alone = step(method, half), step(method, first)
    assert whole.loss == pytest.approx(factor * alone.loss, rel=1e-6)
    torch.testing.assert_close(whole.gradient[:4], factor * alone.gradient, rtol=1e-6, atol=1e-9)


def test_the_teacher_side_advantage_clip_bounds_the_log_ratios(make, all_read):
    clipped = step(make("sdpo", **FULL, advantage_clip=0.5), all_read)
    p, q = all_read.student.log_softmax(-1), all_read.scorers[0].log_softmax(-1)
    value = -(p.exp() * (q - p).clamp(-0.5, 0.5)).sum(-1)
    assert clipped.loss == pytest.approx(token_mean(value, all_read.mask), rel=1e-6)
    assert_same(step(make("sdpo", **FULL, advantage_clip=100.0), all_read), step(make("sdpo", **FULL), all_read))
