"""Prompts that rows share are encoded once, and nothing else changes: hidden states and gradients are those of one
forward."""

import logging

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trl_opd import encoding
from trl_opd.encoding import Prefixes, backbone, completion_hidden, find_prefixes, prefix_obstacle
from trl_opd.teachers import causal_lm

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip
MODELS = {"qwen3": (Qwen3ForCausalLM, Qwen3Config), "llama": (LlamaForCausalLM, LlamaConfig)}
PROMPT, COMPLETION = 9, 6

#: Rows -> their prompt's length and number: three rows share one, two another that is shorter, one is alone.
OWNERS = ((9, 0), (4, 1), (9, 0), (7, 2), (4, 1), (9, 0))
LENGTHS = (6, 2, 1, 5, 6, 3)


def make(family: str, lora: bool = False, **overrides):
    torch.manual_seed(0)
    model_class, config_class = MODELS[family]
    model = model_class(config_class(**(SIZES | overrides)))
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of prompts that are padded on the left and completions that are padded on the right."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, 50, (3, PROMPT), generator=generator)
    ids = torch.randint(1, 50, (len(OWNERS), PROMPT + COMPLETION), generator=generator)
    mask = torch.ones_like(ids)
    for row, (length, number) in enumerate(OWNERS):
        ids[row, PROMPT - length : PROMPT] = prompts[number, :length]
        mask[row, : PROMPT - length] = 0
        mask[row, PROMPT + LENGTHS[row] :] = 0
    return ids, mask


def run(model, prefixes, completion=COMPLETION):
    """Hidden states of the live tokens, and every parameter's gradient of a random function of them."""
    ids, mask = batch()
    ids, mask = ids[:, : PROMPT + completion], mask[:, : PROMPT + completion]
    model.zero_grad()
    hidden = completion_hidden(causal_lm(model), ids, mask, completion, prefixes)
    assert hidden.shape == (len(OWNERS), completion, SIZES["hidden_size"])
    hidden = hidden[mask[:, PROMPT:].bool()]
    generator = torch.Generator().manual_seed(2)
    (hidden * torch.randn(hidden.shape, generator=generator)).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def prefixes_of_batch() -> Prefixes:
    ids, mask = batch()
    return Prefixes.of(ids[:, :PROMPT], mask[:, :PROMPT])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("family", MODELS)
def test_hidden_states_and_gradients_are_those_of_one_forward(family, lora, attention):
    model = make(family, lora, attn_implementation=attention)
    plain, plain_gradients = run(model, None)
    shared, shared_gradients = run(model, prefixes_of_batch())
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-5)
    assert shared_gradients.keys() == plain_gradients.keys()
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(shared_gradients[name], gradient, atol=1e-4, rtol=1e-4, msg=name)
    assert max(gradient.abs().max() for gradient in plain_gradients.values()) > 1


def test_completions_of_one_token_need_the_prompts_only():
    model = make("qwen3")
    calls = []
    backbone(model).register_forward_hook(lambda *_: calls.append(1))
    shared, _ = run(model, prefixes_of_batch(), completion=1)
    assert len(calls) == 1
    torch.testing.assert_close(shared, run(model, None, completion=1)[0], atol=1e-5, rtol=1e-5)


def test_each_prompt_is_encoded_once():
    model = make("qwen3")
    seen = []
    backbone(model).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    run(model, prefixes_of_batch())
    assert seen == [(3, PROMPT), (len(OWNERS), COMPLETION - 1)]
    assert prefixes_of_batch().tokens == 9 + 4 + 7


def test_prompts_are_shared_only_where_that_saves_enough():
    model, (ids, mask) = make("qwen3"), batch()
    prompt = ids[:, :PROMPT], mask[:, :PROMPT]
    assert find_prefixes(model, *prompt, COMPLETION, training=True) is not None
    assert find_prefixes(model, *prompt, 300, training=True) is None
    assert find_prefixes(model, prompt[0][[0, 1, 3]], prompt[1][[0, 1, 3]], 1, training=True) is None


def test_a_prompt_is_not_taken_for_another_that_differs_in_its_padding_only():
    ids = torch.tensor([[0, 0, 5], [0, 0, 5]])
    mask = torch.tensor([[0, 0, 1], [0, 1, 1]])
    assert len(Prefixes.of(ids, mask).ids) == 2


def test_a_model_that_cannot_do_it_falls_back_and_says_why_once(caplog):
    model, (ids, mask) = make("qwen3"), batch()
    model.gradient_checkpointing_enable()
    encoding._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, "trl_opd.encoding"):
        for _ in range(2):
            assert find_prefixes(model, ids[:, :PROMPT], mask[:, :PROMPT], COMPLETION, training=True) is None
    assert [record.message for record in caplog.records] == [
        "Prompts that rows share are encoded once per row: gradient checkpointing runs layers without a cache."
    ]
    # Without gradient there is nothing to checkpoint.
    assert find_prefixes(model, ids[:, :PROMPT], mask[:, :PROMPT], COMPLETION, training=False) is not None


@pytest.mark.parametrize(
    ("model_class", "config", "reason"),
    [
        (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=4), "do not keep the whole prompt"),
        (Gemma2ForCausalLM, Gemma2Config(**SIZES), "do not keep the whole prompt"),
        (MambaForCausalLM, MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2), "keeps no keys and values"),
        (Qwen3ForCausalLM, Qwen3Config(**SIZES, attn_implementation="flex_attention"), "its attention is flex"),
    ],
)
def test_obstacles(model_class, config, reason):
    assert reason in prefix_obstacle(model_class(config), training=False)
