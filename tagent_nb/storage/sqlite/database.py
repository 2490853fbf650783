"""The file of a SQLite backend: opening and checking it, its errors, and two connections in their threads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol, TypeVar
from weakref import ref

from tagent_nb.errors import CorruptRecordError, FormatVersionError, StorageError, StorageUnavailableError
from tagent_nb.storage.filesystem import (
    MAX_MARK,
    is_regular,
    make_folder,
    mark_file,
    open_file,
    publish,
    read_file,
    sweep,
)

T = TypeVar("T")

APPLICATION = 0x7461676E
SCHEMA = 1
"""Version of the tables, in the file's ``user_version``."""

BUSY_TIMEOUT = 10_000
"""Milliseconds to wait for another process that writes."""

PAGE = 2048
"""Bytes of a page. With its own pages, a record writes up to two more into the log, so that small pages make
for fewer bytes. In smaller ones than these, the first page of a record may hold less than its head, by which
the record is known in a damaged log."""

_TABLES = """
CREATE TABLE documents(
    pipeline TEXT NOT NULL, name TEXT NOT NULL, record BLOB NOT NULL, PRIMARY KEY (pipeline, name)
);
-- AUTOINCREMENT: the number of a deleted run is never given to another.
CREATE TABLE runs(
    number INTEGER PRIMARY KEY AUTOINCREMENT, pipeline TEXT NOT NULL, run TEXT NOT NULL,
    token INTEGER NOT NULL DEFAULT 0, holder BLOB NOT NULL DEFAULT x'', state BLOB NOT NULL DEFAULT x'',
    UNIQUE (pipeline, run)
);
-- The number of the run is in the upper half of the id: its records are one range, without an index.
CREATE TABLE records(id INTEGER PRIMARY KEY, record BLOB NOT NULL);
"""

_ASIDE = ".tagent-"
_counter = itertools.count()

_NETWORK = ("nfs", "cifs", "smb", "9p", "ceph", "glusterfs", "lustre", "fuse.sshfs", "afs")


def connect(path: Path, *, sync: bool) -> sqlite3.Connection:
    """A connection to the database, made if it is new. It does not wait for others: see :func:`waiting`.

    Raises:
        CorruptRecordError: The file is not a database.
        FormatVersionError: A newer version of tagent-nb wrote it.
        StorageUnavailableError: It cannot be opened, or belongs to another program.
    """
    kind = file_system(path)
    if kind.startswith(_NETWORK):
        raise StorageUnavailableError(
            f"{path} is on a network file system ({kind}), where SQLite loses data. "
            "Use a local disk, a folder (open_storage('runs')) or Redis."
        )
    make_folder(path.parent, sync=sync)
    _check_files(path, sync=sync)
    with _opening(path, str(path)) as connection:
        _prepare_patiently(connection, path, sync=sync)
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection to a database that this process may not write to. Errors as for :func:`connect`.

    SQLite reads a write-ahead log that is there, and makes none
    (https://www.sqlite.org/wal.html#read_only_databases). Without one it must be assured that the file does
    not change, so the connection is for one query.
    """
    _check_files(path, sync=False)
    log = path.with_name(path.name + "-wal")
    immutable = "" if log.exists() and log.stat().st_size else "&immutable=1"
    with _opening(path, f"{path.absolute().as_uri()}?mode=ro{immutable}", uri=True) as connection:
        _check_ours(connection, path)
        connection.execute("PRAGMA trusted_schema = OFF")
        if _lacks_column(connection):
            connection.execute("CREATE TEMP VIEW runs AS SELECT *, x'' AS state FROM main.runs")
    return connection


def connect_without_space(path: Path) -> sqlite3.Connection:
    """A connection for one query, to a database on a disk that is full. Errors as for :func:`connect`.

    Usually SQLite keeps an index of its write-ahead log in a file. Who has locked the database for himself
    has it in memory (https://www.sqlite.org/wal.html#use_of_wal_without_shared_memory).
    """
    log = path.with_name(path.name + "-wal")
    if not (log.exists() and log.stat().st_size):
        return connect_to_read(path)
    with _opening(path, f"{path.absolute().as_uri()}?mode=rw", uri=True) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        with waiting(connection):
            _check_ours(connection, path)
        connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def lacks_space(error: StorageError) -> bool:
    """Whether a database could not be opened because a file beside it could not be made or grow."""
    code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


def is_read_only(path: Path) -> bool:
    """Whether this process may read a file and write neither to it nor beside it."""
    return os.access(path, os.R_OK) and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


@contextmanager
def _opening(path: Path, name: str, *, uri: bool = False) -> Iterator[sqlite3.Connection]:
    """A new connection, which is closed if what is done with it fails."""
    with translated(path):
        connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False, timeout=0, uri=uri)
        try:
            # A stranger's file may hold anything in any column.
            connection.text_factory = lambda text: text.decode(errors="replace")
            yield connection
        except BaseException:
            connection.close()
            raise


def backups_of(path: Path) -> Path:
    """The folder for backups beside a database."""
    return path.with_name(f"{path.name}.backups")


def _check_files(path: Path, *, sync: bool) -> None:
    """Make a new database, and let SQLite follow no link, neither here nor to its log.

    A file that is there is looked at, not opened: to close it again would take away the locks that
    another connection of this process holds on it (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    for suffix in ("-wal", "-shm", "-journal"):
        is_regular(path.with_name(path.name + suffix))
    remedy = (
        "restore() takes the newest backup. To begin anew, move it and what is beside it under its name "
        "elsewhere; nothing was changed."
    )
    if is_regular(path):
        # SQLite would take it for a new one, and delete its log.
        if not path.stat().st_size:
            raise CorruptRecordError(f"{path} has lost all that was in it (0 bytes). {remedy}")
        return
    log = path.with_name(path.name + "-wal")
    # SQLite would put what is in it into the new database.
    if log.exists() and log.stat().st_size:
        raise CorruptRecordError(f"{path} is gone, and its log is still there. Put it back, or: {remedy}")
    _create(path, sync=sync)


def _create(path: Path, *, sync: bool) -> None:
    """Make a database with its tables, whole or not at all: one without anything in it is then damaged."""
    sweep(path.parent, _ASIDE)
    aside = path.with_name(f"{_ASIDE}{os.getpid()}-{next(_counter)}.tmp")
    try:
        try:
            os.close(open_file(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, "open"))
        except FileNotFoundError as error:
            raise StorageUnavailableError(
                f"Cannot open {path}: its folder is gone. Make it again."
            ) from error
        with translated(path), closing(sqlite3.connect(aside, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'OFF'}")
            with transaction(connection):
                for statement in _TABLES.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
        publish(aside, path, sync=sync)
    finally:
        # Where nothing can be written, the error that says so is on its way.
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _prepare_patiently(connection: sqlite3.Connection, path: Path, *, sync: bool) -> None:
    """Prepare the file, again and again while another process does the same.

    The time-out of SQLite is not enough: a change to the write-ahead log that meets another such change
    gives up at once (on deadlocks, see https://www.sqlite.org/c3ref/busy_handler.html).
    """
    deadline = monotonic() + BUSY_TIMEOUT / 1000
    while True:
        try:
            return _prepare(connection, path, sync=sync)
        except sqlite3.OperationalError as error:
            if not is_busy(error) or monotonic() > deadline:
                raise
        sleep(0.01)


def _prepare(connection: sqlite3.Connection, path: Path, *, sync: bool) -> None:
    _check_ours(connection, path)
    _set_wal(connection, path)
    connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
    # Checkpoints flush: not while the loop waits for a record. See SQLiteStorageBackend._checkpoint.
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    # What a stranger put into the file does not run: no functions of its views or triggers.
    connection.execute("PRAGMA trusted_schema = OFF")
    _add_column(connection)


def _add_column(connection: sqlite3.Connection) -> None:
    """Give a file of an older version the place for what says where a run ends; older versions ignore it."""
    if _lacks_column(connection):
        with transaction(connection):
            # Another process may do the same.
            if _lacks_column(connection):
                connection.execute("ALTER TABLE runs ADD COLUMN state BLOB NOT NULL DEFAULT x''")


def _lacks_column(connection: sqlite3.Connection) -> bool:
    query = "SELECT count(*) FROM pragma_table_info('runs') WHERE name = 'state'"
    return bool(connection.execute(query).fetchone() == (0,))


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that is not ours, or that we cannot read."""
    # First: only a query of tables finds out that the file is cut off.
    tables = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise StorageUnavailableError(f"{path} is a database of another program. Use another file.")
    if version > SCHEMA:
        raise FormatVersionError(
            f"{path} has format {version}, and this tagent-nb reads up to {SCHEMA}. "
            "Install a newer tagent-nb; nothing was changed."
        )
    if any(kind in ("trigger", "view") for kind, _ in tables):
        raise CorruptRecordError(
            f"{path} has triggers or views, which tagent-nb never makes: they could change what is "
            "recorded. Restore a backup, or drop them; nothing was changed."
        )
    if not {("table", "documents"), ("table", "runs"), ("table", "records")} <= set(tables):
        raise CorruptRecordError(f"{path} lacks a table. Restore a backup; nothing was changed.")


def _set_wal(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StorageUnavailableError(
            f"SQLite cannot use its write-ahead log for {path} (it stays {mode!r}). Use a local disk."
        )


def file_system(path: Path) -> str:
    """Kind of the file system that ``path`` is on, where the system says (``""`` elsewhere)."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    resolved = path.absolute().parent.resolve() / path.name
    best, kind = -1, ""
    for line in lines:
        _, where, name, *_ = line.split(" ")
        point = Path(where.encode().decode("unicode_escape"))
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), name
    return kind


@contextmanager
def waiting(connection: sqlite3.Connection) -> Iterator[None]:
    """Wait up to :data:`BUSY_TIMEOUT` for other processes that write, which only a thread may do."""
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
    try:
        yield
    finally:
        connection.execute("PRAGMA busy_timeout = 0")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. The right to write comes first: of two that read before, one would have to give up."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        # After an error; some errors have rolled back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection holds the lock at this moment."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise trouble(error, path) from error
    except UnicodeDecodeError as error:
        # In what SQLite says of a damaged file, names of its tables, for example.
        raise CorruptRecordError(
            f"SQLite cannot use {path}: it is damaged, and holds text that is no UTF-8. Restore a backup; "
            "nothing was changed."
        ) from error


def trouble(error: sqlite3.Error, path: Path) -> StorageError:
    """What went wrong with the database, and the remedy."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    text = f"SQLite cannot use {path}: {error}."
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CorruptRecordError(f"{text} Restore a backup; nothing was changed.")
    if code == sqlite3.SQLITE_ERROR and "no such" in str(error):
        # Its tables are not what they were when it was made.
        return CorruptRecordError(f"{text} It is damaged: restore a backup; nothing was changed.")
    if code == sqlite3.SQLITE_FULL:
        remedy = "The disk is full: free some space. What was stored before is unchanged."
    elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        remedy = (
            "It may not be written: change its permissions and its folder's, copy it and what is beside it "
            "under its name, or use another place."
        )
    elif is_busy(error):
        seconds = BUSY_TIMEOUT / 1000
        remedy = f"Another process has locked it for {seconds:.0f} s. Find it with `fuser` and end it."
    elif code == sqlite3.SQLITE_TOOBIG or isinstance(error, sqlite3.DataError):
        remedy = "A record is too big for it: write such data to a file in the step and return its path."
    else:
        remedy = "Check the disk; what was stored before is unchanged."
    return StorageUnavailableError(f"{text} {remedy}")


# -- connections ---------------------------------------------------------------------------------

_NOWHERE = (0, 0)

_left_to_parent: list[sqlite3.Connection] = []
"""Connections of before a fork. To close one here could end the parent's locks."""


class Owner(Protocol):
    """What the connections to a file need of the backend that has them."""

    def _report(self, message: str, /) -> None:
        """Note a problem that stops nothing."""

    def _refuse_half(self, marked: bytes | None, /) -> None:
        """Refuse a store that a restore has only begun to fill."""

    def _opened(self) -> None:
        """The connection that writes is made, perhaps to another file."""

    def _recover(self, connection: sqlite3.Connection, /) -> None:
        """Report what a damaged log has lost."""

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
                self._owner._recover(connection)
        except BaseException:
            connection.close()
            raise
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
