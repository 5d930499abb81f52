"""What the teacher reads after the rollouts were scored: by hand, and through the trainer."""

from dataclasses import replace

import pytest
from datasets import Dataset

from tests.conftest import settings
from tests.objectives.bench import group
from trl_opd import SDPOConfig, SDPOTrainer
from trl_opd.errors import UserError
from trl_opd.hindsight import Hindsight, Sections, hindsight
from trl_opd.testbed.tasks import rows

SECTIONS = Sections(
    whole="{prompt}{sections}<C>",
    demonstration="<D>{demonstration}",
    feedback="<F>{feedback}",
    attempt="<A>{attempt}",
)


def context(**options) -> Hindsight:
    defaults = {
        "sections": SECTIONS,
        "threshold": 0.5,
        "use_demonstrations": True,
        "use_feedback": False,
        "exclude_self": True,
        "feedback_only_without_demonstration": True,
        "include_attempt": False,
        "strip_thinking": True,
    }
    return Hindsight(**(defaults | options))


def read(made: Hindsight, rollouts) -> list[str | None]:
    """The teacher's user turns."""
    return [None if prompt is None else prompt[-1]["content"] for prompt in made.prompts(rollouts)]


def demonstrations(made: Hindsight, rollouts) -> list[str | None]:
    return [made.demonstration(rollouts, row) for row in range(len(rollouts))]


FEEDBACK = {"use_feedback": True}
TEXTS = ["a", "b", "c", "d"]


def test_the_first_success_in_order_is_the_demonstration():
    rollouts = group([0.0, 0.7, 1.0, 0.0], texts=TEXTS)
    assert demonstrations(context(), rollouts) == ["b", "c", "b", "b"]


def test_a_row_may_show_itself_only_if_that_is_allowed():
    rollouts = group([0.0, 1.0, 0.0, 0.0], texts=TEXTS)
    assert demonstrations(context(), rollouts) == ["b", None, "b", "b"]
    assert demonstrations(context(exclude_self=False), rollouts) == ["b"] * 4
    assert read(context(), rollouts)[1] is None


def test_an_equal_text_of_another_row_is_not_oneself():
    rollouts = group([1.0, 1.0], texts=["same", "same"])
    assert demonstrations(context(), rollouts) == ["same", "same"]


def test_a_truncated_sibling_is_never_a_demonstration():
    rollouts = group([1.0, 0.0, 1.0], texts=TEXTS[:3], truncated=[True, False, False])
    assert demonstrations(context(), rollouts) == ["c", "c", None]


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, "a"), (0.51, "b"), (0.9, "b"), (0.91, None)])
def test_the_threshold_itself_is_a_success(threshold, expected):
    rollouts = group([0.5, 0.9, 0.0], texts=TEXTS[:3])
    assert demonstrations(context(threshold=threshold), rollouts)[2] == expected


def test_a_rollout_without_a_reward_is_no_demonstration():
    rollouts = group([float("nan"), 0.0], texts=TEXTS[:2])
    assert demonstrations(context(), rollouts) == [None, None]


def test_groups_do_not_mix():
    rollouts = group([1.0, 0.0, 0.0, 0.0], texts=TEXTS, group_size=2)
    assert demonstrations(context(), rollouts) == [None, "a", None, None]


def test_rows_of_a_group_that_straddles_processes_see_all_of_it():
    """Siblings come gathered: a process that holds the last rows alone still finds the success of another one."""
    whole = group([1.0, 0.0, 0.0, 0.0], texts=TEXTS)
    part = replace(
        whole,
        examples=whole.examples[2:],
        prompts=whole.prompts[2:],
        own=whole.own[2:],
        siblings=whole.siblings[2:],
        position=whole.position[2:],
        feedback=whole.feedback[2:],
    )
    assert demonstrations(context(), part) == ["a", "a"]
    assert demonstrations(context(threshold=0.0), part) == ["a", "a"]


def test_sections_come_in_order_behind_the_question():
    rollouts = group([0.0, 1.0], texts=["mine", "theirs"], feedback=["off by one", None])
    everything = context(**FEEDBACK, feedback_only_without_demonstration=False, include_attempt=True)
    assert read(everything, rollouts) == ["question 0<D>theirs<A>mine<F>off by one<C>", None]


def test_sections_may_come_before_the_question():
    rollouts = group([0.0, 1.0], texts=["mine", "theirs"])
    made = context(sections=replace(SECTIONS, whole="{sections} ({prompt})"))
    assert read(made, rollouts)[0] == "<D>theirs (question 0)"


def test_only_the_last_user_turn_is_rewritten():
    rollouts = group([0.0, 1.0], texts=["mine", "theirs"])
    system = {"role": "system", "content": "be brief"}
    rollouts = replace(rollouts, prompts=[[system, *prompt] for prompt in rollouts.prompts])
    assert context().prompts(rollouts)[0] == [system, {"role": "user", "content": "question 0<D>theirs<C>"}]


@pytest.mark.parametrize(("only_without", "both"), [(True, ""), (False, "<F>no 0")])
def test_a_demonstration_makes_feedback_superfluous_if_so_configured(only_without, both):
    rollouts = group([0.0, 1.0], texts=TEXTS[:2], feedback=["no 0", "no 1"])
    made = context(**FEEDBACK, feedback_only_without_demonstration=only_without)
    assert read(made, rollouts) == [f"question 0<D>b{both}<C>", "question 0<F>no 1<C>"]


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_anything_to_read_there_is_no_context(nothing):
    rollouts = group([0.0, 0.0], feedback=[nothing, "wrong"])
    assert read(context(**FEEDBACK), rollouts) == [None, "question 0<F>wrong<C>"]
    assert read(context(**FEEDBACK, include_attempt=True), rollouts)[0] is None
    assert read(context(), rollouts) == [None, None]


def test_feedback_alone_looks_at_no_sibling():
    rollouts = replace(group([1.0, 0.0], feedback=[None, "wrong"]), siblings=[[], []])
    made = context(**FEEDBACK, use_demonstrations=False)
    assert read(made, rollouts) == [None, "question 0<F>wrong<C>"]


@pytest.mark.parametrize("strip", [True, False])
def test_thinking_is_cut_out_of_demonstrations_and_attempts(strip):
    texts = ["<think>\nhm\n</think>\n\nfour", "<think>a</think>x<think>b</think>y", "plain"]
    rollouts = group([1.0, 0.0, 0.0], texts=texts, feedback=[None, "no", None])
    made = context(**FEEDBACK, feedback_only_without_demonstration=False, include_attempt=True, strip_thinking=strip)
    shown = ("four", "xy") if strip else (texts[0], texts[1])
    assert read(made, rollouts)[1] == f"question 0<D>{shown[0]}<A>{shown[1]}<F>no<C>"


def test_a_success_that_is_thinking_alone_shows_nothing():
    rollouts = group([1.0, 0.0], texts=["<think>only</think>", "b"])
    assert read(context(), rollouts) == [None, None]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # Some chat templates open the block in the generation header, so the completion holds its end alone.
        ("secret thoughts</think>\n\nfour", "question 0<D>four<C>"),
        # A completion that ended inside its thinking has no answer to show.
        ("<think>secret thoughts", None),
    ],
    ids=["opened by the template", "never closed"],
)
def test_half_a_thinking_block_is_cut_out_as_well(text, shown):
    assert read(context(), group([1.0, 0.0], texts=[text, "b"]))[1] == shown


def test_placeholders_in_model_output_mean_nothing():
    rollouts = group([0.0, 1.0], texts=["mine", "{feedback} {prompt} {sections}"], feedback=["{demonstration}", None])
    made = context(**FEEDBACK, feedback_only_without_demonstration=False)
    assert read(made, rollouts)[0] == "question 0<D>{feedback} {prompt} {sections}<F>{demonstration}<C>"


def test_feedback_that_no_reward_function_reports_is_an_error():
    with pytest.raises(UserError, match=r"no reward function reports feedback; call log_extra\("):
        context(**FEEDBACK).prompts(group([0.0, 1.0]))


def test_only_the_demonstration_gets_shorter():
    rollouts = group([0.0, 1.0], texts=["mine", "theirs"], feedback=["off by one", None])
    made = context(**FEEDBACK, feedback_only_without_demonstration=False, include_attempt=True)
    (turn,) = made.shortened(rollouts, 0, lambda text: text[:2])
    assert turn["content"] == "question 0<D>th<A>mine<F>off by one<C>"
    assert made.shortened(rollouts, 0, lambda text: "") is None  # an empty demonstration is none
    assert made.shortened(rollouts, 1, lambda text: text[:2]) is None


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"use_demonstrations": False}, "nothing to read"),
        ({"include_attempt": True}, "include_attempt"),
        ({"sections": replace(SECTIONS, demonstration="no placeholder")}, "demonstration_section has no"),
        ({"sections": replace(SECTIONS, feedback="no placeholder")}, "feedback_section has no"),
        ({"sections": replace(SECTIONS, attempt="no placeholder")}, "attempt_section has no"),
        ({"sections": replace(SECTIONS, whole="{prompt}")}, "teacher_template has no {sections}"),
        ({"sections": replace(SECTIONS, whole="{sections}")}, "teacher_template has no {prompt}"),
    ],
)
def test_a_context_that_cannot_work_is_refused(options, fragment):
    with pytest.raises(UserError, match=fragment):
        context(**options)


def test_the_config_s_options_arrive(tmp_path):
    options = {
        "demonstration_section": "<d>{demonstration}", "feedback_section": "<f>{feedback}",
        "attempt_section": "<a>{attempt}", "teacher_template": "{sections}<c>{prompt}", "success_threshold": 0.25,
        "use_feedback": True,
        "exclude_self": False, "feedback_only_without_demonstration": False, "include_attempt": True,
        "strip_thinking": False, "use_demonstrations": False,
    }  # fmt: skip
    made = hindsight(SDPOConfig(**settings(tmp_path, **options)))
    assert made.sections == Sections("{sections}<c>{prompt}", "<d>{demonstration}", "<f>{feedback}", "<a>{attempt}")
    found = {name: getattr(made, name) for name in ("exclude_self", "include_attempt", "strip_thinking")}
    assert found == {"exclude_self": False, "include_attempt": True, "strip_thinking": False}
    assert (made.threshold, made.use_feedback, made.use_demonstrations) == (0.25, True, False)
    assert not made.feedback_only_without_demonstration


# Through the trainer: a prompt of one group, whose first rollout is right

RIGHT, WRONG = "1+1=2 and so on and so forth", "no"
SHORT = {
    "demonstration_section": "<D>{demonstration}</D>", "feedback_section": "<F>{feedback}</F>",
    "teacher_template": "{prompt}{sections}<C>", "support_size": 20, "max_steps": 1, "logging_steps": 1,
}  # fmt: skip


def fixed_texts(texts: list[str]):
    """A rollout function that always answers with these texts, each ended by itself."""

    def generate(prompts, trainer):
        tokenizer = trainer.processing_class
        rendered = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)
        ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
        return {
            "prompt_ids": [list(row) for row in rendered["input_ids"]],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(row) for row in ids],
        }

    return generate


def right_reward(completions, log_extra, **_):
    texts = [completion[0]["content"] for completion in completions]
    log_extra("feedback", [None if text.startswith(RIGHT) else "not the sum" for text in texts])
    return [float(text.startswith(RIGHT)) for text in texts]


def sdpo(tmp_path, student, tokenizer, texts, reward=right_reward, **options):
    """One step, the prompts that the teacher read, and what was logged."""
    config = SDPOConfig(**settings(tmp_path, max_completion_length=40, **(SHORT | options)))
    trainer = SDPOTrainer(
        student, reward, config, Dataset.from_list(rows("train", 4)), processing_class=tokenizer,
        rollout_func=fixed_texts(texts),
    )  # fmt: skip
    seen = []
    scorer = trainer.scorers[0]
    original = scorer.read

    def record(ids, mask, width, *shared):
        contexts = zip(ids[:, :-width], mask[:, :-width], strict=True)
        seen.extend(tokenizer.decode(row[row_mask.bool()]) for row, row_mask in contexts)
        return original(ids, mask, width, *shared)

    scorer.read = record
    trainer.train()
    return trainer, seen, next(row for row in trainer.state.log_history if "context/active_fraction" in row)


def test_the_teacher_reads_the_sibling_before_the_completion(tmp_path, student, tokenizer):
    trainer, seen, logged = sdpo(tmp_path, student, tokenizer, [RIGHT, WRONG, WRONG, RIGHT + "!"])
    question = tokenizer.decode(trainer._buffered_inputs[0]["prompt_ids"][0]).removesuffix("«assistant»")
    question = question.removeprefix("«pad»").removesuffix("«end»")
    assert sorted(seen) == sorted(
        f"{question}<D>{shown}</D><C>«end»«assistant»" for shown in (RIGHT + "!", RIGHT, RIGHT, RIGHT)
    )
    assert logged["context/active_fraction"] == 1.0
    assert logged["context/shortened_fraction"] == logged["context/dropped_fraction"] == 0.0


@pytest.mark.parametrize("excess", [0, 1, 5, len(RIGHT) - 1])
def test_an_over_long_demonstration_is_shortened_and_counted(excess, tmp_path, student, tokenizer):
    texts = [RIGHT, WRONG, WRONG, WRONG]
    _, seen, _ = sdpo(tmp_path / "whole", student, tokenizer, texts)
    whole = len(tokenizer(seen[0])["input_ids"]) + len(WRONG) + 1
    _, seen, logged = sdpo(tmp_path / "cut", student, tokenizer, texts, max_teacher_length=whole - excess)
    assert logged["context/shortened_fraction"] == (0.75 if excess else 0.0)
    assert logged["context/dropped_fraction"] == 0.0
    assert logged["context/active_fraction"] == 0.75
    assert len(seen) == 3
    for context_read in seen:
        question, rest = context_read.split("<D>")
        assert question.startswith("«user»")
        assert question.endswith("=?")
        assert rest == f"{RIGHT[: len(RIGHT) - excess]}</D><C>«end»«assistant»"
        assert len(tokenizer(context_read)["input_ids"]) + len(WRONG) + 1 == whole - excess


def test_where_nothing_of_the_demonstration_fits_the_row_is_dropped(tmp_path, student, tokenizer):
    texts = [RIGHT, WRONG, WRONG, WRONG]
    trainer, seen, _ = sdpo(tmp_path / "whole", student, tokenizer, texts)
    whole = len(tokenizer(seen[0])["input_ids"]) + len(WRONG) + 1
    limit = whole - len(RIGHT)
    trainer, seen, logged = sdpo(tmp_path / "cut", student, tokenizer, texts, max_teacher_length=limit)
    assert seen == []
    assert logged["context/dropped_fraction"] == 0.75
    assert logged["context/shortened_fraction"] == logged["context/active_fraction"] == 0.0
    assert logged["loss"] == 0.0
    assert logged["grad_norm"] == 0.0
    assert not trainer._buffered_inputs[0]["counted"].any()


def test_feedback_stays_whole_where_the_demonstration_is_shortened(tmp_path, student, tokenizer):
    texts = [RIGHT, WRONG, WRONG, WRONG]
    options = {"use_feedback": True, "feedback_only_without_demonstration": False}
    _, seen, _ = sdpo(tmp_path / "whole", student, tokenizer, texts, **options)
    whole = len(tokenizer(seen[0])["input_ids"]) + len(WRONG) + 1
    _, seen, logged = sdpo(tmp_path / "cut", student, tokenizer, texts, max_teacher_length=whole - 7, **options)
    assert logged["context/shortened_fraction"] == 0.75
    assert all(text.endswith(f"<D>{RIGHT[:-7]}</D><F>not the sum</F><C>«end»«assistant»") for text in seen)


def test_feedback_alone_that_does_not_fit_is_dropped_and_never_cut(tmp_path, student, tokenizer):
    options = {"use_feedback": True, "use_demonstrations": False}
    texts = [WRONG] * 4
    _, seen, logged = sdpo(tmp_path / "whole", student, tokenizer, texts, **options)
    assert len(seen) == 4
    assert logged["context/active_fraction"] == 1.0
    whole = len(tokenizer(seen[0])["input_ids"]) + len(WRONG) + 1
    _, seen, logged = sdpo(tmp_path / "cut", student, tokenizer, texts, max_teacher_length=whole - 1, **options)
    assert seen == []
    assert logged["context/dropped_fraction"] == 1.0


def test_the_trainer_refuses_feedback_that_is_never_reported(tmp_path, student, tokenizer):
    def silent(completions, **_):
        return [1.0] * len(completions)

    with pytest.raises(UserError, match="no reward function reports feedback"):
        sdpo(tmp_path, student, tokenizer, [RIGHT] * 4, reward=silent, use_feedback=True)


def test_a_rollout_that_hit_the_length_limit_is_shown_to_nobody(tmp_path, student, tokenizer):
    def endless(prompts, trainer):
        made = fixed_texts([RIGHT, RIGHT, WRONG, WRONG])(prompts, trainer)
        for row in (0, 1):
            made["completion_ids"][row].pop()
            made["logprobs"][row].pop()
        return made

    config = SDPOConfig(**settings(tmp_path, max_completion_length=len(RIGHT), **SHORT))
    trainer = SDPOTrainer(
        student, right_reward, config, Dataset.from_list(rows("train", 4)), processing_class=tokenizer,
        rollout_func=endless,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[0]["context/active_fraction"] == 0.0
