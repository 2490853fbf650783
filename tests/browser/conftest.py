"""One JupyterLab for all browser tests, one Chromium for each file of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jupyterlab_page import Lab, LabPage, chromium, serve
from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The server."""
    with serve(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser. While it is open, Playwright runs a loop on this thread, and no async test could run."""
    with chromium() as running:
        yield running


@pytest.fixture
def lab_page(lab: Lab, browser: Browser, request: pytest.FixtureRequest) -> Iterator[LabPage]:
    """A page 1000 pixels wide, or as wide as an indirect parameter says."""
    width: int = getattr(request, "param", 1000)
    page = browser.new_page(viewport={"width": width, "height": 900})
    opened = LabPage(lab, page)
    yield opened
    opened.shut_down()
    page.close()
