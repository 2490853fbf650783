"""The panel and its live graph in a real JupyterLab: states, details, keys, pause, a cell defined anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from jupyterlab_page import Lab, LabPage
from playwright.sync_api import Locator, expect
from test_browser_controls import TIMEOUT, Book, button, state

pytestmark = [pytest.mark.requires("chromium"), pytest.mark.models]


@pytest.fixture
def book(lab: Lab, lab_page: LabPage, tmp_path: Path, request: pytest.FixtureRequest) -> Book:
    return Book(lab, lab_page, request.node.name.removeprefix("test_")[:40], tmp_path)


def node(panel: Locator, step: str, word: str = "") -> Locator:
    """A step's node in the live graph, in a state."""
    return panel.locator(f'g.node[data-step="{step}"]' + (f'[data-state="{word}"]' if word else ""))


def test_the_graph_follows_a_run_and_a_node_tells_all_about_its_step(book: Book) -> None:
    book.cells[0] += " --model test"
    load = book.step("load", "'four reviews'", gate="one", first="print('reading them')\n")
    book.cell("%%tagent_step report\nSum up {{ load }}.")
    place = book.cell("%tagent_panel")
    page = book.open()
    page.run_all()
    panel = page.output(place)
    expect(node(panel, "load", "pending")).to_be_visible(timeout=TIMEOUT)
    button(panel, "Run").click()
    expect(node(panel, "load", "running")).to_be_visible(timeout=TIMEOUT)
    expect(node(panel, "report", "completed")).to_have_count(0)
    expect(panel).to_contain_text("reading them")
    page.picture("panel-running", panel)
    book.allow("one")
    expect(node(panel, "report", "completed")).to_be_visible(timeout=TIMEOUT)
    expect(panel).to_contain_text("2 of 2 steps")

    node(panel, "report").click()
    expect(panel).to_contain_text("Sum up <data>four reviews</data>.")
    expect(node(panel, "report")).to_have_attribute("aria-pressed", "true")
    page.picture("panel-details", panel)
    node(panel, "load").focus()
    page.page.keyboard.press("Enter")
    expect(node(panel, "load")).to_have_attribute("aria-pressed", "true")
    expect(panel).to_contain_text("four reviews'")

    page.edit(load, book.cells[load].replace("four", "five"))
    page.run_cell(load)
    expect(node(panel, "load", "pending")).to_be_visible(timeout=TIMEOUT)
    button(panel, "Run").click()
    expect(node(panel, "load", "completed")).to_be_visible(timeout=TIMEOUT)
    node(panel, "report").click()
    expect(panel).to_contain_text("Sum up <data>five reviews</data>.", timeout=TIMEOUT)
    assert book.effects() == {"load": 2}


def test_a_run_is_paused_and_goes_on(book: Book) -> None:
    book.step("first", "1", gate="one")
    book.step("second", "first + 1")
    place = book.cell("%tagent_panel")
    page = book.open()
    page.run_all()
    panel = page.output(place)
    button(panel, "Run").click()
    expect(node(panel, "first", "running")).to_be_visible(timeout=TIMEOUT)
    button(panel, "Pause").click()
    expect(panel).to_contain_text("paused", timeout=TIMEOUT)
    book.allow("one")
    expect(node(panel, "first", "completed")).to_be_visible(timeout=TIMEOUT)
    page.picture("panel-paused", panel)
    assert book.effects() == {"first": 1}
    button(panel, "Resume").click()
    expect(state(panel, "second", "completed").locator("visible=true").first).to_be_visible(timeout=TIMEOUT)
    assert book.effects() == {"first": 1, "second": 1}
