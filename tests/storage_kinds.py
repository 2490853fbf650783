"""Stores of each kind, for tests that hold for all that are durable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tagent_nb.events import Event, Warned
from tagent_nb.storage import FileStorageBackend, RecordStoreBackend, SQLiteStorageBackend, read_record
from tests.redis_server import RedisServer

KINDS = ["file", "sqlite", pytest.param("redis", marks=pytest.mark.requires("redis-server"))]


def make_store(kind: str, folder: Path) -> Iterator[RecordStoreBackend]:
    """An empty store; its server, if it has one, ends with the test."""
    if kind == "file":
        yield FileStorageBackend(folder / "runs", durability="fast")
    elif kind == "sqlite":
        yield SQLiteStorageBackend(folder / "runs.db", durability="fast")
    else:
        from tagent_nb.storage import RedisStorageBackend

        server = RedisServer(folder, "--appendonly", "yes")
        yield RedisStorageBackend(server.url, deadline=60.0)
        server.kill()


async def record(storage: RecordStoreBackend, *texts: str, run_id: str = "r", pipeline_id: str = "p") -> None:
    """A run of a few events, one record each."""
    for text in texts:
        await storage.append(pipeline_id, run_id, [Warned(run_id=run_id, message=text)])


async def read(storage: RecordStoreBackend, run_id: str = "r", pipeline_id: str = "p") -> list[str]:
    """What :func:`record` recorded."""
    events: list[Event] = await storage.read_run(pipeline_id, run_id)
    return [event.message for event in events if isinstance(event, Warned)]


async def damage(storage: RecordStoreBackend, run_id: str = "r", pipeline_id: str = "p") -> None:
    """Change a byte in the first record of a run, which has others behind it."""
    await storage.close()
    if isinstance(storage, FileStorageBackend):
        path = storage.base_path / pipeline_id / f"{run_id}.journal"
        path.write_bytes(path.read_bytes().replace(b"message", b"massage", 1))
    elif isinstance(storage, SQLiteStorageBackend):
        connection = storage._file.open()
        connection.execute(
            "UPDATE records SET record = x'00' WHERE id = "
            "(SELECT number << 32 FROM runs WHERE pipeline = ? AND run = ?)",
            (pipeline_id, run_id),
        )
    else:
        from tagent_nb.storage import RedisStorageBackend

        assert isinstance(storage, RedisStorageBackend)
        await storage._connection.here().client.lset(storage._name(pipeline_id, "run", run_id), 0, "damaged")


async def stored_records(
    storage: RecordStoreBackend, run_id: str = "r", pipeline_id: str = "p"
) -> list[bytes]:
    """The records of a run as they are stored."""
    data, records, place = await storage._read(pipeline_id, run_id) or b"", [], 0
    while place < len(data):
        _, end = read_record(data, place, run_id, storage._key)
        records.append(data[place:end])
        place = end
    return records


async def replace_records(
    storage: RecordStoreBackend, records: list[bytes], run_id: str = "r", pipeline_id: str = "p"
) -> None:
    """Put others in the place of a run's records, and leave all that is beside them."""
    await storage.close()
    if isinstance(storage, FileStorageBackend):
        path = storage.base_path / pipeline_id / f"{run_id}.journal"
        path.write_bytes(b"".join(records))
        if not records:
            path.unlink()
    elif isinstance(storage, SQLiteStorageBackend):
        connection = storage._file.open()
        (number,) = connection.execute(
            "SELECT number FROM runs WHERE pipeline = ? AND run = ?", (pipeline_id, run_id)
        ).fetchone()
        connection.execute("DELETE FROM records WHERE id >> 32 = ?", (number,))
        rows = [((number << 32) + place, record) for place, record in enumerate(records)]
        connection.executemany("INSERT INTO records(id, record) VALUES (?, ?)", rows)
    else:
        from tagent_nb.storage import RedisStorageBackend

        assert isinstance(storage, RedisStorageBackend)
        client, name = storage._connection.here().client, storage._name(pipeline_id, "run", run_id)
        await client.delete(name)
        for record in records:
            await client.rpush(name, record)
