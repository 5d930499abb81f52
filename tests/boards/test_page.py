"""The page as text: what it says equals `results.json`, and what others said is inert."""

import base64
import hashlib
import html.parser
import json
import re

import pytest

from tests.boards.hostile import TEXTS, hostile_results
from tests.boards.results_example import make_results
from trl_opd.boards import page, series, table
from trl_opd.boards.page import ASSETS, json_for_script, render_page
from trl_opd.boards.page_data import PageView

VENDORED = {
    "d3.min.js": "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1",
    "plot.umd.min.js": "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
}


class Page(html.parser.HTMLParser):
    """Elements, table cells (text and `data-value`), and raw texts of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.tables: list[list[list[dict]]] = []
        self.raw: list[tuple[dict, str]] = []
        self.cell = self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = {"text": "", "value": attributes.get("data-value")}
            self.tables[-1][-1].append(self.cell)
        elif tag in ("script", "style"):
            self.inside = (attributes, [])

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None
        elif tag in ("script", "style"):
            self.raw.append((self.inside[0] | {"tag": tag}, "".join(self.inside[1])))
            self.inside = None

    def handle_data(self, data):
        if self.inside is not None:
            self.inside[1].append(data)
        elif self.cell is not None:
            self.cell["text"] += data

    @property
    def policy(self) -> str:
        return next(attributes["content"] for _, attributes in self.elements if "http-equiv" in attributes)

    @property
    def data(self) -> dict:
        return json.loads(next(text for attributes, text in self.raw if attributes.get("id") == "board-data"))


@pytest.fixture(scope="module")
def results():
    return make_results()


@pytest.fixture(scope="module")
def rendered(results):
    return Page(render_page(results))


def table_rows(rendered: Page, place: int) -> dict[str, list[dict]]:
    """Rows of one table by the line's label."""
    return {row[0]["value"]: row for row in rendered.tables[place] if row[0]["value"] is not None}


def as_number(cell: dict) -> float | None:
    return float(cell["value"]) if cell["value"] else None


def test_main_table_equals_the_results(results, rendered):
    shown = table_rows(rendered, 0)
    assert len(shown) == len(results["rows"])
    for row in results["rows"]:
        _, accuracy, difference, verdict, seeds, truncated, tokens, seconds, memory = shown[row["label"]]
        score = row["scores"].get("arithmetic") or {"accuracy": None, "difference": None, "truncated": None}
        assert as_number(accuracy) == (score["accuracy"]["mean"] if score["accuracy"] else None)
        assert as_number(difference) == (score["difference"]["value"] if score["difference"] else None)
        assert as_number(truncated) == score["truncated"]
        assert as_number(seeds) == row["finished"]
        for cell, key in ((tokens, "generated_tokens"), (seconds, "seconds"), (memory, "peak_memory_bytes")):
            assert as_number(cell) == row["training"][key]
        if score["accuracy"]:
            found = score["accuracy"]
            assert f"{table.percent(found['mean'])}{table.interval(found['low'], found['high'])}" in accuracy["text"]
        if score["difference"]:
            found = score["difference"]
            assert table.interval(found["low"], found["high"], table.points) in difference["text"]
            assert found["verdict"] in verdict["text"]
            assert found["p_holm"] is None or table.p_text(found["p_holm"]) in verdict["text"]


def test_other_tables_equal_the_results(results, rendered):
    other, uncertainty, cost = (table_rows(rendered, place) for place in (1, 2, 3))
    for row in results["rows"]:
        if row["scores"]:
            passes, quick, primary = (row["scores"][key] for key in ("arithmetic/pass_at_k", "quick", "arithmetic"))
            expected = [
                passes["accuracy"]["mean"], (passes["difference"] or {}).get("value"),
                quick["accuracy"]["mean"], (quick["to_base"] or {}).get("value"),
            ]  # fmt: skip
            assert [as_number(cell) for cell in other[row["label"]][1:]] == expected
            errors, difference = primary["accuracy"]["errors"], primary["difference"] or {}
            expected = [errors[key] for key in ("decoding", "problems", "seeds")]
            expected += [difference.get(key) for key in ("p", "p_holm", "p_runs", "p_runs_holm")]
            expected += [primary["majority"]["value"], primary["no_answer"], primary["mean_tokens"]]
            assert [as_number(cell) for cell in uncertainty[row["label"]][1:]] == expected
        if row["kind"] != "base":
            keys = ("steps", "generated_tokens", "teacher_tokens", "seconds", "gpu_hours", "completion_length",
                    "truncated", "entropy", "active_fraction", "zero_variance")  # fmt: skip
            assert [as_number(cell) for cell in cost[row["label"]][1:]] == [row["training"][key] for key in keys]


def test_choices_and_pass_at_k_tables_equal_the_results(results, rendered):
    by_head = {tuple(cell["text"] for cell in rows[0]): rows[1:] for rows in rendered.tables if rows[0]}
    trials = by_head["Line", "Learning rate", "Validation, %", "Outcome"]
    stored = next(row["trials"] for row in results["rows"] if row["name"] == "opd")
    for row, trial in zip(trials, stored, strict=True):
        assert [as_number(cell) for cell in row[-3:-1]] == [trial["learning_rate"], trial["validation"]]
        assert ("chosen" if trial["chosen"] else trial["error"] or "not chosen") in row[-1]["text"]
    checkpoints = by_head["Line", "Last, %reported", "Best on validation, %", "Steps of the best"]
    kept = [row["checkpoint"] for row in results["rows"] if row["checkpoint"]]
    for row, checkpoint in zip(checkpoints, kept, strict=True):
        assert [as_number(cell) for cell in row[1:3]] == [checkpoint["last"]["mean"], checkpoint["best"]["mean"]]
    curves = by_head[("Line", *(f"k = {2**power}" for power in range(7)))]
    ranked = [row["scores"] for row in PageView(results).ranked if row["scores"]]
    for row, scores in zip(curves, ranked, strict=True):
        assert [as_number(cell) for cell in row[1:]] == list(scores["arithmetic/pass_at_k"]["pass_at_k"].values())


def test_figures_draw_the_results(results, rendered):
    data, rows = rendered.data, results["rows"]
    for bar in data["forest"]:
        difference = rows[bar["line"]]["scores"]["arithmetic"]["difference"]
        assert {key: bar[key] for key in difference} == difference
    for curve in data["passAtK"]:
        for line in curve["lines"]:
            stored = rows[line["line"]]["scores"][curve["key"]]["pass_at_k"]
            assert {str(k): value for k, value in line["points"]} == stored
    for cost in data["costs"]:
        assert {point["line"] for point in cost["points"]}.isdisjoint(cost["unknown"])
        assert len(cost["points"]) + len(cost["unknown"]) == len(rows) - 1  # all but the base
        for point in cost["points"]:
            assert point["cost"] == series.cost_of(rows[point["line"]], cost["cost"])
    (problems,), stored = data["problems"], results["problems"]["arithmetic"]
    for place, row in enumerate(rows):
        assert problems["shares"][place] == stored["share"].get(row["name"])
        for i, problem in enumerate(problems["ids"]):
            assert problems["answers"][i][place] == stored["answers"][problem].get(row["name"])


def test_rows_are_ranked_and_the_indistinguishable_are_grey(results):
    view = PageView(results)
    means = [accuracy["mean"] for row in view.ranked if (accuracy := series.accuracy_of(results, row))]
    assert means == sorted(means, reverse=True)
    assert view.ranked[-1]["name"] == "srpo"
    assert view.verdicts == {
        "better": ["OPD (external teacher)"],
        "worse": ["sdpo"],
        "unclear": ["DAPO-style", "opsd", "sft"],
    }


def test_what_failed_and_what_is_worse_is_on_the_page(results, rendered):
    text = render_page(results)
    assert "3 of 24 runs are not in the numbers" in text
    absent = next(rows for rows in rendered.tables if rows[0][-1]["text"] == "Attempts")
    assert [row[0]["text"] for row in absent[1:]] == ["srpo-seed0", "srpo-seed1", "srpo-seed2"]
    assert "Worse than <bdi>grpo</bdi>" in text
    assert "with one training seed" not in text
    assert "with one training seed" in render_page(make_results(seeds=(0,)))


def test_every_run_has_its_provenance(results, rendered):
    ids = [attributes["id"] for _, attributes in rendered.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {f"run-{run['name']}" for run in results["runs"]} <= set(ids)
    assert {f"line-{row['name']}" for row in results["rows"]} <= set(ids)
    targets = {attributes["href"] for tag, attributes in rendered.elements if tag == "a"}
    assert targets <= {f"#{name}" for name in ids}
    settings = {row[0]["text"]: row[1]["text"] for rows in rendered.tables for row in rows if len(row) == 2}
    assert settings["epsilon_high"] == "0.28"
    assert settings["run.json"] == "ab" * 32
    assert settings["bf16"] == "false"


def test_nothing_is_known_but_the_plan():
    """A board whose runs all failed is a page of dashes, not an error and not zeros."""
    results = make_results()
    for row in results["rows"]:
        row.update(scores={}, finished=0, checkpoint=None, trials=[], training=dict.fromkeys(row["training"]))
    results.update(curves={}, problems={})
    results["design"].update(problems=None, answers=None, smallest_detectable=None, smallest_detectable_holm=None)
    rendered = Page(render_page(results))
    for row in table_rows(rendered, 0).values():
        assert row[1]["text"].strip() == "-"
    assert rendered.data["forest"] == rendered.data["passAtK"] == rendered.data["curves"] == []


@pytest.mark.parametrize("hostile", [False, True])
def test_page_is_inert_and_asks_for_nothing(results, rendered, hostile):
    text = render_page(hostile_results(results) if hostile else results)
    elements = Page(text).elements
    tags = [tag for tag, _ in elements]
    assert set(tags) <= {tag for tag, _ in rendered.elements}
    assert not set(tags) & {"img", "iframe", "object", "embed", "form", "base", "animate", "template", "textarea"}
    assert tags.count("script") == 1 + len(page.LIBRARIES + page.SCRIPTS)
    assert [tags.count(tag) for tag in ("style", "title", "link", "dialog")] == [1, 1, 1, 1]
    for tag, attributes in elements:
        assert not any(name.startswith("on") or name in ("src", "style", "srcdoc") for name in attributes), attributes
        assert attributes.get("href", "#").startswith(("#", "data:,")), (tag, attributes)


def test_policy_names_the_hash_of_every_script_and_style_and_nothing_else(rendered):
    assert rendered.policy.startswith("default-src 'none'")
    assert "unsafe" not in rendered.policy
    assert "http" not in rendered.policy
    for attributes, text in rendered.raw:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in rendered.policy


def test_hostile_texts_reach_the_script_unchanged(results):
    hostile = hostile_results(results)
    (problems,) = Page(render_page(hostile)).data["problems"]
    stored = hostile["problems"]["arithmetic"]
    assert problems["ids"][:2] == ["__proto__", "constructor"]
    opd = [row["name"] for row in hostile["rows"]].index("__proto__")
    assert problems["answers"][0][opd] == stored["answers"]["__proto__"]["__proto__"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_json_ends_nothing(text):
    written = json_for_script({text: [text]})
    assert json.loads(written) == {text: [text]}
    assert written.isascii()
    assert not set("<>&\u2028\u2029") & set(written)


def test_scripts_write_no_markup_and_run_no_text():
    ours = "".join((ASSETS / name).read_text() for name in page.SCRIPTS)
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "import(",
    ):
        assert forbidden not in ours
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", ours)


def test_libraries_are_the_released_files():
    readme = (ASSETS / "vendor" / "README.md").read_text()
    for name, digest in VENDORED.items():
        assert hashlib.sha256((ASSETS / "vendor" / name).read_bytes()).hexdigest() == digest
        assert digest in readme
