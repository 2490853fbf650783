"""What a step says while it waits for others, and what counts of a step that is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tagent_nb import Pipeline, PipelineExecutor, StepContext, events
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline import StepStatus
from tagent_nb.storage import FileStorageBackend


def statuses_seen(executor: PipelineExecutor) -> list[tuple[StepStatus, str]]:
    """The step's status and what it waits for, after each event that changes one of them."""
    seen: list[tuple[StepStatus, str]] = []

    def look(event: events.Event) -> None:
        assert executor.memory is not None
        for step in executor.memory.steps.values():
            if not seen or seen[-1] != (step.status, step.waits_for):
                seen.append((step.status, step.waits_for))

    executor.subscribe(look)
    return seen


async def test_a_step_that_waits_shows_as_waiting_and_goes_on() -> None:
    pipeline = Pipeline("waits")

    @pipeline.task
    async def s(context: StepContext) -> int:
        with context.waiting("a turn", 0.5):
            await asyncio.sleep(0)
        return 1

    executor = PipelineExecutor(pipeline)
    seen = statuses_seen(executor)
    result = await executor.execute()
    assert [
        *((StepStatus.PENDING, ""), (StepStatus.RUNNING, "")),
        *((StepStatus.WAITING, "a turn"), (StepStatus.RUNNING, ""), (StepStatus.COMPLETED, "")),
    ] == seen
    waits = [event for event in result.events if isinstance(event, events.StepWaiting)]
    assert [(one.step, one.reason, one.seconds) for one in waits] == [("s", "a turn", 0.5)]
    frame = result.events_frame()
    assert "a turn" in frame[frame["event"] == "StepWaiting"]["detail"].to_list()


async def test_items_that_wait_show_it_on_their_step() -> None:
    pipeline = Pipeline("waits")
    pipeline.task(_two_words, name="words")

    @pipeline.task(map_over="words")
    async def each(item: str, context: StepContext) -> str:
        with context.waiting("a turn"):
            await asyncio.sleep(0)
        return item.upper()

    executor = PipelineExecutor(pipeline)
    states: list[tuple[str | None, str]] = []
    executor.subscribe(
        lambda event: (
            states.append((event.item, executor.memory.steps["each"].waits_for))
            if isinstance(event, events.StepWaiting) and executor.memory is not None
            else None
        )
    )
    result = await executor.execute()
    assert states == [("0", "a turn"), ("1", "a turn")]
    assert result["each"] == ["A", "B"]
    assert result.steps["each"].waits_for == ""


def _two_words() -> list[str]:
    return ["a", "b"]


@pytest.mark.parametrize("waits", [1, 2])
async def test_a_timeout_stands_still_while_its_step_waits(waits: int) -> None:
    """The wait takes longer than the timeout; then the timeout goes on where it stood."""
    pipeline = Pipeline("waits")
    loop = asyncio.get_running_loop()
    ends: list[float] = []

    async def wait(context: StepContext) -> None:
        limit = context.limit
        assert limit is not None
        with context.waiting("a turn"):
            assert limit.when() is None
            await asyncio.sleep(0.05)

    @pipeline.task(timeout=100)
    async def s(context: StepContext) -> None:
        limit = context.limit
        assert limit is not None
        before, began = limit.when(), loop.time()
        assert before is not None
        await asyncio.gather(*[wait(context) for _ in range(waits)])
        after = limit.when()
        assert after is not None
        waited = after - before
        assert 0.04 < waited <= loop.time() - began
        ends.append(after)

    result = await PipelineExecutor(pipeline).execute()
    assert result.success, result.error_details
    assert len(ends) == 1


async def test_a_timeout_that_is_over_stays_so_while_cleaning_up_waits() -> None:
    pipeline = Pipeline("waits")

    @pipeline.task(timeout=0.001, max_retries=0)
    async def s(context: StepContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with context.waiting("its last words"):
                await asyncio.sleep(0)

    result = await PipelineExecutor(pipeline).execute()
    assert "timeout of 0.001 s" in result.error_details["s"]


# -- stopped steps ------------------------------------------------------------------------------

USED = TokenUsage(input_tokens=10, output_tokens=5, requests=1)


def spends_and_hangs(spent: Callable[[], None]) -> Callable[..., Awaitable[None]]:
    async def s(context: StepContext) -> None:
        context.spend(USED, 0.25)
        spent()
        await asyncio.Event().wait()

    return s


async def test_what_a_stopped_attempt_used_counts_and_is_stored(tmp_path: Any) -> None:
    storage = FileStorageBackend(tmp_path)
    pipeline = Pipeline("stopped")
    executor = PipelineExecutor(pipeline, storage=storage)
    pipeline.task(spends_and_hangs(executor.cancel), name="s")
    result = await executor.execute()
    assert result.cancelled
    assert result.cost_per_step == {"s": 0.25}
    assert result.token_usage == {"s": USED}
    stored = await executor.load_result()
    assert stored.cost_per_step == {"s": 0.25}
    assert stored.token_usage == {"s": USED}
    assert (await executor.history())[0].cost == 0.25


async def test_what_stopped_items_used_counts() -> None:
    pipeline = Pipeline("stopped")
    pipeline.task(_two_words, name="words")
    executor = PipelineExecutor(pipeline)
    calls: list[int] = []

    def both() -> None:
        calls.append(1)
        if len(calls) == 2:
            executor.cancel()

    pipeline.task(spends_and_hangs(both), name="each", map_over="words")
    result = await executor.execute()
    assert result.cost_per_step["each"] == 0.5
    items = result.steps["each"].items
    assert items is not None
    assert [item.cost for item in items.values()] == [0.25, 0.25]


async def test_what_an_attempt_used_counts_once_when_its_retry_is_stopped() -> None:
    pipeline = Pipeline("stopped")

    @pipeline.task(max_retries=1)
    def s(context: StepContext) -> None:
        context.spend(USED, 0.25)
        raise OSError("not yet")

    executor = PipelineExecutor(pipeline, retry_delay=1e6)
    executor.subscribe(lambda event: executor.cancel() if isinstance(event, events.StepRetried) else None)
    result = await executor.execute()
    assert result.steps["s"].status is StepStatus.CANCELLED
    assert result.cost_per_step == {"s": 0.25}
