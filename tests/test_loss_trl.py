"""TRL's kernels against ours, and what they are refused for."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import digit_reward, losses, make_model, settings
from tests.test_loss import DIVERGENCES, Case, Extrapolated, TrustRegion
from trl_opd import GRPOConfig, GRPOTrainer, OPDConfig, OPDTrainer, loss_trl
from trl_opd.errors import UserError

HEADS = {"plain": {}, "everything": {"bias": True, "temperature": 1.2, "scale": 2.0, "softcap": 4.0}}


def in_float32(case: Case) -> None:
    """TRL's kernels know nothing more precise."""

    def low(value):
        if isinstance(value, list):
            return [low(entry) for entry in value]
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    case.hidden = low(case.hidden)
    case.tokens = replace(case.tokens, **{name: low(value) for name, value in vars(case.tokens).items()})
    heads = [replace(head, weight=head.weight.float(), bias=low(head.bias)) for head in (case.head, *case.scorer_heads)]
    case.head, case.scorer_heads = heads[0], heads[1:]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["forward", "reverse", "jsd 0.1", None])
def test_both_kernels_give_one_loss_and_one_gradient(name, head):
    case = Case(DIVERGENCES["forward" if name is None else name], **HEADS[head])
    in_float32(case)
    if name is None:
        case.objective.divergence = None
        case.tokens.kl = torch.zeros_like(case.tokens.kl)
    leaves = case.leaves()
    expected, facts = case.tiled(*leaves)
    expected_gradients = torch.autograd.grad(expected, leaves)
    hidden, weight, *bias = leaves
    theirs = replace(case.head, weight=weight, bias=bias[0] if bias else None)
    loss, found = loss_trl.token_loss(hidden, theirs, case.tokens, case.objective, case.policy, case.scorer_heads)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(torch.autograd.grad(loss, leaves), expected_gradients, strict=True):
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)
    assert set(facts) - set(found) == ({"distill/teacher_entropy"} if name else set())
    for fact, values in found.items():
        assert not values.requires_grad
        torch.testing.assert_close(values.float(), facts[fact].float(), rtol=1e-4, atol=1e-4, msg=fact)


@pytest.mark.parametrize(
    ("name", "objective", "lacking"),
    [
        ("forward, clipped", None, "clips"),
        ("reverse, clipped", None, "clips"),
        ("k1", None, "sampled tokens"),
        ("jsd, top-4 of the student", None, "part of the vocabulary"),
        ("jsd 0.1", TrustRegion, "two models"),
        ("reverse", Extrapolated, "two models"),
    ],
)
def test_what_the_kernels_lack_is_refused(name, objective, lacking):
    made = Case(DIVERGENCES[name]).objective if objective is None else objective()
    made.name, made.divergence, made.uses_reference = "this", DIVERGENCES[name], objective is Extrapolated
    loss_trl.check_kernel("tiled", made)
    with pytest.raises(UserError, match=lacking) as refusal:
        loss_trl.check_kernel("trl", made)
    assert "\n" not in str(refusal.value)


def test_heads_of_unlike_size_are_refused():
    case = Case(DIVERGENCES["reverse"], sizes=(23, 19))
    with pytest.raises(UserError, match="one size"):
        loss_trl.token_loss(case.hidden, case.head, case.tokens, case.objective, case.policy, case.scorer_heads)


def test_an_unknown_kernel_is_refused(student, tokenizer, dataset, tmp_path):
    config = GRPOConfig(**settings(tmp_path, loss_kernel="triton"))
    with pytest.raises(UserError, match="loss_kernel"):
        GRPOTrainer(student, digit_reward, config, dataset, processing_class=tokenizer)


@pytest.mark.parametrize("method", ["grpo", "opd"])
def test_training_is_the_same_through_both(method, student_path, tokenizer, dataset, tmp_path):
    def train(kernel):
        options = settings(tmp_path / kernel, max_steps=2, loss_kernel=kernel)
        options["model_init_kwargs"] = {"dtype": "float32"}
        if method == "grpo":
            trainer = GRPOTrainer(
                student_path, digit_reward, GRPOConfig(**options), dataset, processing_class=tokenizer
            )
        else:
            config = OPDConfig(**options, temperature=0.9)
            teacher = make_model(tokenizer, seed=1)
            trainer = OPDTrainer(student_path, None, config, dataset, processing_class=tokenizer, teacher_model=teacher)
        trainer.train()
        return trainer

    ours, theirs = train("auto"), train("trl")
    assert losses(theirs) == pytest.approx(losses(ours), abs=2e-5)
    for mine, reference in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-4, rtol=1e-3)


def test_an_adapter_on_the_head_is_refused_before_the_model_is_loaded(dataset, tmp_path):
    from peft import LoraConfig

    config = GRPOConfig(**settings(tmp_path))
    with pytest.raises(UserError, match="lm_head") as refusal:
        GRPOTrainer("no-such-model", digit_reward, config, dataset, peft_config=LoraConfig(target_modules=["lm_head"]))
    assert "\n" not in str(refusal.value)
