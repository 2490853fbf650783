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
from tagent_nb.pipeline.codec import StoredValue
from tagent_nb.pipeline.names import storage_id
from tagent_nb.storage.base import StorageBackend
from tagent_nb.storage.codec import read_record
from tagent_nb.storage.recording import RecordingBackend
from tagent_nb.testing.backups import BackupContract
from tagent_nb.testing.leases import LeaseContract
from tagent_nb.testing.samples import plain, sample_run

UNSAFE_IDS: tuple[Any, ...] = (
    "../../x", "/etc/passwd", "a/b", "a\\b", "a\0b", ".", "..", "", " ", "x" * 65, "é" * 200, "nul.json",
    "a:b", "a ", "a.", "a\u202eb", "\uff41", "e\u0301", "~", "%2e%2e", "*", "a\nb", "\ud800",
    "a'; DROP TABLE runs; --", "[a-z]", "{a}", 7, None, b"a",
)  # fmt: skip
"""Ids that never reach a path, a query or a key."""

SIMILAR_IDS = ("a", "A", "aa", "aA", "-rf", "CON", "con", "nul", "__proto__", "_", "-", "x" * 64, "X" * 64)
"""Ids that are allowed and must stay apart, also where file names know no case."""


@pytest.mark.asyncio
class StorageContract(LeaseContract, BackupContract):
    """The promises of every storage backend, one test each."""

    @pytest.fixture
    def storage(self) -> StorageBackend:
        """The backend under test, empty."""
        raise pytest.UsageError(f"{type(self).__name__} needs a fixture named 'storage'.")

    # -- documents --------------------------------------------------------------------------

    async def test_what_was_saved_last_is_loaded(self, storage: StorageBackend) -> None:
        """Values of every storable kind come back equal; saving replaces."""
        data = {
            "n": 1,
            "t": (1, 2),
            "b": b"\x00\xff",
            "d": datetime(2026, 1, 2, tzinfo=UTC),
            "text": "zwölf \n ☃",
        }
        await storage.save("p", {"old": True})
        await storage.save("p", data)
        assert await self.another(storage).load("p") == data

    async def test_an_unstorable_value_names_its_path_and_changes_nothing(
        self, storage: StorageBackend
    ) -> None:
        """A function cannot be saved, and what was saved before is still there."""
        await storage.save("p", {"good": 1})
        with pytest.raises(EncodeError, match="fn"):
            await storage.save("p", {"list": [{"fn": len}]})
        assert await storage.load("p") == {"good": 1}

    async def test_absent_is_not_empty(self, storage: StorageBackend) -> None:
        """What was never stored is an error that says so, not an empty result."""
        with pytest.raises(NotStoredError, match="'p'"):
            await storage.load("p")
        with pytest.raises(NotStoredError, match="'r'"):
            await storage.read_run("p", "r")
        with pytest.raises(NotStoredError, match="'r'"):
            await storage.delete_run("p", "r")
        with pytest.raises(NotStoredError, match="'p'"):
            await storage.delete("p")
        assert await storage.runs("p") == []
        assert await storage.memories("p") == {}
        assert await storage.list_pipelines() == []

    async def test_memories_are_kept_apart_from_what_was_saved(self, storage: StorageBackend) -> None:
        """Memories survive, are replaced as a whole, and do not mix with ``save``."""
        await storage.save_memories("p", {"a": 1, "b": [2]})
        await storage.save("p", {"c": 3})
        await storage.save_memories("p", {"b": [2, 3]})
        assert await self.another(storage).memories("p") == {"b": [2, 3]}
        assert await self.another(storage).load("p") == {"c": 3}

    # -- names ------------------------------------------------------------------------------

    @pytest.mark.parametrize("bad", UNSAFE_IDS, ids=lambda bad: ascii(bad)[:20])
    async def test_unsafe_ids_are_refused(self, storage: StorageBackend, bad: Any) -> None:
        """No method lets such an id through, and nothing is stored under it."""
        event = Warned(run_id="r", message="x")
        calls = [
            storage.save(bad, {}), storage.load(bad), storage.delete(bad), storage.memories(bad),
            storage.save_memories(bad, {}), storage.runs(bad), storage.append(bad, "r", [event]),
            storage.append("p", bad, [event]), storage.read_run(bad, "r"), storage.read_run("p", bad),
            storage.delete_run(bad, "r"), storage.delete_run("p", bad), storage.acquire(bad, "r"),
            storage.acquire("p", bad),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(DefinitionError, match="not allowed"):
                await call
        assert await storage.list_pipelines() == []

    async def test_runs_are_found_by_the_name_of_their_pipeline(self, storage: StorageBackend) -> None:
        """An id has a hash of the name at its end; who has the name at hand need not know it."""
        for number, run in enumerate(("one", "two")):
            await storage.append(storage_id("reviews"), run, sample_run(run, at=float(number)))
        assert [info.run_id for info in await storage.runs("reviews")] == ["one", "two"]
        assert [info.run_id for info in await storage.prune("reviews", keep_last=1)] == ["one"]
        await storage.delete_run("reviews", "two")
        assert await storage.runs("reviews") == []
        await storage.append("reviews", "three", sample_run("three"))
        assert [info.run_id for info in await storage.runs("reviews")] == ["three"]

    async def test_similar_ids_stay_apart(self, storage: StorageBackend) -> None:
        """Ids that differ only in case, or look like devices or options, are different pipelines and runs."""
        for name in SIMILAR_IDS:
            await storage.save(name, {"name": name})
            await storage.append("p", name, [Warned(run_id=name, message=name)])
        again = self.another(storage)
        assert await again.list_pipelines() == sorted([*SIMILAR_IDS, "p"])
        assert sorted(info.run_id for info in await again.runs("p")) == sorted(SIMILAR_IDS)
        for name in SIMILAR_IDS:
            assert await again.load(name) == {"name": name}
            assert plain(await again.read_run("p", name))[0]["message"] == name

    # -- runs -------------------------------------------------------------------------------

    async def test_events_come_back_in_order(self, storage: StorageBackend) -> None:
        """Every kind of event that storage keeps comes back equal, in the order of recording."""
        events = sample_run()
        await storage.append("p", "run", events[:3])
        for event in events[3:]:
            await storage.append("p", "run", [event])
        found = await self.another(storage).read_run("p", "run")
        assert plain(found) == plain(events)
        outputs = [event.output.value for event in found if isinstance(event, StepFinished | StepCached)]
        assert outputs == [
            event.output.value for event in events if isinstance(event, StepFinished | StepCached)
        ]

    async def test_passing_events_are_not_kept(self, storage: StorageBackend) -> None:
        """Streamed text and starts are for the living; a run is not made of them."""
        passing = [StepStarted(run_id="r", step="a"), StepStreamed(run_id="r", step="a", text="x")]
        await storage.append("p", "r", passing)
        await storage.append("p", "r", [])
        assert await storage.runs("p") == []
        assert await storage.list_pipelines() == []
        kept = Warned(run_id="r", message="kept")
        await storage.append("p", "r", [passing[0], kept, passing[1]])
        assert plain(await storage.read_run("p", "r")) == plain([kept])

    async def test_a_value_that_cannot_be_stored_does_not_stop_the_run(self, storage: StorageBackend) -> None:
        """An output such as a lambda is recorded as a problem; a durable backend gives ``None`` back."""
        await storage.append("p", "r", [StepFinished(run_id="r", step="a", output=StoredValue.of(len))])
        (event,) = await self.another(storage).read_run("p", "r")
        assert isinstance(event, StepFinished)
        assert not event.output.storable
        if storage.durable:
            assert event.output.value is None

    async def test_a_batch_is_recorded_whole_or_not_at_all(self, storage: StorageBackend) -> None:
        """If one event of a batch cannot be stored, none of the batch is; in memory, everything can be."""
        first, last = (Warned(run_id="r", message=text) for text in ("first", "last"))
        batch = [first, MemorySaved(run_id="r", step="a", key="k", value=len)]
        await storage.append("p", "r", [first])
        if storage.durable:
            with pytest.raises(EncodeError):
                await storage.append("p", "r", batch)
            batch = []
        await storage.append("p", "r", [*batch, last])
        found = await self.another(storage).read_run("p", "r")
        assert [type(event) for event in found] == [type(event) for event in [first, *batch, last]]

    async def test_the_list_of_runs_tells_how_each_stands(self, storage: StorageBackend) -> None:
        """Status, steps, cost and times as recorded, without a look at any value."""
        for at, outcome in ((100.0, "completed"), (200.0, "cancelled"), (300.0, "failed")):
            events = sample_run(outcome, at=at)[:-1]
            await storage.append("p", outcome, events)
            ended = RunFinished(
                run_id=outcome, at=at + 9, success=outcome == "completed", cancelled=outcome == "cancelled"
            )
            await storage.append("p", outcome, [ended])
        await storage.append("p", "stopped", sample_run("stopped", at=400.0)[:10])
        runs = await self.another(storage).runs("p")
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
        assert (first.size > 0) is storage.durable

    async def test_the_order_of_runs_is_that_of_their_beginnings(self, storage: StorageBackend) -> None:
        """Not that of their times: a clock may be set back by a day, or by years, and forth again."""
        assert await storage.newest_run("p") is None
        names = ["z", "a", "m", "b", "y"]
        for name, at in zip(names, (9e5, 100.0, 8e5, 9e9, 0.0), strict=True):
            await storage.append("p", name, sample_run(name, at=at))
        # One that is carried on keeps its place.
        lease = await storage.acquire("p", "a")
        await storage.append("p", "a", [Warned(run_id="a", message="on")], token=lease.token)
        await storage.release(lease)
        again = self.another(storage)
        assert [info.run_id for info in await again.runs("p")] == names
        for limit in range(1, 7):
            assert [info.run_id for info in await again.runs("p", limit=limit)] == names[-limit:]
        assert (await again.newest_run("p"), await again.newest_run("p", besides="y")) == ("y", "b")
        assert await again.newest_run("p", besides="a") == "y"
        for name in ("y", "m"):
            await storage.delete_run("p", name)
        assert [info.run_id for info in await again.runs("p")] == ["z", "a", "b"]
        assert (await again.newest_run("p"), await again.newest_run("p", besides="b")) == ("b", "a")
        await storage.append("p", "m", sample_run("m", at=0.0))
        assert [info.run_id for info in await again.runs("p", limit=2)] == ["b", "m"]

    @pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
    async def test_a_limit_is_a_whole_number(self, storage: StorageBackend, limit: Any) -> None:
        """Of at least 1."""
        with pytest.raises(DefinitionError, match="limit"):
            await storage.runs("p", limit=limit)

    async def test_whether_a_run_is_stored(self, storage: StorageBackend) -> None:
        """By the id or the name of its pipeline; a lease alone is no run."""
        await storage.acquire("p", "leased")
        await storage.append(storage_id("named"), "r", sample_run("r"))
        assert await storage.has_run(storage_id("named"), "r")
        assert await storage.has_run("named", "r")
        assert await storage.newest_run("named") == "r"
        for pipeline_id, run_id in (("named", "leased"), ("p", "leased"), ("p", "r"), ("none", "r")):
            assert not await storage.has_run(pipeline_id, run_id)

    async def test_a_finished_run_can_be_carried_on(self, storage: StorageBackend) -> None:
        """After more events the list shows how the run stands now, counted over all of it."""
        events = sample_run()
        await storage.append("p", "run", events[:11])
        await storage.append("p", "run", [RunFinished(run_id="run", at=1002.0, success=False)])
        again = self.another(storage)
        lease = await again.acquire("p", "run")
        await again.append("p", "run", events[-4:-1], token=lease.token)
        (info,) = await again.runs("p")
        assert (info.status, info.steps_done, info.ended_at) == ("running", 4, None)
        await again.append("p", "run", [events[-1]], token=lease.token)
        await again.release(lease)
        (info,) = await storage.runs("p")
        assert (info.status, info.steps_done, info.started_at) == ("completed", 4, 1000.0)

    async def test_tasks_record_at_once(self, storage: StorageBackend) -> None:
        """Two hundred tasks that record at the same time lose nothing."""
        lease = await storage.acquire("p", "r")
        events = [StepFinished(run_id="r", step=f"s{n}", output=StoredValue.of(n)) for n in range(200)]
        await asyncio.gather(*(storage.append("p", "r", [event], token=lease.token) for event in events))
        found = await self.another(storage).read_run("p", "r")
        assert sorted(event.output.value for event in found if isinstance(event, StepFinished)) == list(
            range(200)
        )

    async def test_other_threads_and_loops_may_use_it(self, storage: StorageBackend) -> None:
        """Four threads with a loop of their own record into one store through the same object."""

        async def record(name: str) -> None:
            lease = await storage.acquire("p", name)
            for event in sample_run(name):
                await storage.append("p", name, [event], token=lease.token)
            await storage.release(lease)

        names = [f"r{n}" for n in range(4)]
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, record(name)) for name in names))
        for name in names:
            assert plain(await storage.read_run("p", name)) == plain(sample_run(name))

    async def test_it_can_be_used_after_close(self, storage: StorageBackend) -> None:
        """``close`` gives back files and connections; nothing stored is lost by it."""
        events = sample_run()
        await storage.append("p", "run", events[:5])
        await storage.close()
        await storage.append("p", "run", events[5:])
        await storage.close()
        assert plain(await storage.read_run("p", "run")) == plain(events)

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
        self, storage: StorageBackend, monkeypatch: pytest.MonkeyPatch, change: str, named: str
    ) -> None:
        """Swapped, doubled or left out, whoever reads the run gets an error that names the record."""
        events = sample_run()
        for event in events:
            await storage.append("p", "run", [event])
        again = self.another(storage)
        if not isinstance(again, RecordingBackend):
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

    async def test_a_missing_end_is_told(
        self, storage: StorageBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a run's state says that more was recorded, its readers and the list of runs say so."""
        events = sample_run()
        lease = await storage.acquire("p", "run")
        for event in events:
            await storage.append("p", "run", [event], token=lease.token)
        await storage.release(lease)
        again = self.another(storage)
        assert plain(await again.read_run("p", "run")) == plain(events)
        assert again.problems == []
        if not isinstance(again, RecordingBackend):
            return
        # The list of runs takes its own way to the same.
        assert await RecordingBackend._rows(again, "p", ["run", "none"]) == await again._rows("p", ["run"])
        records = await _records(again, "run")
        _instead(monkeypatch, again, records[:-2])
        message = f"{len(events)} records were recorded, and {len(events) - 2} are there"
        found = await again.read_run("p", "run")
        assert plain(found[:-1]) == plain(events[:-2])
        assert isinstance(found[-1], Warned)
        assert message in found[-1].message
        assert again.problems == [found[-1].message]
        (info,) = await again.runs("p")
        assert (info.status, info.problem) == ("interrupted", found[-1].message)
        _instead(monkeypatch, again, [])
        for call in (again.read_run("p", "run"), again.append("p", "run", events)):
            with pytest.raises(CorruptRecordError, match=f"state lost: {len(events)} records"):
                await call
        (info,) = await again.runs("p")
        assert info.status == "damaged"

    async def test_a_run_carried_on_is_one_chain(self, storage: StorageBackend) -> None:
        """Also by other processes, with a lease or without, and by tasks that record at once."""
        for _ in range(2):
            again = self.another(storage)
            lease = await again.acquire("p", "r")
            batch = [Warned(run_id="r", message=str(n)) for n in range(5)]
            await asyncio.gather(*(again.append("p", "r", [event], token=lease.token) for event in batch))
            await again.append("p", "r", batch)
            await again.release(lease)
            await storage.append("p", "r", batch)
        found = await self.another(storage).read_run("p", "r")
        assert len(found) == 30
        assert storage.problems == []

    # -- deleting ---------------------------------------------------------------------------

    async def test_deleting_a_run_leaves_the_others(self, storage: StorageBackend) -> None:
        """One run goes; its id can be used again and starts empty."""
        for name in ("r1", "r2"):
            await storage.append("p", name, sample_run(name))
        await storage.delete_run("p", "r1")
        assert [info.run_id for info in await self.another(storage).runs("p")] == ["r2"]
        with pytest.raises(NotStoredError):
            await storage.read_run("p", "r1")
        event = Warned(run_id="r1", message="new")
        await storage.append("p", "r1", [event])
        assert plain(await storage.read_run("p", "r1")) == plain([event])

    async def test_deleting_a_pipeline_leaves_the_others(self, storage: StorageBackend) -> None:
        """Runs, memories and saved data go; those of other pipelines stay."""
        for name in ("p", "q"):
            await storage.append(name, "r", sample_run("r"))
            await storage.save(name, {"x": 1})
            await storage.save_memories(name, {"y": 2})
        await storage.delete("p")
        again = self.another(storage)
        assert await again.list_pipelines() == ["q"]
        assert await again.runs("p") == []
        assert await again.memories("p") == {}
        assert await again.load("q") == {"x": 1}
        assert plain(await again.read_run("q", "r")) == plain(sample_run("r"))

    async def test_an_active_run_is_not_deleted(self, storage: StorageBackend) -> None:
        """Neither the run nor its pipeline goes while somebody carries it on."""
        lease = await storage.acquire("p", "r")
        await storage.append("p", "r", sample_run("r"), token=lease.token)
        again = self.another(storage)
        for call in (again.delete_run("p", "r"), again.delete("p")):
            with pytest.raises(StorageError, match=str(lease.pid)):
                await call
        assert plain(await again.read_run("p", "r")) == plain(sample_run("r"))
        await storage.release(lease)
        await again.delete("p")
        assert await storage.list_pipelines() == []


async def _records(storage: RecordingBackend, run_id: str) -> list[bytes]:
    """The records of a run of pipeline ``p`` as they are stored."""
    data, records, place = await storage._read("p", run_id) or b"", [], 0
    while place < len(data):
        _, end = read_record(data, place, run_id, None)
        records.append(data[place:end])
        place = end
    return records


def _instead(monkeypatch: pytest.MonkeyPatch, storage: RecordingBackend, records: list[bytes]) -> None:
    """Let a backend find other records than those that it has stored."""

    async def read(*args: object) -> bytes | None:
        return b"".join(records) or None

    async def tail(*args: object) -> bytes:
        return b"".join(records[-1:])

    monkeypatch.setattr(storage, "_read", read)
    monkeypatch.setattr(storage, "_tail", tail)
    # A list of runs may take another way to what is stored.
    monkeypatch.setattr(storage, "_rows", partial(RecordingBackend._rows, storage))
