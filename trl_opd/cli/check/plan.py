"""What is checked: a method with its parsed options, and what they name, loaded when it is asked for."""

import argparse
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any

from trl_opd.cli import train
from trl_opd.errors import UserError
from trl_opd.methods import load, method

#: Rows that are rendered to learn how long prompts are.
ROWS = 512

#: Tokens of a prompt where no row is there to be measured.
PROMPT = 512

#: Stand for what a teacher reads that is known only after rollouts: to be looked at, and to be measured.
SIBLING, SHORTEST = "<a successful rollout of this prompt, or feedback>", "."


@dataclass
class Plan:
    """A run that is looked at before it is started.

    Attributes:
        method: Its name.
        data, config, model: Its options, parsed.
        options: Those of the check itself.
        named: The options that the recipe and the command line name.
        given: What a trainer that is already made holds, in place of loading it: `tokenizer`, `dataset`.
    """

    method: str
    data: Any
    config: Any
    model: Any
    options: argparse.Namespace
    named: frozenset[str] = frozenset()
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def off_policy(self) -> bool:
        """Whether the method learns from completions that are there before the first step."""
        return method(self.method).kind == "off-policy"

    @cached_property
    def trainer_class(self) -> type:
        """The method's trainer."""
        return load(method(self.method).trainer)

    @cached_property
    def objective(self) -> Any:
        """The method's objective; one that declares nothing for an off-policy method.

        Raises:
            `UserError`: If the options contradict each other.
        """
        from trl_opd.objectives import Objective

        if self.off_policy:
            return Objective()
        return self.trainer_class.make_objective(self.config, train.named_functions(self.data).get("teacher_context"))

    @cached_property
    def student(self) -> str:
        """The student's path or id.

        Raises:
            `UserError`: If none is named.
        """
        if not self.model.model_name_or_path:
            raise UserError("model_name_or_path is missing; set it to testbed/base, a folder, or a model on the hub.")
        return train.resolve_model(self.model.model_name_or_path)

    @cached_property
    def teacher(self) -> str | None:
        """The external teacher's path or id, where its tokenizer can be read."""
        if self.objective.teacher != "external":
            return None
        several = getattr(self.config, "teacher_models", None) or {}
        named = self.config.teacher_model_name_or_path or next(iter(several.values()), None)
        return None if named is None or self.config.teacher_cache else train.resolve_model(named)

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer."""
        return self.given.get("tokenizer") or tokenizer_of(self.student)

    @cached_property
    def dataset(self) -> Any:
        """The rows to train on.

        Raises:
            `UserError`: If they cannot be loaded.
        """
        from trl_opd.data import load_training_data
        from trl_opd.teacher_cache import load_rollouts

        if "dataset" in self.given:
            return self.given["dataset"]
        cache = getattr(self.config, "teacher_cache", None)
        return load_training_data(self.data) if cache is None else load_rollouts(cache)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The first rows, those that are rendered."""
        return list(islice(self.dataset, getattr(self.options, "rows", None) or ROWS))

    @cached_property
    def student_prompts(self) -> list[list[int]]:
        """What the student reads of each row, as token ids."""
        from trl_opd.compat import render_prompts

        prompts = [row["prompt"] for row in self.rows]
        return render_prompts(self.tokenizer, prompts, None, self.config.chat_template_kwargs or {})

    @cached_property
    def teacher_template(self) -> tuple[str | None, dict[str, Any]]:
        """Chat template and arguments on the teacher's side; a template of None is the student's."""
        template = tokenizer_of(self.teacher).chat_template if self._reads_own_template else None
        arguments = self.config.teacher_chat_template_kwargs
        return template, (self.config.chat_template_kwargs or {}) if arguments is None else arguments

    @property
    def _reads_own_template(self) -> bool:
        return bool(getattr(self.config, "use_teacher_template", False)) and self.teacher is not None

    def teacher_prompts(self, demonstration: str) -> list[list[int] | None]:
        """What the teacher reads of each row, as token ids; None where there is nothing.

        Args:
            demonstration (`str`): Stands for what is known only after rollouts: a successful sibling, feedback.
        """
        from trl_opd.compat import render_prompts
        from trl_opd.teacher_prompts import TeacherPrompts

        context = self.objective.context
        if context is None:
            return list(self.student_prompts)
        template, arguments = self.teacher_template
        prompts = TeacherPrompts(
            objective=self.objective,
            tokenizer=self.tokenizer,
            template=template,
            template_kwargs=arguments,
            tokenize=partial(render_prompts, self.tokenizer),
            limit=float("inf"),
        )
        return prompts.render(context.prompts(self._imagined(demonstration)))

    def _imagined(self, demonstration: str) -> Any:
        """Rollouts of the rows as they might be: each with a successful sibling and feedback."""
        import torch

        from trl_opd.rollouts import Rollouts, Sibling

        number = len(self.rows)
        success = getattr(self.config, "success_threshold", 0.0)
        own, sibling = Sibling("", success - 1.0, False), Sibling(demonstration, success, False)
        shown = getattr(self.config, "use_demonstrations", True)
        return Rollouts(
            examples=self.rows,
            prompts=[row["prompt"] for row in self.rows],
            own=[own] * number,
            siblings=[[own, sibling] if shown else [own]] * number,
            position=[0] * number,
            feedback=[demonstration] * number,
            feedback_reported=True,
            mask=torch.zeros(number, 1),
            advantages=torch.zeros(number),
        )

    @property
    def demonstrates(self) -> bool:
        """Whether the teacher reads what is known only after rollouts."""
        return "demonstration" in getattr(self.objective.context, "placeholders", ())

    @cached_property
    def longest_completion(self) -> int:
        """Tokens of the longest completion: the limit of rollouts, or the longest solution that there is."""
        if hasattr(self.config, "max_completion_length"):
            return self.config.max_completion_length or 0
        solutions = [row[self.config.solution_column] or "" for row in self.rows]
        return max(map(len, self.tokenizer(solutions, add_special_tokens=False)["input_ids"])) + 1

    @cached_property
    def longest_prompts(self) -> tuple[int, int]:
        """Tokens of the longest prompts of student and teacher; `PROMPT` where the rows cannot be had."""
        longer = self.longest_completion if self.demonstrates else 0
        try:
            student = max(map(len, self.student_prompts))
            teacher = max((len(ids) for ids in self.teacher_prompts(SHORTEST) if ids is not None), default=student)
        except UserError:
            return PROMPT, PROMPT + longer
        return student, teacher + longer

    @cached_property
    def rehearsal(self) -> Any:
        """One step on a few rollouts; None where it is not asked for."""
        from trl_opd.cli.check.rehearsal import rehearse, wanted

        return rehearse(self) if wanted(self) else None


def tokenizer_of(name: str) -> Any:
    """A model's tokenizer.

    Raises:
        `UserError`: If it cannot be had.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(_not_to_be_had("tokenizer", name)) from error


def model_config_of(name: str) -> Any:
    """A model's configuration.

    Raises:
        `UserError`: If it cannot be had.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(_not_to_be_had("configuration", name)) from error


def _not_to_be_had(what: str, name: str) -> str:
    return (
        f"The {what} of {name} is neither in a folder of that name nor to be had from the hub; check the name, or "
        "connect and log in."
    )
