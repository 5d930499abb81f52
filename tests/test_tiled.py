"""The tiled loss against a dense one in float64: values, gradients, and what must not change them."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from trl_opd import tiled
from trl_opd.encoding import completion_hidden
from trl_opd.loss import Tokens, token_loss
from trl_opd.objectives.base import Objective
from trl_opd.objectives.divergence import Divergence
from trl_opd.policy import PolicyGradient
from trl_opd.tiled import Head, by_autograd, sampled_logps_and_entropy, tiled_sum

VOCABULARY, WIDTH = 17, 8
#: Rows of a tile and of its parts here, for a head of that vocabulary in float32.
ROWS_PER_TILE, ROWS_PER_BLOCK = 64, 5
POLICY = PolicyGradient(
    loss_type="dapo",
    epsilon_low=0.2,
    epsilon_high=0.28,
    delta=None,
    sapo_temperature_pos=1.0,
    sapo_temperature_neg=1.05,
    beta=0.1,
    bias_correct_kl=False,
)
FORWARD = Divergence("forward_kl")
CLIPPED = Divergence("forward_kl", entry_clip=0.05)
REVERSE = Divergence("reverse_kl")
SAMPLED = Divergence("reverse_kl", estimator="k1")
MIXTURE = Divergence("jsd", jsd_beta=0.3)
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "temperature": {"temperature": 0.7},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0},
    "everything": {"bias": True, "temperature": 1.1, "scale": 2.0, "softcap": 5.0},
}


@dataclass
class Case:
    """Student, teacher and weights of N tokens, in float32; every fourth token feeds pg, kl, ce or all three."""

    hidden: torch.Tensor
    head: Head
    teacher_hidden: torch.Tensor
    teacher_head: Head
    tokens: Tokens


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles and blocks of a few rows, so that a few hundred tokens fill several."""
    monkeypatch.setattr(tiled, "TILE_BYTES", {"cpu": ROWS_PER_TILE * VOCABULARY * 4})
    monkeypatch.setattr(tiled, "BLOCK_BYTES", ROWS_PER_BLOCK * VOCABULARY * 4)


def objective(divergence: Divergence | None) -> Objective:
    made = Objective()
    made.divergence = divergence
    return made


def random_head(generator, vocabulary=VOCABULARY, bias=False, **options) -> Head:
    weight = torch.randn(vocabulary, WIDTH, generator=generator)
    made = torch.randn(vocabulary, generator=generator) if bias else None
    return Head(weight=weight, bias=made, **({"temperature": 1.0} | options))


def case(n: int, *, teacher_vocabulary: int = VOCABULARY, vocabulary: int = VOCABULARY, seed: int = 0, **head) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    turn = torch.arange(n) % 4
    weight = {name: torch.rand(n, generator=generator) + 0.5 for name in ("pg", "kl", "ce")}
    pg, kl, ce = ((turn == i) | (turn == 3) for i in range(3))
    made = Case(
        hidden=normal(n, WIDTH).requires_grad_(),
        head=random_head(generator, vocabulary, **head),
        teacher_hidden=normal(n, WIDTH),
        teacher_head=random_head(generator, teacher_vocabulary, **head),
        tokens=Tokens(
            ids=torch.randint(min(vocabulary, teacher_vocabulary), (n,), generator=generator),
            pg=weight["pg"] * pg,
            kl=weight["kl"] * kl,
            ce=weight["ce"] * ce,
            penalty=weight["pg"] * pg,
            advantages=normal(n),
            old_logps=None,
            ref_logps=None,
            scorer_logps=[],
            scorer_hidden=[],
        ),
    )
    made.head.weight.requires_grad_()
    if made.head.bias is not None:
        made.head.bias.requires_grad_()
    logps, _ = sampled_logps_and_entropy(made.teacher_hidden, made.teacher_head, made.tokens.ids)
    made.tokens.scorer_logps, made.tokens.scorer_hidden = [logps], [made.teacher_hidden]
    current, _ = sampled_logps_and_entropy(made.hidden, made.head, made.tokens.ids)
    made.tokens.old_logps = current + 0.3 * normal(n)
    made.tokens.ref_logps = current + 0.3 * normal(n)
    return made


def leaves(made: Case) -> list[torch.Tensor]:
    candidates = (made.hidden, made.head.weight, made.head.bias)
    return [leaf for leaf in candidates if leaf is not None and leaf.requires_grad]


def run(made: Case, divergence: Divergence | None = REVERSE, policy=POLICY, upstream: float = 1.0):
    """Loss, gradients of the leaves, and facts of `token_loss`."""
    loss, facts = token_loss(
        made.hidden, made.head, made.tokens, objective(divergence), policy, [made.teacher_head] if divergence else []
    )
    return loss.detach(), torch.autograd.grad(loss * upstream, leaves(made)), facts


def dense_logps(hidden, weight, bias, head: Head):
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return F.log_softmax(logits / head.temperature, dim=-1)


def dense_divergence(p, q, sampled_p, sampled_q, divergence: Divergence):
    if divergence.estimator == "k1":
        return (sampled_p - sampled_q).detach() * sampled_p
    if divergence.kind == "reverse_kl":
        return (p.exp() * (p - q)).sum(-1)
    if divergence.kind == "jsd":
        b = divergence.jsd_beta
        m = (b * q.exp() + (1 - b) * p.exp()).log()
        return b * (q.exp() * (q - m)).sum(-1) + (1 - b) * (p.exp() * (p - m)).sum(-1)
    summands = q.exp() * (q - p)
    cap = math.inf if divergence.entry_clip is None else divergence.entry_clip
    return torch.minimum(summands, torch.full_like(summands, cap)).sum(-1)


def dense(made: Case, divergence: Divergence | None = REVERSE, policy=POLICY):
    """What `run` must give, from whole [N, V] tensors in float64; heads are cut to their common size."""
    double = [leaf.detach().double().requires_grad_() for leaf in leaves(made)]
    by_leaf = dict(zip(map(id, leaves(made)), double, strict=True))

    def as_double(tensor):
        return None if tensor is None else by_leaf.get(id(tensor), tensor.detach().double())

    tokens = made.tokens
    p = dense_logps(as_double(made.hidden), as_double(made.head.weight), as_double(made.head.bias), made.head)
    sampled = p[torch.arange(len(p)), tokens.ids]
    loss = -(tokens.ce.double() * sampled).sum()
    if policy is not None:
        ratio = (sampled - tokens.old_logps).exp()
        capped = ratio.clamp(1 - policy.epsilon_low, 1 + policy.epsilon_high)
        surrogate = -torch.minimum(ratio * tokens.advantages, capped * tokens.advantages)
        log_ratio = tokens.ref_logps - sampled
        penalty = log_ratio.exp() - log_ratio - 1
        loss = loss + (tokens.pg * surrogate + policy.beta * tokens.penalty * penalty).sum()
    if divergence is not None:
        teacher = made.teacher_head
        q = dense_logps(as_double(made.teacher_hidden), as_double(teacher.weight), as_double(teacher.bias), teacher)
        sampled_q = q[torch.arange(len(q)), tokens.ids]
        common = min(p.shape[-1], q.shape[-1])
        p_cut, q_cut = p[:, :common].log_softmax(-1), q[:, :common].log_softmax(-1)
        loss = loss + (tokens.kl * dense_divergence(p_cut, q_cut, sampled, sampled_q, divergence)).sum()
    return loss.detach(), torch.autograd.grad(loss, double)


def assert_close(ours, reference, rtol=2e-5, atol=2e-5):
    loss, gradients = ours[:2]
    expected_loss, expected_gradients = reference[:2]
    torch.testing.assert_close(loss.double(), expected_loss.double(), rtol=rtol, atol=atol)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), expected.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("n", [0, 1, ROWS_PER_TILE - 1, ROWS_PER_TILE, ROWS_PER_TILE + 1, 200])
@pytest.mark.parametrize("divergence", [FORWARD, CLIPPED, REVERSE, SAMPLED, MIXTURE])
def test_c9_tiled_equals_dense(n, divergence):
    made = case(n)
    ours = run(made, divergence)
    assert_close(ours, dense(made, divergence))
    assert n == 0 or ours[1][0].abs().max() > 1e-3


@pytest.mark.parametrize("name", HEADS)
def test_c9_heads_of_every_kind(name):
    made = case(ROWS_PER_TILE + 1, **HEADS[name])
    ours = run(made)
    assert len(ours[1]) == (3 if made.head.bias is not None else 2)
    assert_close(ours, dense(made))


@pytest.mark.parametrize("component", ["pg", "kl", "ce"])
def test_each_component_alone(component):
    made = case(70)
    for name in ("pg", "kl", "ce"):
        setattr(made.tokens, name, torch.full((70,), 0.5 if name == component else 0.0))
    made.tokens.penalty = made.tokens.pg
    divergence = REVERSE if component == "kl" else None
    policy = POLICY if component == "pg" else None
    ours = run(made, divergence, policy)
    assert_close(ours, dense(made, divergence, policy))
    assert ours[1][0].abs().max() > 1e-3


def test_without_old_logps_the_first_update_is_reinforce():
    made = case(70)
    made.tokens.old_logps = made.tokens.ref_logps = None
    made.tokens.ce = torch.zeros(70)
    loss, gradients, facts = run(made, divergence=None)
    tokens = made.tokens
    torch.testing.assert_close(loss, -(tokens.pg * tokens.advantages).sum())
    made.tokens = replace(tokens, ce=tokens.pg * tokens.advantages)
    _, likelihood_gradients, _ = run(made, divergence=None, policy=None)
    for gradient, expected in zip(gradients, likelihood_gradients, strict=True):
        torch.testing.assert_close(gradient, expected)
    assert facts["clip_ratio/region_mean"].sum() == 0
    assert "kl" not in facts


@pytest.mark.parametrize("divergence", [FORWARD, SAMPLED])
@pytest.mark.parametrize(("ratio", "factor", "capped"), [(1.0, 1.0, 0.0), (1.5, 1.5, 0.0), (4.0, 2.0, 1.0)])
def test_s3_the_capped_importance_weight_scales_divergence_and_likelihood(divergence, ratio, factor, capped):
    made = case(70)
    expected = run(made, divergence, policy=None)
    current, _ = sampled_logps_and_entropy(made.hidden, made.head, made.tokens.ids)
    made.tokens.old_logps = current - math.log(ratio)
    weighed = objective(divergence)
    weighed.importance_cap = 2.0
    loss, facts = token_loss(made.hidden, made.head, made.tokens, weighed, None, [made.teacher_head])
    torch.testing.assert_close(loss.detach(), factor * expected[0], rtol=2e-5, atol=2e-5)
    for gradient, unweighed in zip(torch.autograd.grad(loss, leaves(made)), expected[1], strict=True):
        torch.testing.assert_close(gradient, factor * unweighed, rtol=2e-5, atol=2e-5)
    assert facts["distill/importance_capped"].sum() == capped * (made.tokens.kl != 0).sum()


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(frozen):
    made = case(70, bias=True)
    everything = dict(zip(("hidden", "weight", "bias"), run(made)[1], strict=True))
    (made.hidden if frozen == "hidden" else made.head.weight).requires_grad_(False)
    loss, _ = token_loss(
        made.hidden, made.head, made.tokens, objective(REVERSE), POLICY, scorer_heads=[made.teacher_head]
    )
    loss.backward()
    for name, leaf in (("hidden", made.hidden), ("weight", made.head.weight), ("bias", made.head.bias)):
        if name == frozen:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, everything[name])


def test_under_no_grad_the_value_is_the_same():
    made = case(70)
    expected = run(made)[0]
    with torch.no_grad():
        loss, _ = token_loss(made.hidden, made.head, made.tokens, objective(REVERSE), POLICY, [made.teacher_head])
    torch.testing.assert_close(loss, expected)
    assert not loss.requires_grad


def test_the_upstream_gradient_scales_the_saved_one():
    made = case(70, bias=True)
    once, thrice = run(made), run(made, upstream=3.0)
    for gradient, scaled in zip(once[1], thrice[1], strict=True):
        torch.testing.assert_close(scaled, 3.0 * gradient)


def test_tied_heads_add_to_the_gradient_of_the_embedding():
    """One tensor as embedding and as head: autograd must sum both ways into it."""
    weight = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(3), requires_grad=True)
    ids = torch.arange(10)
    loss, _ = tiled_sum(
        weight[ids],
        Head(weight=weight, bias=None, temperature=1.0),
        by_autograd(lambda logps, rows: (-logps[:, 0].sum(), {})),
    )
    (gradient,) = torch.autograd.grad(loss, weight)
    (expected,) = torch.autograd.grad(-(weight[ids] @ weight.T).log_softmax(-1)[:, 0].sum(), weight)
    torch.testing.assert_close(gradient, expected, rtol=2e-5, atol=2e-5)


def test_the_order_of_rows_changes_neither_loss_nor_facts():
    n = 150
    made = case(n)

    def tile_loss(logps, rows):
        return (made.tokens.ce[rows] * logps[:, 3]).sum(), {"row": rows, "logp": logps[:, 3]}

    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    results = [tiled_sum(made.hidden, made.head, by_autograd(tile_loss), given) for given in (None, order)]
    gradients = [torch.autograd.grad(loss, leaves(made)) for loss, _ in results]
    torch.testing.assert_close(results[0][0], results[1][0])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)
    for _, facts in results:
        assert facts["row"].tolist() == list(range(n))
        assert not facts["logp"].requires_grad
    torch.testing.assert_close(results[0][1]["logp"], results[1][1]["logp"])


@pytest.mark.parametrize("divergence", [REVERSE, CLIPPED, SAMPLED])
def test_rows_without_divergence_weight_never_reach_the_scorers(divergence):
    made = case(200)
    expected = run(made, divergence)
    idle = made.tokens.kl == 0
    made.tokens.scorer_hidden = [made.teacher_hidden.masked_fill(idle[:, None], math.nan)]
    made.tokens.scorer_logps = [made.tokens.scorer_logps[0].masked_fill(idle, math.nan)]
    loss, gradients, facts = run(made, divergence)
    assert torch.equal(loss, expected[0])
    for gradient, wanted in zip(gradients, expected[1], strict=True):
        assert torch.equal(gradient, wanted)
    for name, fact in facts.items():
        assert torch.equal(fact, expected[2][name]), name


def test_rows_with_divergence_weight_share_as_few_tiles_as_they_fill():
    """Every projection reads a whole head: scattered rows must not cost one each tile."""
    sizes = []

    class CountingHead(Head):
        def project(self, hidden_NH, out=None):
            sizes.append(len(hidden_NH))
            return super().project(hidden_NH, out)

    made = case(4 * ROWS_PER_TILE)
    made.teacher_head = CountingHead(**vars(made.teacher_head))
    run(made)
    assert [size for size in sizes if size] == [ROWS_PER_TILE, ROWS_PER_TILE]


def test_c8_masked_positions_change_nothing_even_if_not_finite():
    made = case(12)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1], [0, 1, 1, 1, 1, 0]]).bool()
    results = []
    for garbage in (0.0, math.inf, math.nan):
        padded = torch.full((*mask.shape, WIDTH), garbage)
        padded[mask] = made.hidden.detach()
        padded.requires_grad_()
        loss, _ = token_loss(
            padded[mask], made.head, made.tokens, objective(REVERSE), POLICY, scorer_heads=[made.teacher_head]
        )
        results.append((loss.detach(), *torch.autograd.grad(loss, (padded, made.head.weight))))
    assert (results[0][1][~mask] == 0).all()
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize(("vocabulary", "teacher_vocabulary"), [(17, 21), (21, 17)])
@pytest.mark.parametrize("divergence", [FORWARD, REVERSE, MIXTURE])
def test_heads_padded_to_different_sizes_are_renormalised(vocabulary, teacher_vocabulary, divergence):
    made = case(70, vocabulary=vocabulary, teacher_vocabulary=teacher_vocabulary)
    ours = run(made, divergence)
    assert_close(ours, dense(made, divergence))


@pytest.mark.parametrize("divergence", [FORWARD, CLIPPED, REVERSE, SAMPLED, MIXTURE])
def test_c10_a_teacher_equal_to_the_student_gives_no_loss_and_no_gradient(divergence):
    made = case(70, temperature=1.1)
    made.tokens.ce = torch.zeros(70)
    made.teacher_hidden, made.teacher_head = made.hidden.detach(), made.head
    logps, _ = sampled_logps_and_entropy(made.hidden, made.head, made.tokens.ids)
    made.tokens.scorer_hidden, made.tokens.scorer_logps = [made.teacher_hidden], [logps]
    loss, gradients, facts = run(made, divergence, policy=None)
    assert loss.abs() < 2e-5
    for gradient in gradients:
        assert gradient.abs().max() < 2e-5
    fact = "distill/log_ratio" if divergence is SAMPLED else "distill/divergence"
    assert facts[fact].abs().max() < 2e-6


@pytest.mark.parametrize("divergence", [FORWARD, CLIPPED, REVERSE, MIXTURE])
def test_c10_the_teacher_gets_no_gradient(divergence):
    made = case(70)
    expected = run(made, divergence)
    made.teacher_head.weight.requires_grad_()
    made.teacher_hidden.requires_grad_()
    loss, _ = token_loss(made.hidden, made.head, made.tokens, objective(divergence), POLICY, [made.teacher_head])
    loss.backward()
    assert made.teacher_head.weight.grad is None
    assert made.teacher_hidden.grad is None
    torch.testing.assert_close(made.hidden.grad, expected[1][0])


def test_c10_a_head_shared_with_the_teacher_gets_the_student_gradient_alone():
    """A borrowed teacher projects through the very tensor that is trained."""
    made = case(70)
    made.teacher_head = Head(weight=made.head.weight.detach().clone(), bias=None, temperature=1.0)
    expected = run(made)
    made.teacher_head = made.head
    assert_close(run(made), expected, rtol=0, atol=0)


def test_facts_have_one_value_a_token():
    made = case(150)
    _, _, facts = run(made, CLIPPED)
    assert set(facts) == {
        "entropy",
        "kl",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "distill/divergence",
        "distill/entry_clip_mass",
        "distill/log_ratio",
        "distill/teacher_entropy",
    }
    for name, fact in facts.items():
        assert fact.shape == (150,), name
        assert not fact.requires_grad, name
    tokens, scored = made.tokens, made.tokens.kl != 0
    p = dense_logps(made.hidden.detach().double(), made.head.weight.detach().double(), None, made.head)
    q = dense_logps(made.teacher_hidden.double(), made.teacher_head.weight.double(), None, made.teacher_head)
    sampled = p.gather(-1, tokens.ids[:, None]).squeeze(-1)
    summands = q.exp() * (q - p)
    log_ratio = tokens.ref_logps - sampled
    ratio = (sampled - tokens.old_logps).exp()
    expected = {
        "entropy": -(p.exp() * p).sum(-1),
        "kl": log_ratio.exp() - log_ratio - 1,
        "clip_ratio/low_mean": (ratio < 0.8) & (tokens.advantages < 0),
        "clip_ratio/high_mean": (ratio > 1.28) & (tokens.advantages > 0),
        "distill/divergence": summands.clamp(max=0.05).sum(-1) * scored,
        "distill/entry_clip_mass": (q.exp() * (summands > 0.05)).sum(-1) * scored,
        "distill/teacher_entropy": -(q.exp() * q).sum(-1) * scored,
    }
    for name, values in expected.items():
        torch.testing.assert_close(facts[name].double(), values.double(), rtol=2e-5, atol=2e-5, msg=name)
    assert facts["clip_ratio/low_mean"].sum() > 0


def test_facts_of_a_sampled_estimator_are_the_log_ratios():
    made = case(70)
    _, _, facts = run(made, SAMPLED, policy=None)
    assert set(facts) == {"entropy", "distill/log_ratio"}
    logps, _ = sampled_logps_and_entropy(made.hidden, made.head, made.tokens.ids)
    expected = (logps - made.tokens.scorer_logps[0]) * (made.tokens.kl != 0)
    torch.testing.assert_close(facts["distill/log_ratio"], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", HEADS)
def test_sampled_logps_and_entropy(name):
    made = case(200, **HEADS[name])
    logps, entropies = sampled_logps_and_entropy(made.hidden, made.head, made.tokens.ids)
    bias = None if made.head.bias is None else made.head.bias.double()
    p = dense_logps(made.hidden.double(), made.head.weight.double(), bias, made.head).detach()
    torch.testing.assert_close(
        logps.double(), p[torch.arange(200), made.tokens.ids], rtol=2e-5, atol=2e-5, check_device=False
    )
    torch.testing.assert_close(entropies.double(), -(p.exp() * p).sum(-1), rtol=2e-5, atol=2e-5)
    assert not logps.requires_grad


def test_bf16_is_near_the_float32_loss():
    made = case(200)
    expected_loss, expected_gradients = dense(made)
    low = replace(made)
    low.hidden = made.hidden.detach().bfloat16().requires_grad_()
    low.head = replace(made.head, weight=made.head.weight.detach().bfloat16().requires_grad_())
    low.teacher_head = replace(made.teacher_head, weight=made.teacher_head.weight.bfloat16())
    low.tokens = replace(made.tokens, scorer_hidden=[made.teacher_hidden.bfloat16()])
    loss, gradients, _ = run(low)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected_loss.item(), rel=0.05)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert F.cosine_similarity(gradient.double().flatten(), expected.flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Qwen3", {}),
        ("Gemma2", {"final_logit_softcapping": 2.0}),
        ("Cohere", {"logit_scale": 0.25}),
        ("Granite", {"logits_scaling": 3.0}),
        ("HyperCLOVAX", {"logits_scaling": 3.0}),
    ],
)
def test_a_head_gives_the_log_probabilities_of_its_model(family, options):
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    ids = torch.randint(VOCABULARY, (2, 9))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        head = Head.of(model, temperature=0.8)
        hidden = completion_hidden(model, ids, torch.ones_like(ids), completion_length=4).flatten(0, 1)
        logps = head.logps(head.project(hidden))
    torch.testing.assert_close(logps, (logits[:, 4:8].flatten(0, 1) / 0.8).log_softmax(-1), rtol=2e-5, atol=2e-5)
    if options:
        unscaled = replace(head, scale=1.0, softcap=None)
        assert not torch.allclose(logps, unscaled.logps(unscaled.project(hidden)), atol=1e-2)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("kind", [{"kind": "forward_kl"}, {"kind": "reverse_kl"}, {"kind": "jsd", "jsd_beta": 0.3}])
def test_a_stored_top_k_gives_the_loss_of_the_live_teacher(kind, tail):
    """All that is known of the teacher are its likeliest tokens: the same loss, with no scorer's hidden states."""
    made = case(150)
    divergence = Divergence(**kind, estimator="topk", support_size=4, support_owner="teacher", support_tail=tail)
    live_loss, live_gradients, live_facts = run(made, divergence)
    teacher = made.teacher_head.logps(made.teacher_head.project(made.teacher_hidden))
    top = teacher.topk(4)
    made.tokens = replace(made.tokens, scorer_support=(top.indices, top.values), scorer_hidden=[])
    loss, facts = token_loss(made.hidden, made.head, made.tokens, objective(divergence), POLICY, [])
    torch.testing.assert_close(loss.detach(), live_loss)
    for gradient, expected in zip(torch.autograd.grad(loss, leaves(made)), live_gradients, strict=True):
        torch.testing.assert_close(gradient, expected)
    assert set(live_facts) - set(facts) == {"distill/teacher_entropy"}
    for name in facts:
        torch.testing.assert_close(facts[name], live_facts[name], rtol=1e-4, atol=1e-5, msg=name)
