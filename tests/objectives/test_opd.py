"""OPD and OPSD as whole objectives: the loss that their configs ask for."""

import pytest
import torch

from tests.objectives.bench import VOCABULARY, Batch, batch, group, kl, reverse_gradient, step, token_mean

LENGTHS = [4, 2, 3, 1]


@pytest.fixture
def made():
    return batch(group([0.0] * 4, LENGTHS, group_size=1))


def test_the_defaults_are_the_reverse_kl_over_the_vocabulary(make, made):
    method = make("opd")
    assert (type(method.config).num_generations, type(method.config).learning_rate) == (1, 1e-5)
    assert (method.objective.divergence.kind, method.objective.divergence.estimator) == ("reverse_kl", "full")
    result = step(method, made)
    assert result.loss == pytest.approx(token_mean(kl(made.student, made.scorers[0]), made.mask), rel=1e-6)
    expected = reverse_gradient(made.student, made.scorers[0]) * made.mask[..., None] / made.mask.sum()
    torch.testing.assert_close(result.gradient, expected, rtol=1e-6, atol=1e-9)


def test_the_forward_kl_is_the_other_direction(make, made):
    result = step(make("opd", divergence="forward_kl"), made)
    assert result.loss == pytest.approx(token_mean(kl(made.scorers[0], made.student), made.mask), rel=1e-6)
    expected = (made.student.softmax(-1) - made.scorers[0].softmax(-1)) * made.mask[..., None] / made.mask.sum()
    torch.testing.assert_close(result.gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("estimator", "divergence"), [("k1", "reverse_kl"), ("k2", "reverse_kl"), ("k3", "forward_kl")]
)
def test_c4_a_sampled_estimator_has_the_gradient_of_its_divergence_as_its_expectation(
    estimator, divergence, make, made
):
    full = step(make("opd", divergence=divergence), made).gradient
    expected = torch.zeros_like(full)
    for token in range(VOCABULARY):
        sampled = step(
            make("opd", estimator=estimator, divergence=divergence), made.but(ids=torch.full_like(made.ids, token))
        )
        expected += made.student.softmax(-1)[..., token, None] * sampled.gradient
    torch.testing.assert_close(expected, full, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
def test_c6_no_truncated_support_drains_mass_where_both_sides_agree(divergence, tail, make, made):
    """A bare sum over the top-k would push mass out of it even at equality; neither of ours does."""
    agreed = made.but(scorers=[made.student.clone()])
    options = {"divergence": divergence, "estimator": "topk", "support_size": 3, "support_tail": tail}
    assert step(make("opd", **options), agreed).gradient.abs().max() < 1e-12


def test_c8_tokens_outside_the_mask_change_nothing(make, made):
    result = step(make("opd"), made)
    dead = made.mask == 0
    for garbage in (1e6, float("nan"), float("inf")):
        student = made.student.masked_fill(dead[..., None], garbage)
        other = step(make("opd"), made.but(student=student))
        assert other.loss == result.loss
        assert torch.equal(other.gradient, result.gradient)


@pytest.mark.parametrize("estimator", ["full", "k1"])
def test_c10_equal_sides_give_no_loss_and_no_gradient(estimator, make, made):
    result = step(make("opd", estimator=estimator), made.but(scorers=[made.student.clone()]))
    assert result.loss == pytest.approx(0.0, abs=1e-12)
    assert result.gradient.abs().max() < 1e-12


@pytest.mark.parametrize("aggregation", ["token-global", "seq-mean", "seq-mean-live"])
def test_rows_that_the_teacher_cannot_read_leave_the_denominator(aggregation, make, made):
    readable = torch.tensor([True, False, True, True])
    result = step(make("opd", aggregation=aggregation), made, readable)
    value = kl(made.student, made.scorers[0]) * made.mask
    rows = value.sum(-1) / made.mask.sum(-1)
    expected = {
        "token-global": value[readable].sum() / made.mask[readable].sum(),
        "seq-mean": rows[readable].sum() / 4,
        "seq-mean-live": rows[readable].mean(),
    }
    assert result.loss == pytest.approx(expected[aggregation].item(), rel=1e-6)
    assert (result.gradient[1] == 0).all()


def test_opsd_caps_every_entry_as_in_the_fixture(make):
    student, teacher = (
        torch.tensor([[side]], dtype=torch.float64).log() for side in ((0.5, 0.3, 0.2), (0.1, 0.6, 0.3))
    )
    made = Batch(group([0.0], [1]), torch.zeros(1, 1, dtype=torch.long), student, [teacher])
    result = step(make("opsd", num_generations=1), made, torch.tensor([True]))
    assert result.loss == pytest.approx(-0.060943791243, rel=1e-7)
    torch.testing.assert_close(
        result.gradient[0, 0], torch.tensor([-0.05, 0.03, 0.02], dtype=torch.float64), atol=1e-8, rtol=0
    )
    unclipped = step(make("opsd", num_generations=1, entry_clip=None), made, torch.tensor([True]))
    assert unclipped.loss == pytest.approx(0.376584049525, rel=1e-7)
