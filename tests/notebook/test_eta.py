"""The time that a run will still take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from tagent_nb import Pipeline, PipelineExecutor
from tagent_nb.engine import Durations, EarlierRuns
from tagent_nb.notebook.panel.eta import seconds_left
from tagent_nb.pipeline import StepStatus
from tagent_nb.results import MapProgress, StepResult
from tagent_nb.storage import MemoryStorageBackend

PAST = Durations({"a": 10.0, "b": 20.0, "c": 30.0})


def left(
    *steps: StepResult, past: Durations = PAST, now: float = 100.0, **items: MapProgress
) -> float | None:
    return seconds_left({step.name: step for step in steps}, items, past, now)


def test_pending_steps_take_what_they_took() -> None:
    assert left(StepResult("a", StepStatus.COMPLETED), StepResult("b"), StepResult("c")) == 50.0


def test_a_running_step_takes_the_rest_and_never_less_than_nothing() -> None:
    assert left(StepResult("b", StepStatus.RUNNING, started_at=95.0)) == 15.0
    assert left(StepResult("b", StepStatus.RUNNING, started_at=10.0)) == 0.0
    assert left(StepResult("b", StepStatus.RUNNING)) == 20.0


def test_a_mapped_step_goes_by_its_items_of_now() -> None:
    mapped = StepResult("new", StepStatus.RUNNING, started_at=90.0)
    assert left(mapped, new=MapProgress(20, (2, 2, 1, 0))) == 30.0
    assert left(mapped, new=MapProgress(20)) is None


def test_what_a_mapped_step_did_lately_says_more_than_all_it_did() -> None:
    """Items that the cache answers for come first and are fast; those of an earlier session took no time."""
    mapped = StepResult("new", StepStatus.RUNNING, started_at=90.0)
    assert left(mapped, new=MapProgress(20, (5, 5, 0, 0), rate=0.5)) == 20.0


def test_steps_that_no_one_knows_take_the_mean_unless_most_are_unknown() -> None:
    assert left(StepResult("a"), StepResult("b"), StepResult("new")) == 45.0
    assert left(StepResult("a"), StepResult("new"), StepResult("newer")) is None
    assert left(StepResult("new"), past=Durations()) is None


def test_steps_that_overlapped_before_will_do_so_again() -> None:
    assert left(StepResult("a"), StepResult("b"), past=Durations(PAST.seconds, 0.5)) == pytest.approx(15.0)


def test_when_all_is_done_nothing_is_left() -> None:
    assert left(StepResult("a", StepStatus.FAILED)) == 0.0


async def test_durations_are_those_of_the_newest_run_in_which_each_step_ran() -> None:
    storage = MemoryStorageBackend()
    pipeline = Pipeline("slow")

    @pipeline.task
    async def first() -> int:
        await asyncio.sleep(0.01)
        return 1

    @pipeline.task
    async def second(first: int) -> int:
        await asyncio.sleep(0.01)
        return first

    executor = PipelineExecutor(pipeline, storage=storage)
    assert await EarlierRuns(storage, pipeline.id, pipeline.name).durations(["first"]) == Durations()
    whole = await executor.execute()
    part = await executor.execute(until="first")
    past = await EarlierRuns(storage, pipeline.id, pipeline.name).durations(["first", "second", "third"])
    assert past.seconds == {"first": part.steps["first"].seconds, "second": whole.steps["second"].seconds}
    assert 0 < past.pace <= 1.0
    newest = await EarlierRuns(storage, pipeline.id, pipeline.name, most=1).durations(["first", "second"])
    assert set(newest.seconds) == {"first"}
    assert set((await EarlierRuns(storage, pipeline.id, pipeline.name).durations(["first"])).seconds) == {
        "first"
    }


async def test_steps_that_overlapped_make_a_pace_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def memories(self: EarlierRuns) -> AsyncIterator[Any]:
        ran = {name: StepResult(name, StepStatus.COMPLETED, seconds=4.0) for name in ("left", "right")}
        yield SimpleNamespace(steps={"left": StepResult("left", StepStatus.CACHED)}, seconds=1.0)
        yield SimpleNamespace(steps=ran, seconds=6.0)

    monkeypatch.setattr(EarlierRuns, "_memories", memories)
    past = await EarlierRuns(MemoryStorageBackend(), "id", "overlap").durations(["left", "right"])
    assert past == Durations({"left": 4.0, "right": 4.0}, 0.75)
