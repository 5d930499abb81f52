"""Our losses against a plain implementation written here, through the file format of recorded losses."""

import json
import math

import pytest
import torch

from trl_opd import closed_forms, divergences
from trl_opd.conformance import compare, load
from trl_opd.errors import UserError
from trl_opd.objectives.divergence import Divergence
from trl_opd.objectives.exopd import ExOPD

FLOAT = torch.float64

#: A ragged batch: row 1 has no token, row 3 no teacher, row 0 a hole in the middle.
MASK = [[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
HAS_TEACHER = [1, 1, 1, 0]
VOCABULARY = 7


def make_inputs(seed: int, mask=MASK, has_teacher=HAS_TEACHER) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(mask), len(mask[0]))
    logits = [2.0 * torch.randn(*shape, VOCABULARY, generator=generator, dtype=FLOAT) for _ in range(3)]
    return {
        "student_logits": logits[0],
        "teacher_logits": logits[1],
        "ref_logits": logits[2],
        "completion_ids": torch.randint(VOCABULARY, shape, generator=generator),
        "completion_mask": torch.tensor(mask, dtype=FLOAT),
        # Wide enough that exp(-noise) is below 1, between 1 and the cap, and above the cap.
        "old_noise": 1.5 * torch.randn(*shape, generator=generator, dtype=FLOAT),
        "has_teacher": torch.tensor(has_teacher, dtype=FLOAT),
    }


def expected(inputs: dict, case: dict) -> tuple[float, torch.Tensor]:
    """The recorded outputs, by loops over tokens and sums of probabilities instead of log-probabilities."""
    student = inputs["student_logits"].clone().requires_grad_()
    temperature = case.get("temperature") or 1.0
    sdpo = case["method"].startswith("sdpo")
    row_losses, counts = [], []
    for row in range(student.shape[0]):
        losses = []
        for t in range(student.shape[1]):
            if not inputs["completion_mask"][row, t] or (sdpo and not inputs["has_teacher"][row]):
                continue
            sides = (student, inputs["teacher_logits"], inputs["ref_logits"])
            p, q, r = (torch.softmax(side[row, t] / temperature, 0) for side in sides)
            losses.append(token(p, q, r, int(inputs["completion_ids"][row, t]), case, inputs["old_noise"][row, t]))
        row_losses.append(sum(losses))
        counts.append(len(losses))
    if case.get("aggregation") == "seq-mean-token-mean":
        live = [loss / count for loss, count in zip(row_losses, counts, strict=True) if count]
        loss = sum(live) / len(live) if live else math.nan
    else:
        loss = sum(row_losses) / max(1, sum(counts))
    if not isinstance(loss, torch.Tensor):
        return float(loss), torch.zeros_like(student)
    return loss.item(), torch.autograd.grad(loss, student)[0]


def token(p, q, r, y: int, case: dict, noise):
    if case["method"] == "exopd_sampled":
        advantage = case["lam"] * (q[y] / r[y]).log() - (p[y] / r[y]).log()
        return -advantage.detach() * p[y] / p[y].detach()
    if case["method"].endswith("_sampled"):
        loss = (p[y] / q[y]).log().detach() * p[y].log()
    else:
        number = case["beta"] if case["method"] == "opsd" else case["alpha"]
        loss = d(*support(p, q, case), number)
    if case.get("is_clip") is not None:
        loss = loss * min(math.exp(-float(noise)), case["is_clip"])
    return loss


def support(p, q, case: dict):
    if not case.get("top_k"):
        return p, q
    owner = p if case["method"] == "sdpo" else q
    kept = owner.detach().argsort(descending=True)[: case["top_k"]]
    p, q = p[kept], q[kept]
    if not case.get("add_tail"):
        return p / p.sum(), q / q.sum()
    return tuple(torch.cat([side, (1 - side.sum().clamp(max=math.exp(-1e-7)))[None]]) for side in (p, q))


def d(p, q, number: float):
    m = {0: p, 1: q}.get(number, number * q + (1 - number) * p)
    from_q, from_p = (q * (q / m).log()).sum(), (p * (p / m).log()).sum()
    return number * from_q + (1 - number) * from_p if number not in (0, 1) else (from_q if number == 0 else from_p)


def sdpo_cases() -> list[dict]:
    supports = [
        {},
        {"top_k": None, "add_tail": None},
        {"top_k": 3, "support": "student", "add_tail": True},
        {"top_k": 3, "add_tail": False},
        {"top_k": VOCABULARY - 1, "add_tail": True},
        {"top_k": VOCABULARY, "add_tail": False},
    ]
    return [
        {"method": "sdpo", "alpha": alpha, "aggregation": aggregation, "is_clip": cap, "temperature": temperature}
        | support
        for alpha in (0.0, 0.25, 0.5, 1)
        for support in supports
        for aggregation in ("token-mean", "seq-mean-token-mean")
        for cap in (None, 0.5, 2.0)
        for temperature in (None, 1.3)
    ]


def all_cases() -> list[dict]:
    opsd = [
        {"method": "opsd", "beta": beta, "temperature": temperature, "aggregation": "mean over completion tokens"}
        | ({"top_k": top_k, "support": "teacher"} if top_k else {})
        for beta in (0, 0.3, 1)
        for temperature in (1.0, 0.7)
        for top_k in (None, 3, VOCABULARY)
    ]
    sampled = [{"method": "opsd_sampled", "temperature": temperature} for temperature in (1.0, 0.7)]
    sampled += [{"method": "sdpo_sampled", "is_clip": cap, "aggregation": "token-mean"} for cap in (None, 0.5, 2.0)]
    sampled += [{"method": "exopd_sampled", "lam": lam} for lam in (0.75, 1.0, 1.25)]
    return [*opsd, *sampled, *sdpo_cases()]


def record(inputs: dict, cases: list[dict]) -> dict:
    recorded = []
    for case in cases:
        loss, gradient = expected(inputs, case)
        recorded.append(case | {"loss": loss, "grad_student_logits": gradient.tolist()})
    return {
        "seed": 0,
        "shape": list(inputs["student_logits"].shape),
        "inputs": {name: values.tolist() for name, values in inputs.items()},
        "cases": recorded,
    }


def write(path, *blocks: dict):
    path.write_text(json.dumps({"format": 1, "blocks": list(blocks)}))
    return path


@pytest.fixture(scope="module")
def content():
    return record(make_inputs(0), all_cases())


@pytest.fixture(scope="module")
def small():
    cases = [{"method": "opsd", "beta": 0}, {"method": "sdpo", "alpha": 0.5, "top_k": 3, "add_tail": True}]
    return record(make_inputs(1), cases)


def copy_of(block: dict) -> dict:
    return json.loads(json.dumps(block))


def failures(results) -> list[str]:
    return [f"{result.case}, {result.path}: {result.failure}" for result in results if result.failure]


def test_an_independent_implementation_agrees_on_every_case_and_both_paths(content, tmp_path):
    results = compare(load(write(tmp_path / "f.json", content)))
    assert not failures(results)
    assert len(results) == 2 * len(content["cases"])
    assert all(result.live for result in results)
    assert max(result.gradient_error for result in results) < 1e-12


def test_the_cap_acts_in_both_directions_in_these_inputs():
    inputs = make_inputs(0)
    mask = inputs["completion_mask"].bool() & inputs["has_teacher"].bool()[:, None]
    ratios = torch.exp(-inputs["old_noise"][mask])
    assert (ratios < 0.5).any()
    assert ((ratios > 0.5) & (ratios < 2.0)).any()
    assert (ratios > 2.0).any()


def test_several_blocks_of_different_shapes_are_each_read_with_their_own(tmp_path):
    case = [{"method": "sdpo", "alpha": 1, "aggregation": "seq-mean-token-mean"}]
    first = record(make_inputs(3), case)
    second = record(make_inputs(4, mask=[[1, 1, 1]], has_teacher=[1]), case * 2)
    results = compare(load(write(tmp_path / "f.json", first, second)))
    assert not failures(results)
    assert len({result.case for result in results}) == 3


def test_tails_of_vanishing_mass_and_the_bound_on_the_kept_mass(tmp_path):
    inputs = make_inputs(5)
    inputs["student_logits"], inputs["teacher_logits"] = 5 * inputs["student_logits"], 2 * inputs["teacher_logits"]
    tails = 1 - inputs["student_logits"].softmax(-1).topk(4, -1).values.sum(-1)
    assert (tails < 1e-7).any()
    assert ((tails > 1e-7) & (tails < 1e-4)).any()
    cases = [
        {"method": "sdpo", "alpha": alpha, "top_k": k, "add_tail": True}
        for alpha in (0, 0.5, 1)
        for k in (4, VOCABULARY)
    ]
    assert not failures(compare(load(write(tmp_path / "f.json", record(inputs, cases)))))


def test_more_tokens_than_a_tile_holds(tmp_path):
    inputs = make_inputs(6, mask=[[1] * 40, [1] * 33 + [0] * 7, [1] * 20 + [0] * 20], has_teacher=[1, 0, 1])
    cases = [{"method": "opsd", "beta": 0.5}, {"method": "sdpo", "alpha": 0.5, "top_k": 3, "is_clip": 2.0}]
    assert not failures(compare(load(write(tmp_path / "f.json", record(inputs, cases)))))


@pytest.mark.parametrize("mask", [MASK, [[0] * 5] * 4])
def test_a_recorded_nan_wants_no_live_token_and_is_counted(tmp_path, mask):
    case = {"method": "sdpo", "alpha": 0.5, "aggregation": "seq-mean-token-mean"}
    block = record(make_inputs(0, mask=mask, has_teacher=[0, 0, 0, 0]), [case])
    assert math.isnan(block["cases"][0]["loss"])
    block["cases"][0]["grad_student_logits"][0][0][0] = math.nan
    results = compare(load(write(tmp_path / "f.json", block)))
    assert not failures(results)
    assert all(result.undefined and not result.live and result.loss_error is None for result in results)


def test_a_recorded_nan_is_a_failure_where_tokens_are_live(tmp_path, small):
    block = copy_of(small)
    block["cases"][0]["loss"] = None
    results = compare(load(write(tmp_path / "f.json", block)))
    assert len(failures(results)) == 2
    assert "11 tokens carry weight" in failures(results)[0]


@pytest.mark.parametrize("field", ["loss", "gradient"])
def test_errors_above_the_tolerance_fail_and_below_pass(tmp_path, small, field):
    for size, fails in ((1e-8, 2), (1e-10, 0)):
        block = copy_of(small)
        if field == "loss":
            block["cases"][1]["loss"] += size
        else:
            block["cases"][1]["grad_student_logits"][2][1][4] += size
        assert len(failures(compare(load(write(tmp_path / "f.json", block))))) == fails


def test_a_nan_of_ours_or_in_the_recorded_gradient_is_no_pass(tmp_path, small):
    block = copy_of(small)
    block["cases"][0]["grad_student_logits"][0][0][0] = math.nan
    block["inputs"]["teacher_logits"][2][0][0] = math.nan
    results = compare(load(write(tmp_path / "f.json", block)))
    assert len(failures(results)) == 4
    assert results[0].gradient_error == math.inf


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"method": "sdop"}, "no method 'sdop' here (did you mean 'sdpo'?)"),
        ({"aggregation": "token-men"}, "did you mean 'token-mean'?"),
        ({"beta": 2}, "jsd_beta is 2.0"),
        ({"top_k": VOCABULARY + 1}, f"vocabulary has {VOCABULARY} tokens"),
        ({"support": "nobody", "top_k": 2}, "support_owner"),
    ],
)
def test_what_is_not_ours_fails_by_name_and_the_rest_is_compared(tmp_path, small, change, fragment):
    block = copy_of(small)
    block["cases"][0] |= change
    results = compare(load(write(tmp_path / "f.json", block)))
    assert [bool(result.failure) for result in results] == [True, True, False, False]
    assert results[0].case.startswith("block 0, case 0")
    assert fragment in results[0].failure


def broken(block: dict, **changes) -> dict:
    block = copy_of(block)
    for path, value in changes.items():
        *parents, name = path.split("__")
        target = block
        for parent in parents:
            target = target[int(parent)] if parent.isdigit() else target[parent]
        if value is None:
            del target[name]
        else:
            target[name] = value
    return block


BAD_BLOCKS = {
    "no shape": ({"shape": None}, "has no 'shape'"),
    "two sizes": ({"shape": [4, 5]}, "three positive integers"),
    "no inputs": ({"inputs": None}, "has no 'inputs'"),
    "no mask": ({"inputs__completion_mask": None}, "has no 'completion_mask'"),
    "ragged": ({"inputs__old_noise": [[1.0], [1.0, 2.0]]}, "no regular array"),
    "wrong size": ({"inputs__has_teacher": [1.0]}, "the shape [1] instead of [4]"),
    "words": ({"inputs__has_teacher": ["a", "b", "c", "d"]}, "no regular array"),
    "half a mask": ({"inputs__has_teacher": [0.5, 1, 1, 1]}, "other values than 0 and 1"),
    "token beyond": ({"inputs__completion_ids": [[VOCABULARY] * 5] * 4}, "no token ids from 0 to 6"),
    "no method": ({"cases__0__method": None}, "block 0, case 0 has no 'method'"),
    "no loss": ({"cases__0__loss": None}, "block 0, case 0 has no 'loss'"),
    "no beta": ({"cases__0__beta": None}, "block 0, case 0 has no 'beta'"),
    "no gradient": ({"cases__0__grad_student_logits": None}, "has no 'grad_student_logits'"),
    "gradient of another shape": ({"cases__0__grad_student_logits": [[1.0]]}, "the shape [1, 1]"),
    "a word for a number": ({"cases__1__is_clip": "two"}, "is_clip is a str"),
    "negative temperature": ({"cases__0__temperature": -1.0}, "temperature is -1.0"),
    "no case": ({"cases": []}, "holds no case"),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_a_broken_block_is_refused_in_one_sentence(tmp_path, small, name):
    changes, fragment = BAD_BLOCKS[name]
    with pytest.raises(UserError) as error:
        load(write(tmp_path / "f.json", broken(small, **changes)))
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [("", "no JSON"), ("[]", "format None"), ('{"format": 2}', "format 2"), ('{"format": 1}', "no 'blocks'")],
)
def test_another_file_is_refused_in_one_sentence(tmp_path, text, fragment):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(UserError, match=fragment):
        load(tmp_path / "f.json")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "missing.json")


def uncapped(logps, old_logps, objective):
    return torch.ones_like(logps)


def attached(student, teacher):
    return (student - teacher) * student


MUTATIONS = {
    "flipped KL": (Divergence, "over_vocabulary", lambda self, p, q: divergences.reverse_kl(q, p), {"dense"}),
    "flipped closed form": (Divergence, "closed_form", lambda self, p, q: closed_forms.reverse_kl(q, p), {"tiled"}),
    "flipped support": (Divergence, "over_support", lambda self, p, q: p.sum(-1) - q.sum(-1), {"dense", "tiled"}),
    "no cap": ("trl_opd.loss", "importance_of", uncapped, {"tiled"}),
    "another denominator": (
        "trl_opd.conformance",
        "token_weights",
        lambda counted, mode, window: counted / counted.numel(),
        {"dense", "tiled"},
    ),
    "an advantage with gradient": (
        "trl_opd.objectives.divergence",
        "sampled_reverse_kl",
        attached,
        {"dense", "tiled"},
    ),
    "the other side's top-k": (
        Divergence,
        "support",
        lambda self, p, q: (q if self.support_owner == "student" else p).topk(self.support_size).indices,
        {"dense", "tiled"},
    ),
    "no extrapolation": (ExOPD, "target", lambda self, scorers: scorers[0], {"dense", "tiled"}),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutated_loss_is_caught(tmp_path, content, monkeypatch, name):
    where, attribute, replacement, paths = MUTATIONS[name]
    blocks = load(write(tmp_path / "f.json", content))
    monkeypatch.setattr(
        f"{where}.{attribute}" if isinstance(where, str) else where,
        *((replacement,) if isinstance(where, str) else (attribute, replacement)),
    )
    assert {result.path for result in compare(blocks) if result.failure} == paths


def test_the_official_file_is_reproduced(shared):
    results = compare(load(shared / "golden" / "official_losses.json"))
    assert not failures(results)
    assert {result.path for result in results} == {"dense", "tiled"}
