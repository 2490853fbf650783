"""The table behind the result cache: diskcache, with nothing of it that could run a stranger's code."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import diskcache

from tagent_nb.errors import CorruptRecordError, StorageUnavailableError

FILE = "cache.db"
FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm")

BUSY_TIMEOUT = 5.0
"""Seconds that the cache's own thread waits for another process to finish writing."""

REMEMBER_USE = 60.0
"""Seconds within which a second use of an entry is not written down again."""

FILL = 0.9
"""Share of the limit that is left in use after old entries were removed."""

AT_ONCE = 256
"""Entries that one statement reads or marks."""

_RAW = diskcache.core.MODE_RAW

_STORE = f"""
INSERT INTO Cache (key, raw, store_time, access_time, tag, size, mode, value)
VALUES (?, 1, ?, ?, ?, ?, {_RAW}, ?)
ON CONFLICT (key, raw) DO UPDATE SET store_time = excluded.store_time, expire_time = NULL,
access_time = excluded.access_time, access_count = 0, tag = excluded.tag, size = excluded.size,
mode = excluded.mode, filename = NULL, value = excluded.value
"""
"""What diskcache's ``set`` does of a record that is bytes, for many of them."""

_KEY = re.compile(r"[0-9a-f]{64}\Z")
_SETTINGS: Mapping[str, Any] = {
    **diskcache.DEFAULT_SETTINGS,
    "statistics": 0,
    "eviction_policy": "none",
    "cull_limit": 0,
    "sqlite_journal_mode": "wal",
    "sqlite_synchronous": 1,
    # A mapped file that is truncated would kill the kernel.
    "sqlite_mmap_size": 0,
    "sqlite_trusted_schema": 0,
    "sqlite_cell_size_check": 1,
}
_COUNTERS = frozenset({"count", "size", "hits", "misses"})


@dataclass(frozen=True)
class StepCacheStats:
    """Entries of one step: ``size`` in bytes, times in seconds since the epoch."""

    pipeline: str
    step: str
    entries: int
    size: int
    first_stored: float
    last_used: float


_SOURCES = """CREATE TABLE IF NOT EXISTS Sources (
    rowid INTEGER PRIMARY KEY, source BLOB UNIQUE, code BLOB
)"""
MAX_SOURCES = 4096
"""Sources whose digests are kept: a quarter of a megabyte, read in a few milliseconds."""


@dataclass(frozen=True)
class CacheStats:
    """State of a cache: sizes in bytes; hits and misses since it was opened in this process."""

    directory: Path
    size: int
    size_limit: int
    entries: int
    hits: int
    misses: int
    steps: list[StepCacheStats] = field(default_factory=list)


def check_key(key: object) -> str:
    """Return ``key`` if it is a SHA-256 in hexadecimal.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(key, str) and _KEY.match(key):
        return key
    raise ValueError(f"A cache key must be a SHA-256 in hexadecimal, not {key!r}.")


class _BytesDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores bytes in the row itself. The stock one unpickles, and follows file names."""

    def __init__(self, directory: str, **stored: Any) -> None:
        super().__init__(directory)

    def put(self, key: object) -> tuple[str, bool]:
        return check_key(key), True

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> bytes:
        if not _is_ours(value, mode, filename):
            raise CorruptRecordError("it was not written by tagent-nb")
        return value

    def remove(self, file_path: object) -> None:
        """No entry of ours has a file; a name in the table is that of another program."""


def _is_ours(value: object, mode: object, filename: object) -> TypeGuard[bytes]:
    """Whether an entry is bytes in the row itself."""
    return type(value) is bytes and mode == _RAW and filename is None


class Database(diskcache.Cache):  # type: ignore[misc]
    """The table, with the settings of this module whatever the file says.

    The thread that makes it waits for other processes (:data:`BUSY_TIMEOUT`); all others read only, and
    never wait.
    """

    _opening = True

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), timeout=0, disk=_BytesDisk, **_SETTINGS)
        self._opening = False
        self._sql(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT * 1000)}")

    def reset(self, key: str, value: Any = diskcache.core.ENOVAL, update: bool = True) -> Any:
        if key in _COUNTERS:
            return super().reset(key)
        if key not in _SETTINGS:
            return value
        value = _SETTINGS[key]
        pragma = key.removeprefix("sqlite_")
        if pragma == key:
            return super().reset(key, value, update=False)
        if self._sql_retry(f"PRAGMA {pragma}").fetchall() != [(value,)]:
            self._sql_retry(f"PRAGMA {pragma} = {value}").fetchall()
        return value

    @property
    def _sql_retry(self) -> Callable[..., sqlite3.Cursor]:
        """The stock one waits for 60 seconds a statement. Ours waits while it opens, and then never."""
        deadline = time.monotonic() + (BUSY_TIMEOUT if self._opening else 0.0)

        def execute(*args: Any) -> sqlite3.Cursor:
            while True:
                try:
                    cursor: sqlite3.Cursor = self._sql(*args)
                    return cursor
                except sqlite3.OperationalError as error:
                    if not is_busy(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(0.005)

        return execute

    def used_bytes(self) -> int:
        """Bytes of the file that are in use."""
        ((pages,),) = self._sql("PRAGMA page_count").fetchall()
        ((free,),) = self._sql("PRAGMA freelist_count").fetchall()
        ((size,),) = self._sql("PRAGMA page_size").fetchall()
        return int((pages - free) * size)

    def read(self, keys: Sequence[str], longest: int) -> dict[str, bytes | None]:
        """What is stored under keys; ``None`` for those under which nothing is.

        Left out are records of more than ``longest`` bytes, and those that another program wrote.
        """
        records: dict[str, bytes | None] = dict.fromkeys(keys)
        rows = self._sql(
            "SELECT key, mode, filename, CASE WHEN length(value) <= ? THEN value END FROM Cache "
            f"WHERE key IN ({_places(keys)}) AND raw = 1 AND (expire_time IS NULL OR expire_time > ?)",
            (longest, *keys, time.time()),
        )
        for key, mode, filename, value in rows:
            if _is_ours(value, mode, filename):
                records[key] = value
            else:
                del records[key]
        return records

    def write(self, entries: Iterable[tuple[str, bytes, str]], used: Sequence[str]) -> None:
        """Store entries, and when others were used, in one transaction."""
        now = time.time()
        rows = [(key, now, now, tag, len(record), record) for key, record, tag in entries]
        with self.transact():
            if rows:
                self._con.executemany(_STORE, rows)
            for start in range(0, len(used), AT_ONCE):
                keys = used[start : start + AT_ONCE]
                self._sql(
                    "UPDATE Cache SET access_time = ? WHERE raw = 1 AND access_time < ? "
                    f"AND key IN ({_places(keys)})",
                    (now, now - REMEMBER_USE, *keys),
                )

    def write_sources(self, sources: Mapping[bytes, bytes]) -> None:
        """Store digests by source, in place of the oldest if there are too many."""
        with self.transact():
            self._sql(_SOURCES)
            self._con.executemany(
                "INSERT OR REPLACE INTO Sources (source, code) VALUES (?, ?)", list(sources.items())
            )
            self._sql(
                "DELETE FROM Sources WHERE rowid <= (SELECT MAX(rowid) FROM Sources) - ?", (MAX_SOURCES,)
            )

    def sources(self) -> dict[bytes, bytes]:
        """What :meth:`write_sources` stored."""
        if not self._sql("SELECT 1 FROM sqlite_master WHERE name = 'Sources'").fetchall():
            return {}
        return {
            source: code
            for source, code in self._sql("SELECT source, code FROM Sources")
            if isinstance(source, bytes) and isinstance(code, bytes)
        }

    def evict(self, size_limit: int, protected: Collection[str]) -> bool:
        """Remove the entries that were used longest ago until the file is well within its limit.

        Returns:
            Whether it is within the limit now; the rest may be protected.
        """
        with self.transact():
            excess = self.used_bytes() - int(size_limit * FILL)
            rows: list[int] = []
            for row, key, size in self._sql("SELECT rowid, key, size FROM Cache ORDER BY access_time"):
                if excess <= 0:
                    break
                if key not in protected:
                    rows.append(row)
                    excess -= int(size)
            self._delete(rows)
        return self.used_bytes() <= size_limit

    def discard(self, step: str | None, older_than: float | None) -> int:
        """Remove entries of a step, those stored more than so many seconds ago, or all."""
        where: list[str] = ["1"]
        values: list[Any] = []
        if step is not None:
            where.append("substr(tag, 1, length(?)) = ?")
            values += [f"{step}\n"] * 2
        if older_than is not None:
            where.append("store_time < ?")
            values.append(time.time() - older_than)
        with self.transact():
            if where == ["1"]:
                self._sql("DROP TABLE IF EXISTS Sources")
            rows = self._sql(f"SELECT rowid FROM Cache WHERE {' AND '.join(where)}", values).fetchall()
            self._delete(row for (row,) in rows)
        return len(rows)

    def _delete(self, rows: Iterable[int]) -> None:
        for row in rows:
            self._sql("DELETE FROM Cache WHERE rowid = ?", (row,))

    def by_step(self) -> list[StepCacheStats]:
        """What is stored by pipeline and step, the largest first."""
        rows = self._sql(
            "SELECT tag, COUNT(*), SUM(size), MIN(store_time), MAX(access_time) FROM Cache GROUP BY tag"
        )
        steps = []
        for tag, entries, size, first, last in rows.fetchall():
            step, _, pipeline = str(tag).partition("\n")
            steps.append(StepCacheStats(pipeline, step, int(entries), int(size), float(first), float(last)))
        return sorted(steps, key=lambda stats: -stats.size)


def _places(keys: Sequence[str]) -> str:
    return ", ".join("?" * len(keys))


def is_busy(error: Exception) -> bool:
    """Whether another process is in the way."""
    code = getattr(error, "sqlite_errorcode", 0)
    return isinstance(error, diskcache.Timeout) or code & 0xFF == sqlite3.SQLITE_BUSY


def open_database(folder: Path) -> Database:
    """Open or make the database of a folder.

    Raises:
        StorageUnavailableError: Its files are not such as tagent-nb makes.
        OSError, sqlite3.Error: They cannot be used.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.path.expandvars(str(folder)) != str(folder):
        raise StorageUnavailableError("its path has a '$' that the cache library would replace")
    for file in (folder / name for name in FILES):
        if file.is_symlink() or (file.exists() and not stat.S_ISREG(file.stat().st_mode)):
            raise StorageUnavailableError(f"{file.name} is not a plain file")
    if not (folder / FILE).exists():
        # The files beside it get the same permissions from SQLite.
        os.close(os.open(folder / FILE, os.O_CREAT | os.O_RDWR, 0o600))
    else:
        _refuse_foreign_schema(folder / FILE)
    return Database(folder)


def _refuse_foreign_schema(file: Path) -> None:
    """SQL that a stranger left in the file must not run: no views, no triggers but diskcache's."""
    with closing(sqlite3.connect(file, timeout=BUSY_TIMEOUT)) as connection:
        for kind, name, text in connection.execute("SELECT type, name, sql FROM sqlite_master"):
            sql = str(text or "").upper()
            if kind == "view" or "VIRTUAL" in sql or (kind == "trigger" and "SELECT" in sql):
                raise StorageUnavailableError(
                    f"{file.name} has a {kind} {name!r} that tagent-nb did not make"
                )


def in_words(error: Exception) -> str:
    """What went wrong, for a sentence to the user."""
    if isinstance(error, diskcache.Timeout):
        return "another process is writing, or the disk or the file is read-only"
    return str(error) or type(error).__name__
