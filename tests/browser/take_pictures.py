"""Takes the picture of the README: ``python tests/browser/take_pictures.py``. Needs the local model.

It is a real run in a real JupyterLab. The local model is small: its answers are not always right.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from jupyterlab_page import LabPage, chromium, serve
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "images"
CELLS = [
    "%load_ext tagent_nb\n%tagent_pipeline reviews --model local",
    "from typing import Literal\nfrom pydantic import BaseModel\n\n"
    'class Sentiment(BaseModel):\n    label: Literal["negative", "positive"]',
    '%%tagent_step load --python\nimport pandas as pd\npd.read_csv("reviews.csv").head(8)',
    "%%tagent_step classify --output-schema Sentiment --map-over load\n"
    "Is this review negative or positive? {{ load.text }}",
    "%%tagent_step report\nWrite one sentence on what customers like, from {{ classify }}.",
    "%tagent_run",
    'result["load"][["text"]].join(result.output_frame("classify")["label"])',
]


def main() -> None:
    """Run the notebook and store its picture."""
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home, serve(Path(home)) as lab, chromium() as browser:
        path = lab.write("first", CELLS)
        shutil.copy(ROOT / "notebooks" / "data" / "reviews.csv", (lab.root / path).parent)
        page = browser.new_page(viewport={"width": 1000, "height": 2000}, device_scale_factor=1.5)
        book = LabPage(lab, page).open(path)
        book.run_all()
        expect(book.output(len(CELLS) - 1).locator("table")).to_be_visible(timeout=120_000)
        page.evaluate("() => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = 0; }")
        cells = [book.cell(index).bounding_box() for index in (2, len(CELLS) - 1)]
        first, last = [box for box in cells if box is not None]
        clip = {"x": first["x"], "y": first["y"] + 4, "width": first["width"] - 8}
        page.screenshot(
            path=TARGET / "notebook.png",
            clip={**clip, "height": last["y"] + last["height"] - first["y"]},
        )
        book.shut_down()


if __name__ == "__main__":
    main()
