"""The page in a real browser: nothing that others wrote is executed, and everything works by mouse and by keyboard."""

import shutil
from pathlib import Path

import pytest

from tests.boards.hostile import TEXTS, hostile_results
from tests.boards.results_example import make_results
from trl_opd.boards.page import render_page

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright, which drives the browser")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120_000  # milliseconds: a busy machine is slow, not broken
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """One start for all tests of the module; playwright gives each its own empty profile."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    boards = {"plain": make_results(), "hostile": hostile_results(make_results())}
    for name, results in boards.items():
        (folder / f"{name}.html").write_text(render_page(results), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in boards}


@pytest.fixture
def visit(browser, files):
    """Open a page; whatever it says to the console, asks of the network, or throws fails the test at its end."""
    contexts, heard = [], []

    def opened(name: str, **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        tab = context.new_page()
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("dialog", lambda dialog: heard.append(dialog.message))
        tab.on("request", lambda request: heard.append(request.url) if request.url != files[name].as_uri() else None)
        tab.goto(files[name].as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert heard == []


def column(tab, place: int) -> list[str]:
    return tab.eval_on_selector_all(
        f"#main-table tbody:last-of-type tr > :nth-child({place})", "all => all.map(x => x.dataset.value)"
    )


def test_hostile_texts_execute_nothing_and_are_read_as_they_are(visit):
    tab = visit("hostile")
    tab.wait_for_selector("#pareto svg")
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    tab.get_by_label("Order").select_option("As in the benchmark")
    cells = tab.locator("[role=gridcell]")
    assert cells.count() == 7 * 40
    cells.first.click()
    shown = set()
    for _ in range(4):  # of seven answers: the whole corpus
        shown |= set(tab.eval_on_selector_all("dialog pre", "all => all.map(x => x.textContent)"))
        tab.locator("dialog button", has_text="Next").click()
    assert {text for text in TEXTS if text.isprintable()} <= shown
    assert "U+202Eright to leftU+202C U+2067isolatedU+2069 zeroU+200Bwidth U+FEFF" in shown
    assert any("U+0000" in text for text in shown)
    assert tab.locator("img, iframe, object, embed, form, base, dialog a, dialog style").count() == 0
    tab.keyboard.press("Escape")
    for control in tab.locator(".controls select").all():
        for option in range(control.locator("option").count()):
            control.select_option(index=option)
    tab.mouse.move(640, 450)
    assert tab.evaluate("window.executed") is None
    assert tab.evaluate("({}).run") is None
    assert tab.title().startswith("</title></style>")


def test_a_cell_opens_the_raw_answers(visit):
    tab = visit("plain")
    cell = tab.locator("[role=row]").nth(3).locator("[role=gridcell]").nth(5)
    cell.click()
    dialog = tab.locator("dialog[open]")
    label = cell.get_attribute("aria-label")
    problem = dialog.locator("h2 bdi").text_content()
    assert label.startswith(f"OPD (external teacher), problem {problem}: ")
    assert dialog.locator(".question").text_content().startswith(f"What is {int(problem[-3:])} + 0?")
    answer = dialog.locator(".selected")
    assert answer.locator("h3 bdi").text_content() == "OPD (external teacher)"
    stored = make_results()["problems"]["arithmetic"]["answers"][problem]["opd"]
    assert answer.locator("pre").text_content() == stored["completion"]
    assert ("\u2713 right" if stored["correct"] else "\u2717 wrong") in answer.text_content()
    assert dialog.locator(".answer").count() == 7
    tab.keyboard.press("Escape")
    assert tab.locator("dialog[open]").count() == 0


def test_map_works_by_keyboard(visit):
    tab = visit("plain")
    tab.locator("[role=gridcell][tabindex='0']").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowUp"):
        tab.keyboard.press(key)
    assert tab.evaluate("document.activeElement.place") == [0, 1]
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("document.activeElement.place") == [1, 39]
    tab.keyboard.press("Enter")
    assert tab.locator("dialog[open]").count() == 1
    assert tab.evaluate("document.activeElement.textContent") == "Close"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.place") == [1, 39]
    assert tab.locator("[role=gridcell][tabindex='0']").count() == 1


def test_table_sorts_by_keyboard_and_unknown_stays_last(visit):
    tab = visit("plain")
    assert column(tab, 2)[:-1] == sorted(column(tab, 2)[:-1], key=float, reverse=True)
    head = tab.locator("#main-table th", has_text="Difference").first
    head.locator("button").focus()
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    *known, baseline, failed = column(tab, 3)
    assert (baseline, failed) == ("", "")
    assert known == sorted(known, key=float, reverse=True)
    tab.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(tab, 3)[:6] == known[::-1]
    assert tab.locator("#main-table [aria-sort]").count() == 1


def test_baseline_is_always_drawn_and_the_others_can_be_left_out(visit):
    tab = visit("plain")
    plot = tab.locator("#curve-seconds svg").first
    assert "OPD (external teacher)" in plot.get_attribute("aria-label")
    tab.get_by_role("button", name="None").click()
    assert (
        tab.locator("#curve-seconds svg").first.get_attribute("aria-label").split("last values: ")[1].startswith("grpo")
    )
    assert "OPD" not in tab.locator("#curve-seconds svg").first.get_attribute("aria-label")
    tab.locator(".legend button", has_text="OPD").press("Enter")
    assert "OPD" in tab.locator("#curve-generated_tokens svg").first.get_attribute("aria-label")
    assert tab.locator(".legend button", has_text="grpo").count() == 0


def test_themes_and_links_to_runs(visit):
    tab = visit("plain", color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = tab.evaluate(background)
    tab.get_by_role("button", name="Light theme").click()
    assert tab.evaluate(background) != dark
    tab.evaluate("location.hash = '#run-opd-seed1'")
    tab.wait_for_selector("#line-opd[open] #run-opd-seed1[open]")


def test_phone_scrolls_tables_but_not_the_page(visit):
    tab = visit("plain", viewport={"width": 390, "height": 844}, has_touch=True)
    tab.wait_for_selector("#pareto svg")
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.evaluate("document.querySelector('#main-table').parentElement.scrollWidth") > 390
    tab.locator("[role=gridcell]").first.tap()
    assert tab.evaluate("document.querySelector('dialog').getBoundingClientRect().width") <= 390


def test_tables_are_there_without_a_script(visit):
    tab = visit("plain", java_script_enabled=False)
    assert tab.locator("#main-table tbody tr").count() == 1 + 8
    assert tab.get_by_text("This figure is drawn by a script").first.is_visible()
    assert not tab.locator("#theme").is_visible()
