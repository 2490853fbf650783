"""The file of a SQLite backend: a connection to write and one to read, each in its thread."""

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
from typing import Any, Protocol, TypeVar
from weakref import ref

from tagent_nb.errors import StorageError, StorageUnavailableError
from tagent_nb.storage.filesystem import MAX_MARK, is_regular, mark_file, read_file
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


class Owner(Protocol):
    """What the connections to a file need of the backend that has them."""

    _key: bytes | None

    def _report(self, message: str, /) -> None:
        """Note a problem that stops nothing."""

    def _refuse_half(self, marked: bytes | None, /) -> None:
        """Refuse a store that a restore has only begun to fill."""

    def _opened(self) -> None:
        """The connection that writes is made, perhaps to another file."""

    def _forked(self) -> None:
        """This is a child process, in which nothing is under way."""


class SQLiteFile:
    """A file with two connections, each opened when it is needed: one to write and one to read, each in its
    thread.

    Attributes:
        path: The file.
        sync: Whether a record is flushed before it counts as recorded.
        lock: Held by what uses the connection that writes.
        connection: That connection, ``None`` if it is not open.

    Args:
        owner: The backend. A backend that is dropped closes its file, so there is no way back to it that
            keeps it alive.
    """

    def __init__(self, path: Path, *, sync: bool, owner: Owner) -> None:
        self.path = path
        self.sync = sync
        self._backend = ref(owner)
        self._start()

    @property
    def _owner(self) -> Owner:
        owner = self._backend()
        # It waits for what it has called.
        assert owner is not None
        return owner

    def _start(self) -> None:
        self._pid = os.getpid()
        self.lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._writers: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._reads = self._writes = _NOWHERE

    async def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        await self.in_reader(self._close_reader)
        await self.in_writer(self._close_writer)
        self.reader().shutdown(wait=False)
        self.writer().shutdown(wait=False)
        self._readers = self._writers = None

    # -- marks of a restore -----------------------------------------------------------------

    @property
    def _mark_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.restoring")

    async def mark(self, text: bytes | None) -> None:
        """Keep a text beside the file, or with ``None`` none."""
        await self.in_writer(partial(mark_file, self._mark_path, text))

    async def marked(self) -> bytes | None:
        """The text that :meth:`mark` keeps."""
        return await self.in_reader(partial(read_file, self._mark_path, MAX_MARK))

    # -- connections ------------------------------------------------------------------------

    def notice_fork(self) -> None:
        """After a fork, start afresh: neither connections nor threads go over to a child."""
        if self._pid != os.getpid():
            _left_to_parent.extend(filter(None, (self.connection, self._reading)))
            self._start()
            self._owner._forked()

    def writer(self) -> ThreadPoolExecutor:
        """The thread of the connection that writes."""
        if self._writers is None:
            self._writers = ThreadPoolExecutor(1, "tagent-nb-sqlite-write")
        return self._writers

    def reader(self) -> ThreadPoolExecutor:
        """The thread of the connection that reads."""
        if self._readers is None:
            self._readers = ThreadPoolExecutor(1, "tagent-nb-sqlite-read")
        return self._readers

    def _connect(self) -> sqlite3.Connection:
        self._owner._refuse_half(read_file(self._mark_path, MAX_MARK))
        connection = connect(self.path, sync=self.sync)
        try:
            with translated(self.path):
                lost = recover(connection, self.path, self._owner._key)
        except BaseException:
            connection.close()
            raise
        if lost is not None:
            self._owner._report(lost)
        return connection

    def open(self) -> sqlite3.Connection:
        """The connection that writes. :attr:`lock` must be held."""
        if self.connection is not None and not self.is_there():
            # SQLite would go on to write into a file that has no name any more.
            self.connection.close()
            self.connection = None
            raise StorageUnavailableError(
                f"{self.path} was deleted or replaced while it was in use. Start the run again."
            )
        if self.connection is None:
            self._owner._opened()
            self.connection = self._connect()
            self._writes = _identity(self.path)
        return self.connection

    def is_there(self) -> bool:
        """Whether the file that the connection writes to still has its name."""
        return _identity(self.path) == self._writes

    def close_stale(self) -> None:
        """Close the connection that writes if another file has taken the place of its own."""
        with self.lock:
            if self.connection is not None and not self.is_there():
                self.connection.close()
                self.connection = None

    async def in_writer(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the thread that writes."""
        self.notice_fork()
        return await asyncio.get_running_loop().run_in_executor(self.writer(), _call, function, self._owner)

    async def in_reader(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the thread that reads."""
        self.notice_fork()
        return await asyncio.get_running_loop().run_in_executor(self.reader(), _call, function, self._owner)

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Call ``function`` within a transaction, in the thread that writes."""

        def call() -> T:
            with self.lock, translated(self.path):
                connection = self.open()
                with waiting(connection), transaction(connection):
                    return function(connection)

        return await self.in_writer(call)

    async def select(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        """Rows of a query, read while others may write; none if there is no file yet."""

        def call() -> list[tuple[Any, ...]]:
            if self._reading is not None and _identity(self.path) != self._reads:
                # It was restored, or another file is in its place.
                self._close_reader()
            if self._reading is None:
                if not is_regular(self.path):
                    self._owner._refuse_half(read_file(self._mark_path, MAX_MARK))
                    return []
                if is_read_only(self.path):
                    self._owner._refuse_half(read_file(self._mark_path, MAX_MARK))
                    with closing(connect_to_read(self.path)) as once, translated(self.path):
                        return once.execute(query, values).fetchall()
                try:
                    self._reading = self._connect()
                except StorageUnavailableError as error:
                    if not lacks_space(error):
                        raise
                    return self._select_without_space(error, query, values)
                self._reads = _identity(self.path)
            with translated(self.path), waiting(self._reading):
                return self._reading.execute(query, values).fetchall()

        return await self.in_reader(call)

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

    def checkpoint(self, how: str = "PASSIVE") -> None:
        """Move what is in the log into the database, while others may write."""
        try:
            if self._reading is None:
                self._reading = self._connect()
                self._reads = _identity(self.path)
            with translated(self.path):
                self._reading.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
        except StorageError as error:
            # What is in the log is safe; if the trouble lasts, the next record will say so.
            self._owner._report(f"The log could not be emptied. {error}")

    def _close_reader(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _close_writer(self) -> None:
        with self.lock:
            if self.connection is not None:
                self.connection.close()
                self.connection = None


def _call(function: Callable[[], T], owner: Owner) -> T:
    """Call ``function``, and keep the backend until then, also if what waits for this is cancelled."""
    return function()


def _identity(path: Path) -> tuple[int, int]:
    """Which file is there, by device and number."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return _NOWHERE
    return state.st_dev, state.st_ino
