"""The card of a trained model: how it was made, what it scored, and how to load it.

Written beside the weights by every `save_model` and pushed with them. Whatever comes from outside (names, settings, the
command line) is escaped: a card is a web page on the hub.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from trl_opd.compat import is_peft_model, tracker_links
from trl_opd.defaults import default_of
from trl_opd.eval_callback import FOLDER as EVALUATIONS
from trl_opd.evals.files import read_json
from trl_opd.evals.runner import Summary
from trl_opd.health import Finding, findings
from trl_opd.methods import METHODS
from trl_opd.pages import page_of
from trl_opd.run_log import command, versions

FILE = "README.md"
TRL = "https://github.com/huggingface/trl"
_PAPER = re.compile(r"^Paper: \[(\d{4}\.\d{5})\]", re.MULTILINE)
#: Settings that a card shows elsewhere, or that say nothing of the model.
_ELSEWHERE = ("model_name_or_path", "dataset_name", "debug", "disable_tqdm", "report_to")


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        name: The model's.
        model_id: Where it is loaded from, once it is pushed.
        method, summary, paper: Name, one line, and arXiv id of the method.
        base_model: Hub id, or what a local folder is called.
        is_hub_model: Whether `base_model` is a hub id.
        is_adapter: Whether the weights are a PEFT adapter.
        data: What it was trained on, in words.
        dataset_id: Hub id of the dataset.
        settings: Option -> (value, default).
        record: What `run.json` holds of the run.
        evaluations: Step -> results of the newest evaluation.
        signs: What the log says against the run.
        links: Names and addresses of trackers.
        tags: For the hub.
    """

    name: str
    model_id: str
    method: str
    summary: str
    paper: str | None
    base_model: str
    is_hub_model: bool
    is_adapter: bool
    data: str
    dataset_id: str | None
    settings: dict[str, tuple[Any, Any]]
    record: dict[str, Any]
    step: int | None
    evaluations: list[Summary]
    signs: list[Finding]
    links: dict[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()


def card_of(trainer: Any, name: str | None = None, dataset: str | None = None, tags: Iterable[str] = ()) -> Card:
    """What is known about a trainer's model.

    Args:
        trainer (`OnPolicyTrainer`): The trainer.
        name (`str`, *optional*): The model's name; that of its hub id or of the output folder by default.
        dataset (`str`, *optional*): Hub id of the dataset.
        tags (`Iterable[str]`): For the hub, besides the method's.
    """
    args, books = trainer.args, trainer.recorder.books
    config = books.identity["config"]
    base, is_hub = _base_model(trainer, config)
    dataset = dataset or _hub_dataset(config.get("dataset_name"))
    step, evaluations = _evaluations(Path(args.output_dir), trainer.state.global_step)
    known = METHODS.get(trainer.method)
    return Card(
        name=name or (args.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1],
        model_id=trainer.hub_model_id or args.hub_model_id or "path/to/this/folder",
        method=trainer.method,
        summary=known.summary if known else (type(trainer).__doc__ or "a method of its own").strip().splitlines()[0],
        paper=_paper(trainer),
        base_model=base,
        is_hub_model=is_hub,
        is_adapter=is_peft_model(trainer.model),
        data=_data(trainer.train_dataset, dataset or config.get("dataset_name")),
        dataset_id=dataset,
        settings=_settings(config, args),
        record=books.record,
        step=step,
        evaluations=evaluations,
        signs=findings(trainer.state.log_history),
        links=tracker_links(),
        tags=("generated_from_trainer", *sorted({"trl", "trl-opd", trainer.method, *tags})),
    )


def write_card(card: Card, folder: str | Path) -> None:
    """Puts the card beside the weights."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / FILE).write_text(render(card))


def render(card: Card) -> str:
    """The card as Markdown with its front matter."""
    sections = [
        f"---\n{_front_matter(card)}\n---",
        f"# {escaped(card.name)}\n\n{_opening(card)}",
        f"## Load it\n\n{_loading(card)}",
        f"## Evaluation\n\n{_evaluation_table(card)}",
        f"## Training\n\n{_training(card)}",
        f"## Settings that differ from the defaults\n\n{_settings_table(card)}",
        f"## Versions\n\n{_table(('Package', 'Version'), (map(code, row) for row in versions().items()))}",
    ]
    return "\n\n".join(sections) + "\n"


def escaped(text: Any) -> str:
    """Text that means nothing but itself in Markdown and in HTML."""
    return "".join(c if c.isalnum() or c in " .,-+=%/" else f"&#{ord(c)};" for c in str(text))


def code(text: Any) -> str:
    """The same set as code, where a table's cell can hold it as code."""
    text = str(text)
    return f"`{text}`" if text.strip() and not set(text) & set("`|\r\n") else escaped(text)


class Carded:
    """Put before a TRL trainer among the bases: every save writes a card, every push takes it along."""

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            write_card(card_of(self), output_dir or self.args.output_dir)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Writes the model's card into `output_dir`, as TRL's trainers do before a push."""
        if self.is_world_process_zero():
            tags = [tags] if isinstance(tags, str) else tags or []
            write_card(card_of(self, model_name, dataset_name, tags), self.args.output_dir)

    @property
    def _tag_names(self) -> list[str]:
        return ["trl", "trl-opd", self.method]


# What is known


def _paper(trainer: Any) -> str | None:
    """From the method's page, or, of a method from outside, from TRL's `_paper`."""
    if trainer.method in METHODS:
        found = _PAPER.search(page_of(trainer.method).read_text())
        return found and found.group(1)
    return vars(type(trainer)).get("_paper", {}).get("id")


def _base_model(trainer: Any, config: dict[str, Any]) -> tuple[str, bool]:
    model = trainer.model
    loaded = model.active_peft_config.base_model_name_or_path if is_peft_model(model) else model.config._name_or_path
    named = config.get("model_name_or_path") or loaded or "a model that was passed to the trainer"
    is_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", named) is not None and not named.startswith("testbed/")
    is_hub = is_hub and not Path(named).exists()
    return (named if is_hub or named.startswith("testbed/") else Path(named).name), is_hub


def _hub_dataset(name: str | None) -> str | None:
    is_id = name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    return name if is_id and not Path(name).exists() and not Path(name).suffix else None


def _data(dataset: Any, name: str | None) -> str:
    parts = [Path(name).name if name and Path(name).is_absolute() else name] if name else []
    if hasattr(dataset, "__len__"):
        parts.append(f"{len(dataset):,} rows")
    if getattr(dataset, "column_names", None):
        parts.append("columns " + ", ".join(dataset.column_names))
    return ", ".join(parts)


def _settings(config: dict[str, Any], args: Any) -> dict[str, tuple[Any, Any]]:
    defaults = {f.name: default_of(f) for f in fields(args)}
    return {name: (config[name], defaults.get(name)) for name in sorted(config) if name not in _ELSEWHERE}


def _evaluations(output_dir: Path, now: int) -> tuple[int | None, list[Summary]]:
    """Step and results of the newest evaluation that the run made itself and finished, up to step `now`.

    A run that was killed after an evaluation and resumed before it has made it twice: the later one is its own.
    """
    files = sorted((output_dir / EVALUATIONS).glob("step-*/*/summary.json"), key=lambda file: file.stat().st_mtime)
    found: dict[int, dict[str, Summary]] = {}
    for file in files:
        step = int(file.parent.parent.name.split("-")[1])
        found.setdefault(step, {})[file.parent.name] = Summary.from_json(read_json(file))
    newest = max((step for step in found if step <= now), default=None)
    return newest, list(found.get(newest, {}).values())


# How it is said


def _front_matter(card: Card) -> str:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=summary.benchmark,
            dataset_name=summary.benchmark,
            metric_type="accuracy",
            metric_name=f"avg@{summary.metrics.n}",
            metric_value=round(summary.metrics.accuracy, 4),
        )
        for summary in card.evaluations
    ]
    return ModelCardData(
        base_model=card.base_model if card.is_hub_model else None,
        datasets=card.dataset_id,
        library_name="peft" if card.is_adapter else "transformers",
        pipeline_tag="text-generation",
        model_name=card.name,
        eval_results=results or None,
        tags=list(card.tags),
    ).to_yaml()


def _opening(card: Card) -> str:
    base = escaped(card.base_model)
    if card.is_hub_model:
        base = f"[{base}](https://huggingface.co/{card.base_model})"
    paper = f" ([paper](https://huggingface.co/papers/{card.paper}))" if card.paper else ""
    kind = "A PEFT adapter for" if card.is_adapter else "A fine-tuned version of"
    links = "".join(f" [{escaped(name)}]({url})" for name, url in card.links.items())
    return (
        f"{kind} {base}, trained with **{escaped(card.method)}**{paper}: {escaped(card.summary)}. Made with trl_opd on "
        f"top of [TRL]({TRL}).{links}"
    )


def _loading(card: Card) -> str:
    imports, kind = "from transformers import AutoModelForCausalLM, AutoTokenizer", "AutoModelForCausalLM"
    if card.is_adapter:
        imports, kind = (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer",
            f"AutoPeft{kind[4:]}",
        )
    return f"""```python
{imports}

name = {card.model_id!r}
model, tokenizer = {kind}.from_pretrained(name), AutoTokenizer.from_pretrained(name)
inputs = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "..."}}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))
```"""


def _evaluation_table(card: Card) -> str:
    if not card.evaluations:
        return "None was made during training."

    def interval(bounds: tuple[float, float] | None) -> str:
        return "-" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"

    rows = []
    for summary in card.evaluations:
        metrics = summary.metrics
        cut = "-" if metrics.truncated_rate is None else f"{100 * metrics.truncated_rate:.1f}"
        rows.append(
            (
                escaped(summary.benchmark),
                f"{metrics.problems} x {metrics.n}",
                f"{100 * metrics.accuracy:.1f}",
                interval(metrics.problem_interval),
                interval(metrics.decoding_interval),
                cut,
            )
        )
    heads = (
        "Benchmark", "Problems x samples", "Accuracy, %", "95 % interval over problems", "over decoding", "Cut off, %",
    )  # fmt: skip
    return (
        f"By the training run itself, at step {card.step}; one training seed, so nothing is said of other seeds.\n\n"
        + _table(heads, rows)
    )


def _training(card: Card) -> str:
    record = card.record
    rows = [("Data", code(card.data))] if card.data else []
    for label, name, form in (
        ("Optimizer steps", "steps", "{:,}"),
        ("Generated tokens", "generated_tokens", "{:,}"),
        ("Tokens read by teachers", "teacher_tokens", "{:,}"),
        ("Seconds", "seconds", "{:,.0f}"),
        ("Hardware", "hardware", "{}"),
    ):
        value = record.get(name, record.get("step") if name == "steps" else None)
        if value is not None:
            rows.append((label, code(form.format(value))))
    rows += [
        (f"Data: {escaped(fact.replace('_', ' '))}", f"{number:,}") for fact, number in record.get("data", {}).items()
    ]
    said = [_table(("", ""), rows)] if rows else []
    said.append(_fenced(_command(record.get("command") or command())))
    if card.signs:
        said.append(
            "Signs of trouble in the training log:\n\n" + "\n".join(f"- {escaped(s.sentence)}" for s in card.signs)
        )
    return "\n\n".join(said)


def _settings_table(card: Card) -> str:
    if not card.settings:
        return "None."
    rows = ((code(name), _value(value), _value(default)) for name, (value, default) in card.settings.items())
    return _table(("Option", "Value", "Default"), rows)


def _value(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    return "-" if value is None else code(_without_folders(value))


def _without_folders(value: Any) -> Any:
    """A value with absolute paths cut to their last part: where they lay on one machine helps nobody."""
    if isinstance(value, dict):
        return {name: _without_folders(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return f".../{Path(value).name}" if isinstance(value, str) and Path(value).is_absolute() else value


def _command(argv: list[str]) -> str:
    program = Path(argv[0]).name
    started = ["trl-opd"] if program in ("__main__.py", "trl-opd") else ["python", program]
    return shlex.join([*started, *map(_without_folders, argv[1:])])


def _fenced(text: str) -> str:
    fence = "`" * (max([2, *map(len, re.findall("`+", text))]) + 1)
    return f"{fence}bash\n{text}\n{fence}"


def _table(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
