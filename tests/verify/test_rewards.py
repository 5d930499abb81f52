import pytest

from trl_opd.errors import UserError
from trl_opd.verify.rewards import choice_reward, math_reward, tool_use_reward


def test_texts_and_conversations_get_the_same_rewards():
    texts = [r"\boxed{0.5}", r"\boxed{2}", "no box"]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    answer = [r"\frac12"] * 3
    assert math_reward(completions=texts, answer=answer) == [1.0, 0.0, 0.0]
    assert math_reward(completions=conversations, answer=answer) == [1.0, 0.0, 0.0]


def test_it_takes_what_trl_passes_and_logs_its_reasons():
    logged = {}
    rewards = math_reward(
        prompts=["1+1="] * 2,
        completions=[r"\boxed{2}", "2"],
        completion_ids=[[1], [2]],
        answer=["2", "2"],
        trainer_state=None,
        log_extra=logged.__setitem__,
        log_metric=None,
    )
    assert rewards == [1.0, 0.0]
    assert logged == {
        "extracted": ["2", ""],
        "verdict": ["correct", "no answer"],
        "feedback": [None, "No final answer in \\boxed{} was found."],
    }


def test_feedback_never_tells_the_expected_answer():
    logged = {}
    math_reward(["I say \\boxed{41}", "\\boxed{42}"], answer=["42", "42"], log_extra=logged.__setitem__)
    assert logged["feedback"] == ["The final answer 41 is not correct.", None]


def test_the_last_message_counts_and_may_have_no_text():
    calls = [{"role": "assistant", "content": r"\boxed{2}"}, {"role": "assistant", "tool_calls": []}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": r"\boxed{2}"}]}]
    assert math_reward(completions=[calls, parts], answer=["2", "2"]) == [0.0, 1.0]


def test_a_missing_answer_column_is_refused():
    with pytest.raises(UserError, match="'answer' column"):
        math_reward(completions=["5"])
    with pytest.raises(UserError, match="every row"):
        math_reward(completions=["5"], answer=[None])


@pytest.mark.parametrize(
    ("reward", "right", "wrong", "answer"),
    [
        (choice_reward, "<answer>B</answer>", "<answer>A</answer>", "B"),
        (tool_use_reward, "Action: f\nAction Input: {}", "Action: g", '[{"Action": "f", "Action_Input": "{}"}]'),
    ],
)
def test_choices_and_tool_calls_are_rewarded_and_logged_in_the_same_way(reward, right, wrong, answer):
    logged = {}
    conversations = [[{"role": "assistant", "content": text}] for text in (right, wrong, "none")]
    assert reward(conversations, answer=[answer] * 3, log_extra=logged.__setitem__) == [1.0, 0.0, 0.0]
    assert logged["verdict"] == ["correct", "wrong", "no answer"]
    assert logged["feedback"][0] is None
    with pytest.raises(UserError, match=f"{reward.__name__} needs"):
        reward(["x"])
