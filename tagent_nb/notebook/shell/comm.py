"""Messages of widgets while a cell awaits: handled at once, and answered.

ipykernel 6 handles one message at a time, and a cell that awaits is one that is not over: a click on Stop
would wait for the very run that it is to stop. Its event loop goes on, though, and puts what arrives into
a queue. From there the messages of widgets are handled between two beats of the waiting cell; cells
and all else stay where they are, in their order. ipykernel 7 has no such queue and needs no help.

ipykernel 7.4 leaves out the "idle" that ends a widget's message, or gives it to another message, where a
cell awaits or two messages come together. ipywidgets sends a second change of a widget only after the "idle"
of the first: a field edited twice would keep its first edit. So each of these messages gets an "idle" of
its own; front ends look for one and ignore another.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

COMMS = ("comm_open", "comm_msg", "comm_close")
"""Types of the messages that widgets send."""


async def handle_clicks(kernel: Any) -> None:
    """Handle the messages of widgets that wait in the queue of an ipykernel 6; nothing on other kernels."""
    queue = getattr(kernel, "msg_queue", None)
    if queue is None:
        return
    waiting = [queue.get_nowait() for _ in range(queue.qsize())]
    clicks = [message for message in waiting if _type(kernel, message[2]) in COMMS]
    for message in waiting:
        if message not in clicks:
            queue.put_nowait(message)
    for _, dispatch, arguments in clicks:
        parent, ident = kernel.get_parent("shell"), kernel._parent_ident["shell"]
        interrupted_by = kernel.saved_sigint_handler
        try:
            await dispatch(*arguments)
        finally:
            # What the waiting cell prints belongs to it again, and its handler of interrupts is kept.
            kernel.set_parent(ident, parent, channel="shell")
            kernel.saved_sigint_handler = interrupted_by


class AnsweredChanges:
    """Ends every message of a widget with an "idle" of its own.

    Args:
        kernel: An ipykernel; with another one, or none, nothing is done.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._handlers: dict[str, Any] = getattr(kernel, "shell_handlers", {})
        self._before = self._handlers.get("comm_msg")

    def install(self) -> None:
        """Begin to answer."""
        if self._before is not None:
            self._handlers["comm_msg"] = self._handle

    def remove(self) -> None:
        """Leave the kernel as it was."""
        if self._before is not None:
            self._handlers["comm_msg"] = self._before

    async def _handle(self, stream: Any, ident: Any, message: Any) -> None:
        assert self._before is not None, "it is installed"
        try:
            done = self._before(stream, ident, message)
            if inspect.isawaitable(done):
                await done
        finally:
            # Not as the kernel's current message, which may be another one by now.
            self._kernel.session.send(
                self._kernel.iopub_socket, "status", {"execution_state": "idle"}, parent=message
            )


def _type(kernel: Any, arguments: tuple[Any, ...]) -> str:
    """The type of a queued message, read from its header alone; empty for what is no message."""
    if not arguments or not isinstance(arguments[0], list):
        return ""
    # A signature may be checked only once, so nothing is decoded here that is decoded again later.
    _, parts = kernel.session.feed_identities(arguments[0], copy=False)
    header = json.loads(bytes(getattr(parts[1], "buffer", parts[1])))
    return str(header.get("msg_type", ""))
