from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.utils import create_model_from_path

from trl_opd.errors import UserError
from trl_opd.testbed import CHECKPOINTS, model_path
from trl_opd.testbed.measure import accuracies
from trl_opd.testbed.tokenizer import build_tokenizer

MAX_BYTES = 4_000_000


def test_unknown_checkpoints_are_refused():
    with pytest.raises(UserError, match="base, teacher"):
        model_path("student")


def test_checkpoints_together_stay_small():
    files = [file for name in CHECKPOINTS for file in model_path(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tokenizer_of_the_checkpoint_is_the_built_one(name):
    shipped, built = AutoTokenizer.from_pretrained(model_path(name)), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    assert shipped.chat_template == built.chat_template
    assert shipped.special_tokens_map == built.special_tokens_map
    assert shipped.padding_side == built.padding_side
    text = "23+45=68 ,\n\\boxed{68}«end»é"
    assert shipped(text)["input_ids"] == built(text)["input_ids"]
    assert shipped.decode(shipped(text)["input_ids"]) == built.decode(built(text)["input_ids"])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_loads_in_float32_and_knows_its_tokens(name):
    path, tokenizer = str(model_path(name)), build_tokenizer()
    for model in (AutoModelForCausalLM.from_pretrained(path), create_model_from_path(path)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model.config.vocab_size == len(tokenizer)
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert model.generation_config.pad_token_id == tokenizer.pad_token_id
        assert all(torch.equal(weight, weight.half().float()) for weight in model.state_dict().values())


def test_base_does_far_better_with_a_reference_or_a_demonstration_and_better_with_feedback():
    measured = accuracies(model_path("base"), split="validation", count=64)
    plain = measured["plain"]["accuracy"]
    assert 0.1 < plain < 0.5
    assert measured["reference"]["accuracy"] > 0.85
    assert measured["demonstration"]["accuracy"] > 0.8
    assert measured["feedback"]["accuracy"] > plain + 0.1


def test_teacher_works_the_plain_problem():
    plain = accuracies(model_path("teacher"), split="validation", count=64)["plain"]
    assert plain["accuracy"] > 0.8
    assert plain["worked"] > 0.95
