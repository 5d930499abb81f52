"""What the teacher reads: placeholders, the rewritten turn, and the header that opens the answer."""

import copy
from types import SimpleNamespace

import pytest
import torch

from trl_opd.contexts import ReferenceSolution, check_template, fill, generation_header, rewrite
from trl_opd.errors import UserError
from trl_opd.rollouts import Rollouts, Sibling

TEMPLATE = "{prompt}\nSolution: {solution}\nAgain."

#: A chat template that opens the answer differently with thinking on and off, as Qwen3's does.
THINKING_TEMPLATE = (
    "{%- for message in messages -%}<{{ message['role'] }}>{{ message['content'] }}<end>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>"
    "{%- if enable_thinking is defined and not enable_thinking -%}<think></think>{%- endif -%}{%- endif -%}"
)


def user(text):
    return {"role": "user", "content": text}


def rollouts(prompts, solutions, column="solution"):
    n = len(prompts)
    return Rollouts(
        examples=[{column: solution} for solution in solutions],
        prompts=prompts,
        own=[Sibling("", 0.0, False)] * n,
        siblings=[[]] * n,
        position=[0] * n,
        feedback=[None] * n,
        feedback_reported=False,
        mask=torch.ones(n, 1),
        advantages=torch.zeros(n),
    )


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("{prompt}!", {"prompt": "2+2=?"}, "2+2=?!"),
        ("{prompt} {prompt}", {"prompt": "a"}, "a a"),
        ("\\boxed{} {{x}} {other} {prompt}", {"prompt": "a"}, "\\boxed{} {{x}} {other} a"),
        ("{prompt}|{solution}", {"prompt": "\\frac{1}{2}", "solution": "{0} {}"}, "\\frac{1}{2}|{0} {}"),
        ("{prompt}|{solution}", {"prompt": "{solution}", "solution": "{prompt}"}, "{solution}|{prompt}"),
        ("{prompt}", {"prompt": r"\1 \g<0> \n"}, r"\1 \g<0> \n"),
        ("{{prompt}}", {"prompt": "a"}, "{a}"),
        ("{prompt}", {"prompt": ""}, ""),
        ("{solution}{solutions}", {"solution": "a"}, "a{solutions}"),
    ],
)
def test_fill_replaces_placeholders_and_nothing_else(template, values, expected):
    assert fill(template, **values) == expected


def test_rewrite_changes_the_last_user_turn_alone():
    conversation = [
        {"role": "system", "content": "Be {prompt}."},
        user("first"),
        {"role": "assistant", "content": "answer"},
        user("second") | {"name": "kept"},
        {"role": "assistant", "content": "prefix"},
    ]
    before = copy.deepcopy(conversation)
    rewritten = rewrite(conversation, TEMPLATE, solution="42")
    assert rewritten[3] == {"role": "user", "content": "second\nSolution: 42\nAgain.", "name": "kept"}
    assert rewritten[:3] == before[:3]
    assert rewritten[4:] == before[4:]
    assert conversation == before


def test_rewrite_of_a_text_prompt():
    assert rewrite("second", TEMPLATE, solution="42") == "second\nSolution: 42\nAgain."


@pytest.mark.parametrize("conversation", [[], [{"role": "system", "content": "x"}]])
def test_rewrite_refuses_a_conversation_without_a_user_turn(conversation):
    with pytest.raises(UserError, match="no user turn"):
        rewrite(conversation, TEMPLATE, solution="42")


def test_reference_solution_reads_its_own_column():
    context = ReferenceSolution(column="worked", template=TEMPLATE)
    assert context.columns == ("worked",)
    prompts = context.prompts(rollouts([[user("a")], "b"], ["{prompt}=1", "2"], column="worked"))
    assert prompts == [[user("a\nSolution: {prompt}=1\nAgain.")], "b\nSolution: 2\nAgain."]


@pytest.mark.parametrize("empty", ["", None])
def test_without_a_solution_there_is_nothing_to_tell_the_teacher(empty):
    prompts = ReferenceSolution("solution", TEMPLATE).prompts(rollouts([[user("a")], [user("b")]], [empty, "2"]))
    assert prompts == [None, [user("b\nSolution: 2\nAgain.")]]


@pytest.mark.parametrize(("template", "missing"), [("{prompt}", "solution"), ("{solution}", "prompt"), ("", "prompt")])
def test_a_template_without_a_placeholder_is_refused(template, missing):
    with pytest.raises(UserError, match=rf"my_template has no \{{{missing}\}}"):
        check_template("my_template", template, ("prompt", "solution"))
    with pytest.raises(UserError, match="reference_template"):
        ReferenceSolution("solution", template)


def test_a_template_with_its_placeholders_passes():
    check_template("my_template", TEMPLATE + " {anything} {}", ("prompt", "solution"))


def test_generation_header_of_the_testbed_tokenizer(tokenizer):
    from trl_opd.testbed.tokenizer import GENERATION_HEADER

    header = generation_header(tokenizer, None, {})
    assert header == [tokenizer.convert_tokens_to_ids(GENERATION_HEADER)]
    prompt = tokenizer.apply_chat_template(
        [user("1+1=?")], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    assert prompt[-len(header) :] == header


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, "<assistant>"),
        ({"enable_thinking": True}, "<assistant>"),
        ({"enable_thinking": False}, "<assistant><think></think>"),
    ],
)
def test_generation_header_follows_the_template_and_its_arguments(tokenizer, kwargs, expected):
    assert tokenizer.decode(generation_header(tokenizer, THINKING_TEMPLATE, kwargs)) == expected


def test_generation_header_of_a_template_that_opens_nothing(tokenizer):
    template = "{%- for message in messages -%}{{ message['content'] }}{%- endfor -%}"
    assert generation_header(tokenizer, template, {}) == []


def test_generation_header_is_unknown_where_the_opened_prompt_does_not_start_with_the_bare_one():
    def apply_chat_template(conversations, add_generation_prompt, **_):
        return {"input_ids": [[1, 9, 5] if add_generation_prompt else [1, 2]]}

    assert generation_header(SimpleNamespace(apply_chat_template=apply_chat_template), None, {}) == []
