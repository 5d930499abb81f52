"""ExOPD: identities X1 to X10 (X8, several teachers, is in tests/test_teachers.py), and its fixtures."""

import math

import pytest
import torch

from tests.objectives.bench import (
    VOCABULARY,
    Batch,
    assert_same,
    batch,
    group,
    kl,
    reverse_gradient,
    step,
    token_mean,
)

LAMBDAS = [-0.5, 0.0, 0.25, 0.5, 1.0, 1.25, 1.5, 2.0]


@pytest.fixture
def made():
    return batch(group([0.0] * 4, [4, 2, 3, 1], group_size=1), scorers=2)


def exopd(make, extrapolation: float, **options):
    return make("exopd", num_generations=1, extrapolation=extrapolation, **options)


def run(make, made: Batch, extrapolation: float, **options):
    """A step; with lambda 1 the trainer makes no reference, so there is one scorer only."""
    method = exopd(make, extrapolation, **options)
    return step(method, made if method.objective.uses_reference else made.but(scorers=made.scorers[:1]))


def advantages(make, made: Batch, extrapolation: float):
    """A_t of every live token, read off the gradient of the sampled estimator: -A (onehot - p) / tokens, `[N]`."""
    gradient = run(make, made, extrapolation).gradient * made.mask.sum()
    own = gradient.gather(-1, made.ids[..., None]).squeeze(-1)
    return (-own / (1 - made.sampled(made.student).exp()))[made.mask.bool()]


def log_ratio(made: Batch, numerator: torch.Tensor, denominator: torch.Tensor):
    return (made.sampled(numerator) - made.sampled(denominator))[made.mask.bool()]


def q_lambda(made: Batch, extrapolation: float):
    """The extrapolated target's log-probabilities and its log-normaliser."""
    teacher, reference = (scorer.log_softmax(-1) for scorer in made.scorers)
    raw = extrapolation * teacher + (1 - extrapolation) * reference
    return raw.log_softmax(-1), raw.logsumexp(-1)


def test_the_defaults_are_those_of_the_paper(make):
    method = make("exopd")
    assert (method.objective.extrapolation, method.objective.divergence.estimator) == (1.25, "k1")
    assert type(method.config).num_generations == 1
    assert method.config.vllm_importance_sampling_clip_max == 5.0


@pytest.mark.parametrize("estimator", ["k1", "full"])
def test_x1_lambda_1_is_plain_opd_without_a_reference(estimator, make, made):
    ours = run(make, made, 1.0, estimator=estimator)
    assert not exopd(make, 1.0).objective.uses_reference
    assert_same(ours, step(make("opd", estimator=estimator), made.but(scorers=made.scorers[:1])))


def test_x1_the_advantage_at_lambda_1_does_not_depend_on_the_reference(make, made):
    teacher, _ = made.scorers
    torch.testing.assert_close(advantages(make, made, 1.0), log_ratio(made, teacher, made.student), rtol=1e-6, atol=0)
    # Whatever the reference is, the line through two other lambdas passes through that point.
    for seed in (5, 6):
        other = made.but(scorers=[teacher, batch(made.rollouts, seed=seed).student])
        middle = (advantages(make, other, 0.5) + advantages(make, other, 1.5)) / 2
        torch.testing.assert_close(middle, log_ratio(made, teacher, made.student), rtol=1e-6, atol=1e-6)


def test_x2_lambda_0_pulls_to_the_reference(make, made):
    result = run(make, made, 0.0, estimator="full")
    live = made.mask[..., None]
    expected = reverse_gradient(made.student, made.scorers[1]) * live / made.mask.sum()
    torch.testing.assert_close(result.gradient, expected, rtol=1e-6, atol=1e-9)
    at_reference = made.but(scorers=[made.scorers[0], made.student.clone()])
    assert run(make, at_reference, 0.0, estimator="full").gradient.abs().max() < 1e-12
    assert run(make, at_reference, 0.0).gradient.abs().max() < 1e-12


def test_x3_the_advantage_is_linear_in_lambda(make, made):
    teacher, reference = made.scorers
    slope = log_ratio(made, teacher, reference)
    base = log_ratio(made, reference, made.student)
    for extrapolation in LAMBDAS:
        torch.testing.assert_close(
            advantages(make, made, extrapolation), base + extrapolation * slope, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("extrapolation", LAMBDAS)
def test_x4_the_full_loss_is_the_kl_to_the_target_less_its_log_normaliser(extrapolation, make, made):
    result = run(make, made, extrapolation, estimator="full")
    target, log_normaliser = q_lambda(made, extrapolation)
    assert result.loss == pytest.approx(token_mean(kl(made.student, target) - log_normaliser, made.mask), rel=1e-6)
    expected = reverse_gradient(made.student, target) * made.mask[..., None] / made.mask.sum()
    torch.testing.assert_close(result.gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("extrapolation", [0.0, 0.5, 1.0, 1.25])
def test_x4_the_sampled_gradient_has_the_full_one_as_its_expectation(extrapolation, make, made):
    full = run(make, made, extrapolation, estimator="full").gradient
    expected = torch.zeros_like(full)
    for token in range(VOCABULARY):
        sampled = run(make, made.but(ids=torch.full_like(made.ids, token)), extrapolation).gradient
        expected += made.student.softmax(-1)[..., token, None] * sampled
    torch.testing.assert_close(expected, full, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "full"])
def test_x5_a_teacher_equal_to_the_reference_leaves_lambda_without_effect(estimator, make, made):
    same = made.but(scorers=[made.scorers[0], made.scorers[0].clone()])
    first, *others = (run(make, same, extrapolation, estimator=estimator) for extrapolation in LAMBDAS)
    for other in others:
        assert_same(first, other)


def test_x6_the_log_normaliser_is_convex_and_changes_sign_at_0_and_1(make, made):
    grid = torch.linspace(-0.5, 2.0, 11, dtype=torch.float64).tolist()  # 0 and 1 are among them
    found = []
    for extrapolation in grid:
        target, _ = q_lambda(made, extrapolation)
        result = run(make, made, extrapolation, estimator="full")
        found.append(token_mean(kl(made.student, target), made.mask) - result.loss)
    for extrapolation, value in zip(grid, found, strict=True):
        if extrapolation in (0.0, 1.0):
            assert value == pytest.approx(0.0, abs=1e-6)
        elif 0.0 < extrapolation < 1.0:
            assert value < -1e-3
        else:
            assert value > 1e-3
    bends = [before - 2 * here + after for before, here, after in zip(found, found[1:], found[2:], strict=False)]
    assert min(bends) > 0


def test_x7_reward_correction_swaps_the_reference(make, made):
    teacher, student_start = made.scorers
    teacher_start = batch(made.rollouts, seed=9).student
    default = advantages(make, made, 1.25)
    corrected = advantages(make, made.but(scorers=[teacher, teacher_start]), 1.25)
    expected = 0.25 * log_ratio(made, student_start, teacher_start)
    torch.testing.assert_close(corrected - default, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extrapolation", [0.0, 0.5, 0.999, 1.25])
def test_x9_without_its_reference_the_target_cannot_be_formed(extrapolation, make, made):
    method = exopd(make, extrapolation)
    assert method.objective.uses_reference
    with pytest.raises(ValueError, match="not enough values"):
        step(method, made.but(scorers=made.scorers[:1]))


@pytest.mark.parametrize("extrapolation", [0.5, 1.25, 2.0])
def test_x10_bernoulli_optimum_is_linear_in_the_logits(extrapolation, make):
    def certain(logit: float) -> torch.Tensor:
        return torch.tensor([[[logit, 0.0]]], dtype=torch.float64)

    rollouts = group([0.0], [1])
    optimum = extrapolation * 0.8 + (1 - extrapolation) * -0.4
    scorers = [certain(0.8), certain(-0.4)]
    for offset, sign in ((-0.3, -1), (0.0, 0), (0.3, 1)):
        made = Batch(rollouts, torch.zeros(1, 1, dtype=torch.long), certain(optimum + offset), scorers)
        slope = run(make, made, extrapolation, estimator="full").gradient[0, 0, 0].item()
        assert slope == pytest.approx(0.0, abs=1e-12) if sign == 0 else slope * sign > 1e-3


P, Q, R = ((0.5, 0.3, 0.2), (0.1, 0.6, 0.3), (0.4, 0.4, 0.2))


@pytest.fixture
def fixture():
    """Student, teacher and reference of the fixtures at three positions that sampled tokens 0, 1 and 2."""
    student, teacher, reference = (
        torch.tensor(side, dtype=torch.float64).log().expand(1, 3, 3).clone() for side in (P, Q, R)
    )
    return Batch(group([0.0], [3]), torch.arange(3)[None], student, [teacher, reference])


@pytest.mark.parametrize(
    ("extrapolation", "loss", "gradient"),
    [
        (1.25, 0.638285437054, (0.658863033, -0.429839668, -0.229023364)),
        (0.5, 0.270474467175, None),
        (0.0, 0.025267153922, (0.098938199, -0.093884768, -0.005053431)),
    ],
)
def test_fixture_full_loss_and_gradient(extrapolation, loss, gradient, make, fixture):
    result = run(make, fixture, extrapolation, estimator="full")
    assert result.loss == pytest.approx(loss, rel=1e-7)
    if gradient is not None:
        torch.testing.assert_close(
            result.gradient[0] * 3, torch.tensor([gradient] * 3, dtype=torch.float64), atol=1e-7, rtol=0
        )


def test_fixture_advantages_target_and_normaliser(make, fixture):
    expected = torch.tensor([-1.956011503, 0.794513458, 0.506831385], dtype=torch.float64)
    torch.testing.assert_close(advantages(make, fixture, 1.25), expected, atol=1e-6, rtol=0)
    teacher, reference = (scorer.log_softmax(-1) for scorer in fixture.scorers)
    target = exopd(make, 1.25).objective.target([teacher, reference])[0, 0]
    assert target.logsumexp(-1).item() == pytest.approx(0.064592650156, abs=1e-11)
    q_lam = torch.tensor([0.066287673, 0.622474885, 0.311237442], dtype=torch.float64)
    torch.testing.assert_close(target.softmax(-1), q_lam, atol=1e-9, rtol=0)
    half = exopd(make, 0.5).objective.target([teacher, reference])[0, 0]
    assert half.logsumexp(-1).item() == pytest.approx(-0.067372481990, abs=1e-11)
    loss = run(make, fixture, 1.25, estimator="full").loss
    assert loss + target.logsumexp(-1).item() == pytest.approx(0.702878087210, rel=1e-7)


def test_the_importance_weight_multiplies_the_advantage_without_a_cap(make, made):
    first = run(make, made, 1.25)
    later = run(make, made.but(old_logps=made.sampled(made.student) - math.log(40.0)), 1.25)
    torch.testing.assert_close(later.gradient, 40.0 * first.gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ratio", [0.5, 5.0])
def test_the_engine_correction_multiplies_every_token(ratio, make, made):
    first = run(make, made, 1.25)
    corrected = run(make, made.but(extra={"importance_sampling_ratio": torch.full(made.ids.shape, ratio)}), 1.25)
    torch.testing.assert_close(corrected.gradient, ratio * first.gradient, rtol=1e-6, atol=1e-9)
