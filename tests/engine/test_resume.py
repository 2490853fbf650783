"""Resuming: what was recorded is not run again, and what changed is reported."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tagent_nb import (
    FileStorageBackend,
    MemoryStorageBackend,
    ModelError,
    NotStoredError,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    PipelineValidationError,
    ResultCache,
    ResumeConflictError,
    StepContext,
    tool,
)
from tagent_nb.engine import read_memory
from tagent_nb.engine.unit import work
from tagent_nb.events import StepFinished
from tagent_nb.runners import registered_tools
from tagent_nb.runners.tools.registry import forget_tool
from tagent_nb.serde import decoder as decoding


class Lab:
    """A pipeline of cells that log when they run, and a switch that makes one of them fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[Any] = []
        self.broken: set[Any] = set()
        self.pipeline = Pipeline("lab")
        self.cell("a", "1")
        self.cell("b", "a + 1")
        self.cell("c", "b + 1")
        self.cell("d", "c + 1")

    def cell(self, name: str, expression: str, **options: Any) -> None:
        text = f"run({name!r})\n{expression}"
        self.pipeline.put(PipelineStep.from_cell(name, text, python=True, max_retries=0, **options))

    def note(self, name: Any) -> None:
        self.ran.append(name)
        if name in self.broken:
            raise RuntimeError(f"{name} is broken")

    async def go(self, **options: Any) -> Any:
        """Run as a fresh kernel would: everything is read from the folder."""
        self.ran.clear()
        return await self._do("execute", **options)

    async def plan(self, **options: Any) -> Any:
        """Plan likewise."""
        return await self._do("plan", **options)

    async def _do(self, what: str, cache: ResultCache | None = None, **options: Any) -> Any:
        storage = FileStorageBackend(self.folder)
        executor = PipelineExecutor(self.pipeline, storage=storage, cache=cache, namespace={"run": self.note})
        try:
            return await getattr(executor, what)(**options)
        finally:
            await storage.close()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


async def test_a_failed_run_goes_on_where_it_stopped(lab: Lab) -> None:
    lab.broken = {"c"}
    first = await lab.go()
    assert first.failed_steps == ["c"]
    lab.broken = set()
    second = await lab.go(resume=True)
    assert lab.ran == ["c", "d"]
    assert dict(second.step_outputs) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert second.success
    assert second.run_id == first.run_id
    assert second.steps["a"].status.value == "completed"


async def test_what_runs_again_says_how_it_ended_before(lab: Lab) -> None:
    """Also after a session that did not get so far, and where a map had failed items."""
    lab.cell("rows", "[1, 2, 3]")
    lab.cell("each", "item", map_over="rows")
    lab.broken = {"c", "each"}
    await lab.go()
    again = await lab.go(resume=True, until="b")
    assert again.success
    lab.broken = set()
    second = await lab.go(resume=True)
    reasons = {name: step.reason for name, step in second.steps.items()}
    assert reasons["c"] == "the last time it failed (RuntimeError: c is broken)"
    assert reasons["d"] == "the last time it was skipped (step 'c' failed)"
    assert reasons["each"] == "the last time 3 of 3 items failed"
    assert reasons["a"] == ""


async def test_a_finished_run_resumed_runs_nothing(lab: Lab) -> None:
    await lab.go()
    result = await lab.go(resume=True)
    assert lab.ran == []
    assert result["d"] == 4


async def test_a_run_can_be_resumed_by_its_id(lab: Lab) -> None:
    lab.broken = {"c"}
    first = await lab.go()
    lab.broken = set()
    await lab.go()
    result = await lab.go(resume=first.run_id)
    assert result.run_id == first.run_id
    assert lab.ran == ["c", "d"]


async def test_nothing_stored_is_one_clear_error(lab: Lab) -> None:
    with pytest.raises(NotStoredError, match="No run of pipeline 'lab' is stored"):
        await lab.go(resume=True)


async def test_a_changed_step_is_refused_with_what_changed(lab: Lab) -> None:
    lab.broken = {"d"}
    await lab.go()
    lab.broken = set()
    lab.cell("b", "a + 100")
    with pytest.raises(ResumeConflictError, match="b: ") as caught:
        await lab.go(resume=True)
    assert list(caught.value.changed) == ["b"]
    assert "a + 100" in str(caught.value)
    assert 'on_change="rerun"' in str(caught.value)
    assert lab.ran == []


async def test_rerun_runs_the_changed_step_and_what_depends_on_it(lab: Lab) -> None:
    lab.broken = {"d"}
    await lab.go()
    lab.broken = set()
    lab.cell("b", "a + 100")
    result = await lab.go(resume=True, on_change="rerun")
    assert lab.ran == ["b", "c", "d"]
    assert result["d"] == 103


async def test_rerun_stops_where_the_value_is_the_same(lab: Lab) -> None:
    lab.broken = {"d"}
    await lab.go()
    lab.broken = set()
    lab.cell("b", "a + 2 - 1")
    result = await lab.go(resume=True, on_change="rerun")
    assert lab.ran == ["b", "d"]
    assert result.steps["c"].status.value == "completed"
    assert result["d"] == 4


async def test_forced_steps_run_again_on_resume(lab: Lab) -> None:
    await lab.go()
    await lab.go(resume=True, force=["b"])
    assert lab.ran == ["b"]


async def test_forced_steps_stay_forced_until_they_have_ended(lab: Lab) -> None:
    """Across processes, and also when the run is stopped more than once."""
    cache = ResultCache(lab.folder / "cache")
    await lab.go(cache=cache)
    assert lab.ran == ["a", "b", "c", "d"]
    lab.broken = {"c"}
    await lab.go(cache=cache, force=["a", "c", "d"])
    assert lab.ran == ["a", "c"]
    await lab.go(cache=cache, resume=True)
    assert lab.ran == ["c"]
    lab.broken = {"d"}
    assert [forecast.why for forecast in (await lab.plan(cache=cache, resume=True)).running] == [
        "forced",
        "forced",
    ]
    await lab.go(cache=cache, resume=True)
    assert lab.ran == ["c", "d"]
    lab.broken = set()
    result = await lab.go(cache=cache, resume=True)
    assert lab.ran == ["d"]
    assert result.success
    assert result.steps["d"].reason == "forced"
    await lab.go(cache=cache, resume=True)
    assert lab.ran == []
    await lab.go(cache=cache)
    assert lab.ran == []


async def test_all_steps_are_forced_and_what_a_resume_forces_is_kept_too(lab: Lab) -> None:
    cache = ResultCache(lab.folder / "cache")
    await lab.go(cache=cache)
    lab.broken = {"b"}
    await lab.go(cache=cache, force=True)
    await lab.go(cache=cache, resume=True, force=["a"])
    assert lab.ran == ["a", "b"]
    lab.broken = {"a"}
    await lab.go(cache=cache, resume=True, force=["a"])
    assert lab.ran == ["a"]
    await lab.go(cache=cache, resume=True)
    # What it gave before it was forced answers for nothing any more.
    assert lab.ran == ["a"]
    lab.broken = set()
    await lab.go(cache=cache, resume=True)
    assert lab.ran == ["a", "b", "c", "d"]


async def test_of_a_forced_map_the_items_that_are_done_are_not_run_again(lab: Lab) -> None:
    cache = ResultCache(lab.folder / "cache")
    for name in "abcd":
        lab.pipeline.remove(name)
    lab.cell("a", "list(range(4))")
    text = "run(item)\nitem * 2"
    lab.pipeline.put(PipelineStep.from_cell("b", text, python=True, map_over="a", max_retries=0))
    await lab.go(cache=cache)
    lab.broken = {2}
    await lab.go(cache=cache, force=["b"])
    assert sorted(lab.ran, key=str) == [0, 1, 2, 3]
    plan = await lab.plan(cache=cache, resume=True)
    assert (plan["b"].items_done, plan["b"].action) == (3, "run")
    await lab.go(cache=cache, resume=True)
    assert lab.ran == [2]
    lab.broken = {3}
    await lab.go(cache=cache, resume=True, force=["b"])
    assert sorted(lab.ran, key=str) == [0, 1, 2, 3]
    lab.broken = set()
    result = await lab.go(cache=cache, resume=True)
    assert lab.ran == [3]
    assert result["b"] == [0, 2, 4, 6]


@pytest.mark.parametrize("again", [{}, {"use_cache": True}, {"use_cache": False}])
async def test_a_run_without_the_cache_stays_so_unless_it_says_otherwise(lab: Lab, again: Any) -> None:
    cache = ResultCache(lab.folder / "cache")
    await lab.go(cache=cache)
    lab.broken = {"b"}
    await lab.go(cache=cache, use_cache=False)
    assert lab.ran == ["a", "b"]
    lab.broken = set()
    await lab.go(cache=cache, resume=True, **again)
    assert lab.ran == ([] if again.get("use_cache") else ["b", "c", "d"])
    lab.ran.clear()
    await lab.go(cache=cache)
    assert lab.ran == []


async def test_an_offline_run_stays_offline_unless_it_says_otherwise(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    lab.pipeline.model = "openai:gpt-4o-mini"
    lab.pipeline.step("ask", "Say something about {{ a }}.", max_retries=0)
    result = await lab.go(offline=True, until="ask")
    assert result.failed_steps == ["ask"]
    for options in ({}, {"offline": True}):
        result = await lab.go(resume=True, until="ask", **options)
        assert result.steps["ask"].error_type == "OfflineMissError"
        assert (await lab.plan(resume=True, until="ask", **options))["ask"].action == "may run"
    for options in ({"resume": True, "offline": False}, {}):
        with pytest.raises(ModelError, match="OPENAI_API_KEY"):
            await lab.go(until="ask", **options)
    lab.pipeline.model = "test"
    assert (await lab.go(resume=True, until="ask", offline=False)).success
    # It is online from now on.
    lab.pipeline.model = "openai:gpt-4o-mini"
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        await lab.plan(resume=True, until="ask")


async def test_steps_that_came_or_went_are_no_conflict(lab: Lab) -> None:
    await lab.go()
    lab.pipeline.remove("d")
    lab.cell("e", "c * 2")
    result = await lab.go(resume=True)
    assert lab.ran == ["e"]
    assert set(result.steps) == {"a", "b", "c", "e"}


async def test_comments_are_no_change(lab: Lab) -> None:
    lab.broken = {"d"}
    await lab.go()
    lab.broken = set()
    lab.cell("b", "# a comment\n\na + 1  # and another")
    await lab.go(resume=True)
    assert lab.ran == ["d"]


async def test_a_value_that_cannot_be_stored_is_computed_again(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.cell("b", "lambda: 2")
    lab.cell("c", "b()")
    first = await lab.go()
    assert first["c"] == 2
    assert "cannot be stored" in first.warnings[0]
    second = await lab.go(resume=True)
    assert lab.ran[0] == "b"
    assert second["d"] == 3


async def test_a_cancelled_run_is_resumable(lab: Lab) -> None:
    entered = asyncio.Event()
    wait = asyncio.Event()

    async def hold() -> None:
        entered.set()
        await wait.wait()

    lab.pipeline.put(PipelineStep.from_cell("c", "await hold()\nb + 1", python=True))
    storage = FileStorageBackend(lab.folder)
    names = {"run": lab.note, "hold": hold}
    executor = PipelineExecutor(lab.pipeline, storage=storage, namespace=names)
    task = asyncio.ensure_future(executor.execute())
    await entered.wait()
    executor.cancel()
    assert (await task).cancelled
    wait.set()
    lab.ran.clear()
    result = await executor.execute(resume=True)
    assert lab.ran == ["d"]
    assert result["d"] == 4
    await storage.close()


async def test_a_resume_that_is_cancelled_while_it_compares_large_values_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is taken for changed, and the next one finds all as it was."""
    begun = asyncio.Event()

    async def hold(function: Any, *arguments: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    pipeline = Pipeline("large")
    pipeline.put(PipelineStep.from_cell("text", "'x' * 1_000_001", python=True))
    pipeline.put(PipelineStep.from_cell("length", "len(text)", python=True))
    storage = FileStorageBackend(tmp_path)
    executor = PipelineExecutor(pipeline, storage=storage)
    first = await executor.execute()
    with monkeypatch.context() as patch:
        patch.setattr(work, "in_thread", hold)
        resuming = asyncio.ensure_future(executor.execute(resume=True, on_change="refuse"))
        await begun.wait()
        resuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await resuming
    again = await executor.execute(resume=True, on_change="refuse")
    assert again.run_id == first.run_id
    assert again["length"] == 1_000_001
    assert {step.attempts for step in again.steps.values()} == {1}
    await storage.close()


async def test_a_recorded_value_that_cannot_be_read_any_more_is_computed_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another version of pandas; the run goes on, with one warning that names the step."""
    lab.cell("a", "{1}")
    lab.cell("b", "[{n} for n in (1, 2)]")
    lab.cell("c", "run(f'c {item}')\n{*item, len(a)}", map_over="b")
    lab.cell("d", "len(c)")
    lab.cell("gone", "{7}")
    lab.broken = {"d"}
    await lab.go()
    reader = decoding._FROM_NODE["set"]

    def unreadable(node: Any, schemas: Any) -> Any:
        if node["v"] in ([1], [7]):
            raise OverflowError("too much")
        return reader(node, schemas)

    lab.broken = set()
    lab.pipeline.remove("gone")
    with monkeypatch.context() as patch:
        patch.setitem(decoding._FROM_NODE, "set", unreadable)
        storage = FileStorageBackend(lab.folder)
        executor = PipelineExecutor(lab.pipeline, storage=storage, namespace={"run": lab.note})
        plan = {step.step: step for step in await executor.plan(resume=True)}
        await storage.close()
        assert "its recorded value cannot be read" in plan["a"].why
        result = await lab.go(resume=True)
    assert result.error_details == {}
    assert lab.ran[0] == "a"
    assert {"b", "d", "c {1}"} <= {*lab.ran}
    assert result["a"] == {1}
    assert result["c"] == [{1}, {1, 2}]
    warned = [text for text in result.warnings if "its recorded value cannot be read" in text]
    assert [text.partition(" runs again")[0] for text in warned] == ["Step 'a'", "Step 'b'", "Step 'c'"]
    assert "A stored set cannot be read: too much" in warned[0]


async def test_a_map_that_was_stopped_half_way_and_changed_is_refused(lab: Lab) -> None:
    lab.cell("a", "[1, 2]")
    lab.cell("b", "run(f'b {item}')\nitem", map_over="a")
    lab.broken = {"b 2"}
    await lab.go()
    lab.cell("b", "run(f'b {item}')\nitem + 1", map_over="a")
    with pytest.raises(ResumeConflictError) as caught:
        await lab.go(resume=True)
    assert caught.value.changed == {"b": ["its definition changed"]}


async def test_what_another_executor_recorded_in_memory_cannot_be_compared() -> None:
    """Memory keeps no fingerprints, and the definition went with the executor that had it."""
    storage = MemoryStorageBackend()
    pipeline = Pipeline("lab")
    pipeline.put(PipelineStep.from_cell("a", "1", python=True))
    await PipelineExecutor(pipeline, storage=storage).execute()
    with pytest.raises(ResumeConflictError, match="another executor"):
        await PipelineExecutor(pipeline, storage=storage).execute(resume=True)


async def test_a_step_whose_tools_go_while_its_run_is_read_has_changed(tmp_path: Path) -> None:
    class Yes:
        version = "1"

        async def run(self, step: PipelineStep, context: StepContext) -> str:
            return "yes"

    class Slow(FileStorageBackend):
        """A cell of the notebook is run while this reads."""

        async def memories(self, *args: Any) -> Any:
            if "fleeting" in registered_tools() and await self.runs(pipeline.id):
                forget_tool("fleeting")
            return await super().memories(*args)

    @tool
    def fleeting() -> None:
        """It does nothing."""

    pipeline = Pipeline("lab").step("ask", "Is it good?", tools_filter=["fleeting"])
    storage = Slow(tmp_path)
    executor = PipelineExecutor(pipeline, storage=storage, runners={"agent": Yes()})
    await executor.execute()
    with pytest.raises(ResumeConflictError, match="'fleeting', which is no tool"):
        await executor.execute(resume=True)
    await storage.close()


async def test_a_run_is_not_resumed_without_the_tools_of_its_steps(tmp_path: Path) -> None:
    class Yes:
        version = "1"

        async def run(self, step: PipelineStep, context: StepContext) -> str:
            return "yes"

    async def sit(**options: Any) -> Any:
        storage = FileStorageBackend(tmp_path)
        try:
            return await PipelineExecutor(pipeline, storage=storage, runners={"agent": Yes()}).execute(
                **options
            )
        finally:
            await storage.close()

    pipeline = Pipeline("lab")
    pipeline.step("ask", "Is it good?")
    await sit()
    pipeline.put(PipelineStep("ask", "Is it good?", tools_filter=["gone_tool"]))
    with pytest.raises(PipelineValidationError, match="gone_tool"):
        await sit(resume=True)


class Clock:
    """The time of day, set forth or back, as recorded events tell it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.skew = 0.0
        real, append = time.time, FileStorageBackend.append

        async def skewed(
            storage: FileStorageBackend, pipeline_id: str, run_id: str, events: Any, *, token: Any = None
        ) -> None:
            events = [replace(event, at=event.at + self.skew) for event in events]
            await append(storage, pipeline_id, run_id, events, token=token)

        patch.setattr(time, "time", lambda: real() + self.skew)
        patch.setattr(FileStorageBackend, "append", skewed)


@pytest.mark.parametrize("skew", [-86_400.0, 86_400.0, -1e8])
async def test_the_run_that_was_begun_last_is_resumed_whatever_the_clock_says(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    """Not an older one that has completed; nor does the clock make it take a day."""
    clock = Clock(monkeypatch)
    await lab.go()
    clock.skew = skew
    lab.broken = {"c"}
    stopped = await lab.go(force=True)
    assert not stopped.success
    lab.broken.clear()
    clock.skew = 2 * skew
    result = await lab.go(resume=True)
    assert (result.run_id, result.success, lab.ran) == (stopped.run_id, True, ["c", "d"])
    storage = FileStorageBackend(lab.folder)
    assert await storage.newest_run(lab.pipeline.id) == stopped.run_id
    assert [info.status for info in await storage.runs(lab.pipeline.id)] == ["completed", "completed"]


async def test_a_run_takes_as_long_as_it_takes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the clock is set forth by a day, or back, in the middle of it."""
    clock = Clock(monkeypatch)

    def jump() -> None:
        clock.skew += 86_400.0

    lab.note = lambda name: jump()  # type: ignore[method-assign]
    result = await lab.go()
    assert result.success
    memory = await read_memory(FileStorageBackend(lab.folder), "lab")
    assert memory.events[-1].at - memory.events[0].at > 86_400
    assert 0 < memory.seconds < 3600


class Earlier:
    """A run whose records are made into those of an earlier version, which recorded fewer components."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.space: dict[str, Any] = {"__name__": "__main__", "broken": True, "LIMIT": 3}
        self.define("import datetime as dt\n")
        self.define("def shift(n):\n    return n + LIMIT\n")
        self.define("class Shop:\n    n = 1\n    def more(self): return self.n + 1\n")
        self.pipeline = Pipeline("earlier")
        self.cell("day", "dt.date(2024, 1, 2).day")
        self.cell("shop", "day\nShop().more()")
        self.cell("sum", "shift(shop)")
        self.cell("end", "if broken:\n    raise RuntimeError('no')\nsum")

    def define(self, source: str) -> None:
        exec(source, self.space)

    def cell(self, name: str, source: str, **options: Any) -> None:
        self.pipeline.put(PipelineStep.from_cell(name, source, python=True, max_retries=0, **options))

    async def go(self, **options: Any) -> Any:
        return await self._do("execute", **options)

    async def plan(self, **options: Any) -> Any:
        return await self._do("plan", **options)

    async def _do(self, what: str, **options: Any) -> Any:
        storage = FileStorageBackend(self.folder)
        try:
            executor = PipelineExecutor(self.pipeline, storage=storage, namespace=self.space)
            return await getattr(executor, what)(**options)
        finally:
            await storage.close()

    async def stop(self, change: Callable[[dict[str, str]], None] | None, *, marked: bool = False) -> None:
        """Run to the broken step, and record with ``change``d components and other keys."""
        await self.go()
        storage, old = FileStorageBackend(self.folder), FileStorageBackend(self.folder / "old")
        [info] = await storage.runs(self.pipeline.id)
        events = []
        for event in await storage.read_run(self.pipeline.id, info.run_id):
            if isinstance(event, StepFinished) and change is not None:
                parts = dict(event.components)
                if not marked:
                    del parts["generation"]
                change(parts)
                event = replace(event, components=parts, key="0" * 64)
            events.append(event)
        await old.append(self.pipeline.id, info.run_id, events)
        await storage.close()
        await old.close()
        self.folder, self.space["broken"] = self.folder / "old", False


@pytest.fixture
def earlier(tmp_path: Path) -> Earlier:
    return Earlier(tmp_path)


def without(*kinds: str) -> Callable[[dict[str, str]], None]:
    """Leaves components out that begin with one of these."""

    def change(parts: dict[str, str]) -> None:
        for name in [name for name in parts if name.startswith(kinds)]:
            del parts[name]

    return change


def with_other(kind: str) -> Callable[[dict[str, str]], None]:
    """Gives components of a kind other digests."""

    def change(parts: dict[str, str]) -> None:
        parts.update({name: "f" * 64 for name in parts if name.startswith(kind)})

    return change


@pytest.mark.parametrize(
    "change",
    [
        without("global:dt"),
        without("global:"),
        without("class:"),
        without("class:", "function:", "package:", "global:", "module:"),
        without("input:"),
        with_other("class:"),
    ],
    ids=["import", "globals", "class", "all", "input", "other class"],
)
async def test_what_an_earlier_version_did_not_record_is_no_change(earlier: Earlier, change: Any) -> None:
    await earlier.stop(change)
    plan = await earlier.plan(resume=True)
    assert plan.conflicts == {}
    assert [step.action for step in plan] == ["recorded", "recorded", "recorded", "run"]
    result = await earlier.go(resume=True)
    assert dict(result.step_outputs) == {"day": 2, "shop": 2, "sum": 5, "end": 5}
    assert result.steps["end"].reason.startswith("the last time it failed")


@pytest.mark.parametrize(
    ("edit", "step", "sentence"),
    [
        (lambda run: run.cell("day", "dt.date(2024, 1, 3).day"), "day", "code changed"),
        (lambda run: run.define("def shift(n):\n    return n * LIMIT\n"), "sum", "function shift changed"),
        (lambda run: run.space.update(LIMIT=4), "sum", "global LIMIT changed"),
        (lambda run: run.cell("sum", "shift(1)"), "sum", "input shop is no longer read"),
    ],
    ids=["code", "function", "global", "input"],
)
async def test_a_real_change_of_an_earlier_versions_step_is_refused(
    earlier: Earlier, edit: Any, step: str, sentence: str
) -> None:
    await earlier.stop(without("class:", "global:dt"))
    edit(earlier)
    with pytest.raises(ResumeConflictError, match=sentence) as caught:
        await earlier.go(resume=True)
    assert list(caught.value.changed) == [step]
    assert "dt" not in str(caught.value).replace("dt.date", "")


async def test_what_this_version_recorded_is_compared_whole(earlier: Earlier) -> None:
    await earlier.stop(without("global:dt"), marked=True)
    with pytest.raises(ResumeConflictError, match="day: global dt is new"):
        await earlier.go(resume=True)


async def test_an_earlier_versions_records_answer_below_a_step_that_runs_again(earlier: Earlier) -> None:
    """The step above gives the same value: what read it is still recorded, also where a class is new."""
    await earlier.stop(without("class:"))
    result = await earlier.go(resume=True, force=["day"])
    assert result.success
    kept = {name for name, step in result.steps.items() if step.reason == ""}
    assert kept == {"shop", "sum"}


async def test_a_new_run_says_that_an_earlier_version_recorded_the_last_one(earlier: Earlier) -> None:
    await earlier.stop(without("global:dt"))
    plan = await earlier.plan()
    assert plan["day"].why == "it was recorded by an earlier version, whose fingerprints say less"
    result = await earlier.go()
    reasons = {name: step.reason for name, step in result.steps.items()}
    assert reasons["day"] == reasons["shop"] == plan["day"].why


class Old(BaseModel):
    n: int


class New(BaseModel):
    n: int
    more: int = 0


@pytest.mark.parametrize(("schema", "refused"), [(Old, False), (New, True), (None, True)])
async def test_schemas_of_an_earlier_version_are_compared_as_they_were_written(
    earlier: Earlier, schema: Any, refused: bool
) -> None:
    earlier.cell("day", "{'n': dt.date(2024, 1, 2).day}", output_schema=Old)
    await earlier.stop(with_other("output_schema"))
    earlier.cell("day", "{'n': dt.date(2024, 1, 2).day}", output_schema=schema)
    if refused:
        with pytest.raises(ResumeConflictError, match="day: output_schema"):
            await earlier.go(resume=True)
    else:
        assert (await earlier.go(resume=True))["end"] == 5
