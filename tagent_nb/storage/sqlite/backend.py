"""Storage in one SQLite file, which several processes of one machine may share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from tagent_nb.errors import CorruptRecordError, DefinitionError, LeaseLostError, StorageError
from tagent_nb.storage.filesystem import trouble as file_trouble
from tagent_nb.storage.filesystem import user_path
from tagent_nb.storage.format.envelope import Draft, Tail, tail_line, unpack
from tagent_nb.storage.lease import Lease
from tagent_nb.storage.record_backend import LONG, RecordStoreBackend, Row
from tagent_nb.storage.sqlite.database import (
    SQLiteFile,
    backups_of,
    is_busy,
    transaction,
    translated,
    waiting,
)

T = TypeVar("T")

NOTE = 1.0
"""Seconds after which a record is inserted together with a note of where its run ends then. With each record
it would cost a quarter more; with steps that take longer than this it is with each."""

CHECKPOINT = 4_000_000
"""Bytes of records after which what they changed is moved from the log into the database."""

_INSERT = (
    "INSERT INTO records(id, record) SELECT ?1, ?2 FROM runs WHERE number = ?3 AND token = ifnull(?4, token)"
)
_LAST = (
    "SELECT id - (:number << 32), record FROM records "
    "WHERE id BETWEEN :number << 32 AND ((:number + 1) << 32) - 1 "
    "ORDER BY id DESC LIMIT 1"
)
_RANGE = "id BETWEEN number << 32 AND ((number + 1) << 32) - 1"
_RECORDED = (
    f"(EXISTS (SELECT 1 FROM records WHERE {_RANGE}) OR (state <> x'' AND NOT instr(state, x'2030202d20')))"
)
"""Whether a run has begun, also if it has lost its records: of one that has none its state says " 0 - "."""

_RUN = "pipeline = ? AND run = ?"

_Ends = dict[tuple[str, str], tuple[int, Tail]]
"""Numbers of runs, and where they end."""


@dataclass(slots=True)
class _Entry:
    """A record that waits to be inserted."""

    pipeline_id: str
    run_id: str
    record: Draft
    token: int | None
    done: Future[None] = field(default_factory=Future)
    lost: LeaseLostError | None = None


class SQLiteStorageBackend(RecordStoreBackend):
    """Keeps everything in one file (0600) with a write-ahead log.

    Args:
        path: The file, made with the first record. Not on a network file system.
        durability: ``"full"``: what was recorded survives a loss of power. ``"fast"``: it survives the death
            of the process, but the last seconds may be lost with the power.

    Raises:
        DefinitionError: ``durability`` is neither of the two.
    """

    _removed_at_once = 50

    def __init__(self, path: str | Path, *, durability: Literal["full", "fast"] = "full") -> None:
        super().__init__()
        if durability not in ("full", "fast"):
            raise DefinitionError(f"durability must be 'full' or 'fast', not {durability!r}.")
        self.path = user_path(path, "Storage")
        self.durability = durability
        self._file = SQLiteFile(self.path, sync=durability == "full", owner=self)
        self._forked()

    def _forked(self) -> None:
        self._ends: _Ends = {}
        self._noted: dict[tuple[str, str], float] = {}
        self._waiting: deque[_Entry] = deque()
        self._unmoved = 0

    def _opened(self) -> None:
        # Numbers of another file are no numbers of this one.
        self._ends.clear()

    def _recover(self, connection: sqlite3.Connection) -> None:
        log = self.path.with_name(f"{self.path.name}-wal")
        # A log to which this object writes has been looked at.
        if self._file.connection is None and log.exists() and log.stat().st_size:
            from tagent_nb.storage.sqlite.wal import recover

            lost = recover(connection, self.path, self._key)
            if lost is not None:
                self._report(lost)

    def __repr__(self) -> str:
        return f"SQLiteStorageBackend({str(self.path)!r}, durability={self.durability!r})"

    async def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        await super().close()
        await self._file.close()

    # -- runs -------------------------------------------------------------------------------

    async def _append(self, pipeline_id: str, run_id: str, record: Draft, token: int | None) -> None:
        self._file.notice_fork()
        if self._file.sync or not self._append_now(pipeline_id, run_id, record, token):
            entry = _Entry(pipeline_id, run_id, record, token)
            self._waiting.append(entry)
            self._file.writer().submit(self._append_waiting)
            await asyncio.wrap_future(entry.done)
        self._unmoved += len(record)
        if self._unmoved > CHECKPOINT:
            self._unmoved = 0
            self._file.reader().submit(self._checkpoint)

    def _append_now(self, pipeline_id: str, run_id: str, record: Draft, token: int | None) -> bool:
        """Insert without a thread if nothing is in the way: that takes less time than to wake one."""
        key = (pipeline_id, run_id)
        if token is None or key not in self._ends or self._is_due(key):
            return False
        if not self._file.lock.acquire(blocking=False):
            return False
        try:
            if self._file.connection is None or not self._file.is_there():
                return False
            with translated(self.path):
                try:
                    return self._insert_at_end(self._file.connection, key, record, token, self._ends)
                except sqlite3.IntegrityError:
                    return False
                except sqlite3.Error as error:
                    if is_busy(error):
                        return False
                    raise
        finally:
            self._file.lock.release()

    def _append_waiting(self) -> None:
        """Insert all that wait, in one transaction: they share one flush."""
        batch: list[_Entry] = []
        try:
            with self._file.lock, translated(self.path):
                while self._waiting:
                    entry = self._waiting.popleft()
                    if entry.done.set_running_or_notify_cancel():
                        batch.append(entry)
                if batch:
                    connection = self._file.open()
                    ends: _Ends = {}
                    with waiting(connection), transaction(connection):
                        for entry in batch:
                            self._insert(connection, entry, ends)
                    self._ends.update(ends)
        except Exception as error:
            # Whatever it is, those who wait must get it.
            for entry in batch:
                entry.done.set_exception(error)
        else:
            for entry in batch:
                if entry.lost is None:
                    entry.done.set_result(None)
                else:
                    entry.done.set_exception(entry.lost)

    def _insert(self, connection: sqlite3.Connection, entry: _Entry, ends: _Ends) -> None:
        """Insert one record. A lost lease is noted: it must not spoil the records of others."""
        key = (entry.pipeline_id, entry.run_id)
        if entry.token is None:
            connection.execute("INSERT OR IGNORE INTO runs(pipeline, run) VALUES (?, ?)", key)
        row = connection.execute(f"SELECT number, holder FROM runs WHERE {_RUN}", key).fetchone()
        if row is None:
            entry.lost = self._lost(*key, b"")
            return
        number, holder = row
        ends[key] = ends.get(key) or self._ends.get(key) or (0, Tail())
        inserted = False
        if ends[key][0] == number:
            # Others may have recorded this run meanwhile.
            with contextlib.suppress(sqlite3.IntegrityError):
                inserted = self._insert_at_end(connection, key, entry.record, entry.token, ends)
        if not inserted:
            ends[key] = (number, self._end(connection, key, number))
            if not self._insert_at_end(connection, key, entry.record, entry.token, ends):
                entry.lost = self._lost(*key, _bytes(holder))
                return
        if entry.token is None or self._is_due(key):
            state = entry.record.state(ends[key][1])
            connection.execute("UPDATE runs SET state = ? WHERE number = ?", (state, number))
            self._noted[key] = time.monotonic()

    def _is_due(self, key: tuple[str, str]) -> bool:
        """Whether it is time to note where a run ends, which is also done when its lease is renewed."""
        return time.monotonic() - self._noted.get(key, -NOTE) >= NOTE

    def _end(self, connection: sqlite3.Connection, key: tuple[str, str], number: int) -> Tail:
        """Where a run ends."""
        row = connection.execute(_LAST, {"number": number}).fetchone()
        if row is None:
            return Tail()
        last = unpack(_bytes(row[1]), self._where(*key), kind="events", owner=key[1], key=self._key)
        return Tail(row[0] + 1, last.digest)

    @staticmethod
    def _insert_at_end(
        connection: sqlite3.Connection, key: tuple[str, str], record: Draft, token: int | None, ends: _Ends
    ) -> bool:
        """Insert a record where its run ends as far as is known; ``False`` if the token is not good.

        Raises:
            sqlite3.IntegrityError: The run goes on there.
        """
        number, end = ends[key]
        data, after = record.seal(end)
        values = ((number << 32) + end.count, data, number, token)
        if connection.execute(_INSERT, values).rowcount < 1:
            return False
        ends[key] = (number, after)
        return True

    async def _state(self, pipeline_id: str, run_id: str) -> bytes | None:
        # A store of before has none, and nothing is wrong.
        rows = await self._file.select(f"SELECT state FROM runs WHERE {_RUN}", pipeline_id, run_id)
        return (_bytes(rows[0][0]) if rows else b"") or None

    async def _read(self, pipeline_id: str, run_id: str) -> bytes | None:
        records = await self._file.select(
            f"SELECT id - (number << 32), record FROM records, runs WHERE {_RUN} AND {_RANGE} ORDER BY id",
            pipeline_id,
            run_id,
        )
        for number, (place, _) in enumerate(records):
            if place != number:
                raise CorruptRecordError(
                    f"{self._where(pipeline_id, run_id)}: records are missing. Restore a backup, or delete "
                    f"the run. The first of them is record {number + 1} of run {run_id}."
                )
        return b"".join(_bytes(record) for _, record in records) if records else None

    async def _tail(self, pipeline_id: str, run_id: str) -> bytes:
        records = await self._file.select(
            f"SELECT record FROM records, runs WHERE {_RUN} AND {_RANGE} ORDER BY id DESC LIMIT 1",
            pipeline_id,
            run_id,
        )
        return b"".join(_bytes(record) for (record,) in records)

    # Numbers only grow, so they give the order. To look for a pipeline's newest ones, the runs are taken
    # from the end (the plus keeps SQLite from sorting all of them instead).

    async def _runs(self, pipeline_id: str) -> list[tuple[str, int]]:
        return await self._file.select(
            f"SELECT run, coalesce((SELECT sum(length(record)) FROM records WHERE {_RANGE}), 0) FROM runs "
            f"WHERE pipeline = ? AND {_RECORDED} ORDER BY number",
            pipeline_id,
        )

    async def _ordered(self, pipeline_id: str) -> list[str]:
        rows = await self._file.select(
            f"SELECT run FROM runs WHERE pipeline = ? AND {_RECORDED} ORDER BY number", pipeline_id
        )
        return [run_id for (run_id,) in rows]

    async def _newest(self, pipeline_id: str, count: int) -> list[str]:
        rows = await self._file.select(
            f"SELECT run FROM runs WHERE +pipeline = ? AND {_RECORDED} ORDER BY number DESC LIMIT ?",
            pipeline_id,
            count,
        )
        return [run_id for (run_id,) in reversed(rows)]

    async def _has_run(self, pipeline_id: str, run_id: str) -> bool:
        return bool(
            await self._file.select(f"SELECT 1 FROM runs WHERE {_RUN} AND {_RECORDED}", pipeline_id, run_id)
        )

    async def _rows(self, pipeline_id: str, run_ids: Sequence[str]) -> list[Row]:
        places = ", ".join("?" * len(run_ids))
        rows = await self._file.select(
            f"SELECT run, coalesce((SELECT sum(length(record)) FROM records WHERE {_RANGE}), 0), "
            "CAST(token AS INTEGER), holder, state, (SELECT CASE WHEN length(record) <= ? THEN record END "
            f"FROM records WHERE {_RANGE} ORDER BY id DESC LIMIT 1) "
            f"FROM runs WHERE pipeline = ? AND run IN ({places}) AND {_RECORDED} ORDER BY number",
            LONG,
            pipeline_id,
            *run_ids,
        )
        return [
            Row(
                run_id,
                size,
                token,
                _bytes(holder),
                _bytes(state) or None,
                None if tail is None else _bytes(tail),
            )
            for run_id, size, token, holder, state, tail in rows
        ]

    async def _remove_run(self, pipeline_id: str, run_id: str, token: int) -> bool:
        return await self._file.write(partial(_remove, pipeline_id, run_id, token))

    async def _remove_unclaimed_runs(self, pipeline_id: str, tokens: Mapping[str, int]) -> list[str]:
        for run_id in tokens:
            self._forget(pipeline_id, run_id)

        def remove(connection: sqlite3.Connection) -> list[str]:
            return [
                run_id for run_id, token in tokens.items() if _remove(pipeline_id, run_id, token, connection)
            ]

        try:
            # In one transaction: they share one flush.
            return await self._file.write(remove) if tokens else []
        except StorageError as error:
            self._report(str(error))
            return []

    def _forget(self, pipeline_id: str, run_id: str) -> None:
        super()._forget(pipeline_id, run_id)
        self._ends.pop((pipeline_id, run_id), None)
        self._noted.pop((pipeline_id, run_id), None)

    # -- leases -----------------------------------------------------------------------------

    async def acquire(self, pipeline_id: str, run_id: str) -> Lease:
        """Become the one who records a run. See :meth:`StorageBackend.acquire`."""
        # A run that begins may use a file that has been restored; one that goes on gets an error.
        await self._file.in_writer(self._file.close_stale)
        return await super().acquire(pipeline_id, run_id)

    async def _lease(self, pipeline_id: str, run_id: str) -> tuple[int, bytes]:
        rows = await self._file.select(
            f"SELECT CAST(token AS INTEGER), holder FROM runs WHERE {_RUN}", pipeline_id, run_id
        )
        return (rows[0][0], _bytes(rows[0][1])) if rows else (0, b"")

    async def _swap_lease(
        self, pipeline_id: str, run_id: str, expected: int, token: int, holder: bytes
    ) -> bool:
        def swap(connection: sqlite3.Connection) -> bool:
            key = (pipeline_id, run_id)
            if not expected:
                connection.execute("INSERT OR IGNORE INTO runs(pipeline, run) VALUES (?, ?)", key)
            end = self._ends.get(key) if token == expected else None
            # A run that has not begun says so: its pipeline is then known even from a damaged log.
            state = tail_line(*key, Tail() if end is None else end[1], self._key)
            update = (
                "UPDATE runs SET token = ?, holder = ?, "
                "state = CASE WHEN ? OR state = x'' THEN ? ELSE state END "
                f"WHERE {_RUN} AND CAST(token AS INTEGER) = ?"
            )
            values = (token, holder, end is not None, state, *key, expected)
            return connection.execute(update, values).rowcount == 1

        done = await self._file.write(swap)
        if not holder:
            self._ends.pop((pipeline_id, run_id), None)
            self._noted.pop((pipeline_id, run_id), None)
        return done

    async def _tidy_after(self, lease: Lease) -> None:
        await super()._tidy_after(lease)
        # What is in the database is out of reach of damage to the log.
        self._unmoved = 0
        self._file.reader().submit(self._checkpoint, "TRUNCATE")

    # -- documents --------------------------------------------------------------------------

    async def _put(self, pipeline_id: str, name: str, record: bytes) -> None:
        def put(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO documents(pipeline, name, record) VALUES (?, ?, ?)",
                (pipeline_id, name, record),
            )

        await self._file.write(put)

    async def _get(self, pipeline_id: str, name: str) -> bytes | None:
        rows = await self._file.select(
            "SELECT record FROM documents WHERE pipeline = ? AND name = ?", pipeline_id, name
        )
        return _bytes(rows[0][0]) if rows else None

    async def _remove_documents(self, pipeline_id: str) -> None:
        def remove(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM documents WHERE pipeline = ?", (pipeline_id,))

        await self._file.write(remove)

    async def _pipelines(self) -> list[str]:
        rows = await self._file.select(
            f"SELECT pipeline FROM documents UNION SELECT pipeline FROM runs WHERE {_RECORDED}"
        )
        return [name for (name,) in rows]

    # -- backups ----------------------------------------------------------------------------

    @property
    def backup_folder(self) -> Path:
        """A folder beside the file; copy what is in it to another disk."""
        return backups_of(self.path)

    @property
    def _label(self) -> str:
        return os.path.realpath(self.path)

    async def _mark(self, text: bytes | None) -> None:
        await self._file.mark(text)

    async def _marked(self) -> bytes | None:
        return await self._file.marked()

    def _holds(self, path: Path) -> bool:
        places = (self.path, self.path.parent.resolve() / self.path.name)
        return any(path == place or path.is_relative_to(backups_of(place)) for place in places)

    async def _set_aside(self, stamp: str) -> str:
        await self.close()
        aside = f"{self.path.name}.damaged-{stamp}"

        def move() -> None:
            try:
                for suffix in ("", "-wal", "-shm"):
                    part = self.path.with_name(self.path.name + suffix)
                    if part.exists():
                        part.rename(part.with_name(aside + suffix))
            except OSError as error:
                raise file_trouble(error, "move", self.path) from error

        await self._file.in_writer(move)
        return str(self.path.with_name(aside))

    # -- inside -----------------------------------------------------------------------------

    def _checkpoint(self, how: str = "PASSIVE") -> None:
        self._file.checkpoint(how)

    def _where(self, pipeline_id: str, name: str) -> str:
        return f"{self.path}, {name} of pipeline {pipeline_id}"


def _remove(pipeline_id: str, run_id: str, token: int, connection: sqlite3.Connection) -> bool:
    """Remove a run, within a transaction, if its lease has this token."""
    query = f"SELECT number, CAST(token AS INTEGER) FROM runs WHERE {_RUN}"
    for number, present in connection.execute(query, (pipeline_id, run_id)).fetchall():
        if present != token:
            return False
        connection.execute(
            "DELETE FROM records WHERE id BETWEEN :number << 32 AND ((:number + 1) << 32) - 1",
            {"number": number},
        )
        connection.execute("DELETE FROM runs WHERE number = ?", (number,))
    return True


def _bytes(value: object) -> bytes:
    """A stranger's database may hold anything in any column; what is no bytes is no record."""
    return value if isinstance(value, bytes) else b"not bytes"
