"""Divergences against closed forms, exact expectations over the vocabulary, and numbers worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from trl_opd.divergences import (
    clipped_reverse_kl,
    entropy,
    entry_clip_fraction,
    forward_kl,
    generalized_jsd,
    k2,
    k3,
    reverse_kl,
    sampled_reverse_kl,
    truncated_support,
)
from trl_opd.errors import UserError
from trl_opd.objectives.divergence import Divergence
from trl_opd.tiled import Head

BETAS = (0.0, 0.1, 0.3, 0.5, 0.9, 1.0)

P = (0.5, 0.3, 0.2)
Q = (0.1, 0.6, 0.3)
R = (0.4, 0.4, 0.2)
P4 = (0.5, 0.3, 0.15, 0.05)
Q4 = (0.25, 0.25, 0.3, 0.2)


def logits(seed: int, rows: int = 5, vocabulary: int = 7):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)


def log_of(probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def value_and_gradient(divergence, student_logits, teacher_logits):
    """Values `[N]` and the gradient of their sum with respect to the student's logits, `[N, V]`."""
    leaf = student_logits.clone().requires_grad_()
    values = divergence(leaf.log_softmax(-1), teacher_logits.log_softmax(-1))
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient


def jsd(beta):
    return lambda student, teacher: generalized_jsd(student, teacher, beta)


def clipped(entry_clip):
    return lambda student, teacher: forward_kl(student, teacher, entry_clip)


def closed_form(student_logits, teacher_logits, beta):
    """dD_beta/dz in probabilities: the formulas of the module's docstring."""
    p, q = student_logits.softmax(-1), teacher_logits.softmax(-1)
    if beta == 0.0:
        return p - q
    m = beta * q + (1 - beta) * p if beta < 1.0 else q
    log_ratio = (p / m).log()
    scale = 1.0 if beta == 1.0 else 1.0 - beta
    return scale * p * (log_ratio - (p * log_ratio).sum(-1, keepdim=True))


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("beta", BETAS)
def test_c1_autograd_equals_the_closed_form(beta):
    student, teacher = logits(1), logits(2)
    _, gradient = value_and_gradient(jsd(beta), student, teacher)
    assert_equal(gradient, closed_form(student, teacher, beta))


def test_c1_end_points_are_the_two_kls():
    student, teacher = logits(1), logits(2)
    for beta, divergence in ((0.0, forward_kl), (1.0, reverse_kl)):
        for actual, expected in zip(
            value_and_gradient(jsd(beta), student, teacher),
            value_and_gradient(divergence, student, teacher),
            strict=True,
        ):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("beta", BETAS)
def test_c2_zero_at_equality_and_bounded(beta):
    student, teacher = logits(1), logits(2)
    value, gradient = value_and_gradient(jsd(beta), student, student)
    torch.testing.assert_close(value, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)
    value, _ = value_and_gradient(jsd(beta), student, teacher)
    assert (value > 0).all()
    if 0.0 < beta < 1.0:
        bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        assert (value <= bound).all()
        disjoint = generalized_jsd(log_of((1.0, 0.0)), log_of((0.0, 1.0)), beta)
        assert disjoint.item() == pytest.approx(bound, rel=1e-10)


def test_c2_the_even_mixture_is_symmetric_and_no_other():
    p, q = logits(1).log_softmax(-1), logits(2).log_softmax(-1)
    assert_equal(generalized_jsd(p, q, 0.5), generalized_jsd(q, p, 0.5))
    assert_equal(generalized_jsd(p, q, 0.3), generalized_jsd(q, p, 0.7))
    assert not torch.allclose(generalized_jsd(p, q, 0.3), generalized_jsd(q, p, 0.3))


def test_c3_limits_of_the_family_are_the_kls():
    p, q = logits(1).log_softmax(-1), logits(2).log_softmax(-1)
    small = 1e-6
    torch.testing.assert_close(generalized_jsd(p, q, small) / small, forward_kl(p, q), rtol=1e-4, atol=0)
    torch.testing.assert_close(generalized_jsd(p, q, 1 - small) / small, reverse_kl(p, q), rtol=1e-4, atol=0)


def expected_gradient(surrogate, student, teacher):
    """Sum over v of p(v) times the gradient of the surrogate at token v: the exact expectation over samples."""
    expectation = torch.zeros_like(student)
    for token in range(student.shape[-1]):

        def at_token(p, q, token=token):
            return surrogate(p[:, token], q[:, token])

        _, gradient = value_and_gradient(at_token, student, teacher)
        expectation += student.softmax(-1)[:, token, None] * gradient
    return expectation


def as_cost(estimate):
    """The estimate, detached, times ln p: its use as a policy-gradient cost."""
    return lambda p, q: estimate(p, q).detach() * p


def k1(p, q):
    return p - q


@pytest.mark.parametrize(
    ("surrogate", "divergence"),
    [(sampled_reverse_kl, reverse_kl), (as_cost(k1), reverse_kl), (k2, reverse_kl), (k3, forward_kl), (k1, None)],
)
def test_c4_expected_gradient_of_a_sampled_estimator(surrogate, divergence):
    student, teacher = logits(1), logits(2)
    expected = value_and_gradient(divergence, student, teacher)[1] if divergence else torch.zeros_like(student)
    assert_equal(expected_gradient(surrogate, student, teacher), expected)


@pytest.mark.parametrize("estimate", [k2, k3])
def test_c4_as_policy_costs_k2_and_k3_have_the_gradient_of_neither_kl(estimate):
    student, teacher = logits(1), logits(2)
    gradient = expected_gradient(as_cost(estimate), student, teacher)
    for divergence in (forward_kl, reverse_kl):
        assert (gradient - value_and_gradient(divergence, student, teacher)[1]).abs().max() > 1e-2


def test_c4_values_of_the_sampled_estimators():
    p, q = torch.tensor([-0.5], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64)
    assert sampled_reverse_kl(p, q).item() == pytest.approx(-0.5, rel=1e-10)
    assert k2(p, q).item() == pytest.approx(0.5, rel=1e-10)
    assert k3(p, q).item() == pytest.approx(math.exp(-1.0), rel=1e-10)


def truncated(divergence, k, owner="student", tail=True):
    return lambda p, q: divergence(*truncated_support(p, q, k, owner, tail))


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, jsd(0.5)])
@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_c5_tail_bucket_is_a_lower_bound_that_tightens_to_the_full_value(divergence, owner):
    student, teacher = logits(1), logits(2)
    full, full_gradient = value_and_gradient(divergence, student, teacher)
    value, gradient = value_and_gradient(truncated(divergence, 6, owner), student, teacher)
    assert_equal(value, full)
    assert_equal(gradient, full_gradient)
    values = [value_and_gradient(truncated(divergence, k, owner), student, teacher)[0] for k in range(1, 7)]
    assert (torch.stack(values).diff(dim=0) >= -1e-12).all()
    _, at_equality = value_and_gradient(truncated(divergence, 3, owner), student, student)
    assert at_equality.abs().max() < 1e-12


@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_o6_renormalised_support_of_the_whole_vocabulary_is_the_full_value(owner):
    student, teacher = logits(1), logits(2)
    for actual, expected in zip(
        value_and_gradient(truncated(forward_kl, 7, owner, tail=False), student, teacher),
        value_and_gradient(forward_kl, student, teacher),
        strict=True,
    ):
        assert_equal(actual, expected)


def test_s1_tail_of_the_whole_vocabulary_needs_the_clamp():
    student, teacher = logits(1), logits(2)
    value, gradient = value_and_gradient(truncated(reverse_kl, 7), student, teacher)
    full, full_gradient = value_and_gradient(reverse_kl, student, teacher)
    torch.testing.assert_close(value, full, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, full_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_clipped_reverse_kl_weighs_by_clipped_advantages(clip):
    student, teacher = logits(1), logits(2)
    p = student.softmax(-1)
    cost = (student.log_softmax(-1) - teacher.log_softmax(-1)).clamp(-clip, clip)
    value, gradient = value_and_gradient(lambda a, b: clipped_reverse_kl(a, b, clip), student, teacher)
    assert_equal(value, (p * cost).sum(-1))
    assert_equal(gradient, p * (cost - value[:, None]))
    if clip > 1e3:
        assert_equal(gradient, value_and_gradient(reverse_kl, student, teacher)[1])


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [0.6, 1.1, 2.0])
def test_c7_temperature_divides_the_gradient_of_raw_logits(beta, temperature):
    student, teacher = logits(1), logits(2)
    head = Head(weight=torch.empty(0), bias=None, temperature=temperature)
    leaf = student.clone().requires_grad_()
    generalized_jsd(head.logps(leaf), head.logps(teacher), beta).sum().backward()
    assert_equal(leaf.grad, closed_form(student / temperature, teacher / temperature, beta) / temperature)


@pytest.mark.parametrize("divergence", [*map(jsd, BETAS), clipped(0.05)])
def test_c8_a_shift_of_all_logits_changes_nothing(divergence):
    student, teacher = logits(1), logits(2)
    expected = value_and_gradient(divergence, student, teacher)
    for shifted in (
        value_and_gradient(divergence, student + 30.0, teacher),
        value_and_gradient(divergence, student, teacher - 30.0),
    ):
        for actual, wanted in zip(shifted, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


def test_c10_the_sampled_estimator_gives_the_teacher_no_gradient_and_none_at_equality():
    student = torch.tensor([-0.5, -1.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([-0.2, -1.0], dtype=torch.float64, requires_grad=True)
    sampled_reverse_kl(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad.tolist() == pytest.approx([-0.3, 0.0], abs=1e-15)


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.5, 0.9])
def test_c11_the_mixture_may_be_detached_in_both_terms_or_in_neither(beta):
    student, teacher = logits(1), logits(2)

    def variant(detach_in_teacher_term: bool, detach_in_student_term: bool):
        def divergence(p, q):
            m = (beta * q.exp() + (1 - beta) * p.exp()).log()
            m_teacher = m.detach() if detach_in_teacher_term else m
            m_student = m.detach() if detach_in_student_term else m
            return beta * (q.exp() * (q - m_teacher)).sum(-1) + (1 - beta) * (p.exp() * (p - m_student)).sum(-1)

        return value_and_gradient(divergence, student, teacher)[1]

    _, gradient = value_and_gradient(jsd(beta), student, teacher)
    assert_equal(gradient, variant(False, False))
    assert_equal(gradient, variant(True, True))
    for one_sided in (variant(True, False), variant(False, True)):
        assert (gradient - one_sided).abs().max() > 1e-3


def test_o1_without_a_clip_it_is_the_forward_kl():
    p, q = logits(1).log_softmax(-1), logits(2).log_softmax(-1)
    expected = F.kl_div(p, q, reduction="none", log_target=True).sum(-1)
    assert_equal(forward_kl(p, q), expected)
    assert torch.equal(forward_kl(p, q, entry_clip=math.inf), forward_kl(p, q))


@pytest.mark.parametrize("entry_clip", [1e-6, 0.05, 0.3, 1e6])
def test_o2_gradient_of_the_clipped_kl(entry_clip):
    student, teacher = logits(1), logits(2)
    p, q = student.softmax(-1), teacher.softmax(-1)
    below = q * (q / p).log() < entry_clip
    teacher_mass = (q * below).sum(-1, keepdim=True)
    _, gradient = value_and_gradient(clipped(entry_clip), student, teacher)
    assert_equal(gradient, p * teacher_mass - q * below)
    if entry_clip > 1e3:
        assert_equal(gradient, p - q)
    muted = entry_clip_fraction(student.log_softmax(-1), teacher.log_softmax(-1), entry_clip)
    torch.testing.assert_close(muted, 1 - teacher_mass.squeeze(-1), rtol=1e-10, atol=1e-14)


def test_o3_the_clipped_kl_grows_with_the_clip_and_can_be_negative():
    p, q = logits(1, rows=50).log_softmax(-1), logits(2, rows=50).log_softmax(-1)
    values = torch.stack([forward_kl(p, q, clip) for clip in (1e-6, 1e-3, 0.05, 0.3, 1.0, 10.0)])
    assert (values.diff(dim=0) >= 0).all()
    assert (values[0] < 0).any()
    assert (values[-1] >= 0).all()


@pytest.mark.parametrize(
    ("divergence", "student", "teacher", "expected"),
    [
        (forward_kl, P, Q, 0.376584049525),
        (reverse_kl, P, Q, 0.515681780427),
        (jsd(0.5), P, Q, 0.103294525415),
        (jsd(0.3), P, Q, 0.082793906336),
        (jsd(0.1), P, Q, 0.034315651253),
        (clipped(0.05), P, Q, -0.060943791243),
        (clipped(1e-6), P, Q, -0.160941791243),
        (reverse_kl, P, R, 0.025267153922),
        (reverse_kl, P4, Q4, 0.227983262178),
        (forward_kl, P4, Q4, 0.266335842053),
        (jsd(0.5), P4, Q4, 0.059210836060),
        (truncated(reverse_kl, 2), P4, Q4, 0.218011910943),
        (truncated(forward_kl, 2), P4, Q4, 0.239278181599),
        (truncated(jsd(0.5), 2), P4, Q4, 0.055582470863),
        (truncated(reverse_kl, 2, tail=False), P4, Q4, 0.031583942402),
    ],
)
def test_fixture_values(divergence, student, teacher, expected):
    assert divergence(log_of(student), log_of(teacher)).item() == pytest.approx(expected, abs=1e-11, rel=0)


@pytest.mark.parametrize(
    ("divergence", "teacher", "expected"),
    [
        (forward_kl, Q, (0.4, -0.3, -0.1)),
        (reverse_kl, Q, (0.546878066, -0.362648688, -0.184229378)),
        (jsd(0.5), Q, (0.105420264, -0.074191452, -0.031228812)),
        (jsd(0.3), Q, (0.085358032, -0.061513414, -0.023844618)),
        (clipped(0.05), Q, (-0.05, 0.03, 0.02)),
        (clipped(1e-6), Q, (-0.05, 0.03, 0.02)),
        (reverse_kl, R, (0.098938199, -0.093884768, -0.005053431)),
    ],
)
def test_fixture_gradients(divergence, teacher, expected):
    _, gradient = value_and_gradient(divergence, log_of(P), log_of(teacher))
    assert gradient[0].tolist() == pytest.approx(expected, abs=1e-8, rel=0)


def test_fixture_forward_summands_through_the_clip():
    """The summands are (-.1609, .4159, .1216): a clip between two of them mutes the larger one alone."""
    summands = (-0.160943791, 0.415888308, 0.121639532)
    for clip in (0.05, 0.2, 0.5):
        value = forward_kl(log_of(P), log_of(Q), clip).item()
        assert value == pytest.approx(sum(min(s, clip) for s in summands), abs=2e-9)
        muted = sum(q for q, s in zip(Q, summands, strict=True) if s > clip)
        assert entry_clip_fraction(log_of(P), log_of(Q), clip).item() == pytest.approx(muted, abs=1e-12)


@pytest.mark.parametrize("divergence", [forward_kl, clipped(0.05), jsd(0.5)])
def test_a_token_that_the_teacher_excludes_costs_nothing_and_leaks_no_nan(divergence):
    student, teacher = logits(1, rows=1), logits(2, rows=1)
    teacher[:, 3] = -math.inf
    value, gradient = value_and_gradient(divergence, student, teacher)
    nearly = teacher.clone()
    nearly[:, 3] = -200.0
    expected_value, expected_gradient = value_and_gradient(divergence, student, nearly)
    assert_equal(value, expected_value)
    assert_equal(gradient, expected_gradient)
    if divergence is forward_kl:
        assert_equal(gradient, student.softmax(-1) - teacher.softmax(-1))


def test_a_token_that_the_teacher_excludes_makes_the_reverse_kl_infinite():
    assert reverse_kl(log_of(P), log_of((0.0, 0.5, 0.5))).item() == math.inf


def test_a_token_that_both_exclude_leaks_no_nan_into_the_kls():
    student, teacher = logits(1, rows=1), logits(2, rows=1)
    student[:, 3] = teacher[:, 3] = -math.inf
    kept = [0, 1, 2, 4, 5, 6]
    for divergence in (forward_kl, reverse_kl, clipped(0.05)):
        value, gradient = value_and_gradient(divergence, student, teacher)
        expected_value, expected_gradient = value_and_gradient(divergence, student[:, kept], teacher[:, kept])
        assert_equal(value, expected_value)
        assert_equal(gradient[:, kept], expected_gradient)
        assert gradient[0, 3] == 0.0


def test_entropy_of_uniform_certain_and_random():
    assert entropy(log_of((0.25,) * 4)).item() == pytest.approx(math.log(4), rel=1e-10)
    assert entropy(log_of((1.0, 0.0, 0.0))).item() == 0.0
    z = logits(1)
    assert_equal(entropy(z.log_softmax(-1)), torch.distributions.Categorical(logits=z).entropy())


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_mixture_outside_the_unit_interval_raises(beta):
    with pytest.raises(ValueError, match="beta"):
        generalized_jsd(log_of(P), log_of(Q), beta)


@pytest.mark.parametrize(
    ("divergence", "function"),
    [
        (Divergence("forward_kl"), forward_kl),
        (Divergence("forward_kl", entry_clip=0.05), clipped(0.05)),
        (Divergence("reverse_kl"), reverse_kl),
        (Divergence("jsd", jsd_beta=0.3), jsd(0.3)),
    ],
)
def test_a_named_divergence_is_its_function(divergence, function):
    p, q = logits(1).log_softmax(-1), logits(2).log_softmax(-1)
    assert torch.equal(divergence.over_vocabulary(p, q), function(p, q))
    facts = divergence.facts(p, q)
    assert_equal(facts["distill/teacher_entropy"], entropy(q))
    assert ("distill/entry_clip_mass" in facts) == (divergence.entry_clip is not None)
    if divergence.entry_clip is not None:
        assert torch.equal(facts["distill/entry_clip_mass"], entry_clip_fraction(p, q, 0.05))


def test_a_named_sampled_divergence_is_the_sampled_reverse_kl():
    divergence = Divergence("reverse_kl", estimator="k1")
    p, q = logits(1)[0].log_softmax(-1), logits(2)[0].log_softmax(-1)
    assert torch.equal(divergence.on_sampled(p, q), sampled_reverse_kl(p, q))


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"kind": "kl"}, "divergence"),
        ({"kind": "reverse_kl", "estimator": "sampled"}, "estimator"),
        ({"kind": "forward_kl", "estimator": "k1"}, "estimator"),
        ({"kind": "jsd", "jsd_beta": 0.5, "estimator": "k1"}, "estimator"),
        ({"kind": "reverse_kl", "estimator": "k1", "estimator_use": "backprop"}, "estimator_use"),
        ({"kind": "reverse_kl", "estimator": "k2", "estimator_use": "policy"}, "estimator_use"),
        ({"kind": "forward_kl", "estimator": "k3", "estimator_use": "policy"}, "estimator_use"),
        ({"kind": "reverse_kl", "estimator": "k3"}, "estimator"),
        ({"kind": "reverse_kl", "estimator_use": "policy"}, "estimator_use"),
        ({"kind": "reverse_kl", "estimator_use": "both"}, "estimator_use"),
        ({"kind": "reverse_kl", "estimator": "topk"}, "support_size"),
        ({"kind": "reverse_kl", "support_size": 5}, "support_size"),
        ({"kind": "reverse_kl", "estimator": "topk", "support_size": 0}, "support_size"),
        ({"kind": "reverse_kl", "estimator": "topk", "support_size": 1, "support_tail": False}, "support_tail"),
        ({"kind": "reverse_kl", "support_owner": "both"}, "support_owner"),
        ({"kind": "forward_kl", "advantage_clip": 1.0}, "advantage_clip"),
        ({"kind": "jsd"}, "jsd_beta"),
        ({"kind": "reverse_kl", "jsd_beta": 0.5}, "jsd_beta"),
        ({"kind": "jsd", "jsd_beta": 0.0}, "jsd_beta"),
        ({"kind": "jsd", "jsd_beta": 1.0}, "jsd_beta"),
        ({"kind": "jsd", "jsd_beta": 1.5}, "jsd_beta"),
        ({"kind": "reverse_kl", "entry_clip": 0.05}, "entry_clip"),
        ({"kind": "jsd", "jsd_beta": 0.5, "entry_clip": 0.05}, "entry_clip"),
        ({"kind": "forward_kl", "entry_clip": 0.0}, "entry_clip"),
        ({"kind": "forward_kl", "entry_clip": -1.0}, "entry_clip"),
        ({"kind": "forward_kl", "entry_clip": math.nan}, "entry_clip"),
    ],
)
def test_divergence_refuses_what_cannot_work(settings, option):
    with pytest.raises(UserError, match=option) as refusal:
        Divergence(**settings)
    assert "\n" not in str(refusal.value)
