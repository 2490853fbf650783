"""Keys of a run that another program replaces on the Redis server, and runs that lose all their keys."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tagent_nb import Pipeline, PipelineExecutor, PipelineStep
from tagent_nb.errors import CorruptRecordError, LeaseLostError, StorageError, StorageUnavailableError
from tagent_nb.events import Event, Warned
from tagent_nb.storage import RedisStorageBackend
from tagent_nb.testing.samples import sample_run
from tests.redis_server import RedisServer

pytestmark = pytest.mark.requires("redis-server")

STEPS = 5
KEYS = ["run", "lease", "runs", "order", "pipelines"]
TYPES: dict[str, Callable[[Redis, str], object]] = {
    "string": lambda client, key: client.set(key, "mine"),
    "hash": lambda client, key: client.hset(key, "mine", "1"),
    "list": lambda client, key: client.rpush(key, "mine"),
    "zset": lambda client, key: client.zadd(key, {"mine": 1}),
    "set": lambda client, key: client.sadd(key, "mine"),
}
OF_RECORDS = ["damaged", "cut", "first and last", "added", "repeated"]
WAYS = ["deleted", *TYPES, "same size", "swapped", *OF_RECORDS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server for all tests here, each of which empties it."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "no")
    yield server
    server.kill()


@pytest.fixture
def client(server: RedisServer) -> Iterator[Redis]:
    """What another program on the server uses."""
    client = Redis.from_url(server.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def store(server: RedisServer, client: Redis) -> RedisStorageBackend:
    """An empty store on it."""
    return RedisStorageBackend(server.url, durability="fast", deadline=60.0)


async def record(store: RedisStorageBackend, text: str, run_id: str = "r", token: int | None = None) -> None:
    """A record of one event."""
    await store.append("p", run_id, [Warned(run_id=run_id, message=text)], token=token)


async def read(store: RedisStorageBackend, run_id: str = "r") -> list[str]:
    """What :func:`record` recorded."""
    events: list[Event] = await store.read_run("p", run_id)
    return [event.message for event in events if isinstance(event, Warned)]


def key_of(name: str, pipeline_id: str, run_id: str) -> str:
    """One of the keys that a run needs."""
    if name == "pipelines":
        return "tagent-nb:pipelines"
    of_run = f":{run_id}" if name in ("run", "lease") else ""
    return f"tagent-nb:pipeline:{pipeline_id}:{name}{of_run}"


def replace_list(client: Redis, key: str, way: str) -> None:
    """Change a list of records, so that it is none or another."""
    records: Any = client.lrange(key, 0, -1)
    if way == "same size":
        records = [b"mine"] * len(records)
    elif way == "damaged":
        records[-1] = records[-1].replace(b"tagent-nb", b"tagent-mb")
    elif way == "cut":
        records[-1] = records[-1][:-20]
    elif way == "first and last":
        records[0], records[-1] = records[-1], records[0]
    elif way == "added":
        records.append(b"mine")
    else:
        records.append(records[-1])
    client.delete(key)
    client.rpush(key, *records)


def replace(client: Redis, name: str, way: str, key: str, other: str) -> bool:
    """Change a key as another program might; whether it is another afterwards. ``other``: the same of
    another run."""
    kind: Any = client.type(key)
    if way in OF_RECORDS or (way == "same size" and kind == b"list"):
        before: Any = client.lrange(key, 0, -1) if kind == b"list" else []
        if not before:
            return False
        replace_list(client, key, way)
        return bool(client.lrange(key, 0, -1) != before)
    if way == "same size":
        names: Any = (
            client.hkeys(key) if kind == b"hash" else range(client.zcard(key)) if kind == b"zset" else ()
        )
        client.delete(key)
        if kind == b"hash":
            client.hset(key, mapping=dict.fromkeys(names, "mine"))
        elif kind == b"zset":
            client.zadd(key, {f"mine{number}": number for number in names})
        else:
            client.sadd(key, "mine")
        return True
    if way == "swapped":
        if key == other:
            return False
        client.rename(key, "between")
        client.rename(other, key)
        client.rename("between", other)
        return True
    client.delete(key)
    if way != "deleted":
        TYPES[way](client, key)
    return True


def numbers(pipeline_name: str, act: bool) -> Pipeline:
    """Steps that count; each may do something first."""
    pipeline = Pipeline(pipeline_name)
    for number in range(STEPS):
        body = f"s{number - 1} + 1" if number else "0"
        pipeline.put(PipelineStep.from_cell(f"s{number}", f"act({number})\n{body}", python=True))
    return pipeline


def run_beside_a_stranger(client: Redis, url: str, name: str, way: str, at: int) -> tuple[str, bool]:
    """A run of which a key is replaced before a step's record: what is silently wrong, and whether it was
    replaced at all."""
    client.flushall()
    first = PipelineExecutor(numbers("numbers", False), storage=url, namespace={"act": lambda number: None})
    before = first.run()
    replaced: list[bool] = []

    def act(number: int) -> None:
        if number == at:
            keys = [
                key_of(name, executor.pipeline.id, run) for run in (executor.memory.run_id, before.run_id)
            ]
            replaced.append(replace(client, name, way, *keys))

    executor = PipelineExecutor(numbers("numbers", True), storage=url, namespace={"act": act})
    error: StorageError | None = None
    try:
        result = executor.run()
    except StorageError as problem:
        error = problem
    again = RedisStorageBackend(url, durability="fast")

    async def look() -> str:
        try:
            events = await again.read_run(executor.pipeline.id, executor.memory.run_id)
        except StorageError:
            return "" if error is not None else "the run succeeded and cannot be read"
        finally:
            await again.close()
        done = sum(type(event).__name__ == "StepFinished" for event in events)
        if error is None and (not result.success or done != STEPS):
            return f"{done} steps of a run that succeeded can be read"
        # What the key itself does not hold is still there.
        return "" if done >= (at if name != "run" else 0) else f"only {done} steps can be read"

    wrong = asyncio.run(look())
    if error is not None and not isinstance(
        error, CorruptRecordError | LeaseLostError | StorageUnavailableError
    ):
        wrong = f"{type(error).__name__}: {error}"
    return wrong, bool(replaced and replaced[0])


@pytest.mark.parametrize("at", [0, 2, STEPS - 1])
@pytest.mark.parametrize("way", WAYS)
def test_a_run_whose_records_are_replaced_says_so(
    client: Redis, server: RedisServer, way: str, at: int
) -> None:
    """By what a stranger puts there, by another run, or by its own records in another order: a typed error of
    the run. Records that are gone and still known are recorded again."""
    wrong, replaced = run_beside_a_stranger(client, server.url, "run", way, at)
    # Of one record there is no other order.
    assert replaced or (way, at) == ("first and last", 0)
    assert wrong == ""


@pytest.mark.faults
def test_keys_of_a_run_replaced_at_any_moment(
    client: Redis, server: RedisServer, repetitions: Callable[[int, int], int]
) -> None:
    """Whatever key, in whatever way: the run ends in a typed error, or all of it can be read."""
    count, injected, silent = repetitions(4, 150), 0, 0
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"\nseed {seed}")
    while injected < count:
        name, way, at = chance.choice(KEYS), chance.choice(WAYS), chance.randrange(STEPS)
        wrong, replaced = run_beside_a_stranger(client, server.url, name, way, at)
        injected += replaced
        silent += wrong != ""
        if wrong:
            print(f"{name} {way} before record {at}: {wrong}")
    print(f"keys of a run replaced (redis): {injected} injected, 0 lost, {silent} silent")
    assert silent == 0


# -- what the run's own error says ---------------------------------------------------------------


async def test_records_in_the_place_of_others_are_named(store: RedisStorageBackend, client: Redis) -> None:
    """The number of records and the place of the last are right, and yet it is another."""
    lease = await store.acquire("p", "r")
    for text in ("one", "two"):
        await record(store, text, token=lease.token)
    mine = client.lrange("tagent-nb:pipeline:p:run:r", 0, -1)
    client.flushall()
    await record(RedisStorageBackend(store._connection.url, durability="fast"), "another one")
    await record(RedisStorageBackend(store._connection.url, durability="fast"), "another two")
    client.hset("tagent-nb:pipeline:p:lease:r", "token", lease.token)
    theirs = client.lrange("tagent-nb:pipeline:p:run:r", 0, -1)
    assert theirs != mine
    with pytest.raises(CorruptRecordError, match="another program has put others in the place of its rec"):
        await record(store, "three", token=lease.token)
    assert client.lrange("tagent-nb:pipeline:p:run:r", 0, -1) == theirs


@pytest.mark.parametrize("tail", [b"mine", b"", None])
async def test_a_changed_end_of_a_run_is_put_right(
    store: RedisStorageBackend, client: Redis, tail: bytes | None
) -> None:
    """The records are all there and say so themselves; the change is reported."""
    lease = await store.acquire("p", "r")
    await record(store, "one", token=lease.token)
    if tail is None:
        client.hdel("tagent-nb:pipeline:p:lease:r", "tail")
    else:
        client.hset("tagent-nb:pipeline:p:lease:r", "tail", tail)
    await record(store, "two", token=lease.token)
    assert "what says where the run ends was gone or changed" in store.problems[-1]
    again = RedisStorageBackend(store._connection.url, durability="fast")
    assert await read(again) == ["one", "two"]
    assert again.problems == store.problems[:-1]


async def test_a_list_of_runs_that_cannot_be_put_back_stops_the_run(
    store: RedisStorageBackend, client: Redis
) -> None:
    """The memory of the server is full: an error, not an endless attempt."""
    lease = await store.acquire("p", "r")
    await record(store, "one", token=lease.token)
    client.delete("tagent-nb:pipeline:p:runs")
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(
            StorageUnavailableError, match="was gone and cannot be put back: .* memory is full"
        ):
            await record(store, "two", token=lease.token)
    finally:
        client.config_set("maxmemory", 0)
    await record(store, "two", token=lease.token)
    assert await read(store) == ["one", "two"]


# -- runs that leave nothing ---------------------------------------------------------------------


def lose(client: Redis, *run_ids: str, lists: bool = True) -> None:
    """Take away all keys of some runs, and with ``lists`` those that all runs of the pipeline share."""
    for run_id in run_ids:
        client.delete(key_of("run", "p", run_id), key_of("lease", "p", run_id))
    if lists:
        client.delete(key_of("runs", "p", ""), key_of("order", "p", ""))


async def test_the_newest_run_that_has_lost_all_its_keys_is_listed(
    store: RedisStorageBackend, client: Redis
) -> None:
    """No older run is taken for it; it can be deleted, and then all is well."""
    for number in range(3):
        await store.append("p", f"r{number}", sample_run(f"r{number}", at=float(number)))
    lose(client, "r2")
    again = RedisStorageBackend(store._connection.url, durability="fast")
    assert await again.newest_run("p") == "r2"
    assert [info.status for info in await again.runs("p")] == ["completed", "completed", "damaged"]
    assert any("State lost: of r2 no record is left" in problem for problem in again.problems)
    with pytest.raises(CorruptRecordError, match="state lost"):
        await again.read_run("p", "r2")
    await again.delete_run("p", "r2")
    fresh = RedisStorageBackend(store._connection.url, durability="fast")
    assert [info.run_id for info in await fresh.runs("p")] == ["r0", "r1"]
    assert fresh.problems == []


async def test_all_runs_that_have_lost_all_their_keys(store: RedisStorageBackend, client: Redis) -> None:
    """That there were some is reported, with their number."""
    for number in range(3):
        await record(store, "one", f"r{number}")
    lose(client, "r0", "r1", "r2")
    again = RedisStorageBackend(store._connection.url, durability="fast")
    assert [(info.run_id, info.status) for info in await again.runs("p")] == [("r2", "damaged")]
    assert any(
        "3 runs were begun and not deleted, and of 2 of them nothing" in text for text in again.problems
    )


@pytest.mark.parametrize("then", ["listed", "a new run"])
async def test_an_older_run_that_has_lost_all_its_keys_is_counted(
    store: RedisStorageBackend, client: Redis, then: str
) -> None:
    """Nothing has its name any more, and yet it is reported that it is missing: once."""
    for number in range(4):
        await record(store, "one", f"r{number}")
    await store.delete_run("p", "r0")
    lose(client, "r1")
    again = RedisStorageBackend(store._connection.url, durability="fast")
    expected = ["r2", "r3"]
    if then == "a new run":
        await record(again, "one", "r4")
        expected.append("r4")
    assert sorted(info.run_id for info in await again.runs("p")) == expected
    lost = [problem for problem in again.problems if "State lost" in problem]
    assert len(lost) == 1
    assert "3 runs were begun and not deleted, and of 1 of them nothing is left" in lost[0]
    fresh = RedisStorageBackend(store._connection.url, durability="fast")
    assert len(await fresh.runs("p")) == len(expected)
    assert not any("State lost" in problem for problem in fresh.problems)


async def test_a_store_without_a_count_gets_one(store: RedisStorageBackend, client: Redis) -> None:
    """As older versions left it: nothing is reported of it."""
    for run_id in ("r0", "r1"):
        await record(store, "one", run_id)
        client.hdel(key_of("lease", "p", run_id), "counted")
    client.delete("tagent-nb:last-runs")
    again = RedisStorageBackend(store._connection.url, durability="fast")
    assert await again.newest_run("p") == "r1"
    await again.delete_run("p", "r1")
    assert not client.exists("tagent-nb:last-runs")
    await record(again, "one", "r2")
    assert client.hget("tagent-nb:last-runs", "p") == b"2 r2"
    await again.delete_run("p", "r2")
    assert client.hget("tagent-nb:last-runs", "p") == b"1 r0"
    await again.delete_run("p", "r0")
    assert not client.exists("tagent-nb:last-runs")


@pytest.mark.parametrize("besides", ["", "runs", "order"])
async def test_a_lost_count_is_reported_and_made_again(
    store: RedisStorageBackend, client: Redis, besides: str
) -> None:
    """Once: what is lost after that is reported again."""
    for number in range(3):
        await record(store, "one", f"r{number}")
    lose(client, "r1")
    client.delete("tagent-nb:last-runs", *[key_of(besides, "p", "")] * bool(besides))
    again = RedisStorageBackend(store._connection.url, durability="fast")
    assert await again.newest_run("p") == "r2"
    [lost] = [problem for problem in again.problems if "the count of runs" in problem]
    assert "State lost: runs of which nothing is left were not noticed" in lost
    assert client.hget("tagent-nb:last-runs", "p") == b"2 r2"
    fresh = RedisStorageBackend(store._connection.url, durability="fast")
    assert [info.run_id for info in await fresh.runs("p")] == ["r0", "r2"]
    assert not any("lost" in problem for problem in fresh.problems)


async def test_a_pipeline_of_which_nothing_is_left_is_reported(
    store: RedisStorageBackend, client: Redis
) -> None:
    """As long as it is listed; what was deleted is no loss."""
    await record(store, "one", "r0")
    keys = [key for key in client.keys("tagent-nb:*") if key != b"tagent-nb:pipelines"]
    client.delete(*keys)
    again = RedisStorageBackend(store._connection.url, durability="fast")
    assert await again.runs("p") == []
    [lost] = [problem for problem in again.problems if "state lost" in problem]
    assert "pipeline p: state lost" in lost
    assert "storage.delete('p')" in lost
    await again.delete("p")
    fresh = RedisStorageBackend(store._connection.url, durability="fast")
    assert await fresh.runs("p") == []
    await record(fresh, "one", "r1")
    await fresh.delete_run("p", "r1")
    assert await fresh.runs("p") == []
    assert not any("lost" in problem for problem in fresh.problems)


async def test_an_order_of_strangers_is_made_again(store: RedisStorageBackend, client: Redis) -> None:
    """Of as many names as there are runs."""
    await record(store, "one", "r0")
    await record(store, "one", "r1")
    replace(client, "order", "same size", key_of("order", "p", ""), "")
    again = RedisStorageBackend(store._connection.url, durability="fast")
    statuses = {info.run_id: info.status for info in await again.runs("p")}
    assert statuses == {"r0": "interrupted", "r1": "interrupted", "mine0": "damaged", "mine1": "damaged"}


async def test_runs_put_aside_take_their_count_along(
    store: RedisStorageBackend, tmp_path: Path, client: Redis
) -> None:
    """What is restored is counted anew."""
    for number in range(3):
        await record(store, "one", f"r{number}")
    await store.backup(tmp_path)
    await store.delete_run("p", "r2")
    await store.restore(folder=tmp_path, replace=True)
    assert client.hget("tagent-nb:last-runs", "p") == b"3 r2"
    assert [info.run_id for info in await store.runs("p")] == ["r0", "r1", "r2"]
    assert not any("lost" in problem for problem in store.problems)


async def test_of_two_that_find_the_count_lost_the_first_reports_it(
    store: RedisStorageBackend, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one finds it made when it would make it."""
    for number in range(2):
        await record(store, "one", f"r{number}")
    client.delete("tagent-nb:last-runs")
    first, second = (RedisStorageBackend(store._connection.url, durability="fast") for _ in range(2))
    script = second._connection.script

    async def after_the_first(*arguments: Any) -> Any:
        assert await first.newest_run("p") == "r1"
        return await script(*arguments)

    monkeypatch.setattr(second._connection, "script", after_the_first)
    assert await second.newest_run("p") == "r1"
    assert any("the count of runs" in problem for problem in first.problems)
    assert second.problems == []
    assert client.hget("tagent-nb:last-runs", "p") == b"2 r1"
