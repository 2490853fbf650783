"""A SQLite file as the SQLite backend uses it: a connection to write and one to read, each in its thread."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from tagent_nb.errors import DefinitionError, StorageError, StorageUnavailableError
from tagent_nb.storage.filesystem import MAX_MARK, is_regular, mark_file, read_file, user_path
from tagent_nb.storage.record_backend import RecordStoreBackend
from tagent_nb.storage.sqlite.schema import (
    connect,
    connect_to_read,
    connect_without_space,
    is_read_only,
    lacks_space,
    transaction,
    translated,
    waiting,
)
from tagent_nb.storage.sqlite.wal import recover

T = TypeVar("T")

_NOWHERE = (0, 0)

_left_to_parent: list[sqlite3.Connection] = []
"""Connections of before a fork. To close one here could end the parent's locks."""


class SQLiteLink(RecordStoreBackend):
    """The part of the backend that opens and closes the file."""

    def __init__(self, path: str | Path, *, durability: Literal["full", "fast"] = "full") -> None:
        super().__init__()
        if durability not in ("full", "fast"):
            raise DefinitionError(f"durability must be 'full' or 'fast', not {durability!r}.")
        self.path = user_path(path, "Storage")
        self.durability = durability
        self._sync = durability == "full"
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._writers: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._reads = self._writes = _NOWHERE

    def _opened(self) -> None:
        """Called when the connection that writes was made, perhaps to another file."""

    async def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        await super().close()
        await self._read_in_thread(self._close_reader)
        await self._write_in_thread(self._close_writer)
        self._reader_pool().shutdown(wait=False)
        self._writer_pool().shutdown(wait=False)
        self._readers = self._writers = None

    # -- marks of a restore -----------------------------------------------------------------

    @property
    def _label(self) -> str:
        return os.path.realpath(self.path)

    @property
    def _mark_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.restoring")

    async def _mark(self, text: bytes | None) -> None:
        await self._write_in_thread(partial(mark_file, self._mark_path, text))

    async def _marked(self) -> bytes | None:
        return await self._read_in_thread(partial(read_file, self._mark_path, MAX_MARK))

    # -- connections ------------------------------------------------------------------------

    def _notice_fork(self) -> None:
        """After a fork, start afresh: neither connections nor threads go over to a child."""
        if self._pid != os.getpid():
            _left_to_parent.extend(one for one in (self._connection, self._reader) if one is not None)
            self._start()

    def _writer_pool(self) -> ThreadPoolExecutor:
        if self._writers is None:
            self._writers = ThreadPoolExecutor(1, "tagent-nb-sqlite-write")
        return self._writers

    def _reader_pool(self) -> ThreadPoolExecutor:
        if self._readers is None:
            self._readers = ThreadPoolExecutor(1, "tagent-nb-sqlite-read")
        return self._readers

    def _connect(self) -> sqlite3.Connection:
        self._refuse_half(read_file(self._mark_path, MAX_MARK))
        connection = connect(self.path, sync=self._sync)
        try:
            with translated(self.path):
                lost = recover(connection, self.path, self._key)
        except BaseException:
            connection.close()
            raise
        if lost is not None:
            self._report(lost)
        return connection

    def _open(self) -> sqlite3.Connection:
        """The connection that writes. The lock must be held."""
        if self._connection is not None and not self._is_there():
            # SQLite would go on to write into a file that has no name any more.
            self._connection.close()
            self._connection = None
            raise StorageUnavailableError(
                f"{self.path} was deleted or replaced while it was in use. Start the run again."
            )
        if self._connection is None:
            self._opened()
            self._connection = self._connect()
            self._writes = _identity(self.path)
        return self._connection

    def _is_there(self) -> bool:
        return _identity(self.path) == self._writes

    def _close_stale(self) -> None:
        with self._lock:
            if self._connection is not None and not self._is_there():
                self._connection.close()
                self._connection = None

    async def _write_in_thread(self, function: Callable[[], T]) -> T:
        self._notice_fork()
        return await asyncio.get_running_loop().run_in_executor(self._writer_pool(), function)

    async def _read_in_thread(self, function: Callable[[], T]) -> T:
        self._notice_fork()
        return await asyncio.get_running_loop().run_in_executor(self._reader_pool(), function)

    async def _write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Call ``function`` within a transaction, in the thread that writes."""

        def call() -> T:
            with self._lock, translated(self.path):
                connection = self._open()
                with waiting(connection), transaction(connection):
                    return function(connection)

        return await self._write_in_thread(call)

    async def _select(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        """Rows of a query, read beside whoever writes; none if there is no file yet."""

        def call() -> list[tuple[Any, ...]]:
            if self._reader is not None and _identity(self.path) != self._reads:
                # Somebody has restored it, or put another in its place.
                self._close_reader()
            if self._reader is None:
                if not is_regular(self.path):
                    self._refuse_half(read_file(self._mark_path, MAX_MARK))
                    return []
                if is_read_only(self.path):
                    self._refuse_half(read_file(self._mark_path, MAX_MARK))
                    with closing(connect_to_read(self.path)) as once, translated(self.path):
                        return once.execute(query, values).fetchall()
                try:
                    self._reader = self._connect()
                except StorageUnavailableError as error:
                    if not lacks_space(error):
                        raise
                    return self._select_without_space(error, query, values)
                self._reads = _identity(self.path)
            with translated(self.path), waiting(self._reader):
                return self._reader.execute(query, values).fetchall()

        return await self._read_in_thread(call)

    def _select_without_space(
        self, error: StorageError, query: str, values: tuple[str | int, ...]
    ) -> list[tuple[Any, ...]]:
        """Rows of a query from a disk that is full: to read needs no space."""
        try:
            with closing(connect_without_space(self.path)) as once, translated(self.path):
                return once.execute(query, values).fetchall()
        except StorageError:
            # It is not for want of space.
            raise error from error.__cause__

    def _checkpoint(self, how: str = "PASSIVE") -> None:
        """Move what is in the log into the database, beside whoever writes."""
        try:
            if self._reader is None:
                self._reader = self._connect()
                self._reads = _identity(self.path)
            with translated(self.path):
                self._reader.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
        except StorageError as error:
            # What is in the log is safe; if the trouble lasts, the next record will say so.
            self._report(f"The log could not be emptied. {error}")

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_writer(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _identity(path: Path) -> tuple[int, int]:
    """Which file is there, by device and number."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return _NOWHERE
    return state.st_dev, state.st_ino
