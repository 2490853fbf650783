"""Approval in real kernels: the form answers a waiting cell, and the wait survives a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernels import Kernel


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Callable[[], Kernel]]:
    """Starts kernels in the test's folder."""
    started: list[Kernel] = []

    def start() -> Kernel:
        started.append(Kernel(tmp_path))
        return started[-1]

    yield start
    for book in started:
        book.close()


def define(book: Kernel) -> None:
    book.run("%tagent_pipeline mails --concurrent")
    book.define("draft", "'Dear all'", "--approve")
    book.define("send", "'sent: ' + draft")
    book.define("other", "7")


def form(book: Kernel, cell: str) -> str:
    """The comm of the buttons of a form that a cell shows, once it does."""

    def comm_id() -> str:
        for message in book.outputs.get(cell, []):
            state = message["content"].get("data", {}).get("state", {})
            if message["msg_type"] == "comm_open" and state.get("offers"):
                return str(message["content"]["comm_id"])
        return ""

    book.until(lambda: bool(comm_id()))
    return comm_id()


def approve(book: Kernel, comm: str, *values: str) -> None:
    """Press Approve, as the page does: what its fields say comes along, and a reason."""
    content = {"decision": "approve", "values": [*values, ""]}
    book.tell("comm_msg", {"comm_id": comm, "data": {"method": "custom", "content": content}})


def test_a_wait_for_approval_survives_a_killed_kernel_and_nothing_is_computed_again(
    kernel: Callable[[], Kernel],
) -> None:
    first = kernel()
    define(first)
    run = first.send("%tagent_run")
    form(first, run)
    first.until(lambda: first.effects()["other"] == 1)
    first.kill()
    second = kernel()
    define(second)
    run = second.send("%tagent_run --resume")
    approve(second, form(second, run), "Dear all")
    assert "✓ send: completed" in second.wait(run)
    assert second.effects() == {"draft": 1, "send": 1, "other": 1}
    assert "sent: Dear all" in second.run("print(result['send'])")


def test_where_no_one_can_click_the_run_ends_waiting_and_goes_on_by_magics(
    kernel: Callable[[], Kernel],
) -> None:
    """As nbconvert and nbval execute cells: they say that they take no input."""
    book = kernel()
    define(book)
    cell = str(book.client.execute("%tagent_run", allow_stdin=False))
    assert "Waiting for approval of draft. %tagent_run --resume goes on with it." in book.wait(cell)
    book.run("better = 'Dear friends'\n%tagent_approve draft --value better")
    assert "✓ send: completed" in book.run("%tagent_run --resume")
    assert "sent: Dear friends" in book.run("print(result['send'])")
