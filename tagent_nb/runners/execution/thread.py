"""A thread for one body, from outside of which the body can be ended."""

from __future__ import annotations

import asyncio
import ctypes
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from tagent_nb.runners.base import StepContext
from tagent_nb.runners.execution.capture import Lines, captured
from tagent_nb.user_objects import Interrupted

POLITE_SECONDS = 0.25
"""How long a body that can see ``context.stop`` may take to end by itself."""

TAKE_BACK_SECONDS = 0.25
"""How long a body may take to notice an exception that cannot stay on its way."""


async def in_thread(
    name: str,
    call: Callable[[], Any],
    context: StepContext,
    lines: Lines,
    *,
    stop: threading.Event,
    grace: float = 1.0,
    polite: bool = False,
) -> Any:
    """Await ``call`` in a daemon thread of its own, with a copy of the context variables.

    When the awaiting task is cancelled, ``stop`` is set and :class:`Interrupted` is thrown into the
    thread, which ends the call at its next Python instruction. Inside a C call there is none: after
    ``grace`` seconds the thread is left to end by itself, and that is reported.

    Args:
        name: The step or tool, for the thread's name and the report.
        lines: Where the call's prints go.
        stop: Set before anything is thrown.
        grace: Seconds to wait for the end.
        polite: Wait up to 0.25 s for a call that looks at ``stop`` before anything is thrown.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    worker = Worker(name, call, lines, partial(_wake, loop, ended))
    worker.start()
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        stop.set()
        try:
            if polite:
                await asyncio.wait({ended}, timeout=min(POLITE_SECONDS, grace))
            worker.interrupt()
            await asyncio.wait({ended}, timeout=grace)
            if not ended.done():
                context.progress("left_running", thread=worker.name, message=_left(name))
        finally:
            worker.interrupt()
            lines.close()
        raise
    return worker.result()


def _left(name: str) -> str:
    return (
        f"{name!r} did not end when it was stopped: it is inside a call that cannot be interrupted. "
        "It was left to end by itself; its value will be dropped."
    )


def _wake(loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
    # The loop is closed when a program ends before a call that was left running: nothing waits then.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(ended.set_result, None)


class Worker:
    """One body in one daemon thread.

    ``interrupt`` throws only while the thread is inside the body, and at most once. The thread
    leaves the body under the same lock and then waits for what was thrown and may not have arrived
    yet, so that it never arrives later. Should it arrive on the way there, leaving is done again.
    """

    def __init__(self, step: str, call: Callable[[], Any], lines: Lines, ended: Callable[[], None]) -> None:
        self.name = f"tagent-step-{step}"
        self._call = call
        self._lines = lines
        self._ended = ended
        self._lock = threading.Lock()
        self._inside = False
        self._thrown = False
        self._left: SimpleQueue[None] = SimpleQueue()
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._main,), name=self.name, daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def result(self) -> Any:
        """What the body returned; raises what it raised."""
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            # The error knows its frames, and they know us: without this it would stay until a collection.
            self._error = None

    def interrupt(self) -> None:
        """Throw :class:`Interrupted` into the body, if the thread is inside it."""
        thread, own = ctypes.c_ulong(self._thread.ident or 0), ctypes.c_ulong(threading.get_ident())
        error = ctypes.py_object(Interrupted)
        take_back = _must_take_back()
        with self._lock:
            if self._thrown:
                return
            self._thrown = True
            if not self._inside:
                return
            _set_exception(thread, error)
        if not take_back:
            return
        # See _must_take_back: no Python function may be entered until the signal is cleared.
        try:
            self._left.get(timeout=TAKE_BACK_SECONDS)
        except Empty:
            _set_exception(thread, None)
            # Only an exception that arrives clears the signal, so this thread throws one at itself.
            try:
                while True:
                    _set_exception(own, error)
            except Interrupted:
                pass

    def _main(self) -> None:
        try:
            with captured(self._lines):
                self._guarded()
        finally:
            self._ended()

    def _guarded(self) -> None:
        try:
            try:
                self._enter()
                self._value = self._call()
            finally:
                self._leave()
        except BaseException as error:
            self._leave()
            self._error = error

    def _enter(self) -> None:
        with self._lock:
            if self._thrown:
                raise Interrupted
            self._inside = True

    def _leave(self) -> None:
        with self._lock:
            self._inside = False
        if not self._thrown:
            return
        # Whether the exception has arrived cannot be asked, for the body may have swallowed it. Throwing it
        # anew replaces one that is on its way, so that the last one arrives here.
        try:
            while True:
                _set_exception(ctypes.c_ulong(threading.get_ident()), ctypes.py_object(Interrupted))
        except Interrupted:
            self._left.put(None)


_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
"""``(thread, error)``: raise ``error`` in a thread at its next instruction; ``None`` takes it back."""


def _must_take_back() -> bool:
    """Whether an exception that does not arrive at once must be taken back.

    CPython 3.11 has one signal for the exceptions of all threads, and under a debugger or a coverage
    tool each function call of each thread waits until it is cleared. While the thread to interrupt
    is inside a long C call, the whole program would stand still.
    """
    traced = sys.gettrace() is not None or threading.gettrace() is not None
    return traced and sys.version_info < (3, 12)
