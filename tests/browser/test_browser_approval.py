"""Approval in a real JupyterLab: a value is edited and approved in its form, another one is rejected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jupyterlab_page import Lab, LabPage
from playwright.sync_api import expect
from test_browser_controls import TIMEOUT, Book, button, state

pytestmark = [pytest.mark.requires("chromium"), pytest.mark.models]

SCHEMA = """from typing import Literal
from pydantic import BaseModel, Field

class Mail(BaseModel):
    subject: str
    copies: int = Field(ge=1)
    tone: Literal["kind", "formal"]"""


@pytest.fixture
def book(lab: Lab, lab_page: LabPage, tmp_path: Path, request: pytest.FixtureRequest) -> Book:
    return Book(lab, lab_page, request.node.name.removeprefix("test_")[:40], tmp_path)


def test_a_value_is_edited_and_approved_and_another_one_rejected(book: Book) -> None:
    """Only what waits is held up; why the schema refuses is in the form, and nothing is lost."""
    book.cell(SCHEMA)
    draft = "Mail(subject='Hello', copies=1, tone='formal')"
    book.step("draft", draft, "--output-schema Mail --approve")
    book.step("send", "(draft.subject, draft.copies, draft.tone)")
    book.step("beside", "'not held up'")
    run = book.cell("%tagent_run")
    after = book.cell("print('sent:', result['send'], result.step_metadata['draft']['edited_by_user'])")
    book.step("order", "'ten cakes'", "--approve --max-retries 0")
    again = book.cell("%tagent_run --until order")
    page = book.open()
    page.run_all(wait=False)

    panel = page.output(run)
    expect(panel).to_contain_text("Approve step 'draft'?", timeout=TIMEOUT)
    expect(state(panel, "beside", "completed")).to_be_visible(timeout=TIMEOUT)
    assert book.effects() == {"draft": 1, "beside": 1}
    page.picture("approval-form", panel)
    panel.get_by_label("subject").fill("Dear friends")
    panel.get_by_label("copies").fill("0")
    panel.get_by_label("tone").select_option("kind")
    button(panel, "Approve").click()
    expect(panel.get_by_role("alert")).to_contain_text("copies", timeout=TIMEOUT)
    page.picture("approval-refused", panel)
    panel.get_by_label("copies").fill("2")
    button(panel, "Approve").click()
    sent = "sent: ('Dear friends', 2, 'kind') True"
    expect(page.output(after)).to_contain_text(sent, timeout=TIMEOUT)
    assert (book.effects()["draft"], book.effects()["send"]) == (1, 1)

    panel = page.output(again)
    expect(panel).to_contain_text("Approve step 'order'?", timeout=TIMEOUT)
    button(panel, "Reject").click()
    expect(panel.get_by_role("alert")).to_contain_text("Say why", timeout=TIMEOUT)
    panel.get_by_placeholder(re.compile("Reason")).fill("too many")
    button(panel, "Reject").click()
    expect(state(panel, "order", "failed")).to_be_visible(timeout=TIMEOUT)
    expect(panel).to_contain_text("too many")
    page.picture("approval-rejected", panel)
