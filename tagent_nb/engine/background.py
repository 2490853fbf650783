"""One daemon thread with one event loop, for runs started from anywhere; and work not to be cut short."""

from __future__ import annotations

import asyncio
import os
import threading
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar

from tagent_nb.errors import StepError
from tagent_nb.user_objects import blame

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner = 0


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process, started at the first call. Never the kernel's own loop."""
    global _loop, _owner
    with _lock:
        # A forked child inherits the object but not the thread that ran it.
        if _loop is None or _loop.is_closed() or _owner != os.getpid():
            loop = asyncio.new_event_loop()
            ready = threading.Event()

            def serve() -> None:
                asyncio.set_event_loop(loop)
                loop.call_soon(ready.set)
                while not _ran_to_its_stop(loop):
                    pass

            threading.Thread(target=serve, name="tagent-nb loop", daemon=True).start()
            ready.wait()
            _loop, _owner = loop, os.getpid()
        return _loop


def _ran_to_its_stop(loop: asyncio.AbstractEventLoop) -> bool:
    """Serve until the loop is stopped, or a task ends in what ends a program.

    No signal comes to this thread: an object of the user's has raised it. Who waits for that task gets it,
    and all others still need the loop.
    """
    try:
        loop.run_forever()
    except (KeyboardInterrupt, SystemExit):
        return False
    return True


def on_background_loop() -> bool:
    """Whether the caller runs on :func:`background_loop`, and must not wait for it."""
    try:
        return asyncio.get_running_loop() is _loop
    except RuntimeError:
        return False


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Await something to its end, and only then be cancelled, if that was asked for meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.result()
        raise


def is_cancelled() -> bool:
    """Whether this task is asked to end: what is raised then is no error of the user's objects."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@types.coroutine
def in_own_context(work: Awaitable[T]) -> Generator[Any, Any, T]:
    """Await something in this task, but in a copy of its context variables.

    What it sets, such as the precision of ``decimal``, ends with it. A task of its own would do the same at
    many times the cost; to put the variables back would not, since one that had no value cannot be unset.
    """
    run = copy_context().run
    # Others may know no send() or throw(), and what their __await__ does is to end with them, too.
    coroutine: Any = work if type(work) is types.CoroutineType else _awaited(work)
    try:
        waits_for = run(coroutine.send, None)
        while True:
            try:
                value = yield waits_for
            except BaseException as error:
                waits_for = run(coroutine.throw, error)
            else:
                waits_for = run(coroutine.send, value)
    except StopIteration as end:
        result: T = end.value
        return result


async def _awaited(work: Awaitable[T]) -> T:
    return await work


async def apart(work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine in a task of its own; if this one is cancelled, so is that, and it is waited for.

    To await a task that ended in ``GeneratorExit``, as libraries do that run tools in tasks, closes all
    coroutines around it. A method of a tool's result may raise it, and that must not close the run.

    Raises:
        StepError: It raised ``GeneratorExit``.
    """
    task = asyncio.ensure_future(work)
    stopped: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            stopped = error
            task.cancel()
    if stopped is not None:
        raise stopped
    try:
        return task.result()
    except GeneratorExit as error:
        raise StepError(f"{blame(error)}. Let it raise an ordinary error.") from error


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a thread, as ``asyncio.to_thread`` does, and raise whatever it raises.

    Objects of the user's may raise ``StopIteration`` there, which a future refuses to hold: who awaits it
    would never be woken.
    """

    def call() -> tuple[Any, BaseException | None]:
        try:
            return function(*arguments), None
        except BaseException as error:  # raised again on the loop
            return None, error

    value, error = await asyncio.to_thread(call)
    if error is not None:
        raise error
    result: T = value
    return result


def submit(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine on :func:`background_loop`; cancelling the future cancels it."""
    return asyncio.run_coroutine_threadsafe(coroutine, background_loop())
