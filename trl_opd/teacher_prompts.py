"""The token ids that teachers read before the completions, within what teachers can take."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trl_opd.contexts import generation_header
from trl_opd.errors import UserError
from trl_opd.objectives.base import Objective
from trl_opd.rollouts import Prompt, Rollouts


@dataclass
class TeacherPrompts:
    """Renders what the objective's context gives the teacher to read.

    Attributes:
        objective (`Objective`): Its context, if it has one; else teachers read the student's prompts.
        tokenizer (`PreTrainedTokenizerBase`): The student's, whose ids teachers read.
        template (`str`, *optional*): Chat template on the teacher's side.
        template_kwargs (`dict`): Its arguments.
        tokenize (`Callable`): Renders prompts as the student's are, given a template and its arguments.
        limit (`float`): Longest input in tokens, prompt and completion together.
    """

    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    template: str | None
    template_kwargs: dict
    tokenize: Callable[[list[Prompt], str | None, dict], list[list[int]]]
    limit: float

    def fit(
        self, rollouts: Rollouts, own: list[list[int]], lengths: list[int]
    ) -> tuple[list[list[int] | None], dict[str, tuple[float, float]]]:
        """What the teacher reads before each completion.

        Args:
            rollouts (`Rollouts`): The rollouts.
            own (`list[list[int]]`): The student's prompts, without padding.
            lengths (`list[int]`): The completions' lengths.

        Returns:
            `tuple`: Ids of each row, None where there is nothing that fits, and shares to log: name -> (part, whole).
        """
        context = self.objective.context
        room = [self.limit - n for n in lengths]
        rendered = self.render(context.prompts(rollouts)) if context else own
        shortened = 0
        for row, ids in enumerate(rendered):
            if context and ids is not None and len(ids) > room[row]:
                rendered[row] = self._shortened(rollouts, row, len(ids) - room[row], room[row]) or ids
                shortened += len(rendered[row]) <= room[row]
        fits = [ids is not None and len(ids) <= space for ids, space in zip(rendered, room, strict=True)]
        present = [ids for ids in rendered if ids is not None]
        shares = {
            "context/dropped_fraction": (len(present) - sum(fits), len(rendered)),
            "context/shortened_fraction": (shortened, len(rendered)),
            "context/active_fraction": (sum(fits), len(rendered)),
            "context/mean_length": (sum(map(len, present)), len(present)),
        }
        return [ids if fit else None for ids, fit in zip(rendered, fits, strict=True)], shares

    def _shortened(self, rollouts: Rollouts, row: int, excess: int, room: float) -> list[int] | None:
        """The row's teacher prompt with its demonstration cut to fit; None where there is none that fits."""

        def cut(text: str) -> str:
            return self.tokenizer.decode(self.tokenizer(text, add_special_tokens=False)["input_ids"][:-excess])

        # Re-encoding a cut text may take a token more than was kept: one more round then makes it fit.
        for _ in range(3):
            prompt = self.objective.context.shortened(rollouts, row, cut)
            if prompt is None:
                return None
            (ids,) = self.render([prompt])
            if len(ids) <= room:
                return ids
            excess += len(ids) - int(room)
        return None

    def render(self, prompts: list[Prompt | None]) -> list[list[int] | None]:
        """Ids of prompts on the teacher's side; None stays None.

        Raises:
            `UserError`: If the chat template does not end them with its generation header.
        """
        present = [row for row, prompt in enumerate(prompts) if prompt is not None]
        rendered: list[list[int] | None] = [None] * len(prompts)
        if not present:
            return rendered
        found = self.tokenize([prompts[row] for row in present], self.template, self.template_kwargs)
        for row, ids in zip(present, found, strict=True):
            rendered[row] = ids
        if not isinstance(prompts[present[0]], str):
            header = generation_header(self.tokenizer, self.template, self.template_kwargs)
            for row in present:
                if header and rendered[row][-len(header) :] != header:
                    raise UserError(
                        "A teacher prompt does not end with the chat template's generation header, so the teacher "
                        "would not be answering; check the chat template and teacher_chat_template_kwargs."
                    )
        return rendered
