"""Attempts: timeouts, retries, what they teach and use, and events from other threads."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tagent_nb import Pipeline, PipelineExecutor, PipelineStep, StepContext
from tagent_nb.engine.unit import attempt
from tagent_nb.errors import RetryableError
from tagent_nb.events import Event, StepProgress, StepRetried, StepStreamed, TokenUsage
from tagent_nb.serde import is_bulky
from tagent_nb.serde import value as codec


class Runner:
    """A runner for Python steps that does what a test says."""

    version = "1"

    def __init__(self, body: Any) -> None:
        self.body = body

    async def run(self, step: PipelineStep, context: StepContext) -> Any:
        return await self.body(context)


async def go(body: Any, **options: Any) -> tuple[Any, list[Event]]:
    pipeline = Pipeline("one")
    pipeline.put(PipelineStep.from_cell("only", "1", python=True, **options))
    seen: list[Event] = []
    executor = PipelineExecutor(
        pipeline, runners={"python": Runner(body)}, observers=[seen.append], retry_delay=0.0
    )
    return await executor.execute(), seen


async def test_events_from_other_threads_reach_the_observers_on_the_runs_loop() -> None:
    here = threading.get_ident()
    threads: set[int] = set()
    pipeline = Pipeline("one")
    pipeline.put(PipelineStep.from_cell("only", "1", python=True))

    async def body(context: StepContext) -> str:
        await asyncio.to_thread(context.write, "from a thread")
        await asyncio.to_thread(asyncio.run, written(context))
        context.write("from here")
        return "done"

    async def written(context: StepContext) -> None:
        context.write("from another loop")

    texts: list[str] = []

    def observe(event: Event) -> None:
        threads.add(threading.get_ident())
        if isinstance(event, StepStreamed):
            texts.append(event.text)

    runners = {"python": Runner(body)}
    await PipelineExecutor(pipeline, runners=runners, observers=[observe]).execute()
    assert sorted(texts) == ["from a thread", "from another loop", "from here"]
    assert threads == {here}


async def test_progress_is_an_event_and_changes_no_state() -> None:
    async def body(context: StepContext) -> int:
        context.progress("looked", where="here")
        return 1

    result, seen = await go(body)
    assert [event.kind for event in seen if isinstance(event, StepProgress)] == ["looked"]
    assert any(isinstance(event, StepProgress) for event in result.events)
    assert result.success


async def test_a_timeout_of_the_steps_own_is_not_taken_for_the_attempts() -> None:
    """A TimeoutError that the body raises says what it says."""

    async def body(context: StepContext) -> None:
        raise TimeoutError("the database is slow")

    result, _ = await go(body, timeout=60, max_retries=0)
    assert "the database is slow" in result.error_details["only"]
    assert "took longer" not in result.error_details["only"]


async def test_a_timeout_ends_the_attempt_and_the_next_one_gets_its_own() -> None:
    begun: list[int] = []

    async def body(context: StepContext) -> str:
        begun.append(context.attempt)
        if context.attempt == 1:
            await asyncio.Event().wait()
        return "second"

    result, seen = await go(body, timeout=0.05, max_retries=1)
    assert result["only"] == "second"
    assert begun == [1, 2]
    assert [event.error_type for event in seen if isinstance(event, StepRetried)] == ["StepTimeoutError"]


async def test_what_failed_attempts_used_counts_and_what_they_learned_does_not() -> None:
    async def body(context: StepContext) -> str:
        context.spend(TokenUsage(input_tokens=5, requests=1), 0.5)
        context.learn(f"attempt {context.attempt}", True)
        if context.attempt == 1:
            raise RetryableError("try again", retry_after=0.0)
        return "done"

    result, seen = await go(body, max_retries=1)
    assert result.learned_facts == {"attempt 2": True}
    assert result.total_cost == 1.0
    assert result.token_usage["only"].input_tokens == 10
    assert [event.delay for event in seen if isinstance(event, StepRetried)] == [0.0]


async def test_attempts_spent_before_the_run_are_counted_on() -> None:
    attempts: list[int] = []

    async def body(context: StepContext) -> None:
        attempts.append(context.attempt)
        raise RuntimeError("no")

    result, _ = await go(body, retry_count=2, max_retries=3)
    assert attempts == [3, 4]
    assert not result.success


async def test_a_run_that_is_paused_holds_back_the_next_attempt() -> None:
    pipeline = Pipeline("one")
    pipeline.put(PipelineStep.from_cell("only", "1", python=True, max_retries=1))
    attempts: list[int] = []

    async def body(context: StepContext) -> str:
        attempts.append(context.attempt)
        if context.attempt == 1:
            executor.pause()
            raise RuntimeError("no")
        return "done"

    paused = asyncio.Event()
    executor = PipelineExecutor(pipeline, runners={"python": Runner(body)}, retry_delay=0.0)
    executor.subscribe(lambda event: paused.set() if type(event).__name__ == "RunPaused" else None)
    running = asyncio.ensure_future(executor.execute())
    await paused.wait()
    for _ in range(20):  # as many turns of the loop as another attempt could need
        await asyncio.sleep(0)
    assert attempts == [1]
    executor.resume()
    assert (await running)["only"] == "done"
    assert attempts == [1, 2]


class Large:
    """Steps that give and read a large value, and who encodes and copies it meanwhile."""

    def __init__(self, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.value = value
        self.loop = 0
        self.threads: dict[str, set[int]] = {"encode": set(), "copy": set()}
        seal, copy = codec._seal, attempt.own_copy

        def slow_seal(sealed: Any, path: str) -> Any:
            if sealed is self.value:
                self.threads["encode"].add(threading.get_ident())
                self.wait_for_the_loop()
            return seal(sealed, path)

        def slow_copy(copied: Any) -> Any:
            if type(copied) is type(self.value):
                self.threads["copy"].add(threading.get_ident())
                self.wait_for_the_loop()
            return copy(copied)

        monkeypatch.setattr(codec, "_seal", slow_seal)
        monkeypatch.setattr(attempt, "own_copy", slow_copy)

    def wait_for_the_loop(self) -> None:
        """In a thread: until the loop has done something else."""
        if threading.get_ident() != self.loop:
            future = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.of_run)
            future.result(30)

    async def body(self, context: StepContext) -> Any:
        self.of_run, self.loop = asyncio.get_running_loop(), threading.get_ident()
        return self.value if context.step == "gives" else len(context.inputs["gives"])

    async def run(self, folder: Path) -> Any:
        pipeline = Pipeline("large")
        pipeline.put(PipelineStep.from_cell("gives", "1", python=True))
        pipeline.put(PipelineStep.from_cell("reads", "len(gives)", python=True))
        runners = {"python": Runner(self.body)}
        return await PipelineExecutor(pipeline, runners=runners, storage=folder).execute()


@pytest.mark.parametrize(
    "value",
    ["a" * 1_000_001, list(range(100_001)), {"rows": [0.5] * 100_001}, pd.DataFrame({"n": range(100_001)})],
    ids=["text", "list", "in a dict", "frame"],
)
async def test_large_values_are_encoded_and_copied_beside_the_loop(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop goes on meanwhile: the thread waits until it has."""
    large = Large(value, monkeypatch)
    result = await large.run(tmp_path)
    assert result["reads"] == len(value)
    assert result.steps["gives"].output.storable
    for threads in large.threads.values():
        assert threads
        assert large.loop not in threads


@pytest.mark.parametrize("value", [("a",), [1, 2], {"rows": [1]}, pd.DataFrame({"n": [1]}), {1, 2}])
async def test_small_values_take_no_thread(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Large(value, monkeypatch)
    assert (await large.run(tmp_path))["reads"] == len(value)
    assert large.threads == {"encode": {large.loop}, "copy": {large.loop}}


async def test_whatever_holds_a_large_value_is_examined_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of inputs, shared data, globals behind a function, items and the list of their values, for
    fingerprints, records and copies: the loop goes on meanwhile, since the thread waits until it has."""
    threads = {name: list[int]() for name in ("examine", "_seal", "own_copy")}
    loop, of_loop = asyncio.get_running_loop(), threading.get_ident()

    def watched(name: str, function: Any) -> Any:
        def call(value: Any, *rest: Any) -> Any:
            if is_bulky(value):
                threads[name].append(threading.get_ident())
                if threading.get_ident() != of_loop:
                    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(30)
            return function(value, *rest)

        return call

    for module, name in ((codec, "examine"), (codec, "_seal"), (attempt, "own_copy")):
        monkeypatch.setattr(module, name, watched(name, getattr(module, name)))

    async def agent(context: StepContext) -> Any:
        return context.inputs["load"]["big"][0][:1]

    namespace: dict[str, Any] = {"__name__": "__main__", "TABLE": list(range(100_001))}
    exec("def helper():\n    return TABLE[-1]", namespace)  # as a notebook defines it
    pipeline = Pipeline("large")
    pipeline.share(table="a" * 1_000_001)
    load = "{'big': ['b' * 1_000_001], 'rows': ['c' * 1_000_001, 'd' * 1_000_001]}"
    pipeline.put(PipelineStep.from_cell("load", load, python=True))
    pipeline.put(PipelineStep("part", goal="Sum {{ load.big }}"))
    pipeline.put(PipelineStep.from_cell("other", "'c' * 1_000_001", python=True))
    pipeline.put(PipelineStep.from_cell("each", "item + other[:1]", map_over="load.rows", python=True))
    pipeline.put(PipelineStep.from_cell("reads", "len(shared['table']) + helper()", python=True))
    result = await PipelineExecutor(
        pipeline, runners={"agent": Runner(agent)}, storage=tmp_path, namespace=namespace
    ).execute()
    assert result.success, [step.error for step in result.steps.values()]
    assert (result["part"], result["each"][1][-2:], result["reads"]) == ("b", "dc", 1_000_001 + 100_000)
    for name, where in threads.items():
        assert where, name
        assert of_loop not in where, name


async def test_a_large_value_in_memory_is_not_encoded() -> None:
    value = ["a"] * 100_001

    async def body(context: StepContext) -> Any:
        return value

    result, _ = await go(body)
    assert result["only"] is value
