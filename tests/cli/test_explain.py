"""`trl-opd explain`: every method's page as plain text, with nothing of the page's markup left over."""

import json
import re
from dataclasses import fields

import pytest
from rich.cells import cell_len

import trl_opd
from tests.docs.tables import default, rows
from trl_opd.cli import explain
from trl_opd.cli.main import main
from trl_opd.cli.plain_math import plain_diagram, plain_math
from trl_opd.methods import METHODS
from trl_opd.pages import page_of

NEEDED = ("The loss", "Data flow", "Defaults", "Paper and released code", "Pitfalls", "Metrics")


@pytest.mark.parametrize("name", METHODS)
def test_an_explanation_has_every_part_and_no_markup(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["explain", name]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{name}: {METHODS[name].summary}")
    assert all(f"\n{title}\n" in shown for title in NEEDED)
    assert not re.search(r"\\(?!n)[a-zA-Z]+|\$[^$\n]+\$|<!--|```|flowchart|…|&#", shown)
    assert max(map(cell_len, shown.splitlines())) <= 100


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_the_configuration_is_shown_with_its_default_and_its_source(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    main(["explain", name])
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    defaults = {field.name: default(field) for field in fields(getattr(trl_opd, METHODS[name].config))}
    for option, value, paper, _ in rows(page_of(name).read_text()):
        plain = option.strip("`")
        assert plain in shown
        assert value in ("the built-in text", f"`{defaults[plain]!r}`")
        assert paper


def test_the_explanation_for_machines_has_the_same_sections(capsys):
    assert main(["explain", "sdpo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "sdpo"
    assert set(NEEDED) < set(found["sections"])
    assert "JSD on top-k + rest --> loss" in found["sections"]["Data flow"]


@pytest.mark.parametrize(
    ("tex", "plain"),
    [
        (r"\frac{1}{B} \sum_{i=1}^{B} x_i", "(1 / B) Σ_{i=1}^B x_i"),
        (r"w = \frac{a + b}{c_{i,t}}", "w = (a + b) / c_{i,t}"),
        (r"\ln \frac{q(v)}{p(v)}", "ln (q(v) / p(v))"),
        (r"e^{-\beta H}", "e^{-β H}"),
        (r"\mathrm{KL}(p \,\|\, q)", "KL(p || q)"),
        (r"a = \texttt{teacher\_rate}, \qquad b = 1", "a = teacher_rate\nb = 1"),
        (r"\bar{s}_i", "s̄_i"),
    ],
)
def test_a_formula_as_text_keeps_what_belongs_together(tex, plain):
    assert plain_math(tex) == plain


def test_a_formula_without_a_plain_form_is_noticed():
    with pytest.raises(ValueError, match=r"\\oint"):
        plain_math(r"\oint x")


def test_a_diagram_as_text_names_nodes_by_their_labels():
    source = 'flowchart LR\n  a --> b["the teacher"] -->|q| c{right?}\n  c -->|yes| b\n'
    assert plain_diagram(source) == "a --> the teacher --(q)--> right?\nright? --(yes)--> the teacher"


def test_a_table_keeps_long_names_whole(monkeypatch):
    console = explain.Console(width=60)
    name = "vllm_importance_sampling_clip_max"
    table = explain._table([[" Option ", " Meaning "], ["---", "---"], [f"`{name}`", "what it is " * 9]])
    with console.capture() as captured:
        console.print(table)
    assert name in captured.get()
