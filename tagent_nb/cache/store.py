"""The result cache: answers by fingerprint, in one SQLite file kept by diskcache.

Deleting it costs money, never correctness. What a stranger put into it is never executed: values
and keys are bytes and text only, no file is read or removed for an entry, settings in the file are
not followed, and views and foreign triggers are refused.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tagent_nb.cache.diskcache_table import (
    FILE,
    FILES,
    CacheStats,
    Database,
    StepCacheStats,
    check_key,
    in_words,
    is_busy,
    open_database,
)
from tagent_nb.cache.entry import CacheEntry, SourceDigests, pack, unpack
from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    EncodeError,
    StorageUnavailableError,
    TagentError,
)
from tagent_nb.events import Output, TokenUsage
from tagent_nb.serde import LARGE, unreadable

__all__ = [
    "ActiveRuns",
    "CacheEntry",
    "CacheStats",
    "ResultCache",
    "StepCacheStats",
]


T = TypeVar("T")

SIZE_LIMIT = 2**30
"""Bytes that the cache file may take, unless it is given another limit: 1 GiB."""

_WAITING_ENTRIES, _WAITING_BYTES = 1000, 65536
"""Writes that may wait in memory; a larger one, or one more, waits for the file."""

GATHERED, GATHERED_SECONDS = 256, 0.02
"""Answers that are written together, and seconds after which they are, however few."""


class ResultCache:
    """Answers of steps by the SHA-256 of their fingerprint.

    Reads happen where they are asked for and never wait for other processes. Writes are done by one
    thread of its own, several in one transaction; until then they are answered from memory.
    Nothing here raises because of what is on disk: whatever is wrong with it is a miss, and reported
    once per run.

    Args:
        directory: Folder of the cache; made (0700) when it is first used.
        size_limit: Bytes the file may take. Entries used longest ago make room for new ones, but
            never those that an active run has read or written.
        warn: Takes a sentence for the user, from any thread; ``warnings.warn`` without one.
    """

    def __init__(
        self, directory: str | Path, *, size_limit: int = SIZE_LIMIT, warn: Warn | None = None
    ) -> None:
        if isinstance(size_limit, bool) or not isinstance(size_limit, int) or size_limit < 1:
            raise DefinitionError(f"size_limit must be a positive number of bytes, not {size_limit!r}.")
        self.directory = Path(directory).expanduser().absolute()
        self.size_limit = size_limit
        self.hits = 0
        self.misses = 0
        self._active = ActiveRuns(warn)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._database: Database | None = None
        self._file_id: tuple[int, int] | None = None
        self._unusable = False
        self._waiting: dict[str, tuple[str, bytes, str]] = {}
        self._used: deque[str] = deque()
        self._sources: SourceDigests | None = None
        self._flush_asked = False
        # The loop on which a timer ends the gathering of writes.
        self._gathering: asyncio.AbstractEventLoop | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tagent-nb cache")

    def __repr__(self) -> str:
        return f"<ResultCache {str(self.directory)!r}: {self.hits} hits, {self.misses} misses>"

    # -- reading ----------------------------------------------------------------------------

    def get(self, key: str, schemas: Mapping[str, type] | None = None) -> CacheEntry | None:
        """The answer under ``key`` (SHA-256, hex), or ``None``.

        Args:
            schemas: Classes by name for pydantic models in the value.
        """
        record = self._read_now(key)
        if isinstance(record, Exception):
            record = self._thread.submit(self._read_patiently, key).result()
        return self._counted(key, None if record is None else _unpacked(key, record, schemas), True)

    async def aget(
        self,
        key: str,
        schemas: Mapping[str, type] | None = None,
        *,
        count: bool = True,
        ahead: dict[str, bytes | None] | None = None,
        usable: Callable[[CacheEntry], Awaitable[bool]] | None = None,
    ) -> CacheEntry | None:
        """As :meth:`get`; when the file is locked, the loop goes on meanwhile.

        Args:
            key: As for :meth:`get`.
            schemas: As for :meth:`get`.
            count: Whether this is a use of the entry, and a hit or a miss; else only a look.
            ahead: What :meth:`read_ahead` gave of this and other keys; what is used is taken out.
            usable: Whether an entry may answer, beside its key; one that may not is a miss.
        """
        record = _NOT_READ if ahead is None else ahead.pop(key, _NOT_READ)
        if record is _NOT_READ or (record is None and self._active.uses(key)):
            # It was not asked for, or has been stored since.
            record = self._read_now(key)
        if isinstance(record, Exception):
            record = await self._hop(self._read_patiently, key)
        if isinstance(record, bytes) and len(record) > LARGE:
            # To check and to decode it takes long: all else goes on meanwhile.
            entry: CacheEntry | TagentError | None = await asyncio.to_thread(_unpacked, key, record, schemas)
        else:
            entry = None if record is None else _unpacked(key, record, schemas)
        if usable is not None and isinstance(entry, CacheEntry) and not await usable(entry):
            entry = None
        return self._counted(key, entry, count)

    def take(
        self,
        key: str,
        ahead: dict[str, bytes | None],
        schemas: Mapping[str, type] | None = None,
        usable: Callable[[CacheEntry], bool] | None = None,
    ) -> CacheEntry | None:
        """The answer that :meth:`read_ahead` gave, counted; ``None`` if :meth:`aget` has to be asked.

        Args:
            key: As for :meth:`get`.
            ahead: What was read; what is used is taken out.
            schemas: As for :meth:`get`.
            usable: Whether an entry may answer without more ado.
        """
        record = ahead.get(key)
        entry = None if record is None else _unpacked(key, record, schemas)
        if entry is None or isinstance(entry, TagentError) or (usable is not None and not usable(entry)):
            return None
        del ahead[key]
        return self._counted(key, entry, True)

    async def read_ahead(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        """What is stored under keys, for :meth:`aget` to use; that counts it, and asks for what is left out.

        Args:
            keys: At most a few hundred.
        """
        self._notice_fork()
        try:
            database = self._database or await self._hop(self._open)
            return {} if database is None else database.read(keys, _WAITING_BYTES)
        except Exception:  # whatever is wrong with the file: the question for a single one says so
            return {}

    def _read_now(self, key: str) -> bytes | Exception | None:
        """The record, ``None`` without one, or why it cannot be read without waiting."""
        self._notice_fork()
        waiting = self._waiting.get(check_key(key))
        if waiting is not None:
            return waiting[1]
        if self._unusable:
            return None
        if self._database is None:
            return BlockingIOError("not open yet")
        try:
            return self._fetch(self._database, key)
        except Exception as error:  # a poisoned file makes diskcache fail in many ways
            if is_busy(error):
                return error
            self._tell_unreadable(error)
            return None

    def _read_patiently(self, key: str) -> bytes | None:
        try:
            database = self._open()
            return None if database is None else self._fetch(database, key)
        except Exception as error:  # as above
            self._tell_unreadable(error)
            return None

    async def source_digests(self) -> SourceDigests:
        """Digests of functions by their text, of all processes; new ones are written with entries."""
        if self._sources is None:
            stored = await self._hop(self._read_sources)
            self._sources = self._sources or SourceDigests(stored)  # another task may have been first
        return self._sources

    def _read_sources(self) -> dict[bytes, bytes]:
        try:
            database = self._open()
            return {} if database is None else database.sources()
        except Exception as error:  # a poisoned file makes diskcache fail in many ways
            self._tell_unreadable(error)
            return {}

    @staticmethod
    def _fetch(database: Database, key: str) -> bytes | None:
        blob: bytes | None = database.get(key)
        return blob

    def _counted(self, key: str, entry: CacheEntry | TagentError | None, count: bool) -> CacheEntry | None:
        """Count an answer as a hit; one that is not there or cannot be used as a miss."""
        if isinstance(entry, TagentError):
            self._tell_unreadable(entry)
            entry = None
        if entry is None:
            self.misses += count
            return None
        if count:
            self.hits += 1
            self._used.append(key)
            self._active.use(key)
        return entry

    # -- writing ----------------------------------------------------------------------------

    def put(
        self,
        key: str,
        output: Output,
        *,
        usage: TokenUsage | None = None,
        cost: float | None = 0.0,
        step: str = "",
        pipeline: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Store an answer and wait until it is written.

        Args:
            key: SHA-256 (hex) of the unit's fingerprint.
            output: The value.
            usage: Tokens and calls it took.
            cost: USD it took; ``None`` when unknown.
            step: Name of the step, for :meth:`stats` and :meth:`clear`.
            pipeline: Id of the pipeline, for :meth:`stats`.
            metadata: Plain data to be given back with it.

        Returns:
            Whether it could be encoded; a value that cannot is reported, and not stored.

        Raises:
            ValueError: ``key`` is no SHA-256.
        """
        if not self._accept(key, output, usage, cost, step, pipeline, metadata):
            return False
        self.flush()
        return True

    async def aput(
        self,
        key: str,
        output: Output,
        *,
        usage: TokenUsage | None = None,
        cost: float | None = 0.0,
        step: str = "",
        pipeline: str = "",
        metadata: Mapping[str, Any] | None = None,
        gather: bool = False,
    ) -> bool:
        """As :meth:`put`, but returns when the answer is in memory and its write is under way.

        It is encoded before this returns, so that later changes of the value do not reach it.

        Args:
            key: As for :meth:`put`, and so are the others.
            gather: Whether its write may wait for :data:`GATHERED_SECONDS`, to be one with others.
        """
        if not self._accept(key, output, usage, cost, step, pipeline, metadata):
            return False
        if len(self._waiting) > _WAITING_ENTRIES or len(self._waiting[key][1]) > _WAITING_BYTES:
            await self._hop(self._flush)
        elif gather and len(self._waiting) < GATHERED:
            loop = asyncio.get_running_loop()
            if self._gathering is not loop:
                self._gathering = loop
                loop.call_later(GATHERED_SECONDS, self._end_gathering)
        else:
            self._ask_to_flush()
        return True

    def _end_gathering(self) -> None:
        self._gathering = None
        self._ask_to_flush()

    def _ask_to_flush(self) -> None:
        if not self._flush_asked and self._waiting:
            self._flush_asked = True
            self._thread.submit(self._flush)

    def _accept(
        self,
        key: str,
        output: Output,
        usage: TokenUsage | None,
        cost: float | None,
        step: str,
        pipeline: str,
        metadata: Mapping[str, Any] | None,
    ) -> bool:
        self._notice_fork()
        try:
            record = pack(check_key(key), output, usage or TokenUsage(), cost, metadata or {})
        except EncodeError as error:
            self._active.tell(
                f"step {step}", f"Step {step!r} is not cached, since its answer cannot be stored: {error}"
            )
            return False
        self._active.use(key)
        self._waiting[key] = (key, record, f"{step}\n{pipeline}")
        return True

    def flush(self) -> None:
        """Wait until all that was put is written."""
        self._notice_fork()
        self._thread.submit(self._flush).result()

    def _flush(self) -> None:
        self._flush_asked = False
        entries = dict(self._waiting)
        used = set()
        while self._used:
            used.add(self._used.popleft())
        try:
            sources = self._sources.take_new() if self._sources is not None else {}
            if entries or used or sources:
                database = self._open()
                if database is not None and (entries or used):
                    database.write(entries.values(), list(used))
                if database is not None and sources:
                    database.write_sources(sources)
            if self._database is not None:
                self._keep_within_limit(self._database)
        except Exception as error:  # a full disk, a lock, a poisoned file: the run goes on without
            self._active.tell("write", f"{self._named()} could not be written: {in_words(error)}. {_GOES_ON}")
        for key, entry in entries.items():
            if self._waiting.get(key) is entry:
                del self._waiting[key]

    def _keep_within_limit(self, database: Database) -> None:
        if database.used_bytes() <= self.size_limit:
            return
        if not database.evict(self.size_limit, self._active.keys()):
            self._active.tell(
                "limit",
                f"{self._named()} is larger than its size_limit of {self.size_limit:,} bytes, since this run "
                "needs all that is in it. It shrinks when the run ends; raise size_limit to keep all.",
            )

    # -- runs -------------------------------------------------------------------------------

    def protect(self, run_id: str, warn: Warn | None = None) -> None:
        """Keep what a run reads and writes from now on until :meth:`release`.

        Args:
            run_id: The run.
            warn: Takes this run's warnings, each kind once, from any thread.
        """
        self._notice_fork()
        self._active.begin(run_id, warn)
        self._unusable = False
        if self._database is not None and self._file_id != self._id_of_file():
            self._database = None  # the folder was deleted or replaced

    def release(self, run_id: str) -> None:
        """End :meth:`protect`: write down what was used, and make room if the limit is passed."""
        self._active.end(run_id)
        self.flush()

    async def arelease(self, run_id: str) -> None:
        """As :meth:`release`, without holding up the loop."""
        self._active.end(run_id)
        await self._hop(self._flush)

    # -- looking after it -------------------------------------------------------------------

    def stats(self) -> CacheStats:
        """Size, entries, hits and misses, and the same by step, the largest first."""
        self.flush()
        size, steps = self._thread.submit(self._measure).result()
        return CacheStats(
            directory=self.directory,
            size=size,
            size_limit=self.size_limit,
            entries=sum(step.entries for step in steps),
            hits=self.hits,
            misses=self.misses,
            steps=steps,
        )

    def _measure(self) -> tuple[int, list[StepCacheStats]]:
        if not (self.directory / FILE).exists():
            return 0, []
        try:
            database = self._open()
            if database is None:
                return 0, []
            return database.used_bytes(), database.by_step()
        except Exception as error:  # a poisoned file makes diskcache fail in many ways
            self._tell_unreadable(error)
            return 0, []

    def clear(self, step: str | None = None, older_than: float | None = None) -> int:
        """Remove entries; without arguments all of them, even of a damaged cache.

        Args:
            step: Only those of steps of this name.
            older_than: Only those stored more than so many seconds ago.

        Returns:
            How many entries were removed.

        Raises:
            StorageUnavailableError: The cache cannot be written now.
        """
        self.flush()
        return self._thread.submit(self._clear, step, older_than).result()

    def _clear(self, step: str | None, older_than: float | None) -> int:
        everything = step is None and older_than is None
        if self.directory.exists() and not self.directory.is_dir():
            raise self._not_cleared("it is no folder. Move it away, or use another folder")
        if not (self.directory / FILE).exists():
            return 0
        self._unusable = False
        try:
            database = self._open()
            if database is not None:
                return database.discard(step, older_than)
        except Exception as error:  # a poisoned file makes diskcache fail in many ways
            if not everything or is_busy(error):
                raise self._not_cleared(in_words(error)) from error
        if not everything:
            raise self._not_cleared("it cannot be read. Clear all of it")
        self._database = None
        self._unusable = False
        try:
            for name in FILES:
                (self.directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._not_cleared(str(error)) from error
        return 0

    def _not_cleared(self, why: str) -> StorageUnavailableError:
        return StorageUnavailableError(f"{self._named()} cannot be cleared: {why}.")

    def close(self) -> None:
        """Write what is waiting and let go of the file. The cache opens again when it is used."""
        self.flush()
        thread = self._thread
        thread.submit(self._let_go).result()
        self._begin()
        thread.shutdown()

    def _let_go(self) -> None:
        if self._database is not None:
            self._database.close()

    # -- inside -----------------------------------------------------------------------------

    async def _hop(self, work: Callable[..., T], *args: Any) -> T:
        self._notice_fork()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _open(self) -> Database | None:
        """The database, in the cache's own thread; ``None`` if it cannot be used in this run."""
        if self._database is None and not self._unusable:
            try:
                database = open_database(self.directory)
            except Exception as error:  # whatever is wrong with the folder, the run goes on
                self._unusable = True
                self._active.tell("open", f"{self._named()} cannot be used: {in_words(error)}. {_GOES_ON}")
            else:
                self._file_id = self._id_of_file()
                self._database = database
        return self._database

    def _id_of_file(self) -> tuple[int, int] | None:
        try:
            stat = (self.directory / FILE).stat()
        except OSError:
            return None
        return (stat.st_dev, stat.st_ino)

    def _notice_fork(self) -> None:
        """A forked child has neither our thread nor a right to our connections."""
        if self._pid != os.getpid():
            _PARENTS.append((self._database, self._thread))
            self._begin()

    def _named(self) -> str:
        return f"The cache in {str(self.directory)!r}"

    def _tell_unreadable(self, error: Exception) -> None:
        why = in_words(error).rstrip(".")
        self._active.tell("read", f"{self._named()} has an entry that is not used: {why}. {_GOES_ON}")


def _unpacked(key: str, record: bytes, schemas: Mapping[str, type] | None) -> CacheEntry | TagentError:
    """The entry of a record, or why it cannot be used."""
    try:
        entry = unpack(key, record, schemas)
        problem = unreadable(entry.output)
    except TagentError as error:
        return error
    return entry if problem is None else CorruptRecordError(problem)


_GOES_ON = "The run goes on without it; clearing the cache mends it where that is possible."

_NOT_READ: Any = object()

_PARENTS: list[Any] = []
"""What a forked child got from its parent: closing it would disturb the parent."""


Warn = Callable[[str], None]


@dataclass
class _Run:
    """An active run: entries it stands on, and what was reported to its user already."""

    warn: Warn | None
    used: set[str] = field(default_factory=set)
    reported: set[str] = field(default_factory=set)


class ActiveRuns:
    """The runs of this process that use a cache.

    Args:
        warn: Takes what is reported while no run is active, and for runs that say nothing else;
            ``warnings.warn`` without one.
    """

    def __init__(self, warn: Warn | None) -> None:
        self._warn = warn
        self._outside = _Run(warn)
        self._runs: dict[str, _Run] = {}

    def begin(self, run_id: str, warn: Warn | None) -> None:
        """From now on this run stands on what it uses, and hears what is wrong."""
        self._runs[run_id] = _Run(warn or self._warn)

    def end(self, run_id: str) -> None:
        """It needs nothing any more."""
        self._runs.pop(run_id, None)

    def use(self, key: str) -> None:
        """Every active run may stand on this entry."""
        for run in tuple(self._runs.values()):
            run.used.add(key)

    def uses(self, key: str) -> bool:
        """Whether an active run has used this entry."""
        return any(key in run.used for run in tuple(self._runs.values()))

    def keys(self) -> set[str]:
        """The entries that must stay."""
        return {key for run in tuple(self._runs.values()) for key in run.used}

    def tell(self, kind: str, message: str) -> None:
        """Tell each active run, once for each kind of message."""
        for run in tuple(self._runs.values()) or (self._outside,):
            if kind not in run.reported:
                run.reported.add(kind)
                if run.warn is not None:
                    run.warn(message)
                else:
                    warnings.warn(message, RuntimeWarning, stacklevel=2)
