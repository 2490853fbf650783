"""RunHandle: waiting for a run in the background, and stopping it by whatever ends the wait."""

from __future__ import annotations

import asyncio
import signal
import threading
from concurrent import futures
from typing import Any

import pytest

from tagent_nb import Pipeline, PipelineExecutor, errors
from tagent_nb.engine import RunHandle
from tagent_nb.engine.background import background_loop


class Stage:
    """A run in the background that waits until it is let go."""

    def __init__(self, **fields: Any) -> None:
        self.entered, self.leave, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.pipeline = Pipeline("staged")

        @self.pipeline.task(**fields)
        async def hold() -> str:
            self.entered.set()
            try:
                while not self.leave.is_set():
                    await asyncio.sleep(0.001)
            finally:
                self.ended.set()
            return "held"

        self.executor = PipelineExecutor(self.pipeline)

    def start(self) -> RunHandle:
        handle = self.executor.start()
        assert self.entered.wait(10)
        return handle


def test_a_handle_says_how_its_run_stands() -> None:
    stage = Stage()
    assert repr(RunHandle(stage.executor, never())) == "<RunHandle starting: running>"
    handle = stage.start()
    assert stage.executor.memory is not None
    assert repr(handle) == f"<RunHandle {stage.executor.memory.run_id}: running>"
    assert not handle.done()
    stage.leave.set()
    assert handle.result()["hold"] == "held"
    assert handle.done()
    assert repr(handle).endswith(": done>")


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_timeout_leaves_the_run_alone(timeout: float) -> None:
    stage = Stage()
    handle = stage.start()
    with pytest.raises(TimeoutError, match=f"goes on after {timeout:g} s. cancel\\(\\) stops it"):
        handle.result(timeout=timeout)
    assert not handle.done()
    stage.leave.set()
    assert handle.result(timeout=10)["hold"] == "held"


def test_a_run_that_raises_timeout_error_is_not_taken_for_a_wait() -> None:
    """What comes out is what the run raised, however long the wait may take."""
    future = never()
    future.set_exception(TimeoutError("the store did not answer"))
    with pytest.raises(TimeoutError, match="the store did not answer"):
        RunHandle(Stage().executor, future).result()


def test_an_error_of_the_run_comes_out() -> None:
    handle = PipelineExecutor(Pipeline("empty")).start()
    with pytest.raises(errors.PipelineValidationError, match="has no steps"):
        handle.result()


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first wait for a run gets a SIGINT, as from Ctrl-C."""
    waits = 0
    wait = futures.wait

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        nonlocal waits
        waits += 1
        if waits == 1:
            signal.raise_signal(signal.SIGINT)
        return wait(*args, **kwargs)

    monkeypatch.setattr(futures, "wait", interrupt)


@pytest.mark.usefixtures("interrupted")
def test_an_interrupt_while_waiting_cancels_the_run_and_goes_on() -> None:
    """KeyboardInterrupt reaches who waits, after the steps have cleaned up."""
    stage = Stage()
    handle = stage.start()
    with pytest.raises(KeyboardInterrupt):
        handle.result()
    assert handle.done()
    assert stage.ended.is_set()
    assert handle.result().cancelled
    assert not stage.executor.running


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_run_can_be_resumed() -> None:
    stage = Stage()
    with pytest.raises(KeyboardInterrupt):
        stage.executor.run()
    assert stage.executor.result is not None
    assert stage.executor.result.cancelled
    stage.leave.set()
    assert stage.executor.run(resume=True)["hold"] == "held"


def test_an_interrupt_before_the_wait_begins_cancels_the_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    ended = threading.Event()
    stage.executor.subscribe(lambda event: ended.set() if type(event).__name__ == "RunFinished" else None)

    def interrupted(*args: Any) -> None:
        assert stage.entered.wait(10)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("tagent_nb.engine.executor.RunHandle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage.executor.run()
    assert ended.wait(10)
    assert stage.executor.result is not None
    assert stage.executor.result.cancelled


@pytest.mark.usefixtures("interrupted")
def test_an_interrupt_does_not_wait_for_ever_for_a_step_that_takes_no_notice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tagent_nb.engine.handle.CANCEL_GRACE", 0.01)
    handle = RunHandle(Stage().executor, never())
    with pytest.raises(KeyboardInterrupt):
        handle.result()
    assert not handle.done()


def test_cancel_right_after_start_is_heard() -> None:
    """Before the run has begun on its loop, there is nothing to stop yet."""
    stage = Stage()
    held = _held_up(background_loop())
    handle = stage.executor.start()
    handle.cancel()
    held.set()
    result = handle.result(timeout=10)
    assert result.cancelled
    assert not stage.entered.is_set()


def test_pause_right_after_start_is_heard() -> None:
    stage = Stage()
    paused = threading.Event()
    stage.executor.subscribe(lambda event: paused.set() if type(event).__name__ == "RunPaused" else None)
    held = _held_up(background_loop())
    handle = stage.executor.start()
    handle.pause()
    held.set()
    assert paused.wait(10)
    assert not stage.entered.is_set()
    handle.resume()
    assert stage.entered.wait(10)
    stage.leave.set()
    assert handle.result()["hold"] == "held"


def test_a_cancel_without_a_run_does_not_stop_the_next_one() -> None:
    stage = Stage()
    stage.leave.set()
    handle = stage.start()
    assert handle.result()["hold"] == "held"
    handle.cancel()
    handle.pause()
    assert stage.executor.run()["hold"] == "held"


def test_a_start_that_is_refused_leaves_nothing_behind() -> None:
    stage = Stage()
    held = _held_up(background_loop())
    handle = stage.executor.start(on_change="maybe")
    handle.cancel()
    held.set()
    with pytest.raises(errors.DefinitionError, match="'refuse' or 'rerun'"):
        handle.result()
    stage.leave.set()
    assert stage.executor.run()["hold"] == "held"


async def test_a_handle_can_be_awaited_on_another_loop() -> None:
    stage = Stage()
    stage.leave.set()
    assert (await stage.executor.start())["hold"] == "held"


async def test_cancelling_who_awaits_cancels_the_run() -> None:
    stage = Stage()
    handle = stage.executor.start()
    awaiting = asyncio.ensure_future(_wait_for(handle))
    await asyncio.to_thread(stage.entered.wait, 10)
    awaiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await awaiting
    result = await asyncio.to_thread(handle.result, 10)
    assert result.cancelled
    assert stage.ended.is_set()


async def test_an_awaited_run_that_fails_raises_its_error() -> None:
    with pytest.raises(errors.PipelineValidationError):
        await PipelineExecutor(Pipeline("empty")).start()


async def _wait_for(handle: RunHandle) -> Any:
    return await handle


def never() -> futures.Future[Any]:
    """What a run gives that does not end."""
    return futures.Future()


def _held_up(loop: asyncio.AbstractEventLoop) -> threading.Event:
    """Keep a loop busy until the event is set."""
    busy, free = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        free.wait(10)

    loop.call_soon_threadsafe(hold)
    assert busy.wait(10)
    return free


def test_a_handle_tells_once_how_its_run_ended() -> None:
    stage = Stage()
    handle = stage.start()
    results: list[Any] = []
    handle.when_done(results.append)
    assert results == []
    stage.leave.set()
    result = handle.result()
    late_results: list[Any] = []
    handle.when_done(late_results.append)
    assert late_results == [result]
    failed: futures.Future[Any] = futures.Future()
    failed.set_exception(errors.StorageError("gone"))
    RunHandle(stage.executor, failed).when_done(late_results.append)
    assert str(late_results[1]) == "gone"
