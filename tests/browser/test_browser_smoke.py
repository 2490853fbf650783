"""One notebook in a real JupyterLab: card, graph, panel and result, looked at in both themes."""

from __future__ import annotations

import re
from base64 import b64decode
from pathlib import Path
from urllib.parse import unquote

import pytest
from jupyterlab_page import Lab, LabPage, as_html
from playwright.sync_api import expect

pytestmark = [pytest.mark.requires("chromium"), pytest.mark.models]

LOAD, SCHEMA, STEP_1, STEP_2, STEP_3, GRAPH, RUN, AFTER, FRAME = range(9)
CELLS = [
    "%load_ext tagent_nb\n%tagent_pipeline reviews --model test",
    "from typing import Literal\nfrom pydantic import BaseModel\n\n"
    'class Sentiment(BaseModel):\n    label: Literal["positive", "negative", "neutral"]',
    "%%tagent_step load --python\n# Four reviews of this week\n"
    "import os, time\nimport pandas as pd\n\nprint('reading the reviews')\n"
    "while not os.path.exists('{gate}'):\n    time.sleep(0.05)\n"
    'pd.DataFrame({"product": ["phone", "phone", "lamp", "lamp"],\n'
    '              "text": ["Great battery", "Too heavy", "Lovely light", "It broke"]})',
    "%%tagent_step classify --output-schema Sentiment --map-over load\n"
    "Say whether this review is positive, negative or neutral: {{ load.text }}",
    "%%tagent_step report --constraint 'at most 20 words'\n"
    "Write one sentence on what customers like, from {{ classify }}.",
    "%tagent_graph",
    "%tagent_run",
    "%tagent_graph",
    "result.to_frame()",
]


def cells(gate: Path) -> list[str]:
    return [cell.replace("{gate}", str(gate)) for cell in CELLS]


def drawn(book: LabPage) -> str:
    """The SVG of the last graph; JupyterLab shows it as an image."""
    image = book.output(AFTER).locator("img")
    expect(image).to_be_visible()
    return unquote(image.get_attribute("src") or "")


@pytest.mark.parametrize(
    ("lab_page", "theme"),
    [(1000, "JupyterLab Light"), (1000, "JupyterLab Dark"), (600, "JupyterLab Light")],
    indirect=["lab_page"],
    ids=["light", "dark", "narrow"],
)
def test_a_notebook_is_defined_drawn_run_and_shown(
    lab: Lab, lab_page: LabPage, theme: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    look = request.node.callspec.id
    gate = tmp_path / "gate"
    book = lab_page.open(lab.write(f"smoke_{look}", cells(gate)), theme=theme)
    book.run_all(wait=False)

    panel = book.output(RUN)
    expect(panel.get_by_role("button", name="Stop")).to_be_visible(timeout=60_000)
    expect(panel).to_contain_text("reading the reviews")
    expect(panel).to_contain_text("running")
    book.picture(f"{look}-card", book.output(STEP_2))
    book.picture(f"{look}-graph-defined", book.output(GRAPH))
    book.picture(f"{look}-panel-running", panel)

    gate.touch()
    expect(book.output(FRAME)).to_contain_text("completed", timeout=60_000)
    expect(panel.get_by_role("button", name="Stop")).to_have_count(0)
    expect(panel).to_contain_text("3 of 3 steps")
    expect(panel.get_by_text(re.compile("completed")).first).to_be_visible()
    book.picture(f"{look}-panel-done", panel)
    book.picture(f"{look}-graph-done", book.output(AFTER))
    book.picture(f"{look}-result", book.output(FRAME))
    book.cell(STEP_1).scroll_into_view_if_needed()
    book.picture(f"{look}-page")
    assert drawn(book).count('class="node tagent-completed"') == 3


def test_a_saved_notebook_tells_the_story_without_a_kernel(
    lab: Lab, lab_page: LabPage, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    path = lab.write("smoke_saved", cells(gate))
    book = lab_page.open(path)
    book.run_all()
    book.command("docmanager:save")
    book.shut_down()
    book.open(path)
    panel = book.output(RUN)
    expect(panel).to_contain_text("3 of 3 steps", timeout=60_000)
    expect(panel).not_to_contain_text("Error displaying widget")
    assert drawn(book).count('class="node tagent-completed"') == 3
    book.picture("reopened-panel", panel)

    page = book.page
    page.route(re.compile("^https?:"), lambda route: route.abort())  # styles and MathJax from elsewhere
    page.goto(as_html(lab.root / path).as_uri(), wait_until="domcontentloaded")
    expect(page.get_by_text("3 of 3 steps")).to_be_visible()
    expect(
        page.get_by_role("row").filter(has_text="classify").filter(has_text="completed").first
    ).to_be_visible()
    source = page.locator("img[src^='data:image/svg+xml;base64,']").last.get_attribute("src") or ""
    assert b64decode(source.partition(",")[2]).decode().count('class="node tagent-completed"') == 3
    book.picture("nbconvert")
