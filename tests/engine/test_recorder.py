"""Events are recorded together where they come together, and nothing acts on what is not durable."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagent_nb import Pipeline, PipelineExecutor, SQLiteStorageBackend
from tagent_nb.engine.context import RunContext, RunOptions, RunServices
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.recorder import AHEAD, Recorder
from tagent_nb.engine.session import recorder_of
from tagent_nb.errors import EncodeError, StorageError, StorageUnavailableError
from tagent_nb.events import Event, FactLearned, RunFinished, StepFinished, Warned
from tagent_nb.storage import MemoryStorageBackend

Plan = tuple[int, int, str]
"""How often the loop turns before and after a write, and how the write ends."""


class Scripted(MemoryStorageBackend):
    """Durable as far as a run can tell; each write goes as its plan says.

    Attributes:
        stored: All that was written, in order.
        refused: Keys of what was in a write that failed.
        most: How many writes were under way at once.
    """

    durable = True

    def __init__(self, plans: Sequence[Plan] = ()) -> None:
        super().__init__()
        self.plans = list(plans)
        self.stored: list[Event] = []
        self.batches: list[int] = []
        self.under_way = self.most = 0

    async def append(
        self, pipeline_id: str, run_id: str, events: Sequence[Event], *, token: int | None = None
    ) -> None:
        before, after, end = self.plans.pop(0) if self.plans else (0, 0, "well")
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            for _ in range(before):
                await asyncio.sleep(0)
            if any(isinstance(event, FactLearned) and event.value == "odd" for event in events):
                raise EncodeError("fact", "it is odd")
            if end == "full":
                raise StorageUnavailableError("the disk is full")
            if end == "broken":
                raise ZeroDivisionError("a bug")
            self.stored.extend(events)
            self.batches.append(len(events))
            for _ in range(after):
                await asyncio.sleep(0)
        finally:
            self.under_way -= 1


def recorder_with(storage: MemoryStorageBackend, **services: Any) -> Recorder:
    pipeline = Pipeline("lab").step("each", "Say it.")
    context = RunContext(
        run_id="r",
        pipeline=pipeline,
        services=RunServices(
            storage=storage,
            cache=None,
            runners={},
            model=None,
            namespace={},
            schemas={},
            max_concurrency=8,
            retry_delay=0.0,
            **services,
        ),
        options=RunOptions(),
        inputs={},
        reads_inputs={},
        recorded={},
        keyed=False,
    )
    return recorder_of(context, PipelineMemory(pipeline.id, "r", ["each"]))


def fact(unit: int, number: int, value: str = "even") -> FactLearned:
    return FactLearned(run_id="r", step="each", item=str(unit), key=f"{unit}.{number}", value=value)


@dataclass
class Sender:
    """A unit that sends one event after the other, as its wishes say, until it is stopped.

    Attributes:
        kept: Keys of events whose recording was confirmed, or not waited for.
        refused: Keys of events of which it was given that they could not be recorded.
        open: Key of the event during whose recording it was stopped.
    """

    number: int
    wishes: Sequence[str]
    kept: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    open: str = ""

    async def send(self, recorder: Recorder, storage: Scripted) -> None:
        for number, wish in enumerate(self.wishes):
            event = fact(self.number, number, "odd" if wish == "odd" else "even")
            if wish == "turn":
                await asyncio.sleep(0)
            elif wish == "tell":
                recorder.publish(Warned(run_id="r", message=f"{self.number}.{number}"))
            else:
                self.open = event.key
                try:
                    if wish == "item":
                        await recorder.record_item([event])
                    else:
                        await recorder.record(event)
                        assert event in storage.stored
                except (StorageError, EncodeError, ZeroDivisionError):
                    self.refused.append(event.key)
                else:
                    self.kept.append(event.key)
                self.open = ""


WISHES = st.lists(st.sampled_from(["record", "item", "item", "turn", "tell", "odd"]), max_size=8)
PLANS = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 2), st.sampled_from(["well", "well", "well", "full", "broken"])
    )
)
STOPS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=3)


@given(units=st.lists(WISHES, min_size=1, max_size=4), plans=PLANS, stops=STOPS)
def test_whatever_comes_together_is_durable_before_it_is_applied(
    units: list[list[str]], plans: list[Plan], stops: list[tuple[int, int]]
) -> None:
    """Any interleaving, any write that fails, any unit that is stopped at any turn of the loop."""
    asyncio.run(_any_interleaving(units, plans, stops))


async def _any_interleaving(units: list[list[str]], plans: list[Plan], stops: list[tuple[int, int]]) -> None:
    storage = Scripted(plans)
    applied: list[FactLearned] = []

    def see(event: Event) -> None:
        if isinstance(event, FactLearned):
            assert event in storage.stored
            applied.append(event)

    recorder = recorder_with(storage, observers=[see])
    failures: list[StorageError] = []
    recorder.on_failure = failures.append
    senders = [Sender(number, wishes) for number, wishes in enumerate(units)]
    tasks = [asyncio.ensure_future(sender.send(recorder, storage)) for sender in senders]
    for turn in range(13):
        for at, number in stops:
            if at == turn and number < len(tasks):
                tasks[number].cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        assert task.cancelled() or task.exception() is None
    try:
        await recorder.settled()
    except (StorageError, EncodeError, ZeroDivisionError):
        lost = True
    else:
        lost = False
    assert storage.most <= 1
    assert not any("Observer" in warning for warning in recorder.memory.warnings)
    stored = [event.key for event in storage.stored if isinstance(event, FactLearned)]
    seen = [event.key for event in applied]
    assert len(set(stored)) == len(stored)
    interrupted = {sender.open for sender in senders if sender.open}
    # In order. Who was stopped in the middle of a write may have something recorded that no one applied.
    assert seen == [key for key in stored if key in set(seen)]
    assert set(stored) - set(seen) <= interrupted
    for sender in senders:
        kept = set(sender.kept)
        if not lost:
            assert kept <= set(stored)
        assert not set(sender.refused) & set(stored)
        mine = [key for key in stored if key.startswith(f"{sender.number}.")]
        assert mine == sorted(mine)
    assert lost or set(stored) <= {key for sender in senders for key in sender.kept} | interrupted
    assert bool(failures) <= any(end == "full" for _, _, end in plans)


async def test_what_ends_while_a_write_is_under_way_goes_out_together() -> None:
    storage = Scripted([(3, 0, "well")])
    recorder = recorder_with(storage)
    await asyncio.gather(*(recorder.record(fact(unit, 0)) for unit in range(9)))
    assert storage.batches == [1, 8]


async def test_a_write_under_way_is_waited_for_where_all_must_be_recorded() -> None:
    storage = Scripted([(5, 0, "well")])
    recorder = recorder_with(storage)
    first = asyncio.ensure_future(recorder.record(fact(0, 0)))
    await asyncio.sleep(0)
    assert storage.stored == []
    await recorder.settled()
    assert list(recorder.memory.facts) == ["0.0"]
    await first


@pytest.mark.parametrize("end", ["well", "full"])
async def test_who_is_stopped_while_it_waits_takes_nothing_back(end: str) -> None:
    """What it sent is written in its turn; if that fails, those who still wait are notified."""
    storage = Scripted([(3, 0, "well"), (1, 0, end)])
    recorder = recorder_with(storage)
    first, stopped, other = (asyncio.ensure_future(recorder.record(fact(unit, 0))) for unit in range(3))
    await asyncio.sleep(0)
    stopped.cancel()
    results = await asyncio.gather(first, stopped, other, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert isinstance(results[2], StorageUnavailableError) == (end == "full")
    assert list(recorder.memory.facts) == (["0.0"] if end == "full" else ["0.0", "1.0", "2.0"])


async def test_a_write_holds_no_more_than_fits() -> None:
    """Values of more than a megabyte together go out in several writes."""
    storage = Scripted([(3, 0, "well")])
    recorder = recorder_with(storage)

    def big(number: int) -> StepFinished:
        from tagent_nb.serde import StoredValue

        output = StoredValue.of("x" * 600_000)
        assert output.storable
        return StepFinished(run_id="r", step="each", item=str(number), output=output)

    await asyncio.gather(*(recorder.record(big(number)) for number in range(7)))
    assert storage.batches == [1, 2, 2, 2]


async def test_one_that_cannot_be_stored_spoils_nothing_for_the_others() -> None:
    storage = Scripted([(3, 0, "well")])
    recorder = recorder_with(storage)
    results = await asyncio.gather(
        *(recorder.record(fact(unit, 0, "odd" if unit == 2 else "even")) for unit in range(4)),
        return_exceptions=True,
    )
    assert [isinstance(result, EncodeError) for result in results] == [False, False, True, False]
    assert list(recorder.memory.facts) == ["0.0", "1.0", "3.0"]


@pytest.mark.parametrize("together", [False, True])
async def test_what_was_published_is_stored_also_where_a_steps_own_is_refused(together: bool) -> None:
    storage = Scripted([(3, 0, "well")])
    recorder = recorder_with(storage)
    begun = [asyncio.ensure_future(recorder.record(fact(0, 0)))] if together else []
    await asyncio.sleep(0)
    recorder.warn("take care")
    odd = [recorder.record(fact(1, 0, "odd")), *([recorder.record(fact(2, 0))] if together else [])]
    await asyncio.gather(*begun, *odd, return_exceptions=True)
    assert [event.message for event in storage.stored if isinstance(event, Warned)] == ["take care"]


@pytest.mark.parametrize("together", [False, True])
async def test_an_observer_that_ends_the_program_lets_nothing_wait_for_ever(together: bool) -> None:
    """Who waits gets its exit; one that raises anything else is a view that breaks, and is left out."""

    def leave(event: Event) -> None:
        if isinstance(event, FactLearned):
            raise SystemExit(3)

    def close(event: Event) -> None:
        raise GeneratorExit

    recorder = recorder_with(Scripted([(3, 0, "well")]), observers=[close, leave])
    facts = [recorder.record(fact(unit, 0)) for unit in range(3 if together else 1)]
    ends = await asyncio.wait_for(asyncio.gather(*map(exit_of, facts)), 30)
    assert set(ends) == {3}
    assert any("close" in warning for warning in recorder.memory.warnings)
    await asyncio.wait_for(recorder.settled(), 30)


async def exit_of(record: Any) -> Any:
    try:
        await record
    except SystemExit as error:
        return error.code


async def test_an_event_that_cannot_be_applied_is_its_senders_error() -> None:
    storage = Scripted([(3, 0, "well")])
    recorder = recorder_with(storage)
    end = RunFinished(run_id="r", success=True)
    first, second, third = await asyncio.gather(
        recorder.record(fact(0, 0)), recorder.record(end), recorder.record(fact(1, 0)), return_exceptions=True
    )
    assert not isinstance(first, BaseException)
    assert "Phase" in type(second).__name__ or "Transition" in type(second).__name__
    assert not isinstance(third, BaseException)


# -- maps ------------------------------------------------------------------------------------------


class Gated(MemoryStorageBackend):
    """Writes only while its gate is open."""

    durable = True

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.stored: list[Event] = []

    async def append(
        self, pipeline_id: str, run_id: str, events: Sequence[Event], *, token: int | None = None
    ) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        await super().append(pipeline_id, run_id, events, token=token)
        self.stored.extend(events)

    def items(self) -> list[str]:
        return [event.item for event in self.stored if isinstance(event, StepFinished) and event.item]


def over(count: int, body: Any) -> Pipeline:
    pipeline = Pipeline("map")
    pipeline.task(lambda: list(range(count)), name="rows")
    pipeline.task(body, name="each", map_over="rows")
    return pipeline


async def test_a_map_ends_when_all_its_items_are_recorded() -> None:
    storage = Gated()
    recorded: list[int] = []

    async def each(rows: int) -> int:
        return rows

    pipeline = over(200, each)

    def after(each: list[int]) -> int:
        recorded.append(len(storage.items()))
        return len(each)

    pipeline.task(after)
    result = await PipelineExecutor(pipeline, storage=storage).execute()
    assert result["after"] == 200
    assert recorded == [200]


async def test_only_so_many_items_are_ahead_of_what_is_recorded() -> None:
    """A disk that does not answer stops the map, and nothing that ended is lost when it answers again."""
    storage = Gated()
    begun: list[int] = []

    async def each(rows: int) -> int:
        if rows == 0:
            storage.gate.clear()
        begun.append(rows)
        return rows

    executor = PipelineExecutor(over(500, each), storage=storage, max_concurrency=8)
    running = asyncio.ensure_future(executor.execute())
    while len(begun) < AHEAD + 8:
        await asyncio.sleep(0)
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(begun) == AHEAD + 8
    assert storage.items() == []
    storage.gate.set()
    result = await running
    assert result["each"] == list(range(500))
    assert len(storage.items()) == 500


async def test_few_items_are_recorded_while_a_slow_one_goes_on() -> None:
    """Items of a slow map are recorded by the clock: the slow one waits until the others are."""
    storage = Gated()
    others = asyncio.Event()

    async def each(rows: int) -> int:
        if rows == 2:
            await others.wait()
        return rows

    def see(event: Event) -> None:
        if storage.items() == ["0", "1"]:
            others.set()

    executor = PipelineExecutor(over(3, each), storage=storage, observers=[see])
    assert (await executor.execute())["each"] == [0, 1, 2]


class Calls:
    """What ran. With a lock it is no part of a fingerprint."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rows: list[int] = []
        self.interfere: Callable[[], None] | None = None


async def test_a_cancelled_map_has_recorded_all_that_ended(tmp_path: Path) -> None:
    calls = Calls()

    async def each(rows: int) -> int:
        if rows == 20 and calls.interfere is not None:
            calls.interfere()
            await asyncio.Event().wait()
        calls.rows.append(rows)
        return rows

    storage = SQLiteStorageBackend(tmp_path / "runs.db", durability="fast")
    executor = PipelineExecutor(over(40, each), storage=storage, max_concurrency=4)
    calls.interfere = executor.cancel
    result = await executor.execute()
    assert result.cancelled
    ended = set(calls.rows)
    events = await storage.read_run(executor.pipeline.id, result.run_id)
    assert {int(event.item) for event in events if isinstance(event, StepFinished) and event.item} == ended
    calls.interfere = None
    calls.rows.clear()
    again = await executor.execute(resume=True)
    assert again["each"] == list(range(40))
    assert set(calls.rows) == set(range(40)) - ended
    await storage.close()


@pytest.mark.parametrize(
    "error", [StorageUnavailableError("the disk is full"), ZeroDivisionError("a bug")], ids=["full", "bug"]
)
async def test_items_that_cannot_be_recorded_fail_the_run(error: Exception) -> None:
    storage, calls = Gated(), Calls()

    async def each(rows: int) -> int:
        calls.rows.append(rows)
        if rows == 50 and calls.interfere is not None:
            calls.interfere()
        await asyncio.sleep(0)
        return rows

    calls.interfere = partial(setattr, storage, "error", error)

    executor = PipelineExecutor(over(1000, each), storage=storage, max_concurrency=8)
    with pytest.raises(type(error), match=str(error)):
        await executor.execute()
    assert len(calls.rows) < 500
    assert not executor.running
    storage.error = calls.interfere = None
    result = await executor.execute(resume=True)
    assert result["each"] == list(range(1000))


async def test_the_last_items_of_a_cancelled_run_that_cannot_be_recorded_are_no_secret() -> None:
    storage = Gated()

    async def each(rows: int) -> int:
        if rows == 5:
            storage.error = StorageUnavailableError("the disk is full")
            executor.cancel()
            await asyncio.Event().wait()
        return rows

    executor = PipelineExecutor(over(10, each), storage=storage, max_concurrency=2)
    with pytest.raises(StorageUnavailableError, match="full"):
        await executor.execute()
    assert executor.memory is not None
    assert executor.memory.steps["each"].status.value == "cancelled"
