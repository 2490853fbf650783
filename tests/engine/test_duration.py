"""How long a run is likely to take: from recorded seconds, concurrency and limits, without any clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from tagent_nb import (
    ExecutionMode,
    Limit,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    events,
)
from tagent_nb.engine.dry_run.duration import limit_seconds, run_seconds, step_seconds
from tagent_nb.engine.dry_run.quote import Quote

Seconds = Callable[[str, str | None], float]


async def recorded(pipeline: Pipeline, seconds: Seconds) -> MemoryStorageBackend:
    """A run of the pipeline whose steps and items took these seconds, by step and item."""
    storage, changed = MemoryStorageBackend(), MemoryStorageBackend()
    result = await PipelineExecutor(pipeline, storage=storage).execute()
    assert result.success
    run: list[events.Event] = []
    for event in await storage.read_run(pipeline.id, result.run_id):
        took = seconds(event.step, event.item) if isinstance(event, events.StepFinished) else 0.0
        run.append(replace(event, seconds=took) if isinstance(event, events.StepFinished) else event)
    lease = await changed.acquire(pipeline.id, result.run_id)
    await changed.append(pipeline.id, result.run_id, run, token=lease.token)
    await changed.release(lease)
    return changed


def rows_and_answers(rows: int) -> Pipeline:
    pipeline = Pipeline("p", model="test")
    numbers = list(range(rows))
    pipeline.task(lambda: numbers, name="load")
    pipeline.step("judge", "Judge {{ load }}", map_over="load")
    pipeline.step("report", "Report {{ judge }}")
    return pipeline


async def test_a_run_takes_about_as_long_as_its_history_says() -> None:
    """200 rows of about 2 s, 8 at once, between two steps of 3 s."""
    chance = random.Random(7)
    took = {"load": 3.0, "report": 3.0}
    storage = await recorded(
        rows_and_answers(200), lambda step, item: took.get(step) or chance.uniform(1.0, 3.0)
    )
    plan = await PipelineExecutor(rows_and_answers(200), storage=storage).plan(force=True)
    assert plan["judge"].seconds_range is not None
    low, high = plan["judge"].seconds_range
    assert low <= 200 * 2.0 / 8 <= high
    assert high - low < 35
    assert plan.seconds_range is not None
    assert plan.seconds_range[0] <= 56 <= plan.seconds_range[1]
    assert "It is likely to take " in plan.total
    frame = plan.to_frame()
    assert (frame.loc["judge", "seconds_low"], frame.loc["judge", "seconds_high"]) == (low, high)


@pytest.mark.parametrize("seed", range(30))
def test_a_step_takes_what_a_simulation_of_its_rows_takes(seed: int) -> None:
    """Rows like the earlier ones, each taken by the first worker that is free."""
    chance = random.Random(seed)
    spread = chance.uniform(0.1, 2.0)
    seen = [chance.lognormvariate(0.0, spread / 2) for _ in range(chance.randint(40, 400))]
    units, at_once = chance.randint(20, 500), chance.randint(1, 40)
    workers = [0.0] * at_once
    for _ in range(units):
        place = workers.index(min(workers))
        workers[place] += chance.lognormvariate(0.0, spread / 2)
    interval = step_seconds((units, units), at_once, seen)
    assert interval is not None
    assert interval[0] <= max(workers) <= interval[1]


async def test_what_was_never_seen_is_unknown() -> None:
    plan = await PipelineExecutor(rows_and_answers(3)).plan()
    assert plan["load"].seconds_range is None
    assert plan["judge"].seconds_range is None
    assert plan.seconds_range is None
    assert "likely to take" not in plan.total
    assert plan.to_frame()["seconds_low"].isna().all()


async def test_nothing_that_runs_takes_no_time() -> None:
    executor = PipelineExecutor(rows_and_answers(3))
    result = await executor.execute()
    plan = await executor.plan(resume=result.run_id)
    assert plan.seconds_range == (0.0, 0.0)
    assert "likely to take" not in plan.total


async def test_batches_take_as_long_as_their_provider_likes() -> None:
    pipeline = rows_and_answers(3)
    storage = await recorded(pipeline, lambda step, item: 1.0)
    batched = pipeline.snapshot()
    batched.put(batched.get_step("judge").with_(batch=True, model="openai:gpt-5", tools_filter=[]))
    executor = PipelineExecutor(batched, storage=storage)
    assert (await executor.plan(force=True, offline=True))["judge"].seconds_range is None


def test_a_single_step_takes_as_long_as_before() -> None:
    low, high = step_seconds((1, 1), 8, [4.0, 5.0, 6.0]) or (0.0, 0.0)
    assert low <= 4.0
    assert 6.0 <= high <= 12.0
    assert step_seconds((0, 0), 8, [4.0]) == (0.0, 0.0)
    may_run = step_seconds((0, 1), 8, [4.0])
    assert may_run is not None
    assert may_run[1] >= 4.0


QUOTE = Quote(100, 100, (10_000, 30_000), (0, 0), None)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        (Limit(), (0.0, 0.0)),
        (Limit(requests_per_minute=100), (0.0, 0.0)),
        (Limit(requests_per_minute=30), (180.0, 180.0)),
        (Limit(tokens_per_minute=10_000), (0.0, 120.0)),
        (Limit(tokens_per_minute=10_000, requests_per_minute=50), (60.0, 120.0)),
    ],
)
def test_limits_of_a_provider_stretch_a_step(limit: Limit, seconds: tuple[float, float]) -> None:
    assert limit_seconds(limit, 100, QUOTE) == seconds
    if limit.tokens_per_minute is not None and limit.requests_per_minute is None:
        assert limit_seconds(limit, 100, None) == (0.0, 0.0)


async def test_limits_and_their_concurrency_are_those_of_the_models_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    storage = await recorded(rows_and_answers(40), lambda step, item: 1.0)
    pipeline = rows_and_answers(40)
    pipeline.put(pipeline.get_step("judge").with_(model="openai-chat:gpt-5"))

    async def judged(**limits: Limit) -> tuple[float, float]:
        executor = PipelineExecutor(pipeline, storage=storage, limits=limits)
        seconds = (await executor.plan(force=True))["judge"].seconds_range
        assert seconds is not None
        return seconds

    assert (await judged())[1] < 5
    assert (await judged(openai=Limit(concurrency=2)))[0] > 15
    assert (await judged(openai=Limit(requests_per_minute=10)))[0] >= 180
    assert (await judged(anthropic=Limit(requests_per_minute=10)))[1] < 5


@pytest.mark.parametrize(
    ("serial", "seconds"),
    [((), (5.0, 8.0)), (("b", "c"), (9.0, 13.5)), (("a", "b", "c", "d"), (10.0, 15.0))],
)
def test_steps_side_by_side_take_as_long_as_the_longest_way_through_them(
    serial: tuple[str, ...], seconds: tuple[float, float]
) -> None:
    """Unless they are SERIAL, and take each other's time."""
    above: Mapping[str, list[str]] = {"a": [], "b": ["a"], "c": ["a"], "d": ["c"], "e": [], "f": ["b", "d"]}
    ranges = {"a": (1.0, 2.0), "b": (4.0, 6.0), "c": (4.0, 5.0), "d": (0.0, 0.5), "e": (1.0, 1.5)}
    if serial == ("a", "b", "c", "d"):
        ranges |= {"d": (1.0, 2.0)}
    assert run_seconds(ranges, above, serial) == seconds
    assert run_seconds({**ranges, "b": None}, above, serial) is None


async def test_concurrent_steps_overlap_in_the_total() -> None:
    pipeline = Pipeline("p", default_mode=ExecutionMode.CONCURRENT)
    for name in "abc":
        pipeline.task(lambda: 1, name=name)
    storage = await recorded(pipeline, lambda step, item: 10.0)
    plan = await PipelineExecutor(pipeline, storage=storage).plan(force=True)
    assert plan.seconds_range is not None
    assert plan.seconds_range[1] == plan["a"].seconds_range[1]  # type: ignore[index]
