import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_opd.errors import UserError
from trl_opd.evals import models
from trl_opd.evals.engines import EngineOptions, Request, Sampling, request_seed
from trl_opd.evals.sampling import sample_rows
from trl_opd.evals.transformers_engine import TransformersEngine

SAMPLING = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=20)
GREEDY = Sampling(temperature=0, top_p=1, max_new_tokens=20)


def requests(count: int = 5, n: int = 3, seed: int = 0) -> list[Request]:
    return [
        Request(f"p{i}", j, [{"role": "user", "content": "1+" * i + "1=?"}], request_seed(seed, f"p{i}", j))
        for i in range(count)
        for j in range(n)
    ]


def draw(path, batch_size=4, asked=None, sampling=SAMPLING, done=frozenset(), **options):
    engine = TransformersEngine(path, EngineOptions(batch_size=batch_size, **options))
    return list(engine.generate(engine.batches(requests() if asked is None else asked, sampling), sampling, done))


def by_key(generations):
    return {generation.key: generation for generation in generations}


def test_a_completion_does_not_depend_on_its_batch(student_path):
    alone = by_key(draw(student_path, batch_size=1))
    assert by_key(draw(student_path, batch_size=7)) == alone
    assert by_key(draw(student_path, asked=requests()[::-2])) == {r.key: alone[r.key] for r in requests()[::-2]}


def test_samples_differ_and_follow_the_seed(student_path):
    first = by_key(draw(student_path))
    assert len({generation.completion for generation in first.values()}) > 10
    other = by_key(draw(student_path, asked=requests(seed=1)))
    assert sum(first[key].completion != other[key].completion for key in first) > 10


def test_resuming_inside_a_batch_draws_what_is_missing_in_the_same_order(student_path):
    whole = draw(student_path)
    done = {generation.key for generation in whole[:6]}
    assert draw(student_path, done=done) == whole[6:]


def test_greedy_equals_unpadded_argmax(student_path):
    tokenizer = AutoTokenizer.from_pretrained(student_path)
    model = AutoModelForCausalLM.from_pretrained(student_path)
    for generation in draw(student_path, asked=requests(n=1), sampling=GREEDY):
        ids = tokenizer(generation.prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        while ids.shape[1] < start + 20 and (ids.shape[1] == start or ids[0, -1] != tokenizer.eos_token_id):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert generation.completion == tokenizer.decode(ids[0, start:], skip_special_tokens=True)
        assert generation.tokens == ids.shape[1] - start


def test_finish_reason_and_tokens_tell_cut_from_ended(student_path):
    generations = draw(student_path, asked=requests(n=20), sampling=Sampling(temperature=3, top_p=1, max_new_tokens=40))
    assert {generation.finish_reason for generation in generations} == {"stop", "length"}
    for generation in generations:
        assert generation.tokens == 40 or generation.finish_reason == "stop"
        assert "«" not in generation.completion


def test_the_authors_sampling_advice_is_not_mixed_in(student_path, tmp_path):
    shutil.copytree(student_path, tmp_path / "model")
    config = tmp_path / "model" / "generation_config.json"
    text = config.read_text().rstrip().removesuffix("}").rstrip()
    config.write_text(text + ', "repetition_penalty": 9.0, "top_k": 1, "do_sample": true}')
    assert draw(str(tmp_path / "model")) == draw(student_path)


def test_sample_rows_inverts_the_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 11)
    uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = sample_rows(logits.expand(20_000, -1), uniforms, temperature=0.7, top_p=1.0)
    shares = torch.bincount(drawn, minlength=11) / 20_000
    torch.testing.assert_close(shares, torch.softmax(logits[0] / 0.7, -1), atol=2e-4, rtol=0)


def test_sample_rows_keeps_the_nucleus_alone():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    uniforms = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]

    def drawn(top_p):
        return torch.bincount(sample_rows(logits.expand(1000, -1), uniforms, 1.0, top_p), minlength=4).tolist()

    assert drawn(0.4) == [0, 1000, 0, 0]
    assert drawn(0.7) == pytest.approx([0, 667, 0, 333], abs=1)
    assert drawn(0.8) == pytest.approx([0, 556, 167, 278], abs=2)
    assert drawn(1.0) == pytest.approx([100, 500, 150, 250], abs=1)


def test_sample_rows_never_draws_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    edges = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert sample_rows(logits.expand(3, -1), edges, 1.0, 1.0).tolist() == [1, 3, 3]


def test_an_adapter_is_part_of_the_identity(student_path, student, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(student, lora).save_pretrained(tmp_path / "adapter")
    options = EngineOptions(adapter=str(tmp_path / "adapter"))
    plain, adapted = TransformersEngine(student_path), TransformersEngine(student_path, options)
    assert plain.identity()["model"] == adapted.identity()["model"]
    assert plain.identity()["adapter"] is None != adapted.identity()["adapter"]
    assert draw(student_path, adapter=str(tmp_path / "adapter")) != draw(student_path)


def test_identity_follows_the_weights_and_the_template(student_path, tmp_path):
    first = TransformersEngine(student_path).identity()
    copy = tmp_path / "copy"
    shutil.copytree(student_path, copy)
    assert TransformersEngine(str(copy)).identity() == first
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    template = next(copy.glob("chat_template*"))
    template.write_text("{# changed #}" + template.read_text())
    changed = TransformersEngine(str(copy)).identity()
    assert {key for key in first if first[key] != changed[key]} == {"model", "tokenizer"}


def test_what_cannot_work_is_refused_before_the_weights_are_loaded(student_path, tmp_path, monkeypatch):
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("the weights were loaded")
    )
    with pytest.raises(UserError, match="does not exist"):
        TransformersEngine("nowhere/at/all")
    with pytest.raises(UserError, match=r"holds no model: it needs config\.json"):
        TransformersEngine(str(tmp_path))
    with pytest.raises(UserError, match="adapter folder"):
        TransformersEngine(student_path, EngineOptions(adapter="nowhere"))
    with pytest.raises(UserError, match="exceed the model's context of 512"):
        draw(student_path, sampling=Sampling(temperature=1, top_p=1, max_new_tokens=505))
    with pytest.raises(UserError, match="batch_size"):
        EngineOptions(batch_size=0)
    with pytest.raises(UserError, match="dtype 'int8'"):
        EngineOptions(dtype="int8")
    shutil.copytree(student_path, tmp_path / "base")
    for template in (tmp_path / "base").glob("chat_template*"):
        template.unlink()
    with pytest.raises(UserError, match="no chat template"):
        TransformersEngine(str(tmp_path / "base"))


def test_a_hub_id_is_downloaded_and_a_wrong_one_is_a_sentence(student_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: student_path)
    assert str(models.resolve_model("nobody/model")) == student_path

    def unknown(*_, **__):
        raise OSError("404")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unknown)
    with pytest.raises(UserError, match="neither a folder nor a model"):
        models.resolve_model("nobody/model")
