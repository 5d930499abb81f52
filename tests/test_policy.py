"""Policy-gradient token losses: first updates, clips, soft gates and the penalty towards a reference policy."""

import math
from dataclasses import replace

import pytest
import torch

from tests.conftest import settings
from trl_opd import GRPOConfig
from trl_opd.aggregation import MODES
from trl_opd.policy import AGGREGATION_OF_LOSS_TYPE, PolicyGradient, cispo, clipped_surrogate, k3, sapo

POLICY = PolicyGradient(
    loss_type="dapo",
    epsilon_low=0.2,
    epsilon_high=0.28,
    delta=None,
    sapo_temperature_pos=1.0,
    sapo_temperature_neg=1.05,
    beta=0.0,
    bias_correct_kl=False,
)
OLD = torch.tensor([-0.3, -1.2, -2.5, -0.7], dtype=torch.float64)
ADVANTAGES = torch.tensor([1.5, -0.5, 0.25, -2.0], dtype=torch.float64)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def value_and_gradient(loss, logps):
    """The loss of each token and its derivative in that token's log-probability, `[N]` each."""
    leaf = logps.clone().requires_grad_()
    values = loss(leaf)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient


def at_ratio(ratio: float, advantage: float, **options):
    """Value and derivative of the clipped surrogate where p / p_old is `ratio`."""
    options = {"epsilon_low": 0.2, "epsilon_high": 0.28} | options
    old = tensor(-1.0)
    value, gradient = value_and_gradient(
        lambda logps: clipped_surrogate(logps, old, tensor(advantage), **options), old + math.log(ratio)
    )
    return value.item(), gradient.item()


def test_every_loss_type_has_a_known_aggregation():
    assert set(AGGREGATION_OF_LOSS_TYPE.values()) <= set(MODES)


@pytest.mark.parametrize("loss_type", AGGREGATION_OF_LOSS_TYPE)
def test_g1_no_advantage_no_gradient(loss_type):
    policy = replace(POLICY, loss_type=loss_type)
    value, gradient = value_and_gradient(lambda logps: policy.surrogate(logps, OLD - 0.1, 0 * ADVANTAGES), OLD)
    assert value.abs().max() == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("loss_type", AGGREGATION_OF_LOSS_TYPE)
@pytest.mark.parametrize("delta", [None, 2.0])
def test_g2_the_first_update_is_reinforce(loss_type, delta):
    """At ratio 1 no clip and no gate acts: the gradient of each token is that of -A ln p."""
    policy = replace(POLICY, loss_type=loss_type, epsilon_high=5.0 if loss_type == "cispo" else 0.28, delta=delta)
    value, gradient = value_and_gradient(lambda logps: policy.surrogate(logps, OLD, ADVANTAGES), OLD)
    torch.testing.assert_close(gradient, -ADVANTAGES, rtol=1e-10, atol=0)
    if loss_type not in ("cispo", "sapo"):
        torch.testing.assert_close(value, -ADVANTAGES, rtol=1e-10, atol=0)
        unclipped = -torch.exp(OLD - OLD) * ADVANTAGES
        torch.testing.assert_close(value, unclipped, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss_type", AGGREGATION_OF_LOSS_TYPE)
def test_g3_the_loss_scales_with_the_advantage(loss_type):
    policy = replace(POLICY, loss_type=loss_type)
    logps = OLD + tensor(0.5, -0.5, 0.1, 0.9)
    torch.testing.assert_close(
        policy.surrogate(logps, OLD, 3.0 * ADVANTAGES), 3.0 * policy.surrogate(logps, OLD, ADVANTAGES)
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "effective"),
    [
        (1.5, 2.0, 1.28),  # good token, already raised enough: clipped
        (1.1, 2.0, None),
        (0.5, 2.0, None),  # good token that was lowered: never clipped
        (0.5, -2.0, 0.8),  # bad token, already lowered enough: clipped
        (0.9, -2.0, None),
        (1.5, -2.0, None),  # bad token that was raised: never clipped
    ],
)
def test_the_clip_acts_on_the_side_that_the_advantage_pushes_to(ratio, advantage, effective):
    value, gradient = at_ratio(ratio, advantage)
    assert value == pytest.approx(-(effective or ratio) * advantage, rel=1e-10)
    assert gradient == pytest.approx(0.0 if effective else -ratio * advantage, rel=1e-10)


@pytest.mark.parametrize(
    ("ratio", "advantage", "effective", "moves"),
    [(5.0, -2.0, 3.0, False), (2.0, -2.0, 2.0, True), (5.0, 2.0, 1.28, False), (1.0, 2.0, 1.0, True)],
)
def test_delta_caps_the_ratio_of_bad_tokens(ratio, advantage, effective, moves):
    value, gradient = at_ratio(ratio, advantage, delta=3.0)
    assert value == pytest.approx(-effective * advantage, rel=1e-10)
    assert gradient == pytest.approx(-ratio * advantage if moves else 0.0, rel=1e-10)


def test_cispo_weighs_by_the_capped_ratio_and_does_not_differentiate_it():
    logps = OLD + tensor(0.5, -0.5, 2.0, 3.0)
    weight = tensor(math.exp(0.5), math.exp(-0.5), 5.0, 5.0)
    value, gradient = value_and_gradient(lambda x: cispo(x, OLD, ADVANTAGES, epsilon_high=5.0), logps)
    torch.testing.assert_close(value, -weight * ADVANTAGES * logps, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, -weight * ADVANTAGES, rtol=1e-10, atol=0)


def test_sapo_at_ratio_one_and_away_from_it():
    value, _ = value_and_gradient(lambda x: sapo(x, OLD, ADVANTAGES, 1.0, 2.0), OLD)
    temperature = tensor(1.0, 2.0, 1.0, 2.0)
    torch.testing.assert_close(value, -2.0 / temperature * ADVANTAGES, rtol=1e-10, atol=0)
    shift = tensor(0.5, -0.5, -1.0, 1.0)
    gate = 1 / (1 + torch.exp(-temperature * (shift.exp() - 1)))
    value, gradient = value_and_gradient(lambda x: sapo(x, OLD, ADVANTAGES, 1.0, 2.0), OLD + shift)
    torch.testing.assert_close(value, -4 / temperature * gate * ADVANTAGES, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, -4 * gate * (1 - gate) * shift.exp() * ADVANTAGES, rtol=1e-10, atol=0)


def test_k3_is_a_penalty_towards_the_reference():
    reference = OLD + tensor(0.0, 0.4, -0.4, 1.0)
    value, gradient = value_and_gradient(lambda x: k3(x, reference), OLD)
    r = (reference - OLD).exp()
    torch.testing.assert_close(value, r - r.log() - 1, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gradient, 1 - r, rtol=1e-10, atol=1e-14)
    assert value[0] == 0
    assert gradient[0] == 0
    assert (value[1:] > 0).all()


def test_k3_estimates_the_reverse_kl():
    """Exact expectation over the vocabulary: E_p[r - ln r - 1] = KL(p || p_ref)."""
    p, reference = tensor(0.5, 0.3, 0.2), tensor(0.1, 0.6, 0.3)
    expectation = (p * k3(p.log(), reference.log())).sum().item()
    assert expectation == pytest.approx((p * (p / reference).log()).sum().item(), rel=1e-10)


def test_the_bias_correction_multiplies_the_penalty_by_a_differentiated_ratio():
    reference, logps = OLD + 0.3, OLD + 0.2
    corrected = replace(POLICY, bias_correct_kl=True)
    plain = POLICY.penalty(logps, OLD, reference)
    torch.testing.assert_close(plain, k3(logps, reference))
    value, gradient = value_and_gradient(lambda x: corrected.penalty(x, OLD, reference), logps)
    torch.testing.assert_close(value, plain * math.exp(0.2))
    torch.testing.assert_close(gradient, math.exp(0.2) * (plain + 1 - (reference - logps).exp()))


def test_facts_name_the_tokens_that_the_clip_mutes():
    old = torch.full((6,), -1.0, dtype=torch.float64)
    logps = old + tensor(1.5, 1.5, 0.5, 0.5, 1.1, 0.9).log()
    advantages = tensor(1.0, -1.0, 1.0, -1.0, 1.0, -1.0)
    facts = POLICY.facts(logps, old, advantages)
    assert {name: fact.tolist() for name, fact in facts.items()} == {
        "clip_ratio/high_mean": [True, False, False, False, False, False],
        "clip_ratio/low_mean": [False, False, False, True, False, False],
        "clip_ratio/region_mean": [True, False, False, True, False, False],
    }
    _, gradient = value_and_gradient(lambda x: POLICY.surrogate(x, old, advantages), logps)
    assert ((gradient == 0) == facts["clip_ratio/region_mean"]).all()


def test_facts_of_cispo_and_sapo():
    old, logps = tensor(-1.0, -1.0, -1.0), tensor(-1.0, -1.0, -1.0) + tensor(6.0, 6.0, 2.0).log()
    policy = replace(POLICY, loss_type="cispo", epsilon_high=5.0)
    facts = policy.facts(logps, old, tensor(1.0, -1.0, 1.0))
    assert {name: fact.tolist() for name, fact in facts.items()} == {"cispo_clip_ratio": [True, False, False]}
    assert replace(POLICY, loss_type="sapo").facts(logps, old, tensor(1.0, -1.0, 1.0)) == {}


def test_the_policy_reads_trls_options(tmp_path):
    options = {
        "loss_type": "sapo",
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "delta": 4.0,
        "sapo_temperature_pos": 1.1,
        "sapo_temperature_neg": 1.2,
        "beta": 0.04,
        "use_bias_correction_kl": True,
    }
    assert PolicyGradient.of(GRPOConfig(**settings(tmp_path, **options))) == PolicyGradient(
        loss_type="sapo",
        epsilon_low=0.1,
        epsilon_high=0.3,
        delta=4.0,
        sapo_temperature_pos=1.1,
        sapo_temperature_neg=1.2,
        beta=0.04,
        bias_correct_kl=True,
    )


def test_without_epsilon_high_the_clip_is_symmetric(tmp_path):
    policy = PolicyGradient.of(GRPOConfig(**settings(tmp_path, epsilon=0.15)))
    assert (policy.epsilon_low, policy.epsilon_high) == (0.15, 0.15)
