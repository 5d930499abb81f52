"""The documentation is true: tables equal the configurations, scripts run, recipes parse, links and metrics exist."""

import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trl
import yaml

import trl_opd
from tests.docs.tables import DOCS, PAGES, default, own_fields, rows, with_table
from trl_opd.aggregation import MODES
from trl_opd.cli import train
from trl_opd.methods import METHODS
from trl_opd.objectives import OBJECTIVES
from trl_opd.objectives.divergence import USES

ALL_PAGES = sorted(DOCS.rglob("*.md"))
SECTIONS = (
    "The loss",
    "Data flow",
    "When to use it",
    "Defaults",
    "Paper and released code",
    "Pitfalls",
    "Metrics",
    "Try it",
)
METRICS_OF_ALL = "Metrics of every run"

#: Named methods that docs/mixing.md says how to make from options.
MIXED = ("OPD", "OPSD", "SDPO", "SRPO", "SCOPE")


def named(page: Path) -> str:
    return str(page.relative_to(DOCS))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def section(page: Path, title: str) -> str:
    """The text under a heading of the second level."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page.read_text(), re.DOTALL | re.MULTILINE).group(1)


def metrics(text: str) -> list[str]:
    """The metrics that the first column of a section's table names."""
    firsts = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [metric for first in firsts for metric in re.findall(r"`([^`]+)`", first)]


@dataclass(frozen=True)
class Run:
    """What a script left behind: its trainer, and the log of its first step."""

    trainer: Any
    first: dict[str, float]


def execute(source: str, **names: Any) -> Run:
    exec(compile(source, "snippet", "exec"), names)
    trainer = names["trainer"]
    return Run(trainer, next(row for row in trainer.state.log_history if "loss" in row or "train_loss" in row))


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Runs the script of a method's page, once, in a folder of its own."""

    @cache
    def run(name: str) -> Run:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp(name))
            (source,) = blocks(PAGES[name], "python")
            return execute(source)

    return run


@pytest.mark.parametrize("name", PAGES)
def test_page_has_the_sections_in_order(name):
    headings = re.findall(r"^## (.+)$", PAGES[name].read_text(), re.MULTILINE)
    assert tuple(headings) == SECTIONS
    assert "```math" in section(PAGES[name], "The loss")
    assert "```mermaid" in section(PAGES[name], "Data flow")


@pytest.mark.parametrize("name", PAGES)
def test_table_of_defaults_is_that_of_the_configuration(name):
    page = PAGES[name].read_text()
    assert page == with_table(name, page), "run: python -m tests.docs.tables"
    assert all(paper for _, _, paper, _ in rows(page)), "say what the paper has, or -"


@pytest.mark.parametrize("name", PAGES)
def test_script_runs_and_logs_the_metrics_of_its_page(name, script):
    run = script(name)
    assert run.trainer.state.global_step == run.trainer.args.max_steps
    assert run.trainer.method == name
    named_metrics = metrics(section(PAGES[name], "Metrics"))
    if METHODS[name].kind == "on-policy":
        named_metrics += metrics(section(DOCS / "concepts.md", METRICS_OF_ALL))
    assert len(named_metrics) >= 7
    assert [metric for metric in named_metrics if run.first.get(metric) is None] == []


@pytest.mark.parametrize("name", PAGES)
def test_every_metric_of_the_divergence_is_explained(name, script):
    logged = {metric for metric in script(name).first if metric.startswith("distill/")}
    assert logged - set(metrics(section(PAGES[name], "Metrics"))) == set()


def test_quick_start_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (source,) = blocks(DOCS / "quickstart.md", "python")
    assert execute(source).trainer.state.global_step == 2


def recipes() -> list[Any]:
    """Every recipe, with the method that its first line names."""
    found = []
    for page in ALL_PAGES:
        for source in blocks(page, "yaml"):
            header = re.match(r"# trl-opd train (\w+)", source)
            if header is not None:  # others describe benchmarks
                found.append(pytest.param(header.group(1), source, id=f"{named(page)}-{len(found)}"))
    return found


@pytest.mark.parametrize(("method", "source"), recipes())
def test_recipe_is_accepted_and_trains(method, source, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(source)
    options = ["--config", str(path), "--output_dir", str(tmp_path / "run")]
    assert train.main([method, *options, "--max_steps", "1", "--per_device_train_batch_size", "16"]) == 0


def test_an_unknown_key_of_a_recipe_is_noticed(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(blocks(DOCS / "mixing.md", "yaml")[0] + "teachers: external\n")
    with pytest.raises(trl_opd.UserError, match="'teachers'"):
        train.main(["mix", "--config", str(path), "--output_dir", str(tmp_path / "run")])


def mix_options(name: str) -> dict[str, Any]:
    """What the table in docs/mixing.md sets to get a named method."""
    (cell,) = re.findall(rf"^\| {name} \| (.+) \|$", (DOCS / "mixing.md").read_text(), re.MULTILINE)
    base = re.match("as ([A-Z]+)", cell)
    own = {key: value for code in re.findall("`([^`]+)`", cell) for key, value in yaml.safe_load(code).items()}
    return (mix_options(base.group(1)) if base else {}) | own


@pytest.mark.parametrize("title", MIXED)
def test_mix_with_the_options_of_the_table_is_the_named_method(title, script, tmp_path, monkeypatch):
    name = title.lower()
    inherited = {f.name for f in fields(trl.GRPOConfig)}
    sampling = {f.name: default(f) for f in own_fields(name) if f.name in inherited}
    monkeypatch.chdir(tmp_path)
    source = blocks(PAGES[name], "python")[0].replace(f"{title}Trainer", "MixTrainer")
    source = source.replace(f"{title}Config(", "configure(").replace(f"{title}Config", "MixConfig")

    def configure(**snippet: Any):
        return trl_opd.MixConfig(**sampling | mix_options(title) | snippet)

    mixed, original = execute(source, configure=configure).first, script(name).first
    assert mixed["loss"] == pytest.approx(original["loss"], rel=1e-5)
    assert mixed["grad_norm"] == pytest.approx(original["grad_norm"], rel=1e-4)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES, ids=named)
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", ALL_PAGES, ids=named)
def test_options_in_the_text_exist(page):
    """Every `option=value` and `option: value` in a page is a field of some configuration."""
    known = {f.name for entry in METHODS.values() for f in fields(getattr(trl_opd, entry.config))}
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    options = re.findall(r"`([a-z_]+)(?:=|: )[^`]+`", text)
    assert set(options) - known == set()


@pytest.mark.parametrize("index", [page for page in ALL_PAGES if page.name == "index.md"], ids=named)
def test_every_page_is_reached_from_the_index_of_its_folder(index):
    text = index.read_text()
    assert [page.name for page in index.parent.glob("*.md") if page != index and f"({page.name})" not in text] == []


@pytest.mark.parametrize("name", METHODS)
def test_index_states_what_the_code_declares(name, script):
    (row,) = re.findall(rf"^\| \[{name}\].*$", section(DOCS / "concepts.md", "One step"), re.MULTILINE)
    _, _, teacher, *_, reduction, _ = (cell.strip() for cell in row.split("|"))
    if METHODS[name].kind == "off-policy":
        assert (teacher, reduction) == ("-", "`token-global`")
    elif name != "mix":
        assert teacher.startswith({"none": "-", "self": "own", "external": "external"}[OBJECTIVES[name].teacher])
        assert reduction == f"`{script(name).trainer.aggregation}`"


def test_every_aggregation_is_in_the_table():
    table = section(DOCS / "estimators.md", "Aggregation")
    assert tuple(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)[1:]) == MODES


def test_every_estimator_is_in_the_table_with_its_use():
    table = section(DOCS / "estimators.md", "Which estimator has which gradient")
    found = re.findall(r"^\| `(\w+)`.*\| (backprop|policy)[^|]*\|$", table, re.MULTILINE)
    assert dict(found) == USES
