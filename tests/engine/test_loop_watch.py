"""A step that is async and blocks is named, by a thread that looks at the loop from outside."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_ai.models.test import TestModel

from tagent_nb import Pipeline, PipelineExecutor, PipelineStep
from tagent_nb.engine import run_loop as blocking
from tagent_nb.engine.run_loop import LoopWatch, may_block
from tagent_nb.events import Event, StepStarted


class Hold:
    """Holds its caller until the watch has looked at the stack; a bounded time, should it never."""

    __slots__ = ("changed", "looks")

    def __init__(self) -> None:
        self.looks: list[Any] = []
        self.changed = threading.Condition()

    def look(self, stack: Any) -> None:
        with self.changed:
            self.looks.append(stack)
            self.changed.notify_all()

    def until(self, seen: Callable[[list[Any]], bool]) -> None:
        """Until what was found from now on is enough."""
        with self.changed:
            start = len(self.looks)
            assert self.changed.wait_for(lambda: seen(self.looks[start:]), 30), "no one looked"

    def __call__(self) -> None:
        self.until(any)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    monkeypatch.setattr(blocking, "PERIOD", 0.001)
    monkeypatch.setattr(blocking, "BLOCKED", 0.01)
    hold = Hold()
    look = LoopWatch._look

    def noted(watch: LoopWatch) -> None:
        culprit = watch.blocking_step()
        look(watch)  # the loop hears of it before it goes on
        hold.look(culprit)

    monkeypatch.setattr(LoopWatch, "_look", noted)
    return hold


def pipeline_of(name: str, code: str, **options: Any) -> Pipeline:
    pipeline = Pipeline("p")
    pipeline.put(PipelineStep.from_cell(name, code, python=True, max_retries=0, **options))
    return pipeline


def run(pipeline: Pipeline, **options: Any) -> list[str]:
    result = PipelineExecutor(pipeline, model=TestModel(), **options).run()
    assert result.success, result.error_details
    return result.warnings


def test_an_async_step_that_blocks_is_named_with_the_remedy(hold: Hold) -> None:
    pipeline = pipeline_of("slow", "import asyncio\nawait asyncio.sleep(0)\nhold()\n1")
    (warning,) = run(pipeline, namespace={"hold": hold})
    assert warning.startswith("Step 'slow' held up everything for more than 0.01 s: its code is async, but ")
    assert "def instead of async def" in warning
    assert "asyncio.to_thread" in warning
    assert hold.looks[0] == ("slow", "its code")


def test_a_function_that_blocks_is_named(hold: Hold) -> None:
    """Alone, and for each item of a map."""

    async def slow() -> list[int]:
        hold()
        return [1]

    async def each(slow: int) -> int:
        hold()
        return slow

    pipeline = Pipeline("p")
    pipeline.task(slow)
    pipeline.task(each, map_over="slow")
    warnings = run(pipeline)
    assert [warning.split()[1] for warning in warnings] == ["'slow'", "'each'"]
    assert {("slow", "its code"), ("each", "its code")} <= set(hold.looks)


def test_a_mapped_step_is_named_once(hold: Hold) -> None:
    pipeline = pipeline_of("load", "[1, 2, 3]")
    code = "import asyncio\nawait asyncio.sleep(0)\nhold()\nitem"
    pipeline.put(PipelineStep.from_cell("each", code, python=True, map_over="load"))
    warnings = run(pipeline, namespace={"hold": hold})
    # On a busy machine the system may hold up the other step as well.
    assert len([warning for warning in warnings if warning.startswith("Step 'each'")]) == 1
    assert hold.looks.count(("each", "its code")) >= 3


def test_a_check_that_blocks_is_named(hold: Hold) -> None:
    async def positive(value: int) -> None:
        hold()

    (warning,) = run(pipeline_of("load", "1", checks=[positive]))
    assert "Step 'load' held up everything" in warning
    assert "a check of it is async, but blocks" in warning


def test_a_tool_that_blocks_is_named(hold: Hold) -> None:
    async def look_up(word: str) -> str:
        hold()
        return word

    (warning,) = run(Pipeline("p").step("ask", "Ask.", tools=[look_up]))
    assert "Step 'ask' held up everything" in warning
    assert "a tool of it is async, but blocks" in warning


def test_a_step_that_waits_politely_is_not_named(hold: Hold) -> None:
    """Signs of life come all the while."""
    signs = threading.Semaphore(0)

    async def patient() -> int:
        for _ in range(5):
            await asyncio.to_thread(signs.acquire)
        return 1

    pipeline = Pipeline("p")
    pipeline.task(patient)
    executor = PipelineExecutor(pipeline)
    handle = executor.start()
    for _ in range(5):
        signs.release()
    assert handle.result().warnings == []


def test_a_view_that_holds_the_loop_is_no_fault_of_a_step(hold: Hold) -> None:
    def view(event: Event) -> None:
        if isinstance(event, StepStarted):
            hold.until(lambda looks: bool(looks))

    async def quick() -> None:
        await asyncio.sleep(0)

    assert run(pipeline_of("quick", "import asyncio\nawait asyncio.sleep(0)"), observers=[view]) == []
    pipeline = Pipeline("p")
    pipeline.task(quick)
    assert run(pipeline, observers=[view]) == []
    assert set(hold.looks) == {None}


def test_a_run_is_not_notified_of_the_steps_of_another(hold: Hold) -> None:
    """Two runs share the loop: each of them looks, and the one whose step it is warns."""
    going, other = threading.Event(), threading.Event()

    def both() -> None:
        hold.until(lambda looks: None in looks and any(looks))

    code = "import asyncio\ngoing.set()\nawait asyncio.to_thread(other.wait, 30)"
    quiet = PipelineExecutor(pipeline_of("quiet", code), namespace={"going": going, "other": other})
    handle = quiet.start()
    try:
        assert going.wait(30)
        slow = pipeline_of("slow", "import asyncio\nawait asyncio.sleep(0)\nboth()")
        (warning,) = run(slow, namespace={"both": both})
    finally:
        other.set()
    assert "Step 'slow'" in warning
    assert handle.result().warnings == []


async def _async() -> None: ...


def _sync() -> None: ...


async def _async_check(value: Any) -> None: ...


def _sync_check(value: Any) -> None: ...


@pytest.mark.parametrize(
    ("step", "may"),
    [
        (PipelineStep("a", "goal"), True),
        (PipelineStep.from_cell("a", "1", python=True), False),
        (PipelineStep.from_cell("a", "await x", python=True), True),
        (PipelineStep.from_cell("a", "[x async for x in y]", python=True), True),
        (PipelineStep.from_cell("a", "async def f():\n    await g()\n1", python=True), False),
        (PipelineStep.from_cell("a", "1", python=True, checks=[_sync_check, _async_check]), True),
        (PipelineStep.from_cell("a", "1", python=True, checks=[_sync_check]), False),
    ],
)
def test_only_runs_with_code_of_users_on_the_loop_are_watched(step: PipelineStep, may: bool) -> None:
    assert may_block(step) is may


@pytest.mark.parametrize("function", [_async, _sync])
def test_a_function_is_async_also_when_it_was_rebuilt(function: Callable[[], Any]) -> None:
    pipeline = Pipeline("p")
    pipeline.task(function)
    for watched in (pipeline, Pipeline.from_json(pipeline.to_json())):
        assert may_block(watched.steps[0]) is (function is _async)


def test_a_loop_that_is_closed_is_watched_no_longer(hold: Hold) -> None:
    """It gives no more signs; others are watched on."""

    class Gone:
        count = 0

        def call_from_anywhere(self, action: object) -> None:
            self.count += 1
            raise RuntimeError("Event loop is closed")

    gone = Gone()
    LoopWatch(gone)  # type: ignore[arg-type]
    code = "import asyncio\nawait asyncio.sleep(0)\nhold()\n1"
    assert len(run(pipeline_of("slow", code), namespace={"hold": hold})) == 1
    assert gone.count == 1


def test_the_thread_ends_when_nothing_is_left_to_watch_and_another_comes(hold: Hold) -> None:
    code = "import asyncio\nawait asyncio.sleep(0)\nhold()\n1"
    for _ in range(2):
        run(pipeline_of("slow", code), namespace={"hold": hold})
        threads = [thread for thread in threading.enumerate() if thread.name == "tagent-nb loop watch"]
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
