"""What student and teacher read: row 0 side by side, their tokenizers and templates, and how long rows are."""

import difflib
import re
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from trl_opd.cli.check.plan import SHORTEST, SIBLING, Plan, model_config_of, tokenizer_of
from trl_opd.cli.check.report import Section

#: Lines of a prompt that are shown, and characters of a line.
LINES, WIDTH = 14, 400

#: Tokens at the end of a prompt that are compared.
ENDING = 12


def reading(plan: Plan) -> Section:
    """Row 0 as each side reads it, with a mark beside each line that differs."""
    student = plan.student_prompts[0]
    teachers = plan.teacher_prompts(SIBLING)[0] if plan.objective.teacher != "none" else None
    texts = [plan.tokenizer.decode(ids) for ids in (student, teachers) if ids is not None]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"the student reads ({len(student)} tokens)", overflow="fold")
    facts = {"student": texts[0], "student_tokens": len(student)}
    warnings = []
    if teachers is None:
        for line in _shortened(texts[0].split("\n")):
            table.add_row(Text(_clean(line)))
        if plan.objective.teacher != "none":
            warnings.append("The teacher has nothing to read for row 0, so it would give no signal there.")
    else:
        table.add_column("")
        table.add_column(f"the teacher reads ({len(teachers)} tokens)", overflow="fold")
        for left, mark, right in side_by_side(*texts):
            table.add_row(*_marked(_clean(left), mark, _clean(right)))
        facts |= {"teacher": texts[1], "teacher_tokens": len(teachers), "same": student == teachers}
    return Section("Row 0", [table], facts, warnings)


def side_by_side(left: str, right: str) -> list[tuple[str, str, str]]:
    """The lines of two texts beside one another, with "|" between lines that differ, "<" or ">" where one has none."""
    lines, others = left.split("\n"), right.split("\n")
    rows: list[tuple[str, str, str]] = []
    for kind, start, end, first, last in difflib.SequenceMatcher(None, lines, others, autojunk=False).get_opcodes():
        here, there = lines[start:end], others[first:last]
        if kind == "equal":
            rows += [(line, " ", line) for line in here]
            continue
        for index in range(max(len(here), len(there))):
            one = here[index] if index < len(here) else None
            other = there[index] if index < len(there) else None
            mark = "<" if other is None else ">" if one is None else "|"
            rows.append((one or "", mark, other or ""))
    return _shortened(rows, lambda count: (f"... {count} more lines", " ", ""))


def _marked(left: str, mark: str, right: str) -> tuple[Text, Text, Text]:
    """Two lines with what one has and the other has not in colour."""
    if mark == " ":
        return Text(left), Text(mark), Text(right)
    one, other = (re.findall(r"\w+|\W", line) for line in (left, right))
    texts = (Text(), Text())
    for kind, start, end, first, last in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        style = "" if kind == "equal" else "bold yellow"
        texts[0].append("".join(one[start:end]), style)
        texts[1].append("".join(other[first:last]), style)
    return texts[0], Text(mark, "bold yellow"), texts[1]


def _shortened(rows: list, more=lambda count: f"... {count} more lines") -> list:
    """The beginning and the end of long lists of lines."""
    if len(rows) <= LINES:
        return rows
    half = LINES // 2
    return [*rows[:half], more(len(rows) - 2 * half), *rows[-half:]]


def _clean(line: str) -> str:
    """A line as it may be printed: no control character reaches the terminal."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    return shown if len(shown) <= WIDTH else f"{shown[:WIDTH]}... ({len(shown)} characters)"


def models(plan: Plan) -> Section:
    """Stop ids, vocabularies, templates and thinking flags of both sides."""
    own_template = plan.tokenizer.chat_template
    sides = {"student": _side(plan.student, plan.tokenizer, own_template, plan.config.chat_template_kwargs or {})}
    sides["student"]["model"] = plan.model.model_name_or_path
    if plan.objective.teacher != "none":
        template, arguments = plan.teacher_template
        own = plan.teacher is not None and plan.teacher != plan.student
        tokenizer = tokenizer_of(plan.teacher) if own else plan.tokenizer
        sides["teacher"] = _side(plan.teacher or plan.student, tokenizer, template or own_template, arguments)
        sides["teacher"]["model"] = _teacher_name(plan)
    for name, prompts in (("student", plan.student_prompts), ("teacher", plan.teacher_prompts(SIBLING))):
        if name in sides and prompts[0] is not None:
            sides[name]["prompt ends with"] = repr(plan.tokenizer.decode(prompts[0][-ENDING:]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", *sides):
        table.add_column(heading, overflow="fold")
    for fact in sides["student"]:
        values = [str(side.get(fact, "-")) for side in sides.values()]
        table.add_row(fact, *(Text(_clean(value), "yellow" if len({*values}) > 1 else "") for value in values))
    return Section("Models", [table], sides, _differences(plan, sides))


def _teacher_name(plan: Plan) -> str:
    if plan.objective.teacher == "self":
        return f"the same, weights: {plan.config.teacher_weights}"
    options = ("teacher_cache", "teacher_server", "teacher_models", "teacher_model_name_or_path")
    return str(next(value for name in options if (value := getattr(plan.config, name, None))))


def _side(name: str, tokenizer: Any, template: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
    config = model_config_of(name)
    return {
        "model": name,
        "architecture": config.model_type,
        "vocabulary": f"{len(tokenizer)} tokens, {config.get_text_config().vocab_size} rows of the head",
        "stop ids": _stop_ids(name, tokenizer),
        "chat template": f"{len(template)} characters" if template else "none: texts are read as they are",
        "template arguments": arguments or "none",
        "thinking": _thinking(template, arguments),
    }


def _stop_ids(name: str, tokenizer: Any) -> str:
    """The tokens that end a turn, by the tokenizer and by the generation configuration."""
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(name).eos_token_id
    except OSError:  # a model without one stops where its tokenizer says
        configured = None
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    return ", ".join(f"{number} {tokenizer.convert_ids_to_tokens(number)}" for number in sorted(ids))


def _thinking(template: str | None, arguments: dict[str, Any]) -> str:
    if not template or "enable_thinking" not in template:
        return "the template has no such flag"
    return {True: "on", False: "off", None: "the template's default"}[arguments.get("enable_thinking")]


def _differences(plan: Plan, sides: dict[str, dict[str, Any]]) -> list[str]:
    """What differs between the sides and will hurt."""
    warnings = []
    if not sides["student"]["stop ids"]:
        warnings.append("The student has no stop token, so every rollout runs to max_completion_length.")
    teacher = sides.get("teacher")
    if teacher is None:
        return warnings
    if sides["student"]["stop ids"] != teacher["stop ids"]:
        warnings.append(
            "Student and teacher stop at different tokens, so the student may be taught never to stop; make their "
            "generation_config.json agree."
        )
    own_arguments = plan.config.teacher_chat_template_kwargs is not None
    if not own_arguments and sides["student"]["prompt ends with"] != teacher.get("prompt ends with"):
        warnings.append(
            "The teacher's prompt ends otherwise than the student's, so the first token means something else to it; "
            "compare the last lines of row 0."
        )
    return warnings


def lengths(plan: Plan) -> Section:
    """How long prompts are, and the share of rows that do not fit."""
    limit, longest = _limit(plan.student), plan.longest_completion
    student = np.array([len(ids) for ids in plan.student_prompts])
    number = len(student)
    facts: dict[str, Any] = {"rows": number, "student": _spread(student), "max_completion_length": longest}
    lines = [f"student's prompts, {number} rows: {_told(facts['student'])}; completions up to {longest} tokens"]
    warnings = []
    if limit is not None:
        facts |= {"student_limit": limit, "student_over": float((student + longest > limit).mean())}
        lines.append(f"with a completion of {longest}: {facts['student_over']:.0%} are over the student's {limit}")
        if facts["student_over"] > 0:
            warnings.append(
                f"{facts['student_over']:.0%} of the rows with a completion of {longest} tokens are longer than the "
                f"student's {limit}; lower max_completion_length, or drop long rows."
            )
    if plan.objective.teacher != "none":
        _teacher_lengths(plan, longest, lines, facts, warnings)
    return Section("Lengths in tokens", lines, facts, warnings)


def _teacher_lengths(plan: Plan, longest: int, lines: list, facts: dict[str, Any], warnings: list[str]) -> None:
    prompts = plan.teacher_prompts(SHORTEST)
    found = np.array([len(ids) for ids in prompts if ids is not None])
    absent = len(prompts) - len(found)
    facts |= {"teacher": _spread(found) if len(found) else None, "teacher_absent": absent / len(prompts)}
    shown = _told(facts["teacher"]) if len(found) else "none"
    demonstrated = ", before a demonstration, which is shortened where it has to be" if plan.demonstrates else ""
    lines.append(f"teacher's prompts{demonstrated}: {shown}")
    if absent:
        warnings.append(
            f"The teacher has nothing to read for {absent / len(prompts):.0%} of the rows: no signal there."
        )
    limits = [getattr(plan.config, "max_teacher_length", None), _limit(plan.teacher or plan.student)]
    limit = min((limit for limit in limits if limit is not None), default=None)
    if limit is None or not len(found):
        return
    share = float((found + longest > limit).mean())
    facts |= {
        "teacher_limit": limit,
        "teacher_dropped": share,
        "teacher_dropped_at_once": float((found > limit).mean()),
    }
    lines.append(
        f"the teacher takes {limit}: {share:.0%} of the rows are dropped with a completion of {longest}, "
        f"{facts['teacher_dropped_at_once']:.0%} with an empty one"
    )
    if share > 0:
        warnings.append(
            f"{share:.0%} of the rows do not fit the teacher's {limit} tokens with a completion of {longest} and would "
            "give no signal; raise max_teacher_length, lower max_completion_length, or shorten the context."
        )


def _limit(name: str) -> int | None:
    return getattr(model_config_of(name).get_text_config(), "max_position_embeddings", None)


def _spread(values: np.ndarray) -> dict[str, int]:
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def _told(spread: dict[str, int]) -> str:
    return f"{spread['least']} to {spread['most']}, median {spread['median']}"
