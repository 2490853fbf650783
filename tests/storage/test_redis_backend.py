"""Storage in Redis: the contract, and what is special about a server."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    LeaseLostError,
    MissingExtraError,
    StorageError,
    StorageUnavailableError,
)
from tagent_nb.events import Event, Warned
from tagent_nb.storage import RedisStorageBackend, StorageBackend, open_storage
from tagent_nb.storage.format.envelope import pack
from tagent_nb.storage.redis import connection as redis_link
from tagent_nb.storage.redis import write_queue as redis_queue
from tagent_nb.testing.contract import StorageContract
from tagent_nb.testing.samples import sample_run
from tests.redis_server import RedisServer, free_port

pytestmark = pytest.mark.requires("redis-server")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for tests that do it no harm; each has its own prefix."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "yes")
    yield server
    server.kill()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """The keys of one test."""
    return f"t{zlib.crc32(request.node.nodeid.encode())}"


class TestRedisStorage(StorageContract):
    """The contract of all backends."""

    @pytest.fixture
    def storage(self, server: RedisServer, prefix: str) -> StorageBackend:
        return RedisStorageBackend(server.url, prefix=prefix, deadline=60.0)

    def another(self, storage: StorageBackend) -> StorageBackend:
        assert isinstance(storage, RedisStorageBackend)
        return RedisStorageBackend(storage._connection.url, prefix=storage.prefix, deadline=60.0)


@pytest.fixture
def store(server: RedisServer, prefix: str) -> RedisStorageBackend:
    """An empty store on the shared server."""
    return RedisStorageBackend(server.url, prefix=prefix, deadline=60.0)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Any]:
    """Makes servers that a test may break; all are ended with the test."""
    made: list[RedisServer] = []

    def make(*options: str, **more: Any) -> RedisServer:
        folder = tmp_path / f"server{len(made)}"
        folder.mkdir()
        made.append(RedisServer(folder, *options, **more))
        return made[-1]

    yield make
    for server in made:
        server.kill()


async def record(store: StorageBackend, *texts: str, run_id: str = "r", token: int | None = None) -> None:
    """A run of a few events, one record each."""
    for text in texts:
        await store.append("p", run_id, [Warned(run_id=run_id, message=text)], token=token)


async def read(store: StorageBackend, run_id: str = "r") -> list[str]:
    """What :func:`record` recorded."""
    events: list[Event] = await store.read_run("p", run_id)
    return [event.message for event in events if isinstance(event, Warned)]


def raw(store: RedisStorageBackend) -> Redis:
    """A client that does what the backend does not."""
    return store._connection.here().client


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["redis://h", "rediss://u:p@h:6380/1", "unix:///tmp/redis.sock"])
def test_a_url_names_a_server(url: str) -> None:
    """Nothing is connected before the first use."""
    storage = open_storage(url, durability="fast")
    assert isinstance(storage, RedisStorageBackend)
    assert storage.durability == "fast"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://h:port", "its port is no number"),
        ("redis://h/0?socket_timeout=x", "Invalid value for 'socket_timeout' in connection URL. Write"),
        ("redis://h/0?no_such=1", "there is no setting 'no_such'. Write"),
        ("redis://h/0?keep_lst=1", "Did you mean 'keep_last'?"),
    ],
)
def test_a_url_that_is_not_right_is_refused(url: str, why: str) -> None:
    """The message says what is wrong, and shows how to write it."""
    with pytest.raises(DefinitionError, match="redis://host:6379/0") as caught:
        open_storage(url)
    assert why in str(caught.value)


@pytest.mark.parametrize("options", [{"durability": "slow"}, {"deadline": 0}, {"prefix": "a:b"}])
def test_arguments_are_checked(options: dict[str, Any]) -> None:
    """With a message of their own."""
    with pytest.raises(DefinitionError, match=next(iter(options))):
        RedisStorageBackend("redis://h", **options)


def test_the_password_is_never_shown() -> None:
    """Not in what the object says of itself."""
    assert (
        repr(RedisStorageBackend("redis://me:hunter2@h:1/0"))
        == "<RedisStorageBackend h:1, prefix 'tagent-nb'>"
    )


def test_without_the_package_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra."""
    for name in ("tagent_nb.storage.redis.backend", "tagent_nb.storage.redis.connection"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(MissingExtraError, match=r"tagent-nb\[redis\]"):
        open_storage("redis://h")


async def test_stores_with_different_prefixes_share_nothing(server: RedisServer, prefix: str) -> None:
    """Neither runs nor documents; and every key of a store starts with its prefix."""
    first = RedisStorageBackend(server.url, prefix=f"{prefix}-1")
    two = RedisStorageBackend(server.url, prefix=f"{prefix}-2")
    lease = await first.acquire("p", "r")
    await record(first, "x", token=lease.token)
    await first.save("p", {"x": 1})
    assert await two.list_pipelines() == []
    assert (await two.acquire("p", "r")).token > 0
    keys = [key.decode() for key in await raw(first).keys(f"{prefix}-*")]
    assert {key.split(":")[0] for key in keys} == {f"{prefix}-1", f"{prefix}-2"}


async def test_deleting_leaves_no_key(store: RedisStorageBackend) -> None:
    """But the settings of the server are untouched, and other keys."""
    await record(store, "x")
    await store.save("p", {"x": 1})
    await store.save_memories("p", {"x": 1})
    await store.delete("p")
    assert await raw(store).keys(f"{store.prefix}:*") == []


async def test_a_long_run_is_read_in_parts(store: RedisStorageBackend) -> None:
    """More records than one answer holds, and exactly as many."""
    for count in (500, 501):
        run_id = f"r{count}"
        await record(store, "0", run_id=run_id)
        await asyncio.gather(*(record(store, str(n), run_id=run_id) for n in range(1, count)))
        assert await read(store, run_id) == [str(n) for n in range(count)]


# -- settings of the server --------------------------------------------------------------------


async def test_a_server_that_forgets_is_reported(own: Any) -> None:
    """Eviction always; a missing append-only file only to those who ask for full durability."""
    server = own("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    full, fast = (RedisStorageBackend(server.url, durability=level) for level in ("full", "fast"))
    for storage in (full, fast):
        await storage.list_pipelines()
        await storage.list_pipelines()
    assert len(full.problems) == 2
    assert "noeviction" in full.problems[0]
    assert "appendonly yes" in full.problems[1]
    assert fast.problems == full.problems[:1]


async def test_a_server_that_keeps_everything_is_not_reported(store: RedisStorageBackend) -> None:
    """No news is good news."""
    await store.list_pipelines()
    assert store.problems == []


async def test_a_server_that_hides_its_settings_is_reported(own: Any) -> None:
    """As services do; everything works."""
    server = own("--rename-command", "CONFIG", "")
    storage = RedisStorageBackend(server.url)
    await record(storage, "x")
    assert len(storage.problems) == 1
    assert "does not show its settings" in storage.problems[0]


# -- errors ------------------------------------------------------------------------------------


async def test_a_wrong_password_is_an_error_at_once(own: Any) -> None:
    """It is not tried again, and not shown."""
    server = own("--requirepass", "s3cret")
    for url in (f"redis://:hunter2@127.0.0.1:{server.port}", server.url):
        storage = RedisStorageBackend(url, deadline=60.0)
        with pytest.raises(StorageUnavailableError, match="password") as caught:
            await record(storage, "x")
        assert "hunter2" not in str(caught.value)
        assert "did not answer" not in str(caught.value)
    storage = RedisStorageBackend(f"redis://:s3cret@127.0.0.1:{server.port}")
    await record(storage, "x")
    assert await read(storage) == ["x"]


async def test_a_user_that_may_not_do_it_is_an_error_at_once(own: Any) -> None:
    """With the name of the command that was refused."""
    server = own("--user", "reader", "on", ">pw", "~*", "+@read", "+config")
    storage = RedisStorageBackend(f"redis://reader:pw@127.0.0.1:{server.port}", deadline=60.0)
    assert await storage.list_pipelines() == []
    with pytest.raises(StorageUnavailableError, match="may not do this"):
        await record(storage, "x")


async def test_a_full_memory_is_an_error_that_can_be_mended(own: Any) -> None:
    """What was recorded before stays, and recording goes on when there is space."""
    server = own("--maxmemory", "3mb")
    storage = RedisStorageBackend(server.url)
    await record(storage, "one")
    client = raw(storage)
    await client.config_set("maxmemory", 1)
    for call in (record(storage, "two"), storage.save("p", {"x": 1}), storage.acquire("p", "r")):
        with pytest.raises(StorageUnavailableError, match="memory is full"):
            await call
    await client.config_set("maxmemory", 0)
    await record(storage, "three")
    assert await read(storage) == ["one", "three"]


async def test_a_server_that_cannot_write_to_its_disk_is_an_error(own: Any) -> None:
    """MISCONF: Redis refuses writes after a failed snapshot."""
    server = own("--save", "3600 1")
    storage = RedisStorageBackend(server.url)
    await record(storage, "one")
    client = raw(storage)
    shutil.rmtree(server.folder)
    await client.bgsave()
    while (await client.info("persistence"))["rdb_bgsave_in_progress"]:
        await asyncio.sleep(0.01)
    server.folder.mkdir()
    with pytest.raises(StorageUnavailableError, match="cannot write to its disk"):
        await record(storage, "two")
    assert await read(storage) == ["one"]


async def test_a_replica_is_an_error(own: Any) -> None:
    """READONLY: the message asks for the primary."""
    server = own("--replicaof", "127.0.0.1", str(free_port()))
    storage = RedisStorageBackend(server.url, deadline=60.0)
    with pytest.raises(StorageUnavailableError, match="primary"):
        await record(storage, "x")
    with pytest.raises(StorageUnavailableError, match="primary"):
        await storage.save("p", {})


@pytest.mark.parametrize("parts", [("run", "r"), ("runs",), ("lease", "r"), ("documents",)], ids="-".join)
async def test_a_key_of_another_program_is_an_error(
    store: RedisStorageBackend, parts: tuple[str, ...]
) -> None:
    """WRONGTYPE: nothing of it is overwritten."""
    name = store._name("p", *parts)
    await raw(store).set(name, "mine")
    calls = [store.save("p", {})] if parts == ("documents",) else [record(store, "x")]
    if parts == ("lease", "r"):
        calls.append(store.acquire("p", "r"))  # type: ignore[arg-type]
    for call in calls:
        with pytest.raises(CorruptRecordError, match="another prefix"):
            await call
    assert await raw(store).get(name) == b"mine"


async def test_a_server_that_is_away_is_an_error_after_the_deadline() -> None:
    """With server and seconds in the message."""
    port = free_port()
    storage = RedisStorageBackend(f"redis://127.0.0.1:{port}", deadline=0.2)
    with pytest.raises(StorageUnavailableError, match=rf"127\.0\.0\.1:{port} did not answer within 0\.2 s"):
        await storage.list_pipelines()


@pytest.mark.parametrize(
    ("scheme", "hint"),
    [("redis", "takes no TLS (else write rediss://)"), ("rediss", "that its port takes TLS;")],
)
async def test_without_an_answer_the_error_names_tls(scheme: str, hint: str) -> None:
    """A port of the other kind says nothing that tells it."""
    storage = RedisStorageBackend(f"{scheme}://127.0.0.1:{free_port()}", deadline=0.2)
    with pytest.raises(StorageUnavailableError, match=re.escape(hint)):
        await storage.list_pipelines()


async def test_a_host_that_does_not_exist_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To wait would not help."""
    calls = []

    def unknown(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    storage = RedisStorageBackend("redis://nowhere:6379/0", deadline=60.0)
    with pytest.raises(StorageUnavailableError, match="There is no such host: look at the URL"):
        await storage.list_pipelines()
    assert len(calls) == 1


async def test_a_server_that_hangs_is_an_error_after_the_deadline(own: Any) -> None:
    """And it works again when it goes on; what was under way then is recorded once."""
    server = own()
    storage = RedisStorageBackend(server.url, deadline=60.0)
    await record(storage, "one")
    storage.deadline = 0.5
    assert storage.deadline == 0.5
    server.signal(signal.SIGSTOP)
    with pytest.raises(StorageUnavailableError, match=r"did not answer within 0\.5 s"):
        await record(storage, "two")
    server.signal(signal.SIGCONT)
    storage.deadline = 60.0
    await record(storage, "three")
    texts = await read(storage)
    assert texts in (["one", "three"], ["one", "two", "three"])


async def test_after_a_deadline_the_next_one_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails because the server is away does not wait as long again to say so."""
    monkeypatch.setattr(redis_link, "AWAY", 0.05)
    storage = RedisStorageBackend(f"redis://127.0.0.1:{free_port()}", deadline=0.3)
    with pytest.raises(StorageUnavailableError):
        await storage.list_pipelines()
    storage.deadline = 3600.0
    with pytest.raises(StorageUnavailableError):
        await storage.list_pipelines()


async def test_an_unknown_error_of_the_server_is_passed_on(store: RedisStorageBackend) -> None:
    """In our words, with its own."""

    async def fail(client: Redis) -> None:
        await client.execute_command("NO_SUCH_COMMAND")

    with pytest.raises(StorageUnavailableError, match="(?i)unknown command"):
        await store._connection.call(fail)


# -- connections that break --------------------------------------------------------------------


async def test_a_server_that_comes_back_is_waited_for(own: Any) -> None:
    """Killed and started again on its append-only file: the run goes on, and nothing is lost."""
    server = own("--appendonly", "yes")
    storage = RedisStorageBackend(server.url, deadline=60.0)
    lease = await storage.acquire("p", "r")
    for n in range(40):
        if n == 20:
            server.kill()
            writing = asyncio.ensure_future(record(storage, str(n), token=lease.token))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.start)
            await writing
        else:
            await record(storage, str(n), token=lease.token)
    assert await read(storage) == [str(n) for n in range(40)]


class Proxy:
    """Stands between client and server, and loses the replies to commands that contain ``sign``."""

    def __init__(self, port: int, sign: bytes, losses: int) -> None:
        self.port, self.sign, self.losses = port, sign, losses
        self.lost = 0

    async def __aenter__(self) -> str:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/0"

    async def __aexit__(self, *error: object) -> None:
        self.server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection."""
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self.port)
        while data := await reader.read(1 << 20):
            behind_writer.write(data)
            reply = await behind_reader.read(1 << 20)
            if self.sign in data and self.lost < self.losses and not reply.startswith(b"-NOSCRIPT"):
                self.lost += 1
                break
            writer.write(reply)
        behind_writer.close()
        writer.close()


async def test_a_lost_reply_records_nothing_twice(server: RedisServer, prefix: str) -> None:
    """The command was carried out, but the reply was lost: sent again, it finds itself there."""
    proxy = Proxy(server.port, b"EVALSHA", losses=3)
    async with proxy as url:
        storage = RedisStorageBackend(url, prefix=prefix)
        await record(storage, "one", "two", "three")
        assert proxy.lost == 3
        assert await read(storage) == ["one", "two", "three"]
        assert (await storage.runs("p"))[0].size == len(await storage._read("p", "r") or b"")
        await storage.close()


async def test_a_lost_reply_costs_no_lease(server: RedisServer, prefix: str) -> None:
    """The claim was granted, but the reply was lost: claimed again, it is the same claim."""
    proxy = Proxy(server.port, b"EVALSHA", losses=1)
    async with proxy as url:
        storage = RedisStorageBackend(url, prefix=prefix)
        lease = await storage.acquire("p", "r")
        assert proxy.lost == 1
        await record(storage, "one", token=lease.token)
        proxy.losses = 2
        await storage.renew(lease)
        await storage.release(lease)
        await storage.close()


async def test_runs_whose_list_the_server_has_evicted_are_found(store: RedisStorageBackend) -> None:
    """By their keys, with their sizes; they are listed, backed up and restored like others."""
    await record(store, "one", "two")
    await record(store, "three", run_id="s")
    before = await store.runs("p")
    await raw(store).delete(store._name("p", "runs"))
    assert await store.runs("p") == before
    assert "2 runs were found by their keys" in store.problems[0]
    assert await read(store) == ["one", "two"]
    await record(store, "four")
    assert await read(store) == ["one", "two", "four"]
    assert [info.run_id for info in await store.runs("p")] == ["r", "s"]


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("error", [KilledError, StorageUnavailableError])
async def test_a_restore_that_ends_at_any_command_leaves_all_or_is_refused(
    store: RedisStorageBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """And the next one brings everything back: nothing of the store moved aside is left behind alone."""
    await record(store, "one", run_id="r")
    await record(store, "two", run_id="s")
    await store.backup(tmp_path)
    outcomes: list[str] = []
    while not outcomes or outcomes[-1] != "restored":
        stopping = RedisStorageBackend(store._connection.url, prefix=store.prefix)
        call, left = stopping._connection.call, len(outcomes)

        async def call_or_stop(action: Any, call: Any = call) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                raise error("stopped")
            return await call(action)

        monkeypatch.setattr(stopping._connection, "call", call_or_stop)
        try:
            await stopping.restore(folder=tmp_path, replace=True)
            outcome = "restored" if left >= 0 else "in spite of an error"
        except error:
            outcome = "whole"
        except CorruptRecordError:
            outcome = "refused"
        await stopping.close()
        another = RedisStorageBackend(store._connection.url, prefix=store.prefix)
        try:
            await another.list_pipelines()
        except StorageError:
            outcome = "refused"
            await another.restore(folder=tmp_path)
        assert [info.run_id for info in await another.runs("p")] == ["r", "s"]
        assert [await read(another, run_id) for run_id in ("r", "s")] == [["one"], ["two"]]
        assert not any("lost" in problem for problem in another.problems)
        await another.close()
        outcomes.append(outcome)
    assert {"whole", "refused"} < set(outcomes)


async def test_a_store_of_which_only_leases_are_left_is_restored(
    store: RedisStorageBackend, tmp_path: Path
) -> None:
    """At the first go: they are moved aside, too, and do not say of what is put back that it was lost."""
    await record(store, "one", run_id="r")
    await record(store, "two", run_id="s")
    await store.backup(tmp_path)
    keys = await raw(store).keys(f"{store.prefix}:*")
    await raw(store).delete(*(key for key in keys if b":lease:" not in key))
    other = RedisStorageBackend(store._connection.url, prefix=store.prefix)
    await other.restore(folder=tmp_path)
    assert [info.run_id for info in await other.runs("p")] == ["r", "s"]
    assert [await read(other, run_id) for run_id in ("r", "s")] == [["one"], ["two"]]
    await other.close()


LISTS = {"runs": ["runs"], "order": ["order"], "runs and order": ["runs", "order"]}


@pytest.mark.parametrize("gone", [*LISTS, "everything but the runs"])
@pytest.mark.parametrize("then", ["listed", "a new run", "the run goes on", "a run of another process"])
async def test_a_list_of_runs_that_the_server_has_lost_is_made_again(
    store: RedisStorageBackend, gone: str, then: str
) -> None:
    """To the next that comes no run is missing in it, and the newest is still the newest."""
    for run_id in ("a", "b", "c"):
        await record(store, run_id, run_id=run_id)
    if gone in LISTS:
        await raw(store).delete(*(store._name("p", name) for name in LISTS[gone]))
    else:
        keys = await raw(store).keys(f"{store.prefix}:*")
        await raw(store).delete(*(key for key in keys if b":run:" not in key))
    other = RedisStorageBackend(store._connection.url, prefix=store.prefix)
    expected = ["a", "b", "c"]
    if then == "a new run":
        await record(store, "new", run_id="d")
    elif then == "the run goes on":
        await record(store, "more", run_id="c")
    elif then == "a run of another process":
        await record(other, "new", run_id="d")
    if "new" in then or "another" in then:
        expected.append("d")
    assert await other.list_pipelines() == ["p"]
    assert [info.run_id for info in await other.runs("p")] == expected
    assert await other.newest_run("p") == expected[-1]
    assert [info.run_id for info in await store.runs("p")] == expected
    assert all(info.status == "interrupted" for info in await store.runs("p"))
    if gone != "order":
        assert any("was gone or not whole" in problem for problem in store.problems + other.problems)


@pytest.mark.parametrize("beside", [[], ["runs"], ["order"], ["runs", "order"], ["lease"]], ids="-".join)
async def test_a_run_whose_records_the_server_has_lost_is_reported(
    store: RedisStorageBackend, beside: list[str]
) -> None:
    """And no older run takes its place, whatever is lost besides; it can be deleted."""
    await record(store, "old", run_id="old")
    await record(store, "one", "two")
    names = [store._name("p", name, *(["r"] if name == "lease" else [])) for name in beside]
    await raw(store).delete(store._name("p", "run", "r"), *names)
    other = RedisStorageBackend(store._connection.url, prefix=store.prefix)
    assert await other.newest_run("p") == "r"
    assert {info.run_id: info.status for info in await other.runs("p")} == {
        "old": "interrupted", "r": "damaged"
    }  # fmt: skip
    assert "state lost" in ((await other.runs("p"))[-1].problem or "")
    if "runs" in beside:
        assert "State lost: of r no record is left" in other.problems[0]
    for call in (other.read_run("p", "r"), record(other, "three")):
        with pytest.raises(CorruptRecordError, match="state lost"):
            await call
    await other.delete_run("p", "r")
    assert [info.run_id for info in await other.runs("p")] == ["old"]


async def test_a_running_run_that_the_server_has_lost_is_recorded_again(
    store: RedisStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """List, order and records are gone: what is still known here is put back, or else the run fails."""
    await record(store, "old", run_id="old")
    lease = await store.acquire("p", "r")
    await record(store, "one", "two", token=lease.token)
    gone = [store._name("p", "run", "r"), store._name("p", "runs"), store._name("p", "order")]
    await raw(store).delete(*gone)
    await record(store, "three", token=lease.token)
    assert await read(store) == ["one", "two", "three"]
    assert {info.run_id for info in await store.runs("p")} == {"old", "r"}
    monkeypatch.setattr(redis_queue, "REMEMBERED", -1.0)
    await record(store, "four", token=lease.token)
    await raw(store).delete(*gone)
    with pytest.raises(StorageUnavailableError, match="State lost: .* has lost 4 records of run r"):
        await record(store, "five", token=lease.token)
    runs = {info.run_id: info.status for info in await RedisStorageBackend(
        store._connection.url, prefix=store.prefix
    ).runs("p")}  # fmt: skip
    assert runs == {"old": "interrupted", "r": "damaged"}


async def test_a_list_that_cannot_be_put_back_is_read_all_the_same(own: Any) -> None:
    """The memory of the server is full."""
    server = own("--maxmemory", "3mb")
    storage = RedisStorageBackend(server.url)
    await record(storage, "one")
    await raw(storage).delete("tagent-nb:pipelines", storage._name("p", "runs"))
    await raw(storage).config_set("maxmemory", 1)
    assert await storage.list_pipelines() == ["p"]
    assert [info.run_id for info in await storage.runs("p")] == ["r"]


async def test_a_pipeline_that_has_lost_all_is_an_empty_one(store: RedisStorageBackend) -> None:
    """Nothing is left to be found, and nothing is in the way of the next run."""
    await record(store, "one")
    await raw(store).delete(*await raw(store).keys(f"{store.prefix}:*"))
    assert await store.runs("p") == []
    assert await store.list_pipelines() == []
    await record(store, "new", run_id="new")
    assert [info.run_id for info in await store.runs("p")] == ["new"]


async def test_records_that_the_server_has_lost_are_recorded_again(store: RedisStorageBackend) -> None:
    """As after a crash with an append-only file that is flushed once a second."""
    lease = await store.acquire("p", "r")
    await record(store, "one", "two", "three", "four", token=lease.token)
    await raw(store).ltrim(store._name("p", "run", "r"), 0, 1)
    await record(store, "five", token=lease.token)
    assert await read(store) == ["one", "two", "three", "four", "five"]
    await record(store, "six", token=lease.token)
    assert await read(store) == ["one", "two", "three", "four", "five", "six"]
    assert len(store.problems) == 1
    assert "the last 2 records" in store.problems[0]


async def test_records_that_are_nowhere_any_more_are_an_error(
    store: RedisStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with a hole is not carried on."""
    monkeypatch.setattr(redis_queue, "REMEMBERED", -1.0)
    lease = await store.acquire("p", "r")
    await record(store, "one", "two", "three", token=lease.token)
    await raw(store).ltrim(store._name("p", "run", "r"), 0, 0)
    with pytest.raises(StorageUnavailableError, match="has lost 2 records of run r"):
        await record(store, "four", token=lease.token)
    first, warning = await read(store)
    assert first == "one"
    assert warning.startswith(
        "The end of run r of pipeline p is missing: 3 records were recorded, and 1 are there."
    )


async def test_a_lease_that_the_server_has_thrown_away_is_reported(store: RedisStorageBackend) -> None:
    """It is not taken for a run that was deleted or taken over; what was recorded can be carried on."""
    lease = await store.acquire("p", "r")
    await record(store, "one", token=lease.token)
    await raw(store).delete(store._name("p", "lease", "r"))
    with pytest.raises(LeaseLostError, match="state lost: the server has thrown away who may record"):
        await record(store, "two", token=lease.token)
    lease = await store.acquire("p", "r")
    await record(store, "two", token=lease.token)
    assert await read(store) == ["one", "two"]


async def test_records_that_do_not_follow_what_the_server_has_are_not_recorded(
    store: RedisStorageBackend,
) -> None:
    """It has lost the last ones, and what is before them is not what was there."""
    lease = await store.acquire("p", "r")
    await record(store, "one", "two", "three", token=lease.token)
    other = RedisStorageBackend(store._connection.url, prefix=f"{store.prefix}-other")
    await record(other, "another one")
    records = await raw(store).lrange(other._name("p", "run", "r"), 0, 0)
    await raw(store).delete(store._name("p", "run", "r"))
    await raw(store).rpush(store._name("p", "run", "r"), *records)
    with pytest.raises(StorageUnavailableError, match="State lost: .* has lost 2 records of run r"):
        await record(store, "four", token=lease.token)


async def test_two_writers_without_a_lease_lose_nothing(store: RedisStorageBackend) -> None:
    """Each finds that the other has recorded meanwhile."""
    again = RedisStorageBackend(store._connection.url, prefix=store.prefix)
    for n in range(5):
        await record(store, f"a{n}")
        await record(again, f"b{n}")
    assert sorted(await read(store)) == sorted([f"a{n}" for n in range(5)] + [f"b{n}" for n in range(5)])


async def test_few_records_are_remembered(
    store: RedisStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded by bytes as well as by time."""
    monkeypatch.setattr(redis_queue, "REMEMBERED_BYTES", 5000)
    for n in range(20):
        await record(store, "x" * 1000 + str(n))
    queue = store._connection.here().runs["p", "r"]
    assert 3000 < queue.size == sum(len(data) for _, data in queue.recent) <= 5000


async def test_batches_are_bounded_and_of_one_token(
    store: RedisStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that wait are sent together, but not too many, and a lost lease spoils only its own."""
    monkeypatch.setattr(redis_queue, "BATCH_BYTES", 3000)
    lease = await store.acquire("p", "r")
    await record(store, "first", token=lease.token)
    tokens = [lease.token, lease.token, lease.token - 1, lease.token - 1, lease.token, lease.token]
    tasks = [record(store, "x" * 1000 + str(n), token=token) for n, token in enumerate(tokens)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, LeaseLostError) for result in results] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert [text[-1] for text in (await read(store))[1:]] == ["0", "1", "4", "5"]


async def test_cancelling_one_record_leaves_the_others(store: RedisStorageBackend) -> None:
    """What is cancelled while it waits does not hold up the rest."""
    await record(store, "one")
    tasks = [asyncio.ensure_future(record(store, text)) for text in ("two", "three", "four")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert [text for text in await read(store) if text != "three"] == ["one", "two", "four"]


# -- strangers ---------------------------------------------------------------------------------


async def test_odd_values_are_typed_errors(store: RedisStorageBackend) -> None:
    """Names that we never give are not listed; damaged records are, as damaged."""
    await record(store, "one")
    client = raw(store)
    await client.sadd(store._pipelines_name(), "../../x", b"\xff", "*")
    await client.hset(store._name("p", "runs"), "a:b", 1)
    await client.hset(store._name("p", "runs"), "gone", "many")
    await client.lset(store._name("p", "run", "r"), 0, "damaged")
    await client.hset(store._name("p", "lease", "r"), mapping={"token": "many", "holder": "[]"})
    assert await store.list_pipelines() == ["p"]
    assert {info.run_id: info.status for info in await store.runs("p")} == {"gone": "damaged", "r": "damaged"}
    with pytest.raises(CorruptRecordError, match="Redis at"):
        await read(store)


async def test_a_poisoned_pickle_is_never_loaded(store: RedisStorageBackend, tmp_path: Path) -> None:
    """Not in a document, not in a record, not in a holder."""
    marker = tmp_path / "executed"
    poison = b"cos\nsystem\n(S'touch %b'\ntR." % str(marker).encode()
    client = raw(store)
    await client.hset(store._name("p", "documents"), "snapshot", pack("snapshot", "p", poison))
    await client.rpush(store._name("p", "run", "r"), pack("events", "r", poison))
    await client.hset(store._name("p", "lease", "r"), mapping={"token": 1, "holder": poison})
    for call in (store.load("p"), store.read_run("p", "r")):
        with pytest.raises(CorruptRecordError):
            await call
    await store.acquire("p", "r")
    assert not marker.exists()


# -- other ways to connect ---------------------------------------------------------------------


async def test_a_socket_of_this_machine(own: Any, tmp_path: Path) -> None:
    """By its path."""
    path = Path("/tmp") / f"tagent-{os.getpid()}.sock"
    own("--unixsocket", str(path))
    storage = RedisStorageBackend(f"unix://{path}")
    await record(storage, "x")
    assert await read(storage) == ["x"]
    assert str(path) in repr(storage)


async def test_tls_and_password_by_url(own: Any, tmp_path: Path) -> None:
    """With a certificate that the URL names; without it, the connection is refused."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    own("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
        "--tls-auth-clients", "no", "--requirepass", "s3cret")  # fmt: skip
    url = f"rediss://:s3cret@127.0.0.1:{port}/0"
    storage = RedisStorageBackend(f"{url}?ssl_ca_certs={certificate}")
    await record(storage, "x")
    assert await read(storage) == ["x"]
    with pytest.raises(StorageUnavailableError, match="ssl_ca_certs"):
        await RedisStorageBackend(url, deadline=3600.0).list_pipelines()


async def test_another_process_id_means_a_fork(
    store: RedisStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections of before are left to the parent."""
    await record(store, "one")
    before = raw(store)
    monkeypatch.setattr(os, "getpid", lambda: 12345)
    await record(store, "two")
    assert raw(store) is not before
    assert await read(store) == ["one", "two"]
    await before.aclose()


async def test_closing_what_was_never_used_does_nothing(store: RedisStorageBackend) -> None:
    """Nor does closing it twice."""
    await store.close()
    await record(store, "x")
    await store.close()
    await store.close()
    assert await read(store) == ["x"]


# -- the order of runs -------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
async def test_a_store_of_before_is_read_where_nothing_can_be_written(
    own: Any, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """To read needs no space: its order is worked out each time until it can be kept."""
    server = own("--maxmemory", "3mb")
    storage = RedisStorageBackend(server.url)
    for n in range(3):
        await storage.append("p", f"r{n}", sample_run(f"r{n}", at=float(n)))
    client = raw(storage)
    await client.delete(storage._name("p", "order"))

    async def refuse(*what: Any) -> Any:
        raise StorageUnavailableError("This is a replica.")

    if full:
        await client.config_set("maxmemory", 1)
    else:
        monkeypatch.setattr(storage._connection, "script", refuse)
    for _ in range(2):
        assert await storage.newest_run("p") == "r2"
        assert [info.run_id for info in await storage.runs("p")] == ["r0", "r1", "r2"]
    if full:
        await client.config_set("maxmemory", 0)
    else:
        assert await client.zcard(storage._name("p", "order")) == 0
    monkeypatch.undo()
    assert await storage.newest_run("p") == "r2"
    assert await client.zrange(storage._name("p", "order"), 0, -1) == [b"r0", b"r1", b"r2"]


async def test_an_order_that_others_have_changed_is_left_to_them(store: RedisStorageBackend) -> None:
    """Between the look at it and its correction a run may have been begun."""
    await record(store, "one")
    key = store._name("p", "order")
    keys = [store._name("p", "runs"), key]
    for run_ids in (["other"], ["r", "other"], []):
        assert await store._connection.script(redis_queue.REORDER, keys, run_ids) == 0
    assert await raw(store).zrange(key, 0, -1) == [b"r"]
    await raw(store).zadd(key, {"gone": 9})
    # What is in order and has no records was lost: it is listed, and no older run is taken for the newest.
    assert await store._ordered("p") == ["r", "gone"]
    assert await raw(store).zrange(key, 0, -1) == [b"r", b"gone"]
    assert ["state lost" in (info.problem or "") for info in await store.runs("p")] == [False, True]


async def test_a_key_of_another_program_hides_one_run(store: RedisStorageBackend) -> None:
    """The others are listed."""
    for name in ("a", "b", "c"):
        await record(store, "one", run_id=name)
    for parts in (("run", "a"), ("lease", "b")):
        await raw(store).delete(store._name("p", *parts))
        await raw(store).set(store._name("p", *parts), "mine")
    assert [(info.run_id, info.status) for info in await store.runs("p")] == [
        ("a", "damaged"),
        ("b", "damaged"),
        ("c", "interrupted"),
    ]
    await raw(store).hdel(store._name("p", "runs"), "c")
    await raw(store).delete(store._name("p", "run", "c"), store._name("p", "lease", "c"))
    assert [row.run_id for row in await store._rows("p", ["b", "c"])] == ["b"]
    await raw(store).set(store._name("p", "order"), "mine")
    with pytest.raises(CorruptRecordError, match="another prefix"):
        await store.newest_run("p")


async def test_a_look_for_the_newest_run_takes_one_question(store: RedisStorageBackend) -> None:
    """However many are stored: the commands of the server are counted."""
    for n in range(30):
        await record(store, "one", run_id=f"r{n}")

    async def commands() -> int:
        return int((await raw(store).info("stats"))["total_commands_processed"])

    before = await commands()
    assert await store.newest_run("p", besides="r29") == "r28"
    # Twice four: whether the id or the name is meant, and the answer; and info.
    assert await commands() - before <= 9
    before = await commands()
    await store.delete_run("p", "r3")
    assert await commands() - before < 20


async def test_whether_a_run_is_stored_takes_one_question(store: RedisStorageBackend) -> None:
    """However many are stored; only of a run that left a trace is it asked whether it was lost."""
    for n in range(30):
        await record(store, "one", run_id=f"r{n}")
    commands = (await raw(store).info("stats"))["total_commands_processed"]
    assert not await store.has_run("p", "new")
    assert await store.has_run("p", "r3")
    # Of the new one it is asked for the id and for the name.
    assert (await raw(store).info("stats"))["total_commands_processed"] - commands <= 16
    await raw(store).delete(store._name("p", "runs"))
    assert await store.has_run("p", "r3")
    assert not await store.has_run("p", "new")


@pytest.mark.parametrize("look", ["_sizes", "_keys"])
async def test_a_run_deleted_while_runs_are_listed_stays_deleted(
    store: RedisStorageBackend, look: str
) -> None:
    """Between the look at the runs and the correction of what is not whole, another process deletes one: it
    does not come back as a run that has lost its records."""
    other = RedisStorageBackend(store._connection.url, prefix=store.prefix)
    for number in range(3):
        await record(store, "x", run_id=f"r{number}")
    await raw(store).delete(store._name("p", "order" if look == "_sizes" else "runs"))
    find = getattr(store, look)

    async def find_and_delete(*arguments: Any) -> Any:
        answer = await find(*arguments)
        setattr(store, look, find)
        await other.delete_run("p", "r1")
        return answer

    setattr(store, look, find_and_delete)
    await store.runs("p")
    again = RedisStorageBackend(store._connection.url, prefix=store.prefix)
    runs = {info.run_id: info.status for info in await again.runs("p")}
    assert runs == {"r0": "interrupted", "r2": "interrupted"}
    assert not any("lost" in problem for problem in (*again.problems, *store.problems, *other.problems))
    for storage in (other, again):
        await storage.close()


async def test_a_pipeline_begun_while_pipelines_are_listed_was_not_lost(store: RedisStorageBackend) -> None:
    """Between the look at the list and the look at the keys, another process records the first run of one."""
    other = RedisStorageBackend(store._connection.url, prefix=store.prefix)
    find = store._keys

    async def record_and_find(*arguments: Any) -> Any:
        await record(other, "x")
        return await find(*arguments)

    store._keys = record_and_find  # type: ignore[method-assign]
    assert await store.list_pipelines() == ["p"]
    assert store.problems == []
    await other.close()
