"""One unit of work from its fingerprint to its record: who answers, and what a cached answer teaches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import (
    ExecutionMode,
    FileStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    ResultCache,
    StepContext,
    StepStatus,
    tool,
)
from tagent_nb.engine.background import in_thread
from tagent_nb.engine.unit import map as mapped
from tagent_nb.engine.unit import work
from tagent_nb.events import StepFailed, StepFinished, TokenUsage
from tagent_nb.serde import StoredValue
from tagent_nb.serde import value as codec


class Answers:
    """A runner for agent steps: counts its calls, and answers as it is instructed."""

    version = "1"

    def __init__(self, value: Any = "yes", *, teaches: bool = False) -> None:
        self.value = value
        self.teaches = teaches
        self.calls: list[str] = []
        self.failing: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, step: PipelineStep, context: StepContext) -> Any:
        self.calls.append(step.name)
        context.spend(TokenUsage(input_tokens=10, requests=1), 0.25)
        if self.teaches:
            context.learn("tone", "kind")
            context.save_memory("seen", step.name)
        await asyncio.sleep(0)  # an answer always takes a while
        await self.gate.wait()
        if self.failing:
            raise self.failing.pop()
        return self.value


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ResultCache]:
    cache = ResultCache(tmp_path / "cache")
    yield cache
    cache.close()


def asking(*names: str, **options: Any) -> Pipeline:
    pipeline = Pipeline("asking", default_mode=ExecutionMode.CONCURRENT, model="test")
    for name in names:
        pipeline.step(name, "Is it good?", max_retries=0, **options)
    return pipeline


async def go(pipeline: Pipeline, runner: Answers, cache: ResultCache | None, **options: Any) -> Any:
    executor = PipelineExecutor(pipeline, cache=cache, runners={"agent": runner})
    return await executor.execute(**options)


async def test_a_cached_answer_teaches_what_the_step_learned(cache: ResultCache) -> None:
    runner = Answers(teaches=True)
    pipeline = asking("ask")
    first = await go(pipeline, runner, cache)
    second = await go(pipeline, runner, cache)
    assert runner.calls == ["ask"]
    assert second.steps["ask"].status.value == "cached"
    assert second.learned_facts == first.learned_facts == {"tone": "kind"}
    assert second.saved_memories == {"seen": "ask"}
    assert second.total_cost == 0.0
    assert second.steps["ask"].saved_cost == 0.25


async def test_offline_an_agent_without_a_cached_answer_fails_and_says_what_to_do(cache: ResultCache) -> None:
    runner = Answers()
    pipeline = asking("ask")
    pipeline.put(PipelineStep.from_cell("cell", "1 + 1", python=True))
    for own_cache in (cache, None):
        missed = await go(pipeline, runner, own_cache, offline=True)
        assert missed.failed_steps == ["ask"]
        assert "no cached answer" in missed.error_details["ask"]
        assert missed["cell"] == 2  # Python calls no model
    assert runner.calls == []
    await go(pipeline, runner, cache)
    assert (await go(pipeline, runner, cache, offline=True))["ask"] == "yes"
    assert runner.calls == ["ask"]


async def test_equal_units_at_the_same_time_make_one_call(cache: ResultCache) -> None:
    """The others get its answer, and pay nothing."""
    runner = Answers()
    result = await go(asking("one", "two", "three"), runner, cache)
    assert len(runner.calls) == 1
    statuses = sorted(step.status.value for step in result.steps.values())
    assert statuses == ["cached", "cached", "completed"]
    assert result.total_cost == 0.25
    assert set(result.step_outputs.values()) == {"yes"}


async def test_when_the_one_that_calls_fails_the_next_one_tries(cache: ResultCache) -> None:
    runner = Answers()
    runner.failing = [RuntimeError("no")]
    result = await go(asking("one", "two", "three"), runner, cache)
    assert len(runner.calls) == 2
    assert sorted(step.status.value for step in result.steps.values()) == ["cached", "completed", "failed"]


async def test_when_the_one_that_calls_is_cancelled_no_one_waits_for_ever(cache: ResultCache) -> None:
    runner = Answers()
    runner.gate.clear()
    executor = PipelineExecutor(asking("one", "two"), cache=cache, runners={"agent": runner})
    started = asyncio.Event()
    executor.subscribe(lambda event: started.set() if type(event).__name__ == "StepStarted" else None)
    running = asyncio.ensure_future(executor.execute())
    await started.wait()
    executor.cancel()
    result = await running
    assert result.cancelled
    assert len(runner.calls) == 1


async def test_an_answer_that_cannot_be_stored_is_not_cached_but_serves_its_twins(cache: ResultCache) -> None:
    runner = Answers(value=len)
    pipeline = asking("one", "two")
    assert len(set((await go(pipeline, runner, cache)).step_outputs.values())) == 1
    assert len(runner.calls) == 1
    await go(pipeline, runner, cache)
    assert len(runner.calls) == 2


async def test_units_that_begin_together_look_once_into_the_cache_for_what_functions_do(
    cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And go on together: one that had to wait for a look of its own would ask again."""
    looks: list[int] = []
    read = cache._read_sources

    def counted() -> dict[bytes, bytes]:
        looks.append(1)
        return read()

    monkeypatch.setattr(cache, "_read_sources", counted)
    runner = Answers(value=len)
    await go(asking("one", "two", "three"), runner, cache)
    assert (len(looks), len(runner.calls)) == (1, 1)


async def test_force_asks_no_one_but_fills_the_cache(cache: ResultCache) -> None:
    runner = Answers()
    pipeline = asking("ask")
    await go(pipeline, runner, cache)
    runner.value = "no"
    assert (await go(pipeline, runner, cache, force=True))["ask"] == "no"
    assert (await go(pipeline, runner, cache))["ask"] == "no"
    assert len(runner.calls) == 2


async def test_no_cache_neither_asks_nor_fills(cache: ResultCache) -> None:
    runner = Answers()
    pipeline = asking("ask")
    await go(pipeline, runner, cache, use_cache=False)
    assert cache.stats().entries == 0
    await go(pipeline, runner, cache)
    await go(pipeline, runner, cache, use_cache=False)
    assert len(runner.calls) == 3


async def test_a_tool_that_goes_during_the_run_is_a_failure_of_its_step(tmp_path: Path) -> None:
    @tool
    def no_such_tool() -> None:
        """It does nothing."""

    pipeline = asking("ask", tools_filter=["no_such_tool"], depends_on=["cell"])
    code = "from tagent_nb.runners.tools.registry import forget_tool; forget_tool('no_such_tool')\n1 + 1"
    pipeline.put(PipelineStep.from_cell("cell", code, python=True))
    storage = FileStorageBackend(tmp_path)
    result = await PipelineExecutor(pipeline, storage=storage, runners={"agent": Answers()}).execute()
    await storage.close()
    assert result.failed_steps == ["ask"]
    assert "no_such_tool" in result.error_details["ask"]
    assert result["cell"] == 2


async def test_a_damaged_value_fails_the_step_that_reads_it_and_no_other(tmp_path: Path) -> None:
    runner = Answers(value=StoredValue.from_blob(b"{damaged", "0" * 64))
    pipeline = asking("ask")
    pipeline.step("read", "Repeat {{ ask.text }}")
    storage = FileStorageBackend(tmp_path)
    pipeline.put(PipelineStep.from_cell("other", "1 + 1", python=True))
    pipeline.put(PipelineStep.from_cell("maybe", "1 + 1", python=True, when="ask.text == 'x'"))
    result = await PipelineExecutor(pipeline, storage=storage, runners={"agent": runner}).execute()
    await storage.close()
    assert result.failed_steps == ["read", "maybe"]
    assert "A stored value cannot be read" in result.error_details["read"]
    assert result["other"] == 2


@pytest.mark.parametrize(
    "blob",
    [
        b'{"$t":"frame"}',
        b'{"$t":"of a later version","v":1}',
        b'{"rows":[{"$t":"date","v":"no date"}]}',
        b'{"$t":"index","v":{"multi":false,"names":[null],"rows":1,"freq":"<DateOffset: months=1>"}}',
    ],
)
async def test_a_cached_value_that_cannot_be_read_is_a_miss(cache: ResultCache, blob: bytes) -> None:
    """Read by a step, the items of a map, or only the result; reported once, and then cached again."""
    runner = Answers()
    pipeline = asking("ask")
    pipeline.put(PipelineStep.from_cell("rows", "['a', 'b']", python=True))
    pipeline.step("read", "Repeat {{ ask }}", max_retries=0)
    pipeline.step("each", "Repeat {{ rows }}", map_over="rows", max_retries=0)
    first = await go(pipeline, runner, cache)
    for event in first.events:
        if isinstance(event, StepFinished):
            cache.put(event.key, StoredValue.from_blob(blob, event.output.digest))
    runner.calls.clear()
    plan = await PipelineExecutor(pipeline, cache=cache, runners={"agent": runner}).plan()
    assert {step.step: step.action for step in plan}["ask"] == "run"
    second = await go(pipeline, runner, cache)
    assert second.success
    assert sorted(runner.calls) == ["ask", "each", "each", "read"]
    assert dict(second.step_outputs) == dict(first.step_outputs)
    warned = [text for text in second.warnings if "has an entry that is not used" in text]
    assert len(warned) == 1
    assert "cannot be read" in warned[0] or "unknown type" in warned[0]
    third = await go(pipeline, runner, cache)
    assert {step.status.value for step in third.steps.values()} == {"cached"}
    assert third.warnings == []


async def test_a_damaged_source_of_a_map_fails_the_map(tmp_path: Path) -> None:
    runner = Answers(value=StoredValue.from_blob(b"{damaged", "0" * 64))
    pipeline = asking("ask")
    pipeline.put(PipelineStep.from_cell("each", "item", python=True, map_over="ask"))
    result = await go(pipeline, runner, None)
    assert result.failed_steps == ["each"]
    assert "A stored value cannot be read" in result.error_details["each"]


@pytest.mark.parametrize("cached", [False, True])
async def test_a_record_answers_when_the_step_above_ran_again_to_the_same_value(
    tmp_path: Path, cache: ResultCache, cached: bool
) -> None:
    """Its value is taken over; what it took has been counted already."""
    runner = Answers()
    pipeline = Pipeline("again", model="test")
    pipeline.put(PipelineStep.from_cell("above", "1", python=True))
    pipeline.step("ask", "Is {{ above }} good?")
    pipeline.put(PipelineStep.from_cell("below", "seen(ask)", python=True, max_retries=0))
    if cached:
        await go(pipeline.snapshot({"above", "ask"}), runner, cache)

    def seen(text: str) -> str:
        if broken:
            raise RuntimeError("not yet")
        return text

    async def sit(**options: Any) -> Any:
        storage = FileStorageBackend(tmp_path / "runs")
        executor = PipelineExecutor(
            pipeline, storage=storage, cache=cache if cached else None, namespace={"seen": seen},
            runners={"agent": runner},
        )  # fmt: skip
        try:
            return await executor.execute(**options)
        finally:
            await storage.close()

    broken = True
    first = await sit()
    broken = False
    calls = len(runner.calls)
    pipeline.put(PipelineStep.from_cell("above", "2 - 1", python=True))
    result = await sit(resume=True, on_change="rerun")
    assert len(runner.calls) == calls
    assert result["below"] == "yes"
    assert result.total_cost == first.total_cost
    assert result.steps["ask"].saved_cost == first.steps["ask"].saved_cost
    assert result.token_usage["ask"] == first.token_usage["ask"]


async def test_a_large_answer_is_checked_and_decoded_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of the loop neither checks its bytes nor decodes them; small answers stay there."""
    here = threading.get_ident()
    decoded: list[bool] = []
    decode = codec.decode

    def watched(blob: bytes, schemas: Any = None) -> Any:
        decoded.append(threading.get_ident() == here)
        return decode(blob, schemas)

    monkeypatch.setattr(codec, "decode", watched)
    for rows, on_loop in ((600_000, False), (10, True), (400_000, False)):
        pipeline = Pipeline(f"large {rows}")
        cell = f"list(range({rows}))"
        pipeline.put(PipelineStep.from_cell("rows", cell, python=True))
        pipeline.put(PipelineStep.from_cell("total", "sum(rows)", python=True, cache=False))
        cache = ResultCache(tmp_path / str(rows))
        first = await PipelineExecutor(pipeline, cache=cache).execute()
        decoded.clear()
        again = await PipelineExecutor(pipeline, cache=cache).execute()
        assert again.steps["rows"].status is StepStatus.CACHED
        assert again["total"] == first["total"] == rows * (rows - 1) // 2
        assert set(decoded) == {on_loop}
        cache.close()


@pytest.mark.parametrize(
    "options", [{"when": "rows[0] == 0"}, {"map_over": "rows"}], ids=["when", "map_over"]
)
async def test_a_large_answer_that_decides_what_runs_is_decoded_beside_the_loop(
    options: dict[str, str], cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conditions and maps read it before any attempt begins."""
    threads: list[int] = []
    decode = codec.decode

    def watched(blob: bytes, schemas: Any = None) -> Any:
        if blob == b"[0,1,2,3]":
            threads.append(threading.get_ident())
        return decode(blob, schemas)

    monkeypatch.setattr(codec, "decode", watched)
    monkeypatch.setattr(codec, "LARGE", 5)
    pipeline = Pipeline("large")
    pipeline.put(PipelineStep.from_cell("rows", "[0, 1, 2, 3]", python=True))
    pipeline.put(PipelineStep.from_cell("read", "'read'", python=True, **options))
    first = await PipelineExecutor(pipeline, cache=cache).execute()
    threads.clear()
    again = await PipelineExecutor(pipeline, cache=cache).execute()
    assert again.steps["rows"].status is StepStatus.CACHED
    assert again["read"] == first["read"]
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


async def test_a_large_fact_is_examined_beside_the_loop(
    cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is part of the fingerprints of agent steps: where it changes, they run again."""
    threads: set[int] = set()
    examine = codec.examine

    def watched(value: Any) -> Any:
        if isinstance(value, dict) and "text" in value:
            threads.add(threading.get_ident())
        return examine(value)

    async def go_on(letter: str) -> StepStatus:
        pipeline = Pipeline("facts")

        @pipeline.task
        def teach(context: StepContext) -> int:
            context.learn("text", context.shared["letter"] * 1_000_001)
            return 1

        pipeline.share(letter=letter).step("ask", "{{ teach }}")
        executor = PipelineExecutor(pipeline, cache=cache, runners={"agent": Answers()})
        return (await executor.execute()).steps["ask"].status

    monkeypatch.setattr(codec, "examine", watched)
    assert await go_on("x") is StepStatus.COMPLETED
    assert await go_on("x") is StepStatus.CACHED
    assert await go_on("y") is StepStatus.COMPLETED
    assert threads
    assert threading.get_ident() not in threads


class Held:
    """Takes the place of ``in_thread``: the call of this number begins, and never ends."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.begun = asyncio.Event()

    async def __call__(self, function: Any, *arguments: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.begun.set()
            await asyncio.Event().wait()
        return await in_thread(function, *arguments)


@pytest.mark.parametrize(
    ("module", "number", "options"),
    [
        (work, 1, {}),
        (work, 1, {"map_over": "rows"}),
        (work, 2, {"map_over": "rows"}),
        (mapped, 1, {"map_over": "rows"}),
    ],
    ids=["fingerprint", "fingerprint of a map", "fingerprint of an item", "value of a map"],
)
async def test_a_run_that_is_cancelled_while_a_thread_works_for_a_step_fails_no_step(
    module: Any, number: int, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step has not ended, and runs when the run is resumed."""
    held = Held(number)
    pipeline = Pipeline("held")
    pipeline.put(PipelineStep.from_cell("rows", "['x' * 1_000_001]", python=True))
    pipeline.put(PipelineStep.from_cell("read", "rows", python=True, **options))
    storage = FileStorageBackend(tmp_path)
    executor = PipelineExecutor(pipeline, storage=storage)
    with monkeypatch.context() as patch:
        patch.setattr(module, "in_thread", held)
        running = asyncio.ensure_future(executor.execute())
        await held.begun.wait()
        executor.cancel()
        result = await running
    assert result.cancelled
    assert result.error_details == {}
    assert not any(isinstance(event, StepFailed) for event in result.events)
    resumed = await executor.execute(resume=True)
    assert resumed.steps["rows"].attempts == 1
    assert resumed["read"] == ["x" * 1_000_001]
    await storage.close()
