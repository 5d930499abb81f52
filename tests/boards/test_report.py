"""Results, table and page from stored runs alone."""

import html.parser
import json
import shutil

import pytest

from tests.boards.conftest import spec_in
from tests.boards.fake_trl_opd import HOSTILE
from trl_opd.boards.collect import collect
from trl_opd.boards.page_format1 import render_page
from trl_opd.boards.report import build_results, write_report
from trl_opd.boards.runner import run_board
from trl_opd.boards.runs import plan_runs
from trl_opd.boards.spec import load_spec
from trl_opd.cli.board import main
from trl_opd.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory, launcher):
    """A finished board; the tests work on copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_board(load_spec(spec_in(folder)), launcher) == 0
    return folder


@pytest.fixture
def spec(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return load_spec(tmp_path / "boards" / "small.yaml")


def rows_of(spec) -> dict:
    return {row["name"]: row for row in build_results(spec, collect(plan_runs(spec)))["rows"]}


class Page(html.parser.HTMLParser):
    """Elements and attributes of a page as a browser would find them."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def test_results_hold_every_line_with_its_statistics(spec):
    rows = rows_of(spec)
    assert list(rows) == ["base", "grpo", "opd", "opsd"]
    assert rows["grpo"]["difference"] is None
    assert rows["opd"]["difference"]["value"] == pytest.approx(
        rows["opd"]["accuracy"]["mean"] - rows["grpo"]["accuracy"]["mean"]
    )
    assert rows["opd"]["cost"]["generated_tokens"] == 30 * 4096
    assert rows["base"]["difference"]["p_holm"] is None
    assert rows["opd"]["difference"]["p_holm"] >= rows["opd"]["difference"]["p"]


def test_report_stands_alone_and_shows_what_is_missing(spec, capsys):
    shutil.rmtree(spec.runs_folder / "opd-seed1")
    shutil.rmtree(spec.runs_folder / "opsd-seed0")
    shutil.rmtree(spec.runs_folder / "opsd-seed1")
    assert main(["report", str(spec.path)]) == 0
    results = json.loads((spec.folder / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert (rows["opd"]["finished"], rows["opd"]["planned"], rows["opd"]["accuracy"]["low"]) == (1, 2, None)
    assert rows["opsd"]["accuracy"] is None
    table = (spec.folder / "table.md").read_text()
    assert "| opd |" in table
    assert "no interval: one seed" in table
    assert "- opsd-seed1: missing" in table
    page = (spec.folder / "board.html").read_text()
    assert "3 of 7 runs are not in the numbers" in page
    assert str(spec.folder / "board.html") in capsys.readouterr().out


def test_a_board_that_was_never_run_is_not_written_over_an_old_one(write_spec):
    spec = load_spec(write_spec())
    with pytest.raises(UserError, match="nothing to report"):
        write_report(spec)
    assert not (spec.folder / "table.md").exists()


def test_failed_run_is_a_row_of_the_page(write_spec, launcher):
    methods = [
        {"name": "grpo", "method": "grpo", "recipe": "recipes/fake.yaml"},
        {"name": "opd", "method": "opd", "recipe": "recipes/fake.yaml", "overrides": {"fail_at": 7}},
    ]
    spec = load_spec(write_spec(methods=methods))
    assert main(["run", str(spec.path)], launcher) == 1
    page = (spec.folder / "board.html").read_text()
    assert "failed in train: RuntimeError: the loss is &lt;nan&gt; at step 7" in page
    assert (
        "- opd-seed0: failed in train: RuntimeError: the loss is \\<nan\\> at step 7"
        in (spec.folder / "table.md").read_text()
    )


def test_page_is_inert_and_asks_for_nothing(spec):
    text = write_report(spec)["page"].read_text()
    assert HOSTILE not in text
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; {{ 7 * 7 }} &lt;b&gt;&amp;amp;" in text
    assert "A &lt;small&gt; board" in text
    elements = Page(text).elements
    assert [tag for tag, _ in elements].count("script") == 1
    assert not {tag for tag, _ in elements} & {"img", "iframe", "object", "embed", "b", "small board"}
    for tag, attributes in elements:
        assert not any(name.startswith("on") or name in ("src", "style") for name in attributes), (tag, attributes)
        target = attributes.get("href", "#")
        assert target.startswith(("#", "data:,"))
    policy = next(attributes["content"] for tag, attributes in elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_hostile_names_and_errors_are_escaped_everywhere(spec):
    results = build_results(spec, collect(plan_runs(spec)))

    def poison(value, key=""):
        if isinstance(value, dict):
            return {name: poison(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [poison(one, key) for one in value]
        harmless = ("name", "line", "baseline", "status", "verdict", "made")  # names the code itself compares
        return HOSTILE if isinstance(value, str) and key not in harmless else value

    poisoned = poison(results)
    poisoned["runs"][1] |= {"status": "failed", "stage": "train", "error": HOSTILE}
    text = render_page(poisoned)
    assert HOSTILE not in text
    assert "<img" not in text
    assert text.count("</script>") == 1


def test_every_run_has_its_provenance(spec):
    text = write_report(spec)["page"].read_text()
    for run in plan_runs(spec):
        assert f'id="run-{run.name}"' in text
    assert text.count("trl-opd eval --model") == 7
    assert "learning_rate=0.0003" in text
    assert "torch=2.13.0" in text


def test_page_is_made_from_the_results_alone(spec):
    paths = write_report(spec)
    assert render_page(json.loads(paths["results"].read_text())) == paths["page"].read_text()


def test_damaged_verdicts_are_an_error_not_a_smaller_board(spec):
    verdicts = next((spec.runs_folder / "grpo-seed0").rglob("verdicts/*/*.jsonl"))
    verdicts.write_text("".join(verdicts.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="do not fill"):
        collect(plan_runs(spec))


def test_evaluation_on_other_data_is_kept_out_of_the_statistics(spec):
    manifest = next((spec.runs_folder / "opd-seed1").rglob("manifest.json"))
    stored = json.loads(manifest.read_text())
    stored["settings"]["data"] = "other"
    manifest.write_text(json.dumps(stored))
    records = {record.run.name: record for record in collect(plan_runs(spec))}
    assert records["opd-seed1"].not_comparable == "evaluated with another data than most runs"
    assert rows_of(spec)["opd"]["finished"] == 1
    assert "evaluated with another data" in write_report(spec)["page"].read_text()


def test_steps_logged_again_after_a_resume_count_once(spec):
    log = spec.runs_folder / "grpo-seed0" / "train" / "log.jsonl"
    again = json.dumps({"step": 30, "generated_tokens": 1, "seconds": 1.0, "reward": float("nan"), "loss": 0.0})
    log.write_text(log.read_text() + again + "\n" + '{"step": 31, "gen')
    results = build_results(spec, collect(plan_runs(spec)))
    curve = next(one for one in results["curves"]["grpo"] if one["seed"] == 0)
    assert curve["step"] == list(range(1, 31))
    assert curve["reward"][-1] is None
    assert "NaN" not in write_report(spec)["results"].read_text()
