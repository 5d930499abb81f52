from __future__ import annotations

import random

import pytest
from jinja2.exceptions import TemplateError

from trl_opd.testbed.tasks import contexts, rows
from trl_opd.testbed.tokenizer import CHARACTERS, END, GENERATION_HEADER, build_tokenizer

TOKENIZER = build_tokenizer()


def test_every_character_is_one_token_of_its_own():
    ids = TOKENIZER(CHARACTERS)["input_ids"]
    assert len(ids) == len(set(ids)) == len(CHARACTERS) == 96
    assert not set(ids) & set(TOKENIZER.all_special_ids)


def test_any_printable_text_survives_the_round_trip():
    rng = random.Random(0)
    texts = ["".join(rng.choices(CHARACTERS, k=200)) for _ in range(100)]
    texts += [" ,  . 's n't \n\n ", "<|end|><pad></s>[UNK]", "", *contexts(rows("train", 1)[0]).values()]
    for text in texts:
        ids = TOKENIZER(text)["input_ids"]
        assert len(ids) == len(text)
        assert TOKENIZER.decode(ids) == TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_other_characters_become_unknown():
    assert TOKENIZER("é\t")["input_ids"] == [TOKENIZER.unk_token_id] * 2


def test_special_tokens_differ():
    assert len({TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id}) == 3
    assert TOKENIZER.eos_token == END


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_chat_template_ends_in_the_generation_header(variables):
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "10+20=?"}]
    ids = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **variables)
    assert ids[-1] == TOKENIZER.convert_tokens_to_ids(GENERATION_HEADER)
    assert TOKENIZER.decode(ids) == "«system»Add.«end»«user»10+20=?«end»«assistant»"


def test_a_turn_of_the_assistant_continues_the_prompt():
    user = [{"role": "user", "content": "10+20=?"}]
    prompt = TOKENIZER.apply_chat_template(user, add_generation_prompt=True, tokenize=False)
    turn = TOKENIZER.apply_chat_template([*user, {"role": "assistant", "content": "\\boxed{30}"}], tokenize=False)
    assert turn == prompt + "\\boxed{30}" + END


def test_unknown_roles_are_refused():
    with pytest.raises(TemplateError, match="not tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "7"}], tokenize=False)
