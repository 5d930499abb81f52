"""What the teacher reads after the rollouts were scored: a successful sibling, and feedback on the attempt (SDPO)."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from trl_opd.contexts import Context, check_template, rewrite
from trl_opd.errors import UserError
from trl_opd.rollouts import Prompt, Rollouts

#: Options that say how a demonstration and feedback are read, besides `use_demonstrations`.
OPTIONS = (
    "use_feedback",
    "exclude_self",
    "feedback_only_without_demonstration",
    "include_attempt",
    "strip_thinking",
    "teacher_template",
    "demonstration_section",
    "feedback_section",
    "attempt_section",
)

_THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Sections:
    """The texts of the teacher's user turn: the whole, with {prompt} and {sections} in it, and the sections."""

    whole: str
    demonstration: str
    feedback: str
    attempt: str


class Hindsight(Context):
    """A sibling's success and/or the environment's feedback (https://huggingface.co/papers/2601.20802, section 2).

    The demonstration is the first rollout of the group whose reward reaches the threshold and that ended by itself,
    the row's own left out if `exclude_self`. A row without demonstration and without feedback has no context.

    Args:
        sections (`Sections`): The texts.
        threshold (`float`): Reward from which a rollout is a success.
        use_demonstrations, use_feedback (`bool`): What may be shown.
        exclude_self (`bool`): Whether a success is never its own demonstration.
        feedback_only_without_demonstration (`bool`): Whether a demonstration makes feedback superfluous.
        include_attempt (`bool`): Whether the row's own attempt is shown before its feedback.
        strip_thinking (`bool`): Whether thinking blocks are cut out of demonstrations and attempts.

    Raises:
        `UserError`: For sections without their placeholder, or if nothing may be shown.
    """

    placeholders = ("demonstration", "feedback", "attempt")

    def __init__(
        self,
        sections: Sections,
        threshold: float,
        use_demonstrations: bool,
        use_feedback: bool,
        exclude_self: bool,
        feedback_only_without_demonstration: bool,
        include_attempt: bool,
        strip_thinking: bool,
    ):
        if not (use_demonstrations or use_feedback):
            raise UserError("The teacher has nothing to read; set use_demonstrations or use_feedback to true.")
        if include_attempt and not use_feedback:
            raise UserError("include_attempt shows the attempt that feedback is about; set use_feedback: true as well.")
        check_template("teacher_template", sections.whole, ("prompt", "sections"))
        for name in self.placeholders:
            check_template(f"{name}_section", getattr(sections, name), (name,))
        self.sections = sections
        self.threshold = threshold
        self.use_demonstrations = use_demonstrations
        self.use_feedback = use_feedback
        self.exclude_self = exclude_self
        self.feedback_only_without_demonstration = feedback_only_without_demonstration
        self.include_attempt = include_attempt
        self.strip_thinking = strip_thinking

    def prompts(self, rollouts: Rollouts) -> list[Prompt | None]:
        if self.use_feedback and not rollouts.feedback_reported:
            raise UserError(
                'use_feedback is set, but no reward function reports feedback; call log_extra("feedback", [...]) in '
                "one, with a text or None for each completion."
            )
        return [self._prompt(rollouts, row) for row in range(len(rollouts))]

    def shortened(self, rollouts: Rollouts, row: int, cut: Callable[[str], str]) -> Prompt | None:
        """The row's prompt with a shorter demonstration: never a shorter question, feedback or request."""
        return self._prompt(rollouts, row, cut) if self.demonstration(rollouts, row) else None

    def demonstration(self, rollouts: Rollouts, row: int) -> str | None:
        """The successful sibling's text that the row's teacher reads."""
        if not self.use_demonstrations:
            return None
        for position, sibling in enumerate(rollouts.siblings[row]):
            own = position == rollouts.position[row]
            if not sibling.reward >= self.threshold or sibling.truncated or (own and self.exclude_self):
                continue
            if shown := self._clean(sibling.text):
                return shown
        return None

    def privileged(self, rollouts: Rollouts, row: int) -> str:
        feedback = rollouts.feedback[row] if self.use_feedback else None
        return "\n".join(filter(None, (self.demonstration(rollouts, row), feedback)))

    def _clean(self, text: str) -> str:
        if not self.strip_thinking:
            return text
        # A template may open the block in the generation header, so that the text holds its end alone.
        closed = _THINKING.sub("", text).rpartition("</think>")[2]
        return closed.partition("<think>")[0].strip()

    def _prompt(self, rollouts: Rollouts, row: int, cut: Callable[[str], str] = lambda text: text) -> Prompt | None:
        demonstration = self.demonstration(rollouts, row)
        feedback = rollouts.feedback[row] if self.use_feedback else None
        if demonstration and self.feedback_only_without_demonstration:
            feedback = None
        if not demonstration and not feedback:
            return None
        values: dict[str, str] = {}
        shown = ""
        if demonstration:
            shown += self.sections.demonstration
            values["demonstration"] = cut(demonstration)
            if not values["demonstration"].strip():
                return None  # nothing of it fits
        if feedback and self.include_attempt:
            shown += self.sections.attempt
            values["attempt"] = self._clean(rollouts.own[row].text)
        if feedback:
            shown += self.sections.feedback
            values["feedback"] = feedback
        return rewrite(rollouts.prompts[row], self.sections.whole.replace("{sections}", shown), **values)


def hindsight(config) -> Hindsight:
    """The context that a config asks for."""
    return Hindsight(
        sections=Sections(
            whole=config.teacher_template,
            demonstration=config.demonstration_section,
            feedback=config.feedback_section,
            attempt=config.attempt_section,
        ),
        threshold=config.success_threshold,
        use_demonstrations=config.use_demonstrations,
        use_feedback=config.use_feedback,
        exclude_self=config.exclude_self,
        feedback_only_without_demonstration=config.feedback_only_without_demonstration,
        include_attempt=config.include_attempt,
        strip_thinking=config.strip_thinking,
    )
