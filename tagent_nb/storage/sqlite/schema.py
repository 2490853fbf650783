"""SQLite as the SQLite backend uses it: opening and checking the file, its tables, and its errors."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic, sleep

from tagent_nb.errors import CorruptRecordError, FormatVersionError, StorageError, StorageUnavailableError
from tagent_nb.storage.filesystem import is_regular, make_folder, open_file, publish, sweep

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
