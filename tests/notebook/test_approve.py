"""%tagent_approve and %tagent_memory."""

from __future__ import annotations

import threading
import time

import pytest

from tagent_nb.engine import RunHandle
from tests.notebook.test_magics import Notebook, book, refused

PATIENCE = 30.0
assert book  # a fixture: pytest finds it by its name


def held(book: Notebook) -> None:
    """A run that waits for the approval of its step."""
    book("tagent_pipeline mails")
    book.python("draft", "'Dear all'", "--approve")
    book.python("send", "'sent: ' + draft")
    book("tagent_run")


def wait_for_a_request(handle: RunHandle) -> None:
    """Return when the run in the background waits for a decision."""
    until = time.monotonic() + PATIENCE
    while not handle.executor.pending_approvals():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_held_value_is_listed_approved_and_used_when_the_run_goes_on(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    held(book)
    book("tagent_approve")
    assert "draft" in book.shown[-1]
    assert "Dear all" in book.shown[-1]
    book("tagent_approve draft")
    assert "Approved. %tagent_run --resume goes on with it." in capsys.readouterr().out
    assert book("tagent_run --resume")["send"] == "sent: Dear all"
    book("tagent_approve")
    assert "Nothing waits for approval." in book.shown[-1]


def test_a_decision_during_a_run_without_anybody_to_ask_says_what_goes_on_with_it(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run does what else it can, and the branch that waits is for a resume."""
    gate = book.shell.user_ns["gate"] = threading.Event()
    book("tagent_pipeline mails --concurrent")
    book.python("draft", "'Dear all'", "--approve")
    book.python("send", "'sent: ' + draft")
    book.python("other", f"gate.wait({PATIENCE})")
    handle = book("tagent_run --background")
    wait_for_a_request(handle)
    book("tagent_approve draft")
    printed = capsys.readouterr().out
    assert "Approved. The run under way waits for no decision" in printed
    assert "%tagent_run --resume" in printed
    gate.set()
    assert handle.result().waiting_steps == ["draft"]
    assert book("tagent_run --resume")["send"] == "sent: Dear all"


def test_a_decision_during_a_run_that_waits_for_it_counts_at_once(
    book: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    book("tagent_pipeline mails")
    book.python("draft", "'Dear all'", "--approve")
    book.session.approver = "wait"
    handle = book("tagent_run --background")
    wait_for_a_request(handle)
    book("tagent_approve draft")
    assert capsys.readouterr().out.endswith("Approved.\n")
    assert handle.result()["draft"] == "Dear all"


def test_a_variable_of_the_notebook_takes_the_place_of_the_value(book: Notebook) -> None:
    held(book)
    book.shell.user_ns["better"] = "Dear friends"
    book("tagent_approve draft --value better")
    assert book("tagent_run --resume")["send"] == "sent: Dear friends"


@pytest.mark.parametrize("option", ["--reject", "--retry"])
def test_a_value_is_rejected_with_a_reason(
    book: Notebook, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    held(book)
    book(f"tagent_approve draft {option} 'too short'")
    assert "Rejected." in capsys.readouterr().out
    result = book("tagent_run --resume")
    assert (
        (result.failed_steps, result.waiting_steps) == (["draft"], [])
        if option == "--reject"
        else ([], ["draft"])
    )


def test_another_kernel_decides_on_what_is_recorded(book: Notebook) -> None:
    held(book)
    later = Notebook(book.session.folder)
    later("tagent_pipeline mails")
    later.python("draft", "'Dear all'", "--approve")
    later.python("send", "'sent: ' + draft")
    later("tagent_approve draft")
    assert later("tagent_run --resume")["send"] == "sent: Dear all"


def test_mistakes_are_reported_in_one_sentence(book: Notebook) -> None:
    held(book)
    assert "exclude each other" in refused(book, "tagent_approve draft --reject no --retry no")
    assert "there is no variable 'bettr'" in refused(book, "tagent_approve draft --value bettr")
    assert "Did you mean 'draft'" in refused(book, "tagent_approve draf")


def test_help_is_shown(book: Notebook) -> None:
    book("tagent_approve --help")
    book("tagent_memory --help")


def test_memories_are_listed_shown_edited_and_deleted(book: Notebook) -> None:
    book("tagent_pipeline mails")
    book("tagent_memory")
    assert "Nothing is remembered" in book.shown[-1]
    book("tagent_memory style --set short")
    book("tagent_memory limit --set 3")
    assert (book("tagent_memory style"), book("tagent_memory limit")) == ("short", 3)
    book("tagent_memory")
    assert "style" in book.shown[-1]
    book("tagent_memory style --forget")
    assert "there is no memory 'style'. Saved: limit." in refused(book, "tagent_memory style")
    book("tagent_memory limit --forget")
    assert "Saved: none." in refused(book, "tagent_memory limit")


def test_mistakes_with_memories_are_reported(book: Notebook) -> None:
    book("tagent_pipeline mails")
    assert "which memory?" in refused(book, "tagent_memory --forget")
    assert "exclude each other" in refused(book, "tagent_memory a --set 1 --forget")
    assert "has no memory 'a'" in refused(book, "tagent_memory a --forget")


def test_options_of_a_step_hold_values_and_tools_and_let_it_remember(book: Notebook) -> None:
    book("tagent_pipeline mails")
    book("tagent_step write --approve --approve-tools send,pay* --remember", "Write.")
    step = book.session.pipeline.get_step("write")
    assert (step.approve, step.approve_tools, step.remember) == (True, ["send", "pay*"], True)
    shown = book.shown[-1]
    for words in ("waits for approval", "asks before it calls send, pay*", "may remember"):
        assert words in shown
