"""The loss and its gradients in float64 against autograd on whole [N, V] tensors, for every choice there is."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from trl_opd import tiled
from trl_opd.closed_forms import Distribution
from trl_opd.errors import UserError
from trl_opd.loss import LOG_RATIO_LIMIT, Tokens, token_loss
from trl_opd.objectives.base import Objective
from trl_opd.objectives.divergence import Divergence
from trl_opd.policy import PolicyGradient
from trl_opd.tiled import Head, sampled_logps_and_entropy

VOCABULARY, WIDTH, N = 23, 6, 40
DIVERGENCES = {
    "forward": Divergence("forward_kl"),
    "forward, clipped": Divergence("forward_kl", entry_clip=0.05),
    "reverse": Divergence("reverse_kl"),
    "reverse, clipped": Divergence("reverse_kl", advantage_clip=0.4),
    "jsd 0.1": Divergence("jsd", jsd_beta=0.1),
    "jsd 0.7": Divergence("jsd", jsd_beta=0.7),
    "k1": Divergence("reverse_kl", estimator="k1"),
    "k2": Divergence("reverse_kl", estimator="k2"),
    "k3": Divergence("forward_kl", estimator="k3"),
} | {
    f"{kind}, top-4 of the {owner}{'' if tail else ', no tail'}": Divergence(
        **options, estimator="topk", support_size=4, support_owner=owner, support_tail=tail
    )
    for (kind, options), owner, tail in itertools.product(
        {
            "forward": {"kind": "forward_kl"},
            "forward, clipped": {"kind": "forward_kl", "entry_clip": 0.05},
            "reverse, clipped": {"kind": "reverse_kl", "advantage_clip": 0.4},
            "jsd": {"kind": "jsd", "jsd_beta": 0.3},
        }.items(),
        ("student", "teacher"),
        (True, False),
    )
}
HEADS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "softcap": {"softcap": 2.5, "temperature": 1.3},
    "bias and scale": {"bias": True, "scale": 0.5},
    "everything": {"bias": True, "temperature": 1.2, "scale": 2.0, "softcap": 4.0},
}
LOSS_TYPES = ("dapo", "cispo", "sapo")


class TrustRegion(Objective):
    trust_region_rate = 0.3


class Extrapolated(Objective):
    """An unnormalised target, from teacher and reference."""

    def target(self, scorer_logps):
        teacher, reference = scorer_logps
        return reference + 1.25 * (teacher - reference)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiled, "TILE_BYTES", {"cpu": 16 * VOCABULARY * 8})
    monkeypatch.setattr(tiled, "BLOCK_BYTES", 3 * VOCABULARY * 8)


class Case:
    """N tokens in float64 with random weights, of which every fourth feeds one component or all of them."""

    def __init__(self, divergence, *, objective=Objective, scorers=1, sizes=(VOCABULARY,), n=N, seed=0, **head):
        self.generator = torch.Generator().manual_seed(seed)
        sizes = (*sizes, *[sizes[-1]] * (scorers + 1 - len(sizes)))
        self.objective = objective()
        self.objective.divergence = divergence
        self.objective.importance_cap = 1.5
        self.policy = policy("dapo")
        self.head = self.random_head(sizes[0], **head)
        self.hidden = self.normal(n, WIDTH)
        self.scorer_heads = [self.random_head(size, **head) for size in sizes[1:]]
        turn = torch.arange(n) % 4
        pg, kl, ce = (((turn == i) | (turn == 3)) * (self.normal(n).abs() + 0.1) for i in range(3))
        self.common = min(sizes)
        self.tokens = Tokens(
            ids=torch.randint(self.common, (n,), generator=self.generator),
            pg=pg,
            kl=kl,
            ce=ce,
            penalty=0.5 * pg,
            advantages=self.normal(n),
            old_logps=None,
            ref_logps=None,
            scorer_logps=[],
            scorer_hidden=[self.normal(n, WIDTH) for _ in self.scorer_heads],
        )
        own = self.dense_logps(self.hidden, self.head).gather(-1, self.tokens.ids[:, None]).squeeze(-1)
        self.tokens.old_logps, self.tokens.ref_logps = (own + 0.3 * self.normal(n) for _ in range(2))
        self.tokens.scorer_logps = [
            sampled_logps_and_entropy(hidden, scorer, self.tokens.ids, self.common)[0]
            for hidden, scorer in zip(self.tokens.scorer_hidden, self.scorer_heads, strict=True)
        ]

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def random_head(self, size, bias=False, **options):
        made = self.normal(size) if bias else None
        return Head(weight=self.normal(size, WIDTH), bias=made, **({"temperature": 1.0} | options))

    @staticmethod
    def dense_logps(hidden, head):
        logits = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        return (logits / head.temperature).log_softmax(-1)

    def leaves(self):
        tensors = [self.hidden, self.head.weight, *([] if self.head.bias is None else [self.head.bias])]
        return [tensor.detach().clone().requires_grad_() for tensor in tensors]

    def tiled(self, *leaves):
        hidden, weight, *bias = leaves
        head = replace(self.head, weight=weight, bias=bias[0] if bias else None)
        return token_loss(
            hidden, head, self.tokens, self.objective, self.policy, self.scorer_heads, self.common
        )  # fmt: skip

    def dense(self, *leaves):
        """The same by autograd on whole tensors, from the pure functions."""
        hidden, weight, *bias = leaves
        tokens, divergence = self.tokens, self.objective.divergence
        student = self.dense_logps(hidden, replace(self.head, weight=weight, bias=bias[0] if bias else None))
        own = student.gather(-1, tokens.ids[:, None]).squeeze(-1)
        ratio = (own.detach() - tokens.old_logps).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        importance = ratio.clamp(max=self.objective.importance_cap)
        loss = -(tokens.ce * importance * own).sum()
        if self.policy is not None:
            surrogate = self.policy.surrogate(own, tokens.old_logps, tokens.advantages)
            penalty = self.policy.penalty(own, tokens.old_logps, tokens.ref_logps)
            loss = loss + (tokens.pg * surrogate + self.policy.beta * tokens.penalty * penalty).sum()
        inside = student[:, : self.common].log_softmax(-1)
        scorers = [
            self.dense_logps(states, head)[:, : self.common].log_softmax(-1)
            for states, head in zip(tokens.scorer_hidden, self.scorer_heads, strict=True)
        ]
        target = self.objective.target(scorers)
        if divergence.sampled:
            sampled = (side.gather(-1, tokens.ids[:, None]).squeeze(-1) for side in (inside, target))
            value = divergence.on_sampled(*sampled)
        else:
            value = divergence.over_vocabulary(inside, target)
        return loss + (tokens.kl * importance * value).sum()


def policy(loss_type: str) -> PolicyGradient:
    return PolicyGradient(
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.28,
        delta=None,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        beta=0.1,
        bias_correct_kl=True,
    )


def assert_exact(case: Case) -> None:
    leaves = case.leaves()
    loss, _ = case.tiled(*leaves)
    expected = case.dense(*leaves)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-11)
    gradients = torch.autograd.grad(loss, leaves)
    assert gradients[0].abs().max() > 1e-3
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_on_every_head(name, head):
    assert_exact(Case(DIVERGENCES[name], **HEADS[head]))


@pytest.mark.parametrize("sizes", [(VOCABULARY, 19), (19, VOCABULARY)], ids=["student padded", "teacher padded"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_heads_of_unlike_size_are_cut_and_renormalised_on_both_sides(name, sizes):
    assert_exact(Case(DIVERGENCES[name], sizes=sizes, softcap=3.0))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("name", ["k1", "jsd 0.7"])
def test_every_surrogate_beside_a_divergence(name, loss_type):
    case = Case(DIVERGENCES[name])
    case.policy = policy(loss_type)
    assert_exact(case)


@pytest.mark.parametrize("sizes", [(VOCABULARY,), (VOCABULARY, 19, 21)])
@pytest.mark.parametrize(
    ("objective", "names"),
    [
        (TrustRegion, ["forward", "forward, clipped", "reverse, clipped", "jsd 0.7", "jsd, top-4 of the student"]),
        (Extrapolated, ["reverse", "k1"]),
    ],
)
def test_targets_from_two_scorers(objective, names, sizes):
    for name in names:
        assert_exact(Case(DIVERGENCES[name], objective=objective, scorers=2, sizes=sizes, temperature=0.8))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_tokens_no_loss_and_no_gradient(name):
    case = Case(DIVERGENCES[name], n=0)
    leaves = case.leaves()
    loss, facts = case.tiled(*leaves)
    assert loss == 0
    assert all(len(fact) == 0 for fact in facts.values())
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, leaves))
    assert set(facts) == set(Case(DIVERGENCES[name]).tiled(*Case(DIVERGENCES[name]).leaves())[1])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_tokens_without_divergence_weight_leave_the_names_of_the_facts(name):
    """Processes reduce the facts together: their names must not depend on the rows."""
    case = Case(DIVERGENCES[name])
    names = set(case.tiled(*case.leaves())[1])
    case.tokens.kl = torch.zeros_like(case.tokens.kl)
    _, facts = case.tiled(*case.leaves())
    assert set(facts) == names
    assert all((fact == 0).all() for name, fact in facts.items() if name.startswith("distill/"))


@pytest.mark.parametrize("name", ["forward, clipped", "reverse, clipped", "jsd, top-4 of the teacher", "k3"])
def test_the_order_of_the_tokens_is_of_no_consequence(name):
    case = Case(DIVERGENCES[name])
    leaves = case.leaves()
    loss, facts = case.tiled(*leaves)
    order = torch.randperm(N, generator=case.generator)
    tokens = case.tokens
    for field, value in vars(tokens).items():
        if isinstance(value, torch.Tensor):
            setattr(tokens, field, value[order])
        elif isinstance(value, list):
            setattr(tokens, field, [tensor[order] for tensor in value])
    hidden, *others = leaves
    shuffled, shuffled_facts = case.tiled(hidden[order], *others)
    torch.testing.assert_close(loss, shuffled, rtol=1e-12, atol=1e-12)
    for first, second in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(shuffled, leaves), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-11, atol=1e-11)
    for fact, values in facts.items():
        torch.testing.assert_close(values[order], shuffled_facts[fact], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["forward", "reverse", "jsd 0.1", "jsd, top-4 of the student", "k2"])
def test_gradients_against_finite_differences(name):
    """With no importance weight and no surrogate, whose detached factors differences would see."""
    case = Case(DIVERGENCES[name], n=6, bias=True, softcap=4.0, temperature=0.9)
    case.objective.importance_cap = None
    case.policy = None
    leaves = case.leaves()
    gradients = torch.autograd.grad(case.tiled(*leaves)[0], leaves)
    for index, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
        direction = case.normal(*leaf.shape)
        ahead, behind = (
            case.tiled(*leaves[:index], (leaf + step * direction).detach(), *leaves[index + 1 :])[0]
            for step in (1e-6, -1e-6)
        )
        slope = ((ahead - behind) / 2e-6).item()
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_the_gradient_is_taken_once():
    case = Case(DIVERGENCES["reverse"])
    leaves = case.leaves()
    loss, _ = case.tiled(*leaves)
    torch.autograd.grad(loss, leaves, retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("name", ["forward, clipped", "jsd 0.7", "jsd, top-4 of the student"])
def test_a_divergence_of_ones_own_is_differentiated_by_autograd(name):
    """A subclass that overrides the value must not get the gradient of what it has overridden."""

    class Doubled(Divergence):
        def over_vocabulary(self, student, target):
            return 2.0 * super().over_vocabulary(student, target) + student[:, 0].square()

    case = Case(Doubled(**vars(DIVERGENCES[name])), sizes=(VOCABULARY, 20), softcap=3.0)
    assert_exact(case)


class Distance:
    """No subclass at all: half the squared distance of the probabilities."""

    sampled = False

    def over_vocabulary(self, student, target):
        return (student.exp() - target.exp()).square().sum(-1) / 2.0

    def facts(self, student, target):
        return {"distill/largest": (student.exp() - target.exp()).abs().amax(-1)}


def test_any_class_with_a_value_and_facts_is_a_divergence():
    case = Case(Distance())
    assert_exact(case)
    _, facts = case.tiled(*case.leaves())
    assert facts["distill/largest"].max() > 0.05


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if not DIVERGENCES[name].sampled])
def test_facts_are_those_of_the_named_divergence(name):
    case = Case(DIVERGENCES[name])
    _, facts = case.tiled(*case.leaves())
    student = case.dense_logps(case.hidden, case.head)
    target = case.dense_logps(case.tokens.scorer_hidden[0], case.scorer_heads[0])
    live = case.tokens.kl != 0
    expected = case.objective.divergence.facts(student, target)
    expected["distill/divergence"] = case.objective.divergence.over_vocabulary(student, target)
    own = (side.gather(-1, case.tokens.ids[:, None]).squeeze(-1) for side in (student, target))
    expected["distill/log_ratio"] = torch.sub(*own)
    for fact, values in expected.items():
        torch.testing.assert_close(facts[fact], values * live, rtol=1e-9, atol=1e-11, msg=fact)
    torch.testing.assert_close(facts["entropy"], Distribution.of(student).entropy())


def test_a_token_that_a_head_excludes_has_no_part_in_the_loss():
    """A bias of -inf takes a token out of both distributions: as if it were not in the vocabulary."""
    for name in ("forward", "reverse", "jsd 0.7", "forward, clipped", "jsd, top-4 of the student"):
        case = Case(DIVERGENCES[name], bias=True)
        case.tokens.ids[case.tokens.ids == 5] = 6
        for head in (case.head, *case.scorer_heads):
            head.bias[5] = -math.inf
        leaves = case.leaves()
        loss, facts = case.tiled(*leaves)
        gradients = torch.autograd.grad(loss, leaves)
        assert all(torch.isfinite(tensor).all() for tensor in (loss, *gradients, *facts.values()))
        assert (gradients[1][5] == 0).all()
        kept = [row for row in range(VOCABULARY) if row != 5]
        case.head, case.scorer_heads = (
            replace(case.head, weight=case.head.weight[kept], bias=case.head.bias[kept]),
            [replace(head, weight=head.weight[kept], bias=head.bias[kept]) for head in case.scorer_heads],
        )
        case.tokens.ids = case.tokens.ids - (case.tokens.ids > 5).long()
        case.common = VOCABULARY - 1
        smaller = case.leaves()
        expected, _ = case.tiled(*smaller)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients[0], torch.autograd.grad(expected, smaller)[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["jsd 0.7", "k1", "jsd, top-4 of the student"])
def test_autocast_projects_in_bfloat16_and_sums_in_float32(name):
    case = Case(DIVERGENCES[name])
    low = [leaf.detach().float().requires_grad_() for leaf in case.leaves()]
    tokens = {field: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
              for field, value in vars(case.tokens).items()}  # fmt: skip
    tokens |= {kind: [side.float() for side in tokens[kind]] for kind in ("scorer_logps", "scorer_hidden")}
    expected = case.dense(*[leaf.detach().double() for leaf in low])
    case.tokens = Tokens(**tokens)
    case.scorer_heads = [replace(head, weight=head.weight.float()) for head in case.scorer_heads]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = case.tiled(*low)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.03)
    assert loss.item() != pytest.approx(expected.item(), rel=1e-7)
    gradients = torch.autograd.grad(loss, low)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_a_head_is_cast_once_for_all_tiles(monkeypatch):
    casts = []

    class Counting(Head):
        def for_products(self):
            casts.append(self.vocabulary)
            return super().for_products()

    case = Case(DIVERGENCES["reverse"])
    case.head = Counting(**vars(case.head))
    case.scorer_heads = [Counting(**vars(head)) for head in case.scorer_heads]
    case.tiled(*case.leaves())
    assert casts == [VOCABULARY, VOCABULARY]


def test_a_sampled_token_of_the_padding_is_refused():
    case = Case(DIVERGENCES["k1"])
    with pytest.raises(UserError, match="padding") as refusal:
        sampled_logps_and_entropy(case.hidden, case.head, torch.full((N,), 20), vocabulary=20)
    assert "\n" not in str(refusal.value)
