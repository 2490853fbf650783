"""Messages of widgets while a cell awaits: what is handled at once, and what keeps its place."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from jupyter_client.session import Session

from tagent_nb.notebook.shell.comm import AnsweredChanges, handle_clicks


class SixKernel:
    """The part of ipykernel 6 that hands messages on; tests/notebook/test_kernel.py has a real one."""

    def __init__(self) -> None:
        self.session = Session(key=b"secret")
        self.msg_queue: asyncio.Queue[Any] = asyncio.Queue()
        self._parent_ident = {"shell": b"cell"}
        self._parent: Any = {"header": "the cell's"}
        self.saved_sigint_handler = "the cell's"
        self.handled: list[str] = []

    def get_parent(self, channel: str) -> Any:
        return self._parent

    def set_parent(self, ident: bytes, parent: Any, channel: str) -> None:
        self._parent_ident[channel], self._parent = ident, parent

    async def dispatch(self, message: list[Any]) -> None:
        ident, parts = self.session.feed_identities(message, copy=False)
        parent = self.session.deserialize(parts, copy=False)
        self.set_parent(ident, parent, "shell")
        self.saved_sigint_handler = "the click's"
        self.handled.append(parent["header"]["msg_type"])
        if parent["content"].get("bad"):
            raise KeyboardInterrupt

    def send(self, kind: str, **content: Any) -> None:
        parts = self.session.serialize(self.session.msg(kind, content), ident=b"front")
        self.msg_queue.put_nowait(
            (self.msg_queue.qsize(), self.dispatch, ([zmq.Message(part) for part in parts],))
        )


async def test_widgets_are_answered_while_cells_keep_their_order() -> None:
    kernel = SixKernel()
    kernel.msg_queue.put_nowait((0, kernel.dispatch, ()))
    for kind in ("execute_request", "comm_msg", "complete_request", "comm_open", "execute_request"):
        kernel.send(kind)
    await handle_clicks(kernel)
    assert kernel.handled == ["comm_msg", "comm_open"]
    left = [kernel.msg_queue.get_nowait() for _ in range(kernel.msg_queue.qsize())]
    assert [number for number, _, _ in left] == [0, 1, 3, 5]
    for _, dispatch, arguments in left[1:]:
        await dispatch(*arguments)
    assert kernel.handled[2:] == ["execute_request", "complete_request", "execute_request"]


@pytest.mark.parametrize("bad", [False, True])
async def test_the_waiting_cell_gets_its_output_and_its_interrupts_back(bad: bool) -> None:
    kernel = SixKernel()
    kernel.send("comm_msg", bad=bad)
    try:
        await handle_clicks(kernel)
    except KeyboardInterrupt:
        assert bad
    assert kernel.handled == ["comm_msg"]
    assert kernel.get_parent("shell") == {"header": "the cell's"}
    assert kernel._parent_ident == {"shell": b"cell"}
    assert kernel.saved_sigint_handler == "the cell's"


async def test_other_kernels_and_none_are_left_alone() -> None:
    await handle_clicks(None)
    await handle_clicks(SimpleNamespace())


class Answers:
    """The part of an ipykernel that handles a widget's message and tells front ends of it."""

    def __init__(self, handler: Any) -> None:
        self.shell_handlers = {"comm_msg": handler}
        self.iopub_socket = object()
        self.session = SimpleNamespace(send=self._send)
        self.sent: list[tuple[Any, ...]] = []

    def _send(self, socket: Any, kind: str, content: dict[str, Any], parent: Any) -> None:
        assert socket is self.iopub_socket
        self.sent.append((kind, content["execution_state"], parent))


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_change_of_a_widget_is_answered_under_its_own_name(waits: bool, fails: bool) -> None:
    seen: list[Any] = []

    def plain(*arguments: Any) -> None:
        seen.append(arguments)
        if fails:
            raise ZeroDivisionError

    async def waiting(*arguments: Any) -> None:
        plain(*arguments)

    handler = waiting if waits else plain
    kernel = Answers(handler)
    changes = AnsweredChanges(kernel)
    changes.install()
    try:
        await kernel.shell_handlers["comm_msg"]("stream", "ident", {"header": "the change"})
    except ZeroDivisionError:
        assert fails
    assert seen == [("stream", "ident", {"header": "the change"})]
    assert kernel.sent == [("status", "idle", {"header": "the change"})]
    changes.remove()
    assert kernel.shell_handlers == {"comm_msg": handler}


def test_without_a_kernel_no_one_is_answered() -> None:
    for kernel in (None, SimpleNamespace()):
        changes = AnsweredChanges(kernel)
        changes.install()
        changes.remove()
