"""What the teacher reads: the student's own prompt, rewritten to carry privileged information.

A context rewrites the last user turn and nothing else. Student and teacher prompts are then rendered by one and the
same function, and the student's completion ids are appended to both as they are: nothing is ever re-tokenised. A
context that does not fit the teacher's limit is dropped and counted; only a demonstration may be shortened first, and
that is counted too.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from trl_opd.errors import UserError
from trl_opd.rollouts import Prompt, Rollouts


class Context(ABC):
    """Builds the teacher's prompts.

    Attributes:
        columns: Dataset columns that it reads.
    """

    columns: tuple[str, ...] = ()
    placeholders: ClassVar[tuple[str, ...]]

    @abstractmethod
    def prompts(self, rollouts: Rollouts) -> list[Prompt | None]:
        """The teacher's prompt for each rollout; None where there is nothing to tell the teacher."""

    def privileged(self, rollouts: Rollouts, row: int) -> str:
        """What the row's teacher may read and its student must not."""
        return ""

    def shortened(self, rollouts: Rollouts, row: int, cut: Callable[[str], str]) -> Prompt | None:
        """A row's prompt with what may be shortened put through `cut`; None where nothing may."""
        return None


class ReferenceSolution(Context):
    """The problem together with its reference solution (OPSD, https://huggingface.co/papers/2601.18734, section 3).

    Args:
        column (`str`): Dataset column that holds the reference solution.
        template (`str`): The teacher's user turn, with the placeholders {prompt} and {solution}.
    """

    placeholders = ("prompt", "solution")

    def __init__(self, column: str, template: str):
        check_template("reference_template", template, self.placeholders)
        self.columns = (column,)
        self.template = template

    def prompts(self, rollouts: Rollouts) -> list[Prompt | None]:
        (column,) = self.columns
        return [
            rewrite(prompt, self.template, solution=example[column]) if (example[column] or "").strip() else None
            for prompt, example in zip(rollouts.prompts, rollouts.examples, strict=True)
        ]

    def privileged(self, rollouts: Rollouts, row: int) -> str:
        return rollouts.examples[row][self.columns[0]] or ""


class FunctionContext(Context):
    """What a function of your own makes of each rollout.

    Args:
        function (`Callable`): Called once for each rollout, with keywords of which it names those that it wants and
            ends with `**_`; it returns the text of the last user turn as the teacher reads it, or None where there is
            nothing to tell the teacher. The keywords are `question`, the text of that turn as the student reads it;
            `completion`, `reward` and `feedback` of the rollout; `siblings`, the `Sibling`s of its group, its own among
            them (empty for methods that do not look at groups); and the columns of the dataset row.
    """

    placeholders = ()

    def __init__(self, function: Callable[..., str | None]):
        self.function = function
        self._texts: list[str | None] = []

    def prompts(self, rollouts: Rollouts) -> list[Prompt | None]:
        self._texts = [self._text(rollouts, row) for row in range(len(rollouts))]
        return [
            None if text is None else rewrite(prompt, "{text}", text=text)
            for prompt, text in zip(rollouts.prompts, self._texts, strict=True)
        ]

    def privileged(self, rollouts: Rollouts, row: int) -> str:
        return self._texts[row] or ""

    def _text(self, rollouts: Rollouts, row: int) -> str | None:
        own = rollouts.own[row]
        told = {
            "question": last_user_turn(rollouts.prompts[row]),
            "completion": own.text,
            "reward": own.reward,
            "feedback": rollouts.feedback[row],
            "siblings": rollouts.siblings[row],
        }
        text = self.function(**rollouts.examples[row] | told)
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"The teacher's context function returned {type(text).__name__}; return the text of the teacher's user "
                "turn, or None."
            )
        return text


def check_template(option: str, template: str, placeholders: tuple[str, ...]) -> None:
    """Refuses a template that lacks one of its placeholders.

    Raises:
        `UserError`: Naming the option and the missing placeholder.
    """
    for name in placeholders:
        if f"{{{name}}}" not in template:
            raise UserError(f"{option} has no {{{name}}} in it: the teacher would not read it; add the placeholder.")


def fill(template: str, **values: str) -> str:
    """Puts values into {name} placeholders in one pass: braces in the template or in a value mean nothing else."""
    pattern = "|".join(re.escape(name) for name in values)
    return re.sub(rf"\{{({pattern})\}}", lambda match: values[match.group(1)], template)


def last_user_turn(prompt: Prompt) -> str:
    """The text of a prompt's last user turn, or the whole text prompt.

    Raises:
        `UserError`: If a conversation has no user turn, or one that is not plain text.
    """
    return prompt if isinstance(prompt, str) else prompt[_last_user(prompt)]["content"]


def rewrite(prompt: Prompt, template: str, **values: str) -> Prompt:
    """The prompt with the text of its last user turn (or the whole text prompt) put through a template.

    Raises:
        `UserError`: If a conversation has no user turn, or one that is not plain text.
    """
    if isinstance(prompt, str):
        return fill(template, prompt=prompt, **values)
    last = _last_user(prompt)
    turn = {**prompt[last], "content": fill(template, prompt=prompt[last]["content"], **values)}
    return [*prompt[:last], turn, *prompt[last + 1 :]]


def _last_user(prompt: list[dict[str, Any]]) -> int:
    last = max((i for i, turn in enumerate(prompt) if turn["role"] == "user"), default=None)
    if last is None:
        raise UserError("A prompt has no user turn to put the teacher's context into; give each conversation one.")
    if not isinstance(prompt[last]["content"], str):
        raise UserError("A user turn's content is not plain text, and only text can be rewritten for the teacher.")
    return last


def generation_header(tokenizer, chat_template: str | None, chat_template_kwargs: dict) -> list[int]:
    """The token ids that the chat template puts after the last user turn to open the assistant's."""

    def render(with_header: bool) -> list[int]:
        rendered = tokenizer.apply_chat_template(
            [[{"role": "user", "content": "x"}]],
            chat_template=chat_template,
            add_generation_prompt=with_header,
            tokenize=True,
            return_dict=True,
            **chat_template_kwargs,
        )
        return list(rendered["input_ids"][0])

    bare, opened = render(False), render(True)
    return opened[len(bare) :] if opened[: len(bare)] == bare else []


class StudentPrompt(Context):
    """The student's own prompt, rendered again for a teacher with another template or other template arguments."""

    placeholders = ()

    def prompts(self, rollouts: Rollouts) -> list[Prompt | None]:
        return list(rollouts.prompts)


def teacher_reads(config) -> Context | None:
    """The context of an external teacher: None where it reads the student's very token ids."""
    same_text = config.teacher_chat_template_kwargs is None and not config.use_teacher_template
    return None if same_text else StudentPrompt()
