"""The background loop: one a process, there when it is needed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from typing import Any

import pytest

from tagent_nb.engine import submit
from tagent_nb.engine.background import apart, background_loop, in_own_context, in_thread, run_shielded
from tagent_nb.errors import StepError


def test_there_is_one_loop_for_all_callers() -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    threads = [threading.Thread(target=lambda: loops.append(background_loop())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(loops) == {background_loop()}
    assert background_loop().is_running()


def test_work_is_done_in_its_own_thread() -> None:
    async def where() -> str:
        return threading.current_thread().name

    assert submit(where()).result(10) == "tagent-nb loop"


def test_a_cancelled_future_cancels_its_work() -> None:
    entered, cancelled = threading.Event(), threading.Event()

    async def work() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    future = submit(work())
    assert entered.wait(10)
    future.cancel()
    assert cancelled.wait(10)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_ends_its_own_work_and_no_other(error: type[BaseException]) -> None:
    """No signal comes to the loop's thread: only an object of the user's can raise such a thing there."""

    async def leaves() -> None:
        raise error("no further")

    async def stays() -> str:
        await leaving.wait()
        return "done"

    leaving = asyncio.Event()
    loop = background_loop()
    waiting = submit(stays())
    with pytest.raises(error, match="no further"):
        submit(leaves()).result(10)
    loop.call_soon_threadsafe(leaving.set)
    assert waiting.result(10) == "done"
    assert background_loop() is loop


def test_a_closed_loop_is_replaced() -> None:
    old = background_loop()
    (thread,) = [one for one in threading.enumerate() if one.name == "tagent-nb loop"]
    old.call_soon_threadsafe(old.stop)
    thread.join(10)
    old.close()
    new = background_loop()
    assert new is not old
    assert new.is_running()


FORKED = """
import os, sys
from tagent_nb import Pipeline, PipelineExecutor

pipeline = Pipeline("forked")

@pipeline.task
def answer() -> int:
    return 42

executor = PipelineExecutor(pipeline)
assert executor.run()["answer"] == 42
child = os.fork()
if child == 0:
    os._exit(PipelineExecutor(pipeline).run()["answer"])
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
assert executor.run()["answer"] == 42
print("both ran")
"""


def test_parent_and_child_run_after_a_fork() -> None:
    """The child has no thread of the parent's; it starts a loop of its own."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert done.stdout == "both ran\n", done.stderr


@pytest.mark.parametrize("error", [None, OSError("no")])
async def test_what_must_not_be_cut_short_ends_before_its_caller_is_cancelled(error: OSError | None) -> None:
    """Its own error matters more than the cancelling."""
    entered, leave = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def work() -> None:
        entered.set()
        await leave.wait()
        ended.append("work")
        if error is not None:
            raise error

    task = asyncio.ensure_future(run_shielded(work()))
    await entered.wait()
    task.cancel()
    leave.set()
    with pytest.raises(asyncio.CancelledError if error is None else OSError):
        await task
    assert ended == ["work"]


async def test_what_is_not_cancelled_gives_its_value() -> None:
    async def work() -> int:
        return 1

    assert await run_shielded(work()) == 1


async def test_work_apart_is_waited_for_however_often_it_is_cancelled() -> None:
    """What cleans up is not left running."""
    begun, cleaned = asyncio.Event(), []

    async def work() -> None:
        begun.set()
        for _ in range(3):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cleaned.append(1)
        cleaned.append(2)

    task = asyncio.ensure_future(apart(work()))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [1, 1, 1, 2]


async def test_work_apart_that_closes_coroutines_is_an_ordinary_error() -> None:
    async def closes() -> None:
        raise GeneratorExit("no")

    with pytest.raises(StepError, match="GeneratorExit: no. Let it raise an ordinary error"):
        await apart(closes())


@pytest.mark.parametrize("raised", [ValueError("x"), StopIteration(), KeyboardInterrupt()])
async def test_what_is_raised_in_a_thread_reaches_who_waits(raised: BaseException) -> None:
    """StopIteration, too, which a coroutine may not raise: it would never end."""

    def call() -> None:
        raise raised

    with pytest.raises(RuntimeError if isinstance(raised, StopIteration) else type(raised)):
        await in_thread(call)


PLACE: ContextVar[str] = ContextVar("PLACE", default="outside")


class Moved:
    """Sets a variable where it is awaited, and waits for something that is neither a coroutine nor a task."""

    def __init__(self, waits_for: asyncio.Future[str]) -> None:
        self.waits_for = waits_for

    def __await__(self) -> Generator[Any, None, str]:
        PLACE.set("inside")
        value = yield from self.waits_for
        return f"{value} {PLACE.get()}"


async def moved(waits_for: asyncio.Future[str]) -> str:
    return await Moved(waits_for)


@pytest.mark.parametrize("make", [moved, Moved])
async def test_what_is_awaited_in_its_own_context_sets_nothing_around_it(
    make: Callable[[asyncio.Future[str]], Awaitable[str]],
) -> None:
    """Whatever kind of awaitable it is."""
    waits_for: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(waits_for.set_result, "done")
    assert await in_own_context(make(waits_for)) == "done inside"
    assert PLACE.get() == "outside"


@pytest.mark.parametrize("make", [moved, Moved])
async def test_what_is_awaited_in_its_own_context_gets_the_errors_of_what_it_waits_for(
    make: Callable[[asyncio.Future[str]], Awaitable[str]],
) -> None:
    waits_for: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(waits_for.set_exception, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await in_own_context(make(waits_for))
    assert PLACE.get() == "outside"


async def test_a_future_is_awaited_in_its_own_context_as_well() -> None:
    waits_for: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(waits_for.set_result, "done")
    assert await in_own_context(waits_for) == "done"
