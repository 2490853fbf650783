"""Async functions that ask for nothing special go a short way, on which all must be as on the long one."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tagent_nb import (
    ExecutionMode,
    LeaseLostError,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    ResultCache,
    StepContext,
    StorageUnavailableError,
    events,
)
from tagent_nb.engine import run_loop
from tagent_nb.engine.unit.attempt import Attempts

LONG = 1_000_000.0
"""Seconds of a timeout that is never over: steps with one go the long way."""

OUTCOMES = (
    "number",
    "text",
    "list",
    "change",
    "none",
    "print",
    "wait",
    "retry",
    "error",
    "mistake",
    "exit",
    "cancelled",
    "learn",
)


class Number(BaseModel):
    """A schema."""

    number: int


@dataclass(frozen=True)
class Drawn:
    """A step that is drawn: what it reads, what it does, and how it is run."""

    reads: tuple[int, ...]
    outcome: str
    serial: bool
    weak: bool
    retries: int
    asks: bool


@st.composite
def graphs(draw: st.DrawFn) -> list[Drawn]:
    steps: list[Drawn] = []
    for index in range(draw(st.integers(1, 7))):
        reads = draw(st.lists(st.integers(0, index - 1), unique=True, max_size=3)) if index else []
        outcome = draw(st.sampled_from(OUTCOMES))
        steps.append(
            Drawn(
                reads=tuple(reads),
                outcome=outcome,
                serial=draw(st.booleans()),
                weak=draw(st.booleans()),
                retries=draw(st.integers(0, 2)),
                asks=outcome == "learn" or draw(st.booleans()),
            )
        )
    return steps


class Acts:
    """What the functions of one run do."""

    def __init__(self, steps: list[Drawn]) -> None:
        self._steps = steps
        self._calls: dict[int, int] = {}
        self.seen: dict[int, Any] = {}

    async def act(self, index: int, values: list[Any], context: StepContext | None) -> Any:
        """Do what step ``index`` does."""
        outcome = self._steps[index].outcome
        self._calls[index] = call = self._calls.get(index, 0) + 1
        self.seen[index] = repr(values)
        if outcome == "change":
            for value in values:
                if isinstance(value, list):
                    value.append(f"changed by {index}")
            return [index, *values]
        if outcome == "print":
            print("printed by", index)
            print("to stderr", file=sys.stderr)
        if outcome == "wait":
            await asyncio.sleep(0)
        if outcome == "error" or (outcome == "retry" and call == 1):
            raise ConnectionError(f"call {call} of {index}")
        if outcome == "mistake":
            raise TypeError("no retry helps")
        if outcome == "exit":
            raise SystemExit(1)
        if outcome == "cancelled":
            raise asyncio.CancelledError
        if outcome == "learn":
            assert context is not None
            context.learn(f"fact{index}", index)
            context.progress("thought", about=index)
        results = {"text": "text", "list": [index, {"deep": [index]}], "none": None}
        return results.get(outcome, index)


def pipeline_of(steps: list[Drawn], timeout: float | None) -> tuple[Pipeline, Acts]:
    """The pipeline of drawn steps, and what its functions do."""
    pipeline, acts = Pipeline("drawn"), Acts(steps)
    for index, step in enumerate(steps):
        reads = [f"s{number}" for number in step.reads]
        parameters = ", ".join([*reads, *(["context"] if step.asks else [])])
        context = "context" if step.asks else "None"
        namespace: dict[str, Any] = {"act": acts.act}
        call = f"await act({index}, [{', '.join(reads)}], {context})"
        exec(f"async def s{index}({parameters}):\n    return {call}", namespace)
        pipeline.task(
            depends_on=[f"{name}:weak" for name in reads] if step.weak else (),
            execution_mode=ExecutionMode.SERIAL if step.serial else ExecutionMode.CONCURRENT,
            timeout=timeout,
            max_retries=step.retries,
        )(namespace[f"s{index}"])
    return pipeline, acts


def mark_of(event: events.Event) -> tuple[Any, ...]:
    """An event without what is another each time."""
    values: dict[str, Any] = {
        field.name: getattr(event, field.name)
        for field in fields(event)
        if field.name not in ("run_id", "at", "seconds", "delay", "definition")
    }
    if "output" in values:
        values["output"] = repr(values["output"].value)
    return type(event).__name__, *((name, repr(value)) for name, value in values.items())


def outcome_of(steps: list[Drawn], timeout: float | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a run shows of itself."""
    pipeline, acts = pipeline_of(steps, timeout)
    observed: list[tuple[Any, ...]] = []
    observers = [lambda event: observed.append(mark_of(event))] if options["watched"] else []
    executor = PipelineExecutor(
        pipeline,
        observers=observers,
        retry_delay=0,
        max_concurrency=options["max_concurrency"],
        cache=options.get("cache", False),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_loop, "YIELD_INTERVAL", LONG)  # on a busy machine it would change the order
        result = asyncio.run(executor.execute())
    return {
        "events": in_order(steps, [mark_of(event) for event in result.events], options["max_concurrency"]),
        "observed": in_order(steps, observed, options["max_concurrency"]),
        "seen": acts.seen,
        "values": {name: repr(value) for name, value in result.step_outputs.items()},
        "statuses": {name: (step.status, step.attempts) for name, step in result.steps.items()},
        "errors": result.error_details,
        "facts": result.learned_facts,
        "warnings": result.warnings,
    }


def in_order(steps: list[Drawn], marks: list[tuple[Any, ...]], most: int) -> list[tuple[Any, ...]]:
    """Events as they came, where that is promised; else only by step.

    Who comes first is up to the delays before retries, to the ways that steps go where these differ,
    and where slots are rare to how they are waited for.
    """
    retried = any(step.retries and step.outcome in ("retry", "error") for step in steps)
    mixed = any(step.asks or step.serial for step in steps)
    if most > len(steps) and not retried and not mixed:
        return marks
    # So is which of several steps that failed is to blame for one that is skipped.
    marks = [(mark[0], *(pair for pair in mark[1:] if pair[0] not in ("reason", "cause"))) for mark in marks]
    return sorted(marks, key=lambda mark: str(dict(mark[1:]).get("step")))


@settings(max_examples=150, deadline=None)
@given(steps=graphs(), max_concurrency=st.sampled_from([1, 2, 3, 20]), watched=st.booleans())
def test_the_short_way_is_as_the_long_one(steps: list[Drawn], max_concurrency: int, watched: bool) -> None:
    options = {"max_concurrency": max_concurrency, "watched": watched}
    assert outcome_of(steps, None, options) == outcome_of(steps, LONG, options)


@settings(max_examples=25, deadline=None)
@given(steps=graphs())
def test_it_is_so_with_fingerprints_too(tmp_path_factory: pytest.TempPathFactory, steps: list[Drawn]) -> None:
    # What is known when a fingerprint is worked out depends on who is faster.
    steps = [replace(step, outcome="text") if step.outcome == "learn" else step for step in steps]
    short, long = (
        outcome_of(
            steps,
            timeout,
            {"max_concurrency": 1, "watched": True, "cache": ResultCache(tmp_path_factory.mktemp("cache"))},
        )
        for timeout in (None, LONG)
    )
    assert short == long


@pytest.fixture
def short_ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that go the short way."""
    names: list[str] = []
    run_plain = Attempts.run_plain

    async def noted(self: Attempts, prepared: Any, outputs: Any, work: Any = None) -> Any:
        names.append(prepared.name)
        return await run_plain(self, prepared, outputs, work)

    monkeypatch.setattr(Attempts, "run_plain", noted)
    return names


async def test_who_goes_the_short_way(short_ways: list[str]) -> None:
    pipeline = Pipeline("ways")

    @pipeline.task
    async def plain() -> list[int]:
        return [1, 2]

    @pipeline.task
    async def reads(plain: list[int], missing: int = 3) -> int:
        return len(plain) + missing

    @pipeline.task
    async def asks(context: StepContext, shared: dict[str, Any], facts: Any, memories: Any) -> str:
        return context.step

    @pipeline.task(map_over="plain")
    async def each(item: int, reads: int) -> int:
        return item + reads

    @pipeline.task
    def threaded() -> int:
        return 1

    @pipeline.task(timeout=LONG)
    async def timed() -> int:
        return 1

    @pipeline.task(checks=[lambda value: None])
    async def checked() -> int:
        return 1

    @pipeline.task(retry_count=1)
    async def retried() -> int:
        return 1

    @pipeline.task
    async def in_need(nowhere: int) -> int:
        return nowhere

    executor = PipelineExecutor(pipeline)
    result = await executor.execute(inputs={"nowhere": 5})
    assert result.success
    assert result["each"] == [6, 7]
    assert sorted(short_ways) == ["asks", "each", "each", "in_need", "plain", "reads"]


async def test_a_parameter_without_a_value_fails_the_step_as_ever(short_ways: list[str]) -> None:
    pipeline = Pipeline("item")

    @pipeline.task
    async def alone(item: int) -> int:
        return item

    result = await PipelineExecutor(pipeline).execute()
    assert "is not mapped" in result.error_details["alone"]
    assert short_ways == []


async def test_a_value_becomes_one_of_the_schema_or_fails_the_step(short_ways: list[str]) -> None:
    pipeline = Pipeline("schema")

    @pipeline.task(output_schema=Number)
    async def numbered() -> Any:
        return {"number": 2}

    @pipeline.task(output_schema=Number)
    async def wrong() -> Any:
        return {"number": "no"}

    result = await PipelineExecutor(pipeline, retry_delay=0).execute()
    assert result["numbered"] == Number(number=2)
    assert (result.failed_steps, result.steps["wrong"].error_type) == (["wrong"], "OutputValidationError")
    assert short_ways == ["numbered", "wrong"]


async def test_a_body_that_prints_in_a_thread_is_heard(short_ways: list[str]) -> None:
    pipeline, pieces = Pipeline("prints"), []

    @pipeline.task
    async def speaks() -> None:
        print("here")
        await asyncio.to_thread(print, "there")
        print("to stderr", file=sys.stderr)

    def hear(event: events.Event) -> None:
        if isinstance(event, events.StepStreamed):
            pieces.append(event.text)

    before = sys.stdout
    await PipelineExecutor(pipeline, observers=[hear]).execute()
    assert sorted(pieces) == ["here\n", "there\n", "to stderr\n"]
    assert sys.stdout is before


async def test_what_is_put_in_place_of_stdout_meanwhile_is_found_again(capsys: Any) -> None:
    pipeline, stream = Pipeline("swapped"), io.StringIO()

    @pipeline.task
    async def swaps() -> None:
        sys.stdout = stream

    @pipeline.task(depends_on=["swaps"])
    async def prints() -> None:
        print("printed")

    before = sys.stdout
    try:
        await PipelineExecutor(pipeline).execute()
        assert (sys.stdout is stream, stream.getvalue()) == (True, "printed\n")
    finally:
        sys.stdout = before


async def test_stop_reaches_the_body_and_its_context() -> None:
    pipeline = Pipeline("stopped")
    contexts: list[StepContext] = []
    began = asyncio.Event()

    @pipeline.task
    async def asks(context: StepContext) -> None:
        contexts.append(context)
        await asyncio.sleep(LONG)

    @pipeline.task(execution_mode=ExecutionMode.CONCURRENT)
    async def waits() -> None:
        began.set()
        await asyncio.sleep(LONG)

    executor = PipelineExecutor(pipeline)
    running = asyncio.ensure_future(executor.execute())
    await began.wait()
    executor.cancel()
    result = await running
    assert {name: step.status.value for name, step in result.steps.items()} == {
        "asks": "cancelled",
        "waits": "cancelled",
    }
    assert contexts[0].stop.is_set()


async def test_a_large_value_is_encoded_and_copied_beside_the_loop(tmp_path: Path) -> None:
    pipeline = Pipeline("large")

    @pipeline.task
    async def large() -> list[str]:
        return ["x" * 2_000_000]

    @pipeline.task
    async def reads(large: list[str]) -> int:
        large.append("changed")
        return len(large[0])

    storage = f"sqlite:///{tmp_path}/runs.db"
    first = await PipelineExecutor(pipeline, storage=storage).execute(until="large")
    # Another executor reads it from the store.
    result = await PipelineExecutor(pipeline, storage=storage).execute(resume=first.run_id, on_change="rerun")
    assert (result["reads"], len(result["large"])) == (2_000_000, 1)


async def test_steps_that_wait_to_try_again_keep_no_others_waiting() -> None:
    pipeline, order = Pipeline("retry", default_mode=ExecutionMode.CONCURRENT), []

    @pipeline.task
    async def fails() -> None:
        order.append("fails")
        raise ConnectionError("again")

    async def other() -> None:
        order.append("other")

    for number in range(3):
        pipeline.task(name=f"other{number}")(other)

    executor = PipelineExecutor(pipeline, max_concurrency=1, retry_delay=LONG)
    running = asyncio.ensure_future(executor.execute(timeout=LONG))
    while len(order) < 4:
        await asyncio.sleep(0)
    executor.cancel()
    await running
    assert order == ["fails", "other", "other", "other"]


async def test_a_wide_layer_takes_no_more_tasks_than_may_run() -> None:
    pipeline, tasks = Pipeline("wide", default_mode=ExecutionMode.CONCURRENT), []

    async def counts() -> None:
        tasks.append(len(asyncio.all_tasks()))
        await asyncio.sleep(0)

    for number in range(100):
        pipeline.task(name=f"s{number}")(counts)
    result = await PipelineExecutor(pipeline, max_concurrency=4).execute()
    assert result.success
    assert len(tasks) == 100
    assert max(tasks) <= 4 + 4, "workers, the test, the run, its heartbeat and the like"


async def test_a_run_that_is_paused_before_an_attempt_waits(tmp_path: Path) -> None:
    pipeline, started = Pipeline("paused"), []

    @pipeline.task
    async def step() -> int:
        started.append(True)
        return 1

    class Pausing(ResultCache):
        async def aget(self, *args: Any, **kwargs: Any) -> Any:
            entry = await super().aget(*args, **kwargs)
            executor.pause()
            await asyncio.sleep(0)
            return entry

    executor = PipelineExecutor(pipeline, cache=Pausing(tmp_path))
    paused = asyncio.Event()
    executor.subscribe(lambda event: paused.set() if isinstance(event, events.RunPaused) else None)
    running = asyncio.ensure_future(executor.execute())
    await paused.wait()
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert (started, running.done()) == ([], False)
    executor.resume()
    assert (await running)["step"] == 1


async def test_secrets_are_looked_for_in_values_of_the_short_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORT_WAY_TOKEN", "s3cret-of-the-short-way")
    pipeline = Pipeline("secret")

    @pipeline.task
    async def leaks() -> str:
        return "s3cret-of-the-short-way"

    storage = f"sqlite:///{tmp_path}/runs.db"
    result = await PipelineExecutor(pipeline, storage=storage, secret_values="fail").execute()
    assert "SHORT_WAY_TOKEN" in result.error_details["leaks"]


async def test_a_store_that_appends_in_its_own_way_is_not_passed_by() -> None:
    appended: list[events.Event] = []

    class Own(MemoryStorageBackend):
        async def append(
            self, pipeline_id: str, run_id: str, batch: Any, *, token: int | None = None
        ) -> None:
            appended.extend(batch)
            await super().append(pipeline_id, run_id, batch, token=token)

    pipeline = Pipeline("own")

    @pipeline.task
    async def step() -> int:
        return 1

    result = await PipelineExecutor(pipeline, storage=Own()).execute()
    assert [type(event).__name__ for event in appended] == ["RunStarted", "StepFinished", "RunFinished"]
    assert result["step"] == 1


async def test_a_lost_lease_ends_the_run_on_the_short_way_too() -> None:
    storage, pipeline = MemoryStorageBackend(), Pipeline("lost")

    @pipeline.task
    async def step(context: StepContext) -> str:
        return context.run_id

    @pipeline.task
    async def loses(step: str) -> None:
        storage._leases.clear()

    with pytest.raises(LeaseLostError):
        await PipelineExecutor(pipeline, storage=storage).execute()


async def test_what_a_body_raises_since_its_run_has_failed_is_no_failure_of_it() -> None:
    class Full(MemoryStorageBackend):
        async def append(self, pipeline_id: str, run_id: str, events: Any, *, token: Any = None) -> None:
            if any(getattr(event, "step", None) == "ends" for event in events):
                raise StorageUnavailableError("the disk is full")
            await super().append(pipeline_id, run_id, events, token=token)

    pipeline = Pipeline("full", default_mode=ExecutionMode.CONCURRENT)

    @pipeline.task
    async def stubborn() -> None:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            raise ValueError("not as the run wants it") from None

    @pipeline.task
    async def ends() -> int:
        return 1

    executor = PipelineExecutor(pipeline, storage=Full())
    with pytest.raises(StorageUnavailableError):
        await executor.execute()
    assert executor.result is not None
    assert executor.result.steps["stubborn"].status.value == "cancelled"


async def test_items_share_what_their_step_reads_besides_them() -> None:
    pipeline, seen = Pipeline("shared"), []

    @pipeline.task
    async def rows() -> list[list[int]]:
        return [[1], [2]]

    @pipeline.task
    async def table() -> list[int]:
        return [0]

    @pipeline.task(map_over="rows")
    async def each(rows: list[int], table: list[int]) -> int:
        seen.append(table)
        rows.append(0)
        return len(rows)

    result = await PipelineExecutor(pipeline).execute()
    assert (result["each"], result["rows"]) == ([2, 2], [[1], [2]])
    assert seen[0] is seen[1]


@pytest.mark.parametrize("waits", [True, False])
async def test_a_step_that_cancels_its_own_task_fails_alone(waits: bool) -> None:
    """The task that runs it goes on to others."""
    pipeline = Pipeline("p", default_mode=ExecutionMode.CONCURRENT)

    async def first() -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if waits:
            await asyncio.sleep(0)
        return 1

    async def below(first: int) -> int:
        return first

    async def other() -> int:
        return 2

    for function in (first, below, other):
        pipeline.task(function)
    result = await PipelineExecutor(pipeline, max_concurrency=1).execute()
    assert not result.success
    assert not result.cancelled
    assert result.failed_steps == ["first"]
    assert result.steps["first"].error.startswith("Step 'first' cancelled itself")
    assert result["other"] == 2
