"""The promises of every storage backend, as tests."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    EncodeError,
    NotStoredError,
    StorageError,
)
from tagent_nb.events import (
    MemorySaved,
    RunFinished,
    StepCached,
    StepFinished,
    StepStarted,
    StepStreamed,
    Warned,
)
from tagent_nb.naming import storage_id
from tagent_nb.serde import StoredValue
from tagent_nb.storage import ENDS, ORDER, RecordStoreBackend, RunStorage, StorageBackend, read_record
from tagent_nb.testing.backups import BackupContract
from tagent_nb.testing.leases import LeaseContract
from tagent_nb.testing.samples import plain, require, sample_run

NAMES = (
    "my pipe", "../../x", "/etc/passwd", "a/b", "a\\b", ".", "..", "x" * 65, "é" * 200, "nul.json", "a:b",
    "a ", "a.", "a\u202eb", "\uff41", "e\u0301", "~", "%2e%2e", "*", "a'; DROP TABLE runs; --", "[a-z]",
    "{a}", "评论",
)  # fmt: skip
"""Names of pipelines. As they are, they never reach a path, a query or a key."""

UNSAFE_NAMES: tuple[Any, ...] = ("a\0b", "", " ", "a\nb", "\ud800", "x" * 201, 7, None, b"a")
"""What is neither an id nor a name."""

UNSAFE_IDS: tuple[Any, ...] = (*NAMES, *UNSAFE_NAMES)
"""What is no id of a run."""

SIMILAR_IDS = ("a", "A", "aa", "aA", "-rf", "CON", "con", "nul", "__proto__", "_", "-", "x" * 64, "X" * 64)
"""Ids that are allowed and must stay apart, also where file names know no case."""


@pytest.mark.asyncio
class StorageContract(LeaseContract, BackupContract):
    """The promises of every storage backend, one test each.

    A promise that a backend does not declare in its ``capabilities`` is skipped.
    """

    @pytest.fixture
    def storage(self) -> StorageBackend:
        """The backend under test, empty."""
        raise pytest.UsageError(f"{type(self).__name__} needs a fixture named 'storage'.")

    # -- documents --------------------------------------------------------------------------

    async def test_what_was_saved_last_is_loaded(self, store: RunStorage) -> None:
        """Values of every storable kind come back equal; saving replaces."""
        data = {
            "n": 1,
            "t": (1, 2),
            "b": b"\x00\xff",
            "d": datetime(2026, 1, 2, tzinfo=UTC),
            "text": "zwölf \n ☃",
        }
        await store.save("p", {"old": True})
        await store.save("p", data)
        assert await self._again(store).load("p") == data

    async def test_an_unstorable_value_names_its_path_and_changes_nothing(self, store: RunStorage) -> None:
        """A function cannot be saved, and what was saved before is still there."""
        await store.save("p", {"good": 1})
        with pytest.raises(EncodeError, match="fn"):
            await store.save("p", {"list": [{"fn": len}]})
        assert await store.load("p") == {"good": 1}

    async def test_absent_is_not_empty(self, store: RunStorage) -> None:
        """What was never stored is an error that says so, not an empty result."""
        with pytest.raises(NotStoredError, match="'p'"):
            await store.load("p")
        with pytest.raises(NotStoredError, match="'r'"):
            await store.read_run("p", "r")
        with pytest.raises(NotStoredError, match="'r'"):
            await store.delete_run("p", "r")
        with pytest.raises(NotStoredError, match="'p'"):
            await store.delete("p")
        assert await store.runs("p") == []
        assert await store.memories("p") == {}
        assert await store.list_pipelines() == []

    async def test_memories_are_kept_apart_from_what_was_saved(self, store: RunStorage) -> None:
        """Memories survive, are replaced as a whole, and do not mix with ``save``."""
        await store.save_memories("p", {"a": 1, "b": [2]})
        await store.save("p", {"c": 3})
        await store.save_memories("p", {"b": [2, 3]})
        assert await self._again(store).memories("p") == {"b": [2, 3]}
        assert await self._again(store).load("p") == {"c": 3}

    # -- names ------------------------------------------------------------------------------

    @pytest.mark.parametrize("bad", UNSAFE_NAMES, ids=lambda bad: ascii(bad)[:20])
    async def test_what_is_no_name_of_a_pipeline_is_refused(self, store: RunStorage, bad: Any) -> None:
        """No method lets it through, and nothing is stored under it."""
        event = Warned(run_id="r", message="x")
        calls = [
            store.save(bad, {}), store.load(bad), store.delete(bad), store.memories(bad), store.runs(bad),
            store.save_memories(bad, {}), store.append(bad, "r", [event]), store.read_run(bad, "r"),
            store.delete_run(bad, "r"), store.acquire(bad, "r"), store.newest_run(bad),
            store.has_run(bad, "r"), store.prune(bad, keep_last=1),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(DefinitionError, match="Pipeline name"):
                await call
        assert await store.list_pipelines() == []

    @pytest.mark.parametrize("bad", UNSAFE_IDS, ids=lambda bad: ascii(bad)[:20])
    async def test_what_is_no_id_of_a_run_is_refused(self, store: RunStorage, bad: Any) -> None:
        """No method lets it through, and nothing is stored under it."""
        event = Warned(run_id="r", message="x")
        calls = [
            store.append("p", bad, [event]), store.read_run("p", bad), store.delete_run("p", bad),
            store.acquire("p", bad),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(DefinitionError, match=r"run id .* is not allowed"):
                await call
        assert not await store.has_run("p", bad)
        assert await store.list_pipelines() == []

    @pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
    async def test_every_method_takes_the_name_of_a_pipeline(self, store: RunStorage, name: str) -> None:
        """What is stored by name is found by name and by the id that is listed, which is that of a run's."""
        await store.save(name, {"name": name})
        await store.save_memories(name, {"of": name})
        lease = await store.acquire(name, "r")
        await store.append(name, "r", sample_run("r")[:-1], token=lease.token)
        await store.release(lease)
        again = self._again(store)
        assert await again.list_pipelines() == [storage_id(name)]
        for handle in (name, storage_id(name)):
            assert await again.load(handle) == {"name": name}
            assert await again.memories(handle) == {"of": name}
            assert [info.run_id for info in await again.runs(handle)] == ["r"]
            assert plain(await again.read_run(handle, "r")) == plain(sample_run("r")[:-1])
            assert await again.newest_run(handle) == "r"
            assert await again.has_run(handle, "r")
        await again.delete_run(name, "r")
        assert await store.runs(name) == []
        await again.delete(name)
        assert await store.list_pipelines() == []
        with pytest.raises(NotStoredError):
            await store.load(name)

    async def test_a_name_that_could_be_an_id_is_one_pipeline(self, store: RunStorage) -> None:
        """With its runs there, what is saved under the name goes with them; without, it is an id."""
        await store.save("early", {"n": 1})
        await store.append(storage_id("late"), "r", sample_run("r"))
        await store.save("late", {"n": 2})
        await store.save_memories("late", {"n": 3})
        again = self._again(store)
        assert await again.list_pipelines() == sorted(["early", storage_id("late")])
        for handle in ("late", storage_id("late")):
            assert (await again.load(handle), await again.memories(handle)) == ({"n": 2}, {"n": 3})
            assert plain(await again.read_run(handle, "r")) == plain(sample_run("r"))
        await again.delete("late")
        assert await store.list_pipelines() == ["early"]

    async def test_runs_are_found_by_the_name_of_their_pipeline(self, store: RunStorage) -> None:
        """An id has a hash of the name at its end; who has the name at hand need not know it."""
        for number, run in enumerate(("one", "two")):
            await store.append(storage_id("reviews"), run, sample_run(run, at=float(number)))
        assert [info.run_id for info in await store.runs("reviews")] == ["one", "two"]
        assert [info.run_id for info in await store.prune("reviews", keep_last=1)] == ["one"]
        await store.delete_run("reviews", "two")
        assert await store.runs("reviews") == []
        await store.append("reviews", "three", sample_run("three"))
        assert [info.run_id for info in await store.runs("reviews")] == ["three"]

    async def test_similar_ids_stay_apart(self, store: RunStorage) -> None:
        """Ids that differ only in case, or look like devices or options, are different pipelines and runs."""
        for name in SIMILAR_IDS:
            await store.save(name, {"name": name})
            await store.append("p", name, [Warned(run_id=name, message=name)])
        again = self._again(store)
        assert await again.list_pipelines() == sorted([*SIMILAR_IDS, "p"])
        assert sorted(info.run_id for info in await again.runs("p")) == sorted(SIMILAR_IDS)
        for name in SIMILAR_IDS:
            assert await again.load(name) == {"name": name}
            assert plain(await again.read_run("p", name))[0]["message"] == name

    # -- runs -------------------------------------------------------------------------------

    async def test_events_come_back_in_order(self, store: RunStorage) -> None:
        """Every kind of event that storage keeps comes back equal, in the order of recording."""
        events = sample_run()
        await store.append("p", "run", events[:3])
        for event in events[3:]:
            await store.append("p", "run", [event])
        read = await self._again(store).read_run("p", "run")
        assert plain(read) == plain(events)
        outputs = [event.output.value for event in read if isinstance(event, StepFinished | StepCached)]
        assert outputs == [
            event.output.value for event in events if isinstance(event, StepFinished | StepCached)
        ]

    async def test_passing_events_are_not_kept(self, store: RunStorage) -> None:
        """Streamed text and starts are for the living; a run is not made of them."""
        passing = [StepStarted(run_id="r", step="a"), StepStreamed(run_id="r", step="a", text="x")]
        await store.append("p", "r", passing)
        await store.append("p", "r", [])
        assert await store.runs("p") == []
        assert await store.list_pipelines() == []
        kept = Warned(run_id="r", message="kept")
        await store.append("p", "r", [passing[0], kept, passing[1]])
        assert plain(await store.read_run("p", "r")) == plain([kept])

    async def test_a_value_that_cannot_be_stored_does_not_stop_the_run(self, store: RunStorage) -> None:
        """An output such as a lambda is recorded as a problem; a durable backend gives ``None`` back."""
        await store.append("p", "r", [StepFinished(run_id="r", step="a", output=StoredValue.of(len))])
        (event,) = await self._again(store).read_run("p", "r")
        assert isinstance(event, StepFinished)
        assert not event.output.storable
        if isinstance(store, RecordStoreBackend):
            assert event.output.value is None

    async def test_a_batch_is_recorded_whole_or_not_at_all(self, store: RunStorage) -> None:
        """If one event of a batch cannot be stored, none of the batch is; in memory, everything can be."""
        first, last = (Warned(run_id="r", message=text) for text in ("first", "last"))
        batch = [first, MemorySaved(run_id="r", step="a", key="k", value=len)]
        await store.append("p", "r", [first])
        if isinstance(store, RecordStoreBackend):
            with pytest.raises(EncodeError):
                await store.append("p", "r", batch)
            batch = []
        await store.append("p", "r", [*batch, last])
        read = await self._again(store).read_run("p", "r")
        assert [type(event) for event in read] == [type(event) for event in [first, *batch, last]]

    async def test_the_list_of_runs_says_how_each_stands(self, store: RunStorage) -> None:
        """Status, steps, cost and times as recorded, without a look at any value."""
        for at, outcome in ((100.0, "completed"), (200.0, "cancelled"), (300.0, "failed")):
            events = sample_run(outcome, at=at)[:-1]
            await store.append("p", outcome, events)
            ended = RunFinished(
                run_id=outcome, at=at + 9, success=outcome == "completed", cancelled=outcome == "cancelled"
            )
            await store.append("p", outcome, [ended])
        await store.append("p", "stopped", sample_run("stopped", at=400.0)[:10])
        runs = await self._again(store).runs("p")
        assert [(info.run_id, info.status) for info in runs] == [
            ("completed", "completed"),
            ("cancelled", "cancelled"),
            ("failed", "failed"),
            ("stopped", "interrupted"),
        ]
        first, last = runs[0], runs[-1]
        assert (first.pipeline, first.pipeline_id, first.host, first.pid) == ("sample", "p", "there", 2)
        assert (first.started_at, first.ended_at) == (100.0, 109.0)
        assert (first.steps, first.steps_done, first.steps_cached, first.steps_failed) == (4, 4, 1, 0)
        assert (last.ended_at, last.host, last.steps_done, last.steps_failed) == (None, "me", 2, 1)
        assert (first.cost, first.unpriced, first.problem) == (1.0, True, None)
        assert (first.size > 0) is isinstance(store, RecordStoreBackend)

    async def test_the_order_of_runs_is_that_of_their_beginnings(self, store: RunStorage) -> None:
        """Not that of their times: a clock may be set back by a day, or by years, and forth again."""
        require(store, ORDER)
        assert await store.newest_run("p") is None
        names = ["z", "a", "m", "b", "y"]
        for name, at in zip(names, (9e5, 100.0, 8e5, 9e9, 0.0), strict=True):
            await store.append("p", name, sample_run(name, at=at))
        # One that is carried on keeps its place.
        lease = await store.acquire("p", "a")
        await store.append("p", "a", [Warned(run_id="a", message="on")], token=lease.token)
        await store.release(lease)
        again = self._again(store)
        assert [info.run_id for info in await again.runs("p")] == names
        for limit in range(1, 7):
            assert [info.run_id for info in await again.runs("p", limit=limit)] == names[-limit:]
        assert (await again.newest_run("p"), await again.newest_run("p", besides="y")) == ("y", "b")
        assert await again.newest_run("p", besides="a") == "y"
        for name in ("y", "m"):
            await store.delete_run("p", name)
        assert [info.run_id for info in await again.runs("p")] == ["z", "a", "b"]
        assert (await again.newest_run("p"), await again.newest_run("p", besides="b")) == ("b", "a")
        await store.append("p", "m", sample_run("m", at=0.0))
        assert [info.run_id for info in await again.runs("p", limit=2)] == ["b", "m"]

    @pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
    async def test_a_limit_is_a_whole_number(self, store: RunStorage, limit: Any) -> None:
        """Of at least 1."""
        with pytest.raises(DefinitionError, match="limit"):
            await store.runs("p", limit=limit)

    async def test_whether_a_run_is_stored(self, store: RunStorage) -> None:
        """By the id or the name of its pipeline; a lease alone is no run."""
        await store.acquire("p", "leased")
        await store.append(storage_id("named"), "r", sample_run("r"))
        assert await store.has_run(storage_id("named"), "r")
        assert await store.has_run("named", "r")
        assert await store.newest_run("named") == "r"
        for pipeline_id, run_id in (("named", "leased"), ("p", "leased"), ("p", "r"), ("none", "r")):
            assert not await store.has_run(pipeline_id, run_id)

    async def test_a_finished_run_can_be_carried_on(self, store: RunStorage) -> None:
        """After more events the list shows how the run stands now, counted over all of it."""
        events = sample_run()
        await store.append("p", "run", events[:11])
        await store.append("p", "run", [RunFinished(run_id="run", at=1002.0, success=False)])
        again = self._again(store)
        lease = await again.acquire("p", "run")
        await again.append("p", "run", events[-4:-1], token=lease.token)
        (info,) = await again.runs("p")
        assert (info.status, info.steps_done, info.ended_at) == ("running", 4, None)
        await again.append("p", "run", [events[-1]], token=lease.token)
        await again.release(lease)
        (info,) = await store.runs("p")
        assert (info.status, info.steps_done, info.started_at) == ("completed", 4, 1000.0)

    async def test_tasks_record_at_once(self, store: RunStorage) -> None:
        """Two hundred tasks that record at the same time lose nothing."""
        lease = await store.acquire("p", "r")
        events = [StepFinished(run_id="r", step=f"s{n}", output=StoredValue.of(n)) for n in range(200)]
        await asyncio.gather(*(store.append("p", "r", [event], token=lease.token) for event in events))
        read = await self._again(store).read_run("p", "r")
        assert sorted(event.output.value for event in read if isinstance(event, StepFinished)) == list(
            range(200)
        )

    async def test_other_threads_and_loops_may_use_it(self, store: RunStorage) -> None:
        """Four threads with a loop of their own record into one store through the same object."""

        async def record(name: str) -> None:
            lease = await store.acquire("p", name)
            for event in sample_run(name):
                await store.append("p", name, [event], token=lease.token)
            await store.release(lease)

        names = [f"r{n}" for n in range(4)]
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, record(name)) for name in names))
        for name in names:
            assert plain(await store.read_run("p", name)) == plain(sample_run(name))

    async def test_it_can_be_used_after_close(self, store: RunStorage) -> None:
        """``close`` gives back files and connections; nothing stored is lost by it."""
        events = sample_run()
        await store.append("p", "run", events[:5])
        await store.close()
        await store.append("p", "run", events[5:])
        await store.close()
        assert plain(await store.read_run("p", "run")) == plain(events)

    # -- order and completeness -------------------------------------------------------------

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ("swapped", "record 3 of run run is missing: record 4 is in its place"),
            ("doubled", "record 3 of run run is in the place of record 4"),
            ("left out", "record 3 of run run is missing: record 4 is in its place"),
        ],
    )
    async def test_records_in_another_order_are_damage(
        self, store: RunStorage, monkeypatch: pytest.MonkeyPatch, change: str, named: str
    ) -> None:
        """Swapped, doubled or left out, reading the run is an error that names the record."""
        events = sample_run()
        for event in events:
            await store.append("p", "run", [event])
        again = self._again(store)
        if not isinstance(again, RecordStoreBackend):
            # Events are kept by reference: there is no record that could be changed.
            assert plain(await again.read_run("p", "run")) == plain(events)
            return
        records = await _records(again, "run")
        assert len(records) == len(events)
        changed = {
            "swapped": [*records[:2], records[3], records[2], *records[4:]],
            "doubled": [*records[:3], *records[2:]],
            "left out": [*records[:2], *records[3:]],
        }[change]
        _instead(monkeypatch, again, changed)
        with pytest.raises(CorruptRecordError, match=named):
            await again.read_run("p", "run")

    async def test_a_missing_end_is_reported(
        self, store: RunStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a run's state says that more was recorded, its readers and the list of runs say so."""
        require(store, ENDS)
        events = sample_run()
        lease = await store.acquire("p", "run")
        for event in events:
            await store.append("p", "run", [event], token=lease.token)
        await store.release(lease)
        again = self._again(store)
        before = list(again.problems)
        assert plain(await again.read_run("p", "run")) == plain(events)
        assert again.problems == before
        assert isinstance(again, RecordStoreBackend), "only a store of records notices that some are missing"
        # The list of runs takes its own way to the same.
        assert await RecordStoreBackend._rows(again, "p", ["run", "none"]) == await again._rows("p", ["run"])
        records = await _records(again, "run")
        _instead(monkeypatch, again, records[:-2])
        message = f"{len(events)} records were recorded, and {len(events) - 2} are there"
        read = await again.read_run("p", "run")
        assert plain(read[:-1]) == plain(events[:-2])
        assert isinstance(read[-1], Warned)
        assert message in read[-1].message
        assert again.problems == [*before, read[-1].message]
        (info,) = await again.runs("p")
        assert (info.status, info.problem) == ("interrupted", read[-1].message)
        _instead(monkeypatch, again, [])
        for call in (again.read_run("p", "run"), again.append("p", "run", events)):
            with pytest.raises(CorruptRecordError, match=f"state lost: {len(events)} records"):
                await call
        (info,) = await again.runs("p")
        assert info.status == "damaged"

    async def test_a_run_carried_on_is_one_chain(self, store: RunStorage) -> None:
        """Also by other processes, with a lease or without, and by tasks that record at once."""
        before = list(store.problems)
        for _ in range(2):
            again = self._again(store)
            lease = await again.acquire("p", "r")
            batch = [Warned(run_id="r", message=str(n)) for n in range(5)]
            await asyncio.gather(*(again.append("p", "r", [event], token=lease.token) for event in batch))
            await again.append("p", "r", batch)
            await again.release(lease)
            await store.append("p", "r", batch)
        read = await self._again(store).read_run("p", "r")
        assert len(read) == 30
        assert store.problems == before

    # -- deleting ---------------------------------------------------------------------------

    async def test_deleting_a_run_leaves_the_others(self, store: RunStorage) -> None:
        """One run goes; its id can be used again and starts empty."""
        for name in ("r1", "r2"):
            await store.append("p", name, sample_run(name))
        await store.delete_run("p", "r1")
        assert [info.run_id for info in await self._again(store).runs("p")] == ["r2"]
        with pytest.raises(NotStoredError):
            await store.read_run("p", "r1")
        event = Warned(run_id="r1", message="new")
        await store.append("p", "r1", [event])
        assert plain(await store.read_run("p", "r1")) == plain([event])

    async def test_deleting_a_pipeline_leaves_the_others(self, store: RunStorage) -> None:
        """Runs, memories and saved data go; those of other pipelines stay."""
        for name in ("p", "q"):
            await store.append(name, "r", sample_run("r"))
            await store.save(name, {"x": 1})
            await store.save_memories(name, {"y": 2})
        await store.delete("p")
        again = self._again(store)
        assert await again.list_pipelines() == ["q"]
        assert await again.runs("p") == []
        assert await again.memories("p") == {}
        assert await again.load("q") == {"x": 1}
        assert plain(await again.read_run("q", "r")) == plain(sample_run("r"))

    async def test_an_active_run_is_not_deleted(self, store: RunStorage) -> None:
        """Neither the run nor its pipeline goes while a process carries it on."""
        lease = await store.acquire("p", "r")
        await store.append("p", "r", sample_run("r"), token=lease.token)
        again = self._again(store)
        for call in (again.delete_run("p", "r"), again.delete("p")):
            with pytest.raises(StorageError, match=str(lease.pid)):
                await call
        assert plain(await again.read_run("p", "r")) == plain(sample_run("r"))
        await store.release(lease)
        await again.delete("p")
        assert await store.list_pipelines() == []


async def _records(store: RecordStoreBackend, run_id: str) -> list[bytes]:
    """The records of a run of pipeline ``p`` as they are stored."""
    data, records, place = await store._read("p", run_id) or b"", [], 0
    while place < len(data):
        _, end = read_record(data, place, run_id, None)
        records.append(data[place:end])
        place = end
    return records


def _instead(monkeypatch: pytest.MonkeyPatch, store: RecordStoreBackend, records: list[bytes]) -> None:
    """Let a backend find other records than those that it has stored."""

    async def read(*args: object) -> bytes | None:
        return b"".join(records) or None

    async def tail(*args: object) -> bytes:
        return b"".join(records[-1:])

    monkeypatch.setattr(store, "_read", read)
    monkeypatch.setattr(store, "_tail", tail)
    # A list of runs may take another way to what is stored.
    monkeypatch.setattr(store, "_rows", partial(RecordStoreBackend._rows, store))
    monkeypatch.setattr(store, "_stored", partial(RecordStoreBackend._stored, store))
