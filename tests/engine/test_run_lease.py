"""Leases around runs: one process records a run, the other is notified; none is kept that is not used."""

from __future__ import annotations

import asyncio
import fcntl
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import FileStorageBackend, MemoryStorageBackend, Pipeline, PipelineExecutor
from tagent_nb.engine.session import lease_held
from tagent_nb.errors import LeaseLostError, NotStoredError, StorageUnavailableError
from tagent_nb.storage import Lease

PID, RUN = "pid", "run-1"


class Stage:
    """A pipeline whose second step waits until it is let go."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage
        self.entered, self.leave = asyncio.Event(), asyncio.Event()
        self.ended: list[str] = []
        self.pipeline = Pipeline("held")

        @self.pipeline.task
        async def first() -> int:
            return 1

        @self.pipeline.task
        async def second(first: int) -> int:
            self.entered.set()
            try:
                await self.leave.wait()
            finally:
                self.ended.append("second")
            return 2

        @self.pipeline.task
        async def third(second: int) -> int:
            self.ended.append("third")
            return 3

    def executor(self) -> PipelineExecutor:
        return PipelineExecutor(self.pipeline, storage=self.storage)


def quick(storage: Any) -> Any:
    """A storage whose leases are renewed every few milliseconds."""
    storage.lease_ttl = 0.03
    return storage


async def take_over(storage: Any, pipeline_id: str, run_id: str) -> None:
    """What another process does once the lease has expired."""
    token, _ = await storage._lease(pipeline_id, run_id)
    assert await storage._swap_lease(pipeline_id, run_id, token, token + 1, b"")


async def test_a_run_taken_over_stops_with_the_reason_and_starts_nothing_further() -> None:
    storage = quick(MemoryStorageBackend())
    stage = Stage(storage)
    executor = stage.executor()
    task = asyncio.ensure_future(executor.execute())
    await stage.entered.wait()
    assert executor.memory is not None
    await take_over(storage, stage.pipeline.id, executor.memory.run_id)
    with pytest.raises(LeaseLostError, match="was taken over"):
        await asyncio.wait_for(task, 10)
    assert stage.ended == ["second"]
    assert not executor.running
    result = executor.result
    assert result is not None
    assert not result.success
    assert {name: step.status.value for name, step in result.steps.items()} == {
        "first": "completed",
        "second": "cancelled",
        "third": "pending",
    }


async def test_after_a_loss_time_no_longer_passes_for_the_run() -> None:
    storage = quick(MemoryStorageBackend())
    stage = Stage(storage)
    executor = stage.executor()
    task = asyncio.ensure_future(executor.execute())
    await stage.entered.wait()
    assert executor.memory is not None
    await take_over(storage, stage.pipeline.id, executor.memory.run_id)
    with pytest.raises(LeaseLostError):
        await task
    assert executor.memory.seconds == executor.memory.seconds
    assert executor.memory.finished is not None


async def test_a_missed_heartbeat_is_made_up_by_the_next() -> None:
    class Flaky(MemoryStorageBackend):
        def __init__(self) -> None:
            super().__init__()
            self.beats = 0
            self.renewed = asyncio.Event()

        async def renew(self, lease: Lease) -> None:
            self.beats += 1
            if self.beats == 1:
                raise StorageUnavailableError("not now")
            await super().renew(lease)
            self.renewed.set()

    storage = quick(Flaky())
    stage = Stage(storage)
    task = asyncio.ensure_future(stage.executor().execute())
    await storage.renewed.wait()
    stage.leave.set()
    assert (await task)["third"] == 3


@pytest.mark.parametrize("durable", [False, True])
async def test_a_run_under_way_cannot_be_resumed_elsewhere(tmp_path: Path, durable: bool) -> None:
    storage = FileStorageBackend(tmp_path) if durable else MemoryStorageBackend()
    stage = Stage(storage)
    task = asyncio.ensure_future(stage.executor().execute())
    await stage.entered.wait()
    with pytest.raises(LeaseLostError, match="is being carried on by process"):
        await stage.executor().execute(resume=True)
    stage.leave.set()
    assert (await task)["third"] == 3
    await storage.close()


async def test_a_lease_half_written_is_not_taken_for_a_free_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen with its new token and without its holder, a run would be taken from who has just taken it."""
    storage = FileStorageBackend(tmp_path)
    await storage.release(await storage.acquire(PID, RUN))
    lease = await storage.acquire(PID, RUN)
    (path,) = tmp_path.glob("*/*.lease")
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        writer.truncate(21)

        def meanwhile(seconds: float) -> None:
            writer.seek(0)
            writer.write(whole)
            fcntl.flock(writer, fcntl.LOCK_UN)

        monkeypatch.setattr("tagent_nb.storage.file.locks.time.sleep", meanwhile)
        with pytest.raises(LeaseLostError, match="is being carried on by process"):
            await storage.acquire(PID, RUN)
    await storage.release(lease)
    await storage.close()


@pytest.mark.parametrize("round_", range(10))
async def test_of_two_that_resume_at_once_one_wins(tmp_path: Path, round_: int) -> None:
    """Each with a storage object of its own, as two kernels have."""
    stage = Stage(FileStorageBackend(tmp_path))
    first = stage.executor()
    task = asyncio.ensure_future(first.execute())
    await stage.entered.wait()
    first.cancel()
    assert (await task).cancelled
    stage.leave.set()
    stage.ended.clear()
    others = [FileStorageBackend(tmp_path) for _ in range(2)]
    rivals = [PipelineExecutor(stage.pipeline, storage=other).execute(resume=True) for other in others]
    outcomes = await asyncio.gather(*rivals, return_exceptions=True)
    lost = [outcome for outcome in outcomes if isinstance(outcome, LeaseLostError)]
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    # If the first is done before the second asks, there is nothing to lose: it finds all recorded.
    assert len(lost) + len(won) == 2
    assert won
    assert stage.ended.count("second") == stage.ended.count("third") == 1
    for one in won:
        assert one["third"] == 3
    for storage in [*others, stage.storage]:
        await storage.close()


async def test_a_run_is_read_only_while_it_is_held() -> None:
    """Read before that, it would lack what its last holder recorded meanwhile, and run it again."""

    class Watching(MemoryStorageBackend):
        async def read_run(self, pipeline_id: str, run_id: str, schemas: Any = None) -> Any:
            held.append((await self._lease(pipeline_id, run_id))[1] != b"")
            return await super().read_run(pipeline_id, run_id, schemas)

    held: list[bool] = []
    stage = Stage(Watching())
    stage.leave.set()
    executor = stage.executor()
    await executor.execute()
    await executor.execute(resume=True)
    assert held == [True]


async def test_resuming_what_is_not_stored_leaves_no_trace(tmp_path: Path) -> None:
    storage = FileStorageBackend(tmp_path)
    stage = Stage(storage)
    with pytest.raises(NotStoredError, match="Run '2026.* is not stored. Stored are: none"):
        await stage.executor().execute(resume="20260101T000000-00000000")
    assert await storage.list_pipelines() == []
    stage.leave.set()
    stored = await stage.executor().execute()
    with pytest.raises(NotStoredError, match=f"Did you mean '{stored.run_id}'"):
        await stage.executor().execute(resume=stored.run_id[:-1] + "x")
    assert [run.run_id for run in await storage.runs(stage.pipeline.id)] == [stored.run_id]
    await storage.close()


async def test_the_lease_is_given_back_whatever_happens() -> None:
    storage = MemoryStorageBackend()

    async def break_off() -> None:
        async with lease_held(storage, PID, RUN, print):
            assert (await storage._lease(PID, RUN))[1]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await break_off()
    assert not (await storage._lease(PID, RUN))[1]


async def test_a_lease_that_cannot_be_given_back_costs_no_one_the_result() -> None:
    class Gone(MemoryStorageBackend):
        async def release(self, lease: Lease) -> None:
            raise StorageUnavailableError("the server is gone")

    stage = Stage(Gone())
    stage.leave.set()
    assert (await stage.executor().execute())["third"] == 3


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_while_taking_the_lease_keeps_nothing(fails: bool) -> None:
    taking, take = asyncio.Event(), asyncio.Event()

    class Slow(MemoryStorageBackend):
        async def acquire(self, pipeline_id: str, run_id: str) -> Lease:
            taking.set()
            await take.wait()
            if fails:
                raise StorageUnavailableError("not now")
            return await super().acquire(pipeline_id, run_id)

    storage = Slow()

    async def hold() -> None:
        async with lease_held(storage, PID, RUN, print):
            raise AssertionError("it was cancelled before")

    task = asyncio.ensure_future(hold())
    await taking.wait()
    task.cancel()
    take.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not (await storage._lease(PID, RUN))[1]
