"""Runs in a real JupyterLab: stopped, resumed, retried, interrupted; cells that are edited and deleted."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from jupyterlab_page import Lab, LabPage
from playwright.sync_api import Locator, expect

pytestmark = [pytest.mark.requires("chromium"), pytest.mark.models]

TIMEOUT = 60_000
"""Milliseconds. Nothing here takes so long, but the machine may be busy."""


class Book:
    """A notebook whose steps note each of their runs, and wait for files."""

    def __init__(self, lab: Lab, page: LabPage, name: str, folder: Path) -> None:
        self.lab, self.page, self.name, self.folder = lab, page, name, folder
        self.cells = [f"%load_ext tagent_nb\n%tagent_pipeline {name}"]

    def step(self, name: str, value: str, options: str = "", *, gate: str = "", first: str = "") -> int:
        """Add the cell of a Python step, which waits for the file ``gate``; returns the cell's place."""
        code = f"%%tagent_step {name} --python {options}\nimport os, time\n"
        code += (
            f"with open({str(self.folder / 'effects')!r}, 'a') as file:\n    file.write('{name}\\n')\n{first}"
        )
        if gate:
            code += f"while not os.path.exists({str(self.folder / gate)!r}):\n    time.sleep(0.02)\n"
        return self.cell(code + value)

    def cell(self, code: str) -> int:
        """Add a cell; returns its place."""
        self.cells.append(code)
        return len(self.cells) - 1

    def open(self) -> LabPage:
        """Write the notebook, open it, and make room: JupyterLab draws only cells that are seen."""
        self.page.page.set_viewport_size({"width": 1000, "height": 2600})
        return self.page.open(self.lab.write(self.name, self.cells))

    def allow(self, gate: str) -> None:
        """Let steps that wait for a file go on."""
        (self.folder / gate).touch()

    def effects(self) -> Counter[str]:
        """How often each step ran."""
        path = self.folder / "effects"
        return Counter(path.read_text().split() if path.exists() else [])


@pytest.fixture
def book(lab: Lab, lab_page: LabPage, tmp_path: Path, request: pytest.FixtureRequest) -> Book:
    return Book(lab, lab_page, request.node.name.removeprefix("test_")[:40], tmp_path)


def button(area: Locator, name: str) -> Locator:
    """A button that can be pressed now."""
    return area.locator("button:enabled").filter(has_text=re.compile(rf"^\s*{name}\s*$"))


def state(area: Locator, step: str, word: str) -> Locator:
    """The row of a step in a state."""
    return area.get_by_role("row").filter(has_text=re.compile(rf"{step}.*{word}", re.DOTALL))


def test_a_run_is_stopped_and_resumed_while_cells_queue(book: Book) -> None:
    book.step("first", "1", gate="one")
    book.step("second", "first + 1", gate="two")
    run = book.cell("%tagent_run")
    behind = book.cell("print('behind it:', result.cancelled)")
    page = book.open()
    page.run_all(wait=False)
    panel = page.output(run)
    expect(state(panel, "first", "running")).to_be_visible(timeout=TIMEOUT)
    expect(state(panel, "second", "pending|ready|waiting")).to_be_visible()
    book.allow("one")
    expect(state(panel, "first", "completed")).to_be_visible(timeout=TIMEOUT)
    expect(state(panel, "second", "running")).to_be_visible(timeout=TIMEOUT)
    page.picture("controls-running", panel)

    button(panel, "Stop").click()
    expect(state(panel, "second", "cancelled")).to_be_visible(timeout=TIMEOUT)
    expect(page.output(behind)).to_contain_text("behind it: True", timeout=TIMEOUT)
    page.picture("controls-stopped", panel)

    book.allow("two")
    button(panel, "Resume").click()
    expect(state(panel, "second", "completed")).to_be_visible(timeout=TIMEOUT)
    expect(panel).to_contain_text("2 of 2 steps")
    expect(state(panel, "first", "completed")).to_be_visible()
    page.picture("controls-resumed", panel)
    assert book.effects() == {"first": 1, "second": 2}


def test_failed_steps_are_retried(book: Book) -> None:
    book.step("good", "1")
    luck = str(book.folder / "luck")
    fails = f"if not os.path.exists({luck!r}):\n    raise ValueError('no luck today')\n"
    book.step("unlucky", "good + 1", "--max-retries 0", first=fails)
    run = book.cell("%tagent_run")
    page = book.open()
    page.run_all(wait=False)
    panel = page.output(run)
    expect(state(panel, "unlucky", "failed")).to_be_visible(timeout=TIMEOUT)
    expect(panel).to_contain_text("ValueError: no luck today")
    page.picture("controls-failed", panel)
    book.allow("luck")
    button(panel, "Retry failed").click()
    expect(state(panel, "unlucky", "completed")).to_be_visible(timeout=TIMEOUT)
    expect(state(panel, "good", "completed")).to_be_visible()
    expect(state(panel, "unlucky", "the last time it failed")).to_be_visible()
    expect(panel.locator(".tagent-error:visible")).to_have_count(0)
    page.picture("controls-retried", panel)
    assert book.effects() == {"good": 1, "unlucky": 2}


def test_an_edited_cell_runs_anew_and_a_deleted_one_is_missed(book: Book) -> None:
    book.step("load", "[1, 2]")
    total = book.step("total", "sum(load)")
    longest = book.step("longest", "max(load)")
    run = book.cell("%tagent_run")
    status = book.cell("%tagent_status")
    page = book.open()
    page.run_all(wait=False)
    expect(state(page.output(status), "total", "completed")).to_be_visible(timeout=TIMEOUT)

    page.edit(total, book.cells[total].replace("sum(load)", "sum(load) * 10"))
    page.run_cell(total)
    expect(page.output(total)).to_contain_text("+ sum(load) * 10", timeout=TIMEOUT)
    page.picture("controls-card-changed", page.output(total))
    page.run_cell(run)
    panel = page.output(run)
    expect(state(panel, "load", "cached")).to_be_visible(timeout=TIMEOUT)
    expect(state(panel, "total", "completed")).to_be_visible()
    assert book.effects() == {"load": 1, "total": 2, "longest": 1}

    page.delete(longest)
    page.run_cell(status - 1)
    gone = page.output(status - 1)
    expect(gone).to_contain_text("its cell was deleted", timeout=TIMEOUT)
    expect(gone).to_contain_text("%tagent_pipeline --remove longest")
    page.picture("controls-cell-gone", gone)


def test_an_interrupt_ends_a_run_and_what_is_queued_behind_it(book: Book) -> None:
    book.step("endless", "5", gate="never")
    run = book.cell("%tagent_run")
    behind = book.cell("print('behind it')")
    page = book.open()
    page.run_all(wait=False)
    panel = page.output(run)
    expect(state(panel, "endless", "running")).to_be_visible(timeout=TIMEOUT)
    page.command("notebook:interrupt-kernel", wait=False)
    expect(panel).to_contain_text("The run was stopped. %tagent_run --resume carries it on", timeout=TIMEOUT)
    expect(panel).not_to_contain_text("Traceback")
    expect(state(panel, "endless", "cancelled")).to_be_visible(timeout=TIMEOUT)
    expect(page.output(behind)).not_to_contain_text("behind it")
    page.picture("controls-interrupted", panel)


def test_pipelines_in_the_background_keep_to_their_cells(book: Book) -> None:
    runs = []
    for name in ("left", "right"):
        book.cell(f"%tagent_pipeline {name}")
        book.step("talk", f"'{name}'", gate="on", first=f"print('from the {name}')\n")
        runs.append(book.cell(f"{name} = %tagent_run --background"))
    other = book.cell("print('another cell')")
    page = book.open()
    page.run_all(wait=False)
    expect(page.output(other)).to_contain_text("another cell", timeout=TIMEOUT)
    for run, name, stranger in zip(runs, ("left", "right"), ("right", "left"), strict=True):
        expect(page.output(run)).to_contain_text(f"from the {name}", timeout=TIMEOUT)
        expect(page.output(run)).not_to_contain_text(f"from the {stranger}")
    page.picture("controls-background")
    book.allow("on")
    for run in runs:
        expect(state(page.output(run), "talk", "completed")).to_be_visible(timeout=TIMEOUT)
    expect(page.output(other)).to_have_text("another cell")


def test_rows_that_fail_are_shown_by_kind_while_a_step_runs_and_are_retried_alone(book: Book) -> None:
    gate, luck = str(book.folder / "gate"), str(book.folder / "luck")
    book.cell(
        "import os, asyncio\n"
        "class Unreadable(Exception): ...\n"
        "class TooLong(Exception): ...\n"
        "async def label(row):\n"
        f"    while row == 50 and not os.path.exists({gate!r}):\n"
        "        await asyncio.sleep(0.05)\n"
        f"    if row in (7, 8, 9) and not os.path.exists({luck!r}):\n"
        "        raise (TooLong if row == 7 else Unreadable)(f'row {row} is bad')\n"
        "    return row"
    )
    book.cell("%%tagent_step load --python\nlist(range(60))")
    book.cell(
        "%%tagent_step each --python --map-over load --max-retries 0 --min-success 0.9\nawait label(item)"
    )
    run = book.cell("%tagent_run")
    page = book.open()
    page.run_all(wait=False)
    row = page.output(run).locator("tr[data-step=each]")
    expect(row).to_contain_text("59/60 items, 3 failed", timeout=TIMEOUT)
    bar = row.get_by_role("progressbar", name="items")
    expect(bar).to_have_attribute("aria-valuenow", "59")
    kinds = row.locator("summary:visible")
    expect(kinds).to_have_text(["2 x Unreadable", "1 x TooLong"])
    kinds.first.click()
    expect(row).to_contain_text("item 8: row 8 is bad\nitem 9: row 9 is bad")
    page.picture("controls-rows", page.output(run))

    book.allow("gate")
    expect(state(page.output(run), "each", "completed")).to_be_visible(timeout=TIMEOUT)
    expect(row.locator("details[open]:visible")).to_have_count(1)  # what is open stays open
    book.allow("luck")
    button(page.output(run), "Retry failed").click()
    expect(row).to_contain_text("3 failed items are tried again", timeout=TIMEOUT)
    expect(kinds).to_have_count(0, timeout=TIMEOUT)
    expect(row).to_contain_text("60/60 items")
    expect(button(page.output(run), "Retry failed")).to_have_count(0)
