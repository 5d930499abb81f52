"""What a function of the user's tells the teacher."""

import pytest

from tests.conftest import settings
from tests.objectives.bench import group
from trl_opd import GRPOConfig, GRPOTrainer, OPDConfig, OPDTrainer, OPSDConfig, OPSDTrainer, SDPOConfig, SDPOTrainer
from trl_opd.contexts import FunctionContext
from trl_opd.errors import UserError


def told(question, completion, reward, feedback, siblings, hint, **_):
    if reward == 1.0:
        return None
    return f"{question} | {completion} | {feedback} | {len(siblings)} | {hint}"


def rollouts():
    made = group([1.0, 0.0], feedback=["good", "bad"], texts=["yes", "no"])
    made.prompts[1] = [{"role": "system", "content": "be short"}, {"role": "user", "content": "why?"}]
    made.examples = [{"hint": "x"}, {"hint": "y {question}"}]
    return made


def test_it_is_asked_for_each_rollout_and_rewrites_the_last_user_turn_alone():
    context = FunctionContext(told)
    text = "why? | no | bad | 2 | y {question}"
    assert context.prompts(rollouts()) == [
        None,
        [{"role": "system", "content": "be short"}, {"role": "user", "content": text}],
    ]
    assert [context.privileged(rollouts(), row) for row in range(2)] == ["", text]


def test_a_plain_text_prompt_is_replaced_as_a_whole():
    made = rollouts()
    made.prompts = ["first", "second"]
    assert FunctionContext(told).prompts(made)[1] == "second | no | bad | 2 | y {question}"


def test_anything_but_text_is_refused():
    with pytest.raises(UserError, match="returned list; return the text of the teacher's user turn, or None"):
        FunctionContext(lambda **_: []).prompts(rollouts())


@pytest.mark.parametrize(
    ("kind", "config", "options", "message"),
    [
        (GRPOTrainer, GRPOConfig, {}, "grpo has no teacher, so teacher_context would be ignored"),
        (SDPOTrainer, SDPOConfig, {"use_feedback": True}, "use_feedback would be ignored beside teacher_context"),
        (
            SDPOTrainer,
            SDPOConfig,
            {"use_feedback": True, "teacher_template": "{sections}{prompt}"},
            "use_feedback, teacher_template would be ignored .* remove them",
        ),
        (OPSDTrainer, OPSDConfig, {"solution_column": "s"}, "solution_column would be ignored beside teacher_context"),
        (OPDTrainer, OPDConfig, {"teacher_cache": "cache"}, "A teacher cache holds what the teacher read already"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, kind, config, options, message):
    with pytest.raises(UserError, match=message):
        kind.make_objective(config(**settings(tmp_path, **options)), told)


def test_it_takes_the_place_of_the_methods_own_context(tmp_path):
    objective = OPSDTrainer.make_objective(OPSDConfig(**settings(tmp_path)), told)
    assert isinstance(objective.context, FunctionContext)
    assert objective.context.columns == ()  # no reference solution is asked of the data
