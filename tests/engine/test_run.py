"""Run: on random graphs it does what a plain evaluation does, and wherever it is stopped, it can go on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagent_nb import (
    Dependency,
    DependencyType,
    ExecutionMode,
    FileStorageBackend,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    ResultCache,
    StepContext,
    events,
    open_storage,
)
from tagent_nb.errors import StorageUnavailableError

STRONG, WEAK, OPTIONAL = DependencyType.STRONG, DependencyType.WEAK, DependencyType.OPTIONAL


# -- random graphs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    name: str
    above: tuple[tuple[str, DependencyType], ...]
    mode: ExecutionMode
    fails: bool = False
    waits: int = 0

    @property
    def inputs(self) -> list[str]:
        return [name for name, _ in self.above if name != "absent"]


@st.composite
def graphs(draw: st.DrawFn, failing: bool = False) -> list[Node]:
    """Nodes that depend on earlier ones, in a definition order of their own."""
    size = draw(st.integers(1, 9))
    kinds = st.sampled_from([STRONG, WEAK, OPTIONAL] if failing else [STRONG])
    nodes = []
    for index in range(size):
        above = draw(st.sets(st.sampled_from(range(index)))) if index else set()
        dependencies = [(f"s{number}", draw(kinds)) for number in sorted(above)]
        if failing and draw(st.booleans()):
            dependencies.append(("absent", OPTIONAL))
        nodes.append(
            Node(
                f"s{index}",
                tuple(dependencies),
                draw(st.sampled_from(ExecutionMode)),
                failing and draw(st.integers(0, 3)) == 0,
                draw(st.integers(0, 2)),
            )
        )
    return draw(st.permutations(nodes))


def value_of(name: str, inputs: Mapping[str, Any]) -> list[Any]:
    return [name, sorted(inputs.items())]


@dataclass
class Log:
    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    serial: int = 0
    most_serial: int = 0


def executor_of(nodes: Sequence[Node], log: Log) -> PipelineExecutor:
    """The nodes as cells, such as ``await work("s2", {"s0": s0, "s1": s1})``."""
    by_name = {node.name: node for node in nodes}

    async def work(name: str, inputs: Mapping[str, Any]) -> Any:
        node = by_name[name]
        log.begun.append(name)
        assert not [above for above, kind in node.above if kind is STRONG and above not in log.ended]
        serial = node.mode is ExecutionMode.SERIAL
        log.serial += serial
        log.most_serial = max(log.most_serial, log.serial)
        for _ in range(node.waits):
            await asyncio.sleep(0)
        log.serial -= serial
        log.ended.append(name)
        if node.fails:
            raise ValueError(name)
        return value_of(name, inputs)

    pipeline = Pipeline("random")
    for node in nodes:
        inputs = ", ".join(f"{name!r}: {name}" for name in node.inputs)
        pipeline.put(
            PipelineStep.from_cell(
                node.name,
                f"await work({node.name!r}, {{{inputs}}})",
                python=True,
                depends_on=[Dependency(name, kind) for name, kind in node.above],
                execution_mode=node.mode,
                max_retries=0,
            )
        )
    return PipelineExecutor(pipeline, namespace={"work": work})


def plainly(nodes: Sequence[Node]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and statuses, worked out the obvious way: in order of the names, which is one of the graph."""
    values: dict[str, Any] = {}
    statuses: dict[str, str] = {}
    for node in sorted(nodes, key=lambda element: element.name):
        above = [(name, kind) for name, kind in node.above if name != "absent"]
        if any(kind is STRONG and statuses[name] != "completed" for name, kind in above):
            statuses[node.name] = "skipped"
        elif node.fails:
            statuses[node.name] = "failed"
        else:
            statuses[node.name] = "completed"
            values[node.name] = value_of(node.name, {name: values.get(name) for name in node.inputs})
    return values, statuses


@given(nodes=graphs())
@settings(max_examples=60, deadline=None)
def test_every_step_runs_once_after_those_it_needs_and_serial_ones_alone(nodes: list[Node]) -> None:
    log = Log()
    result = asyncio.run(executor_of(nodes, log).execute())
    values, _ = plainly(nodes)
    assert dict(result.step_outputs) == values
    assert sorted(log.begun) == sorted(node.name for node in nodes)
    assert log.most_serial <= 1
    assert result.success


@given(nodes=graphs(failing=True))
@settings(max_examples=100, deadline=None)
def test_failures_reach_those_that_need_a_value_and_no_one_else(nodes: list[Node]) -> None:
    log = Log()
    result = asyncio.run(executor_of(nodes, log).execute())
    values, statuses = plainly(nodes)
    assert {name: step.status.value for name, step in result.steps.items()} == statuses
    assert dict(result.step_outputs) == values
    assert sorted(log.begun) == sorted(name for name, status in statuses.items() if status != "skipped")
    assert result.success == ("failed" not in statuses.values())
    assert result.failed_steps == [node.name for node in nodes if statuses[node.name] == "failed"]
    for name, step in result.steps.items():
        if statuses[name] == "skipped":
            cause = step.reason.split("'")[1]
            assert (
                step.reason == f"step {cause!r} {'failed' if statuses[cause] == 'failed' else 'was skipped'}"
            )


# -- stopping ---------------------------------------------------------------------------------


class Mixed:
    """A small pipeline of all kinds of steps, in storage and cache, that counts what runs."""

    def __init__(self, folder: Path, *, cached: bool = True, kind: str = "file") -> None:
        runs = folder / "runs"
        self.storage = open_storage(f"sqlite:///{runs}.db" if kind == "sqlite" else runs)
        self.cache = ResultCache(folder / "cache") if cached else None
        self.ran: list[str] = []
        self.executor: PipelineExecutor | None = None
        self.pipeline = Pipeline("mixed")
        self._cell("load", "await pause()\n['a', 'b', 'c']")
        self._cell("free", "await pause()\n1", execution_mode=ExecutionMode.CONCURRENT)
        self._cell("each", "await pause()\nitem.upper()", map_over="load")
        self._cell("teach", "context.learn('tone', 'kind')\ncontext.save_memory('seen', 1)\nfree + 1")
        self._cell("flaky", "again(context)\nteach + 1", max_retries=1)
        self._cell("never", "1", when="flaky == 0")
        self._cell("odd", "1 / 0", max_retries=0)
        self._cell("weak", "await pause()\n[odd, each]", depends_on=["odd:weak"])
        self._cell("last", "len(each) + flaky + len(weak)")

    def _cell(self, name: str, text: str, **options: Any) -> None:
        self.pipeline.put(PipelineStep.from_cell(name, f"note({name!r})\n{text}", python=True, **options))

    def executor_for(self) -> PipelineExecutor:
        """As a fresh kernel makes one."""
        return PipelineExecutor(
            self.pipeline,
            storage=self.storage,
            cache=self.cache,
            namespace={"note": self.note, "pause": pause, "again": again},
            retry_delay=0.0,
            max_concurrency=2,
        )

    def note(self, name: str) -> None:
        self.ran.append(name)

    async def close(self) -> None:
        await self.storage.close()
        if self.cache is not None:
            self.cache.close()


async def pause() -> None:
    await asyncio.sleep(0)


def again(context: StepContext) -> None:
    if context.attempt == 1:
        raise OSError("not yet")


WORTH = ("step_outputs", "cost_per_step", "learned_facts", "saved_memories", "failed_steps", "error_details")


def worth(result: Any) -> dict[str, Any]:
    """What a result says, but for times and how often something was tried."""
    facts = {name: getattr(result, name) for name in WORTH}
    facts["step_outputs"] = dict(facts["step_outputs"])
    facts["statuses"] = {
        name: "valued" if step.status.has_value else step.status.value for name, step in result.steps.items()
    }
    return facts


async def undisturbed(folder: Path) -> tuple[dict[str, Any], int]:
    """The result, and how many events observers got."""
    lab = Mixed(folder)
    seen: list[events.Event] = []
    executor = lab.executor_for()
    executor.subscribe(seen.append)
    result = await executor.execute()
    await lab.close()
    return worth(result), len(seen)


def leftovers() -> set[str]:
    """Tasks that go on besides the one that asks."""
    return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def after(number: int, act: Callable[[], None]) -> Callable[[events.Event], None]:
    """An observer that acts at the n-th event."""
    seen = itertools.count(1)
    return lambda _: act() if next(seen) == number else None


@pytest.mark.parametrize("cached", [True, False])
async def test_cancelled_after_any_event_a_run_goes_on_to_the_same_result(
    tmp_path: Path, cached: bool
) -> None:
    """Nothing is left running, nothing stays 'running', and what was recorded is not run again."""
    expected, count = await undisturbed(tmp_path / "whole")
    for number in itertools.count(1):
        lab = Mixed(tmp_path / f"{number}-{cached}", cached=cached)
        first = lab.executor_for()
        first.subscribe(after(number, first.cancel))
        stopped = await first.execute()
        assert leftovers() == set()
        states = {step.status.value for step in stopped.steps.values()}
        states |= {
            item.status.value for step in stopped.steps.values() for item in (step.items or {}).values()
        }
        assert not states & {"running", "waiting"}
        done = {name for name, step in stopped.steps.items() if step.status.has_value}
        lab.ran.clear()
        result = stopped
        if stopped.cancelled:
            result = await lab.executor_for().execute(resume=True)
            assert result.run_id == stopped.run_id
        assert worth(result) == expected, f"cancelled after event {number}"
        assert not done & set(lab.ran), f"cancelled after event {number}"
        await lab.close()
        if number > count:
            assert not stopped.cancelled
            break


class Counted(Coroutine[Any, Any, Any]):
    """A coroutine that says each time when it goes on after an await."""

    def __init__(self, inner: Coroutine[Any, Any, Any], goes_on: Callable[[], None]) -> None:
        self.inner, self.goes_on = inner, goes_on

    def send(self, value: Any) -> Any:
        self.goes_on()
        return self.inner.send(value)

    def throw(self, *error: Any) -> Any:
        return self.inner.throw(*error)

    def close(self) -> None:
        self.inner.close()

    def __await__(self) -> Any:
        return self.inner.__await__()


async def cancelled_at(number: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Cancel ``work`` when it, or a task of it, goes on for the n-th time; say whether it came to that."""
    loop = asyncio.get_running_loop()
    count = itertools.count(1)
    came = False

    def goes_on() -> None:
        nonlocal came
        if next(count) == number:
            came = True
            task.cancel()

    def make(loop: asyncio.AbstractEventLoop, made: Any, **names: Any) -> asyncio.Task[Any]:
        return asyncio.Task(Counted(made, goes_on), loop=loop, **names)

    loop.set_task_factory(make)
    try:
        task = loop.create_task(work)
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
    finally:
        loop.set_task_factory(None)
    assert isinstance(outcome, asyncio.CancelledError | PipelineResult), outcome
    return came


@pytest.mark.faults
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", ["file", "sqlite"])
async def test_cancelled_at_any_await_a_run_leaves_nothing_running_and_can_go_on(
    tmp_path: Path, kind: str, cached: bool, repetitions: Callable[[int, int], int]
) -> None:
    expected, _ = await undisturbed(tmp_path / "whole")
    number, injected, came = 0, 0, True
    while came:
        # Each of the first awaits, then fewer and fewer of them; with `make test-faults` all of them.
        number += 1 + number // repetitions(10, 1_000_000)
        lab = Mixed(tmp_path / str(number), cached=cached, kind=kind)
        executor = lab.executor_for()
        came = await cancelled_at(number, executor.execute())
        assert leftovers() == set()
        assert not executor.running
        recorded = await lab.storage.runs(lab.pipeline.id)
        # Interrupted, if its very first record was being written.
        assert {run.status for run in recorded} <= {"cancelled", "failed", "interrupted"}, number
        result = await lab.executor_for().execute(resume=bool(recorded))
        assert worth(result) == expected, number
        await lab.close()
        injected += came
    assert number > 50
    title = f"{kind}, {'with' if cached else 'without'} a cache"
    print(f"\ncancelled at an await, {title}: injected {injected}, lost 0")


async def test_a_step_that_swallows_its_cancellation_starts_nothing_further() -> None:
    entered, ran = asyncio.Event(), []
    pipeline = Pipeline("stubborn")

    @pipeline.task
    async def stubborn() -> str:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "too late"
        return "never"

    @pipeline.task
    async def after(stubborn: str) -> None:
        ran.append("after")

    executor = PipelineExecutor(pipeline)
    task = asyncio.ensure_future(executor.execute())
    await entered.wait()
    executor.cancel()
    result = await task
    assert result.cancelled
    assert ran == []
    assert result.steps["after"].status.value == "pending"


async def test_items_that_swallow_their_cancellation_start_no_further_ones() -> None:
    entered, seen = asyncio.Event(), []
    pipeline = Pipeline("stubborn items")

    @pipeline.task
    def load() -> list[int]:
        return [0, 1, 2, 3]

    @pipeline.task(map_over="load")
    async def each(item: int) -> int:
        seen.append(item)
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return item
        return -1

    executor = PipelineExecutor(pipeline, max_concurrency=2)
    task = asyncio.ensure_future(executor.execute())
    await entered.wait()
    executor.cancel()
    result = await task
    assert result.steps["each"].status.value == "cancelled"
    assert seen in ([0], [0, 1])


async def test_a_step_stopped_between_two_attempts_is_cancelled() -> None:
    pipeline = Pipeline("waiting")

    @pipeline.task(max_retries=1)
    def flaky() -> None:
        raise OSError("not yet")

    executor = PipelineExecutor(pipeline, retry_delay=1e6)
    executor.subscribe(lambda event: executor.cancel() if isinstance(event, events.StepRetried) else None)
    result = await executor.execute()
    assert result.steps["flaky"].status.value == "cancelled"
    assert result.steps["flaky"].attempts == 1


async def test_a_cancel_that_comes_too_late_changes_nothing() -> None:
    executor = PipelineExecutor(Pipeline("late").put(PipelineStep.from_cell("a", "1", python=True)))
    executor.subscribe(lambda event: executor.cancel() if isinstance(event, events.RunFinished) else None)
    result = await executor.execute()
    assert result.success
    assert not result.cancelled


async def test_a_paused_run_can_be_cancelled_and_is_no_longer_paused() -> None:
    executor = PipelineExecutor(Pipeline("paused").put(PipelineStep.from_cell("a", "1", python=True)))

    def control(event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            executor.pause()
            executor.pause()
        elif isinstance(event, events.RunPaused):
            executor.cancel()

    executor.subscribe(control)
    result = await executor.execute()
    assert result.cancelled
    assert executor.memory is not None
    assert not executor.memory.paused
    assert [type(event).__name__ for event in result.events] == ["RunStarted", "RunPaused", "RunFinished"]


async def test_resume_without_a_pause_says_nothing() -> None:
    executor = PipelineExecutor(Pipeline("running").put(PipelineStep.from_cell("a", "1", python=True)))
    executor.subscribe(lambda event: executor.resume() if isinstance(event, events.StepStarted) else None)
    result = await executor.execute()
    assert not [event for event in result.events if isinstance(event, events.RunUnpaused)]


# -- storage that fails -----------------------------------------------------------------------


class Full(MemoryStorageBackend):
    """Takes so many batches of events, and then no more."""

    def __init__(self, room: int, error: Exception | None = None) -> None:
        super().__init__()
        self.room = room
        self.error = error or StorageUnavailableError("the disk is full")

    async def append(self, pipeline_id: str, run_id: str, events: Any, *, token: int | None = None) -> None:
        if self.room == 0:
            raise self.error
        self.room -= 1
        await super().append(pipeline_id, run_id, events, token=token)


@pytest.mark.parametrize("room", range(7))
async def test_what_cannot_be_recorded_stops_the_run_and_nothing_goes_on(room: int) -> None:
    """Whichever record fails: the run raises it, ends its steps, and looks ended to who watches."""
    ended: list[str] = []
    pipeline = Pipeline("full", default_mode=ExecutionMode.CONCURRENT)

    @pipeline.task
    async def endless() -> None:
        try:
            await stop.wait()
        finally:
            ended.append("endless")

    @pipeline.task
    def load() -> list[int]:
        return [1, 2]

    @pipeline.task(map_over="load")
    def each(item: int) -> int:
        return item

    @pipeline.task
    async def after(each: list[int]) -> int:
        stop.set()
        return len(each)

    stop = asyncio.Event()
    executor = PipelineExecutor(pipeline, storage=Full(room))
    with pytest.raises(StorageUnavailableError, match="the disk is full"):
        await executor.execute()
    assert leftovers() == set()
    assert not executor.running
    assert executor.memory is not None
    assert [step.status.value for step in executor.memory.steps.values()].count("running") == 0
    if room:
        assert ended == ["endless"]
        assert executor.memory.finished is not None
        assert executor.result is not None
        assert not executor.result.success


async def test_a_storage_that_breaks_in_a_way_no_one_foresaw_stops_the_run_as_well() -> None:
    executor = PipelineExecutor(
        Pipeline("broken").put(PipelineStep.from_cell("a", "1", python=True)),
        storage=Full(1, ZeroDivisionError("a bug")),
    )
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await executor.execute()
    assert not executor.running


async def test_a_run_cancelled_while_its_end_is_recorded_is_recorded_whole() -> None:
    class Slow(MemoryStorageBackend):
        async def append(self, pipeline_id: str, run_id: str, batch: Any, **options: Any) -> None:
            if isinstance(batch[-1], events.RunFinished):
                ending.set()
                await end.wait()
            await super().append(pipeline_id, run_id, batch, **options)

    ending, end = asyncio.Event(), asyncio.Event()
    storage = Slow()
    pipeline = Pipeline("slow end").put(PipelineStep.from_cell("a", "1", python=True))
    task = asyncio.ensure_future(PipelineExecutor(pipeline, storage=storage).execute())
    await ending.wait()
    task.cancel()
    end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    (info,) = await storage.runs(pipeline.id)
    assert info.status == "completed"


async def test_an_earlier_run_that_is_damaged_does_not_keep_steps_from_running(tmp_path: Path) -> None:
    """It could only have reported why they run."""
    pipeline = Pipeline("damaged").put(PipelineStep.from_cell("a", "1", python=True))
    storage = FileStorageBackend(tmp_path)
    executor = PipelineExecutor(pipeline, storage=storage)
    await executor.execute()
    (journal,) = tmp_path.glob("*/*.journal")
    data = bytearray(journal.read_bytes())
    data[len(data) // 3] ^= 0xFF
    journal.write_bytes(data)
    result = await executor.execute()
    assert result["a"] == 1
    assert "the run before cannot be read" in result.warnings[0]
    await storage.close()


# -- what goes wrong at the edges ---------------------------------------------------------------


class EndsBadly(MemoryStorageBackend):
    """Takes everything but the end of a run."""

    async def append(
        self, pipeline_id: str, run_id: str, batch: Sequence[events.Event], *, token: int | None = None
    ) -> None:
        if any(isinstance(event, events.RunFinished) for event in batch):
            raise StorageUnavailableError("The disk went away.")
        await super().append(pipeline_id, run_id, batch, token=token)


async def test_a_run_whose_end_cannot_be_recorded_is_no_success_and_no_one_takes_it_for_running() -> None:
    pipeline = Pipeline("edge")
    pipeline.put(PipelineStep.from_cell("only", "1", python=True))
    seen: list[events.Event] = []
    executor = PipelineExecutor(pipeline, storage=EndsBadly(), observers=[seen.append])
    with pytest.raises(StorageUnavailableError, match="went away"):
        await executor.execute()
    ends = [event for event in seen if isinstance(event, events.RunFinished)]
    assert [end.success for end in ends] == [False]
    assert executor.result is not None
    assert not executor.result.success
    assert executor.result["only"] == 1
    assert not executor.running


async def test_a_damaged_cache_is_reported_in_the_run_and_stops_nothing(tmp_path: Path) -> None:
    """The cache says so in a thread of its own."""
    (tmp_path / "cache.db").write_bytes(b"no database at all " * 100)
    pipeline = Pipeline("edge")
    pipeline.put(PipelineStep.from_cell("only", "1", python=True))
    cache = ResultCache(tmp_path)
    result = await PipelineExecutor(pipeline, cache=cache).execute()
    cache.close()
    assert result["only"] == 1
    assert any("cache" in warning for warning in result.warnings)
