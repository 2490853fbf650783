"""Retention: what may go goes, oldest first; what is active or the newest good one stays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagent_nb.errors import DefinitionError, NotStoredError, StorageUnavailableError
from tagent_nb.events import (
    ApprovalGiven,
    ApprovalRequested,
    Event,
    RunFinished,
    RunStarted,
    StepFailed,
    StepFinished,
    Warned,
)
from tagent_nb.serde import StoredValue
from tagent_nb.storage import (
    FileStorageBackend,
    MemoryStorageBackend,
    RecordStoreBackend,
    RunInfo,
    SQLiteStorageBackend,
    StorageBackend,
    run_storage,
)
from tagent_nb.storage import prune as retention
from tagent_nb.storage.policy import Retention
from tagent_nb.testing.leases import ELSEWHERE
from tagent_nb.testing.samples import holder
from tests.storage_kinds import KINDS, damage, make_store, record


@pytest.fixture(params=["memory", *KINDS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageBackend]:
    """An empty store of each kind."""
    if request.param == "memory":
        yield MemoryStorageBackend()
    else:
        yield from make_store(request.param, tmp_path)


async def run(store: StorageBackend, name: str, at: float, outcome: str = "completed") -> None:
    """A run that began at ``at``."""
    await store.append("p", name, [RunStarted(run_id=name, at=at, pipeline="p", steps=())])
    if outcome != "interrupted":
        ended = RunFinished(
            run_id=name, at=at + 1, success=outcome == "completed", cancelled=outcome == "cancelled"
        )
        await store.append("p", name, [ended])


async def left(store: StorageBackend) -> list[str]:
    """The runs that are still there."""
    return [info.run_id for info in await store.runs("p")]


async def test_the_last_ones_stay(store: StorageBackend) -> None:
    """With all they hold; what went is returned."""
    for n in range(6):
        await run(store, f"r{n}", at=100.0 + n)
    gone = await store.prune("p", keep_last=2)
    assert [info.run_id for info in gone] == ["r0", "r1", "r2", "r3"]
    assert await left(store) == ["r4", "r5"]
    assert len(await store.read_run("p", "r5")) == 2
    assert await store.prune("p", keep_last=2) == []


async def test_the_newest_good_one_stays(store: StorageBackend) -> None:
    """However old it is, and however many have failed since."""
    for n, outcome in enumerate(["completed", "completed", "failed", "cancelled", "interrupted", "failed"]):
        await run(store, f"r{n}", at=100.0 + n, outcome=outcome)
    await store.prune("p", keep_last=1, older_than=0, max_bytes=0)
    assert await left(store) == ["r1"]


async def test_an_active_run_stays(store: StorageBackend) -> None:
    """Also if it is the oldest."""
    await run(store, "r0", at=100.0, outcome="interrupted")
    lease = await store.acquire("p", "r0")
    for n in range(1, 4):
        await run(store, f"r{n}", at=100.0 + n)
    await store.prune("p", keep_last=0)
    assert await left(store) == ["r0", "r3"]
    await store.append("p", "r0", [Warned(run_id="r0", message="on")], token=lease.token)
    assert len(await store.read_run("p", "r0")) == 2


async def test_old_ones_go(store: StorageBackend) -> None:
    """By the time since they ended."""
    now = time.time()
    for name, age in (("old", 90_000.0), ("younger", 80_000.0), ("new", 100.0)):
        await run(store, name, at=now - age)
    await store.prune("p", older_than=timedelta(days=1))
    assert await left(store) == ["younger", "new"]
    await store.prune("p", older_than="1h")
    assert await left(store) == ["new"]


async def test_runs_go_until_they_fit(tmp_path: Path) -> None:
    """The oldest first, until the rest takes no more than it may."""
    for store in make_store("file", tmp_path):
        for n in range(5):
            await run(store, f"r{n}", at=100.0 + n)
        sizes = [info.size for info in await store.runs("p")]
        await store.prune("p", max_bytes=sum(sizes[3:]))
        assert await left(store) == ["r3", "r4"]
        await store.prune("p", max_bytes="1KB")
        assert await left(store) == ["r4"]


async def test_a_run_that_ends_prunes_by_the_rules(store: StorageBackend) -> None:
    """Without rules nothing goes."""
    for n in range(4):
        await run(store, f"r{n}", at=100.0 + n)
    lease = await store.acquire("p", "r3")
    await store.release(lease)
    assert len(await left(store)) == 4
    store.retention = Retention(keep_last=2)
    lease = await store.acquire("p", "r3")
    await store.release(lease)
    assert await left(store) == ["r2", "r3"]
    assert store.problems == []


async def test_trouble_with_pruning_does_not_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported."""
    store = MemoryStorageBackend()
    store.retention = Retention(keep_last=0)
    lease = await store.acquire("p", "r")
    await run(store, "r", at=1.0)

    async def refuse(pipeline_id: str, count: int) -> list[str]:
        raise StorageUnavailableError("no")

    monkeypatch.setattr(store, "_newest", refuse)
    await store.release(lease)
    assert store.problems == ["After run r: no"]


async def test_pruning_takes_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not reach goes the next time."""
    store = MemoryStorageBackend()
    for n in range(5):
        await run(store, f"r{n}", at=100.0 + n, outcome="failed")
    assert await store.prune("p", keep_last=0, limit=-1.0) == []
    clock = iter([0.0, 1.0, 2.0, 6.0])
    monkeypatch.setattr(retention, "time", SimpleNamespace(time=time.time, monotonic=lambda: next(clock)))
    assert len(await store.prune("p", keep_last=0, limit=5.0)) == 2


async def test_a_list_that_takes_for_ever_does_not_hold_up_the_end_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is given up and reported, with what to do."""
    store = MemoryStorageBackend()
    store.retention = Retention(keep_last=1)
    lease = await store.acquire("p", "r")
    await run(store, "r", at=1.0)

    async def never(pipeline_id: str, count: int) -> list[str]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(store, "_newest", never)
    monkeypatch.setattr(run_storage, "LIMIT", 0.01)
    await store.release(lease)
    assert len(store.problems) == 1
    assert "prune('p', ...)" in store.problems[0]


async def test_what_others_do_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may be gone, or be carried on, by the time it is to be deleted; the others still go."""
    store = MemoryStorageBackend()
    for n in range(4):
        await run(store, f"r{n}", at=100.0 + n, outcome="failed")
    real = store._remove_run

    async def remove(pipeline_id: str, run_id: str, token: int) -> bool:
        if run_id == "r0":
            raise NotStoredError("gone")
        if run_id == "r1":
            raise StorageUnavailableError("busy")
        return await real(pipeline_id, run_id, token)

    monkeypatch.setattr(store, "_remove_run", remove)
    assert [info.run_id for info in await store.prune("p", keep_last=0)] == ["r2", "r3"]
    assert store.problems == ["busy"]


@pytest.mark.parametrize(
    "rules",
    [
        {}, {"keep_last": -1}, {"keep_last": 1.5}, {"keep_last": True}, {"max_bytes": "1 GT"},
        {"older_than": -1.0}, {"older_than": float("inf")}, {"older_than": float("nan")},
        {"older_than": True}, {"older_than": "a day"}, {"older_than": timedelta(days=-1)},
    ],
    ids=str,
)  # fmt: skip
async def test_rules_are_checked(rules: dict[str, Any]) -> None:
    """With the name of what is wrong."""
    with pytest.raises(DefinitionError, match=next(iter(rules), "keep_last")):
        await MemoryStorageBackend().prune("p", **rules)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["completed", "failed", "cancelled", "interrupted", "running", "damaged"]),
            st.integers(0, 100),
        ),
        max_size=12,
    ),
    st.none() | st.integers(0, 5),
    st.none() | st.floats(0, 20),
    st.integers(0, 300),
)
def test_whatever_the_rules_the_promises_hold(
    drawn: list[tuple[str, int]], keep_last: int | None, older_than: float | None, max_bytes: int
) -> None:
    """Active ones, damaged ones and the newest good one stay; no run goes that no rule names."""
    runs = [
        RunInfo(f"r{n}", "p", status=status, started_at=float(n), size=size)
        for n, (status, size) in enumerate(drawn)
    ]
    gone = Retention(keep_last, older_than, max_bytes).to_delete(runs, now=20.0)
    assert all(run.status != "damaged" for run in gone)
    runs = [run for run in runs if run.status != "damaged"]
    stay = [run for run in runs if run not in gone]
    good = [run for run in runs if run.status == "completed"]
    assert all(run in stay for run in runs if run.status == "running")
    assert good[-1:] == [run for run in good[-1:] if run in stay]
    assert [run for run in runs if run in gone] == gone
    if keep_last is None and older_than is None and sum(run.size for run in runs) <= max_bytes:
        assert gone == []
    free = [run for run in stay if run.status != "running" and run not in good[-1:]]
    assert not free or sum(run.size for run in stay) <= max_bytes
    assert keep_last is None or all(run in runs[max(0, len(runs) - keep_last) :] for run in free)
    assert older_than is None or all(20.0 - run.started_at < older_than for run in free)


@pytest.fixture(params=KINDS)
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RecordStoreBackend]:
    """An empty store of each kind that others can damage."""
    yield from make_store(request.param, tmp_path)


async def test_a_run_that_cannot_be_read_is_never_deleted(durable: RecordStoreBackend) -> None:
    """A backup, a key or a newer version may still open it, however old it seems."""
    await record(durable, "one", "two", run_id="broken")
    await damage(durable, "broken")
    for n in range(3):
        await run(durable, f"r{n}", at=100.0 + n)
    await durable.prune("p", keep_last=1, older_than=timedelta(days=1), max_bytes=0)
    assert sorted(await left(durable)) == ["broken", "r2"]


async def test_the_good_run_that_stays_is_one_that_can_be_read(durable: RecordStoreBackend) -> None:
    """A run whose end looks whole, and whose beginning is damaged, is no reason to delete the others."""
    for n in range(3):
        await run(durable, f"r{n}", at=100.0 + n)
    await record(durable, "one", run_id="r3")
    await run(durable, "r3", at=103.0)
    await damage(durable, "r3")
    assert [info.status for info in await durable.runs("p")][-1] == "completed"
    gone = await durable.prune("p", older_than=0)
    assert [info.run_id for info in gone] == ["r0", "r1"]
    assert await left(durable) == ["r2", "r3"]


async def test_runs_of_which_none_is_good_go_as_the_rules_say(store: StorageBackend) -> None:
    """There is no good one to keep."""
    await run(store, "r0", at=100.0, outcome="failed")
    assert [info.run_id for info in await store.prune("p", keep_last=0)] == ["r0"]


async def test_the_newest_good_run_may_be_deleted_by_another_meanwhile(
    store: StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the one before it stays."""
    for n in range(3):
        await run(store, f"r{n}", at=100.0 + n)
    real = store.read_run

    async def vanishes(pipeline_id: str, run_id: str, *more: Any) -> Any:
        if run_id == "r2":
            raise NotStoredError("gone")
        return await real(pipeline_id, run_id, *more)

    monkeypatch.setattr(store, "read_run", vanishes)
    assert [info.run_id for info in await store.prune("p", keep_last=0)] == ["r0"]


async def test_nothing_goes_if_the_only_good_run_cannot_be_read(durable: RecordStoreBackend) -> None:
    await record(durable, "one", run_id="r0")
    await run(durable, "r0", at=100.0)
    await damage(durable, "r0")
    assert await durable.prune("p", keep_last=0) == []
    assert await left(durable) == ["r0"]


# -- the order of runs -------------------------------------------------------------------------


async def forget_order(storage: RecordStoreBackend) -> None:
    """Leave the runs as a version that kept no order has stored them; SQLite has always numbered them."""
    if isinstance(storage, FileStorageBackend):
        (storage.base_path / "p" / "runs.order").unlink()
    elif not isinstance(storage, SQLiteStorageBackend):
        from tagent_nb.storage import RedisStorageBackend

        assert isinstance(storage, RedisStorageBackend)
        await storage._connection.here().client.delete(storage._name("p", "order"))


async def test_a_store_of_before_is_put_in_order_once(durable: RecordStoreBackend) -> None:
    """By the times at which its runs began; what is begun from then on comes behind them."""
    for n in range(5):
        await run(durable, f"r{n}", at=100.0 + n)
    await forget_order(durable)
    assert await left(durable) == [f"r{n}" for n in range(5)]
    await forget_order(durable)
    await run(durable, "later", at=0.0)
    for _ in range(2):
        assert await durable.newest_run("p") == "later"
        assert await left(durable) == [*(f"r{n}" for n in range(5)), "later"]


async def test_runs_of_an_older_version_beside_newer_ones_find_their_place(
    durable: RecordStoreBackend,
) -> None:
    """Two versions may use one store for a while: behind the last run that began before."""
    for n, at in enumerate((100.0, 200.0, 300.0)):
        await run(durable, f"r{n}", at=at)
    if isinstance(durable, FileStorageBackend):
        order = durable.base_path / "p" / "runs.order"
        # With a line that was torn, and one of a run that is gone.
        order.write_text("gone\nr0\nr2\nto")
    elif isinstance(durable, SQLiteStorageBackend):
        return
    else:
        client = durable._connection.here().client  # type: ignore[attr-defined]
        await client.zrem(durable._name("p", "order"), "r1")  # type: ignore[attr-defined]
    assert await durable.newest_run("p") == "r2"
    assert await left(durable) == ["r0", "r1", "r2"]
    await run(durable, "r3", at=0.0)
    assert await left(durable) == ["r0", "r1", "r2", "r3"]


# -- clocks ------------------------------------------------------------------------------------


DAY = 86_400.0


async def end(store: StorageBackend, name: str, at: float) -> None:
    """A run from its lease to its last record, at a time of its own."""
    lease = await store.acquire("p", name)
    await store.append("p", name, [RunStarted(run_id=name, at=at, pipeline="p", steps=())], token=lease.token)
    await store.append("p", name, [RunFinished(run_id=name, at=at + 1, success=True)], token=lease.token)
    await store.release(lease)


@pytest.mark.parametrize("jump", [-DAY, DAY, -10 * 365 * DAY])
@pytest.mark.parametrize("rules", [{"keep_last": 2}, {"max_bytes": 1}, {"keep_last": 0}, {"older_than": 0.0}])
async def test_no_run_is_pruned_by_its_own_end(
    store: StorageBackend, jump: float, rules: dict[str, Any]
) -> None:
    """Whatever the clock says; and of those before it the oldest go, not those with the oldest times."""
    for n in range(4):
        await end(store, f"r{n}", at=time.time() - 9 + n)
    store.retention = Retention(**rules)
    await end(store, "jumped", at=time.time() + jump)
    runs = await left(store)
    assert runs[-1] == "jumped"
    if rules == {"keep_last": 2}:
        assert runs == ["r3", "jumped"]
    # One that failed is no less the last.
    lease = await store.acquire("p", "failed")
    await run(store, "failed", at=time.time() + 2 * jump, outcome="failed")
    await store.release(lease)
    assert (await left(store))[-1] == "failed"
    assert store.problems == []


async def test_an_older_run_that_is_carried_on_is_not_pruned_by_its_end(store: StorageBackend) -> None:
    """Though it is the oldest by its place."""
    await run(store, "old", at=100.0, outcome="interrupted")
    for n in range(3):
        await end(store, f"r{n}", at=200.0 + n)
    store.retention = Retention(keep_last=1)
    lease = await store.acquire("p", "old")
    await store.append("p", "old", [RunFinished(run_id="old", at=1.0, success=True)], token=lease.token)
    await store.release(lease)
    assert await left(store) == ["old", "r2"]


# -- what waits for an approval ----------------------------------------------------------------


async def waiting(store: StorageBackend, name: str, *after: Event) -> None:
    """A run in which a value waits for a decision, and what happened after that."""
    request = ApprovalRequested(run_id=name, step="a", output=StoredValue.of("held"))
    started = RunStarted(run_id=name, at=1.0, pipeline="p", steps=("a", "b"))
    await store.append("p", name, [started, request])
    if after:
        await store.append("p", name, after)


async def test_a_run_that_waits_for_an_approval_stays(store: StorageBackend) -> None:
    """However it stands otherwise: what it holds was paid for, and a person is asked for it."""
    await waiting(store, "waits", RunFinished(run_id="waits", success=False, waiting=("a",)))
    await waiting(store, "interrupted")
    failed = StepFailed(run_id="failed", step="b", error_type="E", message="")
    await waiting(store, "failed", failed, RunFinished(run_id="failed", success=False, waiting=("a",)))
    await waiting(store, "cancelled", RunFinished(run_id="cancelled", success=False, cancelled=True))
    decision = ApprovalGiven(run_id="decided", step="a", verdict="approved")
    done = StepFinished(run_id="decided", step="a", output=StoredValue.of("held"))
    await waiting(store, "decided", decision, done, RunFinished(run_id="decided", success=False))
    await waiting(store, "settled", done, RunFinished(run_id="settled", success=False))
    await run(store, "new", at=100.0)
    undecided = {info.run_id: info.undecided for info in await store.runs("p")}
    waits = ["waits", "interrupted", "failed", "cancelled"]
    assert undecided == {**dict.fromkeys(waits, 1), "decided": 0, "settled": 0, "new": 0}
    gone = await store.prune("p", keep_last=1, older_than=0, max_bytes=0)
    assert [info.run_id for info in gone] == ["decided", "settled"]
    assert await left(store) == [*waits, "new"]


# -- many runs ---------------------------------------------------------------------------------


@pytest.fixture
def looked(store: StorageBackend, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were looked at."""
    seen: list[str] = []
    real = store._described

    async def described(pipeline_id: str, run_ids: Sequence[str]) -> Any:
        seen.extend(run_ids)
        return await real(pipeline_id, run_ids)

    monkeypatch.setattr(store, "_described", described)
    return seen


async def test_of_many_runs_only_some_are_looked_at(
    store: StorageBackend, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a run costs the same among few and among many; what is to go goes all the same."""
    monkeypatch.setattr(retention, "LOOK", 5)
    for n in range(40):
        await run(store, f"r{n}", at=100.0 + n)
    for rules in ({"keep_last": 40}, {"max_bytes": 10**9}):
        assert await store.prune("p", **rules) == []
    assert looked == []
    store.retention = Retention(keep_last=39)
    await end(store, "r40", at=0.0)
    assert await left(store) == [f"r{n}" for n in range(2, 41)]
    assert len(set(looked)) <= 5 + 39
    looked.clear()
    store.retention = Retention(older_than=1e12)
    await end(store, "r41", at=0.0)
    assert len(looked) == 10
    looked.clear()
    gone = await store.prune("p", keep_last=3)
    assert [info.run_id for info in gone] == [f"r{n}" for n in range(2, 39)]
    assert await left(store) == ["r39", "r40", "r41"]


async def test_old_runs_go_however_many_there_are(
    store: StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part by part from the oldest on; called by hand, also those behind younger ones."""
    monkeypatch.setattr(retention, "LOOK", 3)
    now = time.time()
    for n in range(20):
        await run(store, f"r{n}", at=now - (5.0 if n == 8 else DAY))
    await run(store, "new", at=now)
    store.retention = Retention(older_than=3600.0)
    await end(store, "newer", at=now)
    assert (await left(store))[:2] == ["r8", "r9"]
    await store.prune("p", older_than=3600.0)
    assert await left(store) == ["r8", "new", "newer"]


async def test_bytes_count_however_many_runs_there_are(
    durable: RecordStoreBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go until the others fit."""
    monkeypatch.setattr(retention, "LOOK", 3)
    for n in range(12):
        await run(durable, f"r{n}", at=100.0 + n)
    size = (await durable.runs("p", limit=1))[0].size
    gone = await durable.prune("p", max_bytes=int(4.5 * size))
    assert [info.run_id for info in gone] == [f"r{n}" for n in range(8)]


async def test_who_stops_early_says_so(store: StorageBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """With how many went and how many are left; the next end of a run goes on."""
    for n in range(9):
        await run(store, f"r{n}", at=100.0 + n)
    clock = iter([0.0, 1.0, 2.0, 6.0])
    with monkeypatch.context() as patch:
        patch.setattr(retention, "time", SimpleNamespace(time=time.time, monotonic=lambda: next(clock)))
        patch.setattr(retention, "TOGETHER_BYTES", 0)  # one after the other
        assert len(await store.prune("p", keep_last=1, limit=5.0)) == 2
    (problem,) = store.problems
    assert "stopped after 5 s: 2 runs were deleted, and about 6 more may go" in problem
    assert len(await store.prune("p", keep_last=1)) == 6
    assert await left(store) == ["r8"]


async def test_what_changes_hands_between_a_look_and_the_deletion_stays(
    store: StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process carries the run on, or has done so and ended it."""
    for n in range(4):
        await run(store, f"r{n}", at=100.0 + n, outcome="failed")
    real = store._described

    async def described(pipeline_id: str, run_ids: Sequence[str]) -> Any:
        rows = await real(pipeline_id, run_ids)
        await store.acquire("p", "r1")
        await store.release(await store.acquire("p", "r2"))
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(store, "_described", described)
        gone = await store.prune("p", keep_last=0)
    assert [info.run_id for info in gone] == ["r0", "r3"]
    assert await left(store) == ["r1", "r2"]


async def test_a_run_that_a_process_elsewhere_left_goes_after_it_was_watched(store: StorageBackend) -> None:
    """The end of a run does not wait for that; called by hand, it takes the time that it takes."""
    await run(store, "r0", at=100.0, outcome="interrupted")
    await run(store, "r1", at=101.0)
    await run(store, "r2", at=102.0, outcome="failed")
    future = await store._now() + DAY
    elsewhere = holder(7, **ELSEWHERE, beat=future, ttl=0.3)
    assert await store._swap_lease("p", "r0", 0, 1, elsewhere)
    assert await store.prune("p", keep_last=2, limit=60.0) == []
    assert [info.run_id for info in await store.prune("p", keep_last=2)] == ["r0"]
    assert store.problems == []


async def test_a_run_that_was_watched_may_be_deleted_by_another_meanwhile(
    store: StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as that one's, and is no problem."""
    await run(store, "r0", at=100.0, outcome="interrupted")
    await run(store, "r1", at=101.0)
    future = await store._now() + DAY
    assert await store._swap_lease("p", "r0", 0, 1, holder(7, **ELSEWHERE, beat=future, ttl=0.01))
    delete = store.delete_run

    async def deleted_twice(pipeline_id: str, run_id: str) -> None:
        await delete(pipeline_id, run_id)
        await delete(pipeline_id, run_id)

    monkeypatch.setattr(store, "delete_run", deleted_twice)
    assert await store.prune("p", keep_last=1) == []
    assert await left(store) == ["r1"]
    assert store.problems == []


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_sqlite_removes_many_runs_in_one_transaction(
    store: SQLiteStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that are still unclaimed then: compared and removed in one, so that nothing falls between. If it
    fails, the next pruning removes them."""
    for n in range(8):
        await run(store, f"r{n}", at=100.0 + n, outcome="failed")
    real, batches = store._remove_unclaimed_runs, list[list[str]]()

    async def remove(pipeline_id: str, tokens: Mapping[str, int]) -> list[str]:
        batches.append(list(tokens))
        if len(batches) == 1:
            await store.acquire("p", "r1")
        with monkeypatch.context() as patch:
            patch.setattr(store._file, "write", once(store._file.write, fails=len(batches) == 2))
            return await real(pipeline_id, tokens)

    def once(write: Any, *, fails: bool) -> Any:
        calls = []

        async def call(function: Any) -> Any:
            calls.append(function)
            assert len(calls) == 1
            if fails:
                raise StorageUnavailableError("busy")
            return await write(function)

        return call

    monkeypatch.setattr(store, "_removed_at_once", 4)
    monkeypatch.setattr(store, "_remove_unclaimed_runs", remove)
    gone = await store.prune("p", keep_last=1)
    assert batches == [["r0", "r1", "r2", "r3"], ["r4", "r5", "r6"]]
    assert [info.run_id for info in gone] == ["r0", "r2", "r3"]
    assert store.problems == ["busy"]
    await store.prune("p", keep_last=1, limit=60.0)
    assert await left(store) == ["r1", "r7"]
