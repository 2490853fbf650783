"""A backend that keeps runs as records of bytes: encoding, checking and counting, once for all of them."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    NotStoredError,
    StorageError,
    StorageUnavailableError,
)
from tagent_nb.events import PASSING, Event, Output, RunFinished, StepEvent, Warned
from tagent_nb.naming import id_of, places_of
from tagent_nb.storage.backend import BACKUPS, ENDS, LEASES, ORDER
from tagent_nb.storage.backup import create, lost_store, restore
from tagent_nb.storage.backup.archive import inspect, open_archive, paths
from tagent_nb.storage.backup.store import folder_of
from tagent_nb.storage.filesystem import user_path
from tagent_nb.storage.format.envelope import (
    Copied,
    Draft,
    Envelope,
    end_problem,
    ends_with,
    last_record,
    read_record,
    read_tail,
    split,
    unpack,
)
from tagent_nb.storage.format.events import Summary, decode_events, encode_events, summary_of
from tagent_nb.storage.format.pickled import key_from, seal
from tagent_nb.storage.lease import Lease
from tagent_nb.storage.policy import BackupSchedule
from tagent_nb.storage.run_info import BackupInfo, Item, RestoreInfo, RunInfo, damaged
from tagent_nb.storage.run_storage import RunStorage

LONG = 1 << 16
"""Bytes of a last record from which on a list of runs reads it by itself."""


@dataclass(slots=True)
class Row:
    """What is stored of a run, as far as a list of runs needs it.

    Attributes:
        run_id: The run.
        size: Its bytes.
        token: Token of its lease.
        holder: Holder of its lease.
        state: What says where the run ends, as :meth:`RecordStoreBackend._state` gives it.
        tail: Some last bytes, at least the last record if that is short; ``None`` if it is long.
        problem: Why nothing can be said of it.
    """

    run_id: str
    size: int
    token: int = 0
    holder: bytes = b""
    state: bytes | None = None
    tail: bytes | None = None
    problem: StorageError | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    """A run that was read: what happened, whether its last record is part of a chain, and what is missing."""

    events: list[Event]
    chained: bool
    problem: str | None


class RecordStoreBackend(RunStorage):
    """Base of backends that promise all: they keep runs as records of bytes.

    To write one, implement the primitives, which begin with an underscore. They are given ids that may become
    part of a path, a query or a key (``[A-Za-z0-9_-]{1,64}``), and bytes. What these mean, checksums, leases,
    lists of runs and backups are done here. For documents: ``_put``, ``_get``, ``_remove_documents``; for
    runs: ``_append``, ``_read``, ``_tail``, ``_runs``, ``_remove_run``; for leases: ``_lease`` and
    ``_swap_lease``; and ``_pipelines``, ``_set_aside``. The others have a default that is right, and slower
    or weaker than one's own: ``_state``, ``_mark`` and ``_marked``, ``_ordered``, ``_newest``, ``_has_run``,
    ``_rows``, ``_now``. A backend that implements one of these weakly takes it out of :attr:`capabilities`,
    and :class:`tagent_nb.testing.StorageContract` does not ask for it.

    Attributes:
        capabilities: All of those of :class:`StorageBackend`, unless a subclass says less.
        tears: Whether a crash may leave half a record at the end of a run, which is then dropped and
            reported.
    """

    capabilities = frozenset({LEASES, ORDER, ENDS, BACKUPS})
    tears: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._summaries: dict[tuple[str, str], Summary] = {}
        self._ended: dict[str, int] = {}
        self._restoring = False

    # -- primitives -------------------------------------------------------------------------

    @abstractmethod
    async def _append(self, pipeline_id: str, run_id: str, record: Draft, token: int | None) -> None:
        """Add a record to a run (made if it is new), all or nothing.

        ``record.seal`` makes its bytes once it is certain which record of the run is the last. With them,
        what ``record.state`` gives takes the place of what it gave for the record before: see :meth:`_state`.

        Unless ``token`` is ``None``, check in the same transaction that it is the lease's token; if it is
        not, raise what :meth:`_lost` makes of the lease's present holder.
        """

    @abstractmethod
    async def _read(self, pipeline_id: str, run_id: str) -> bytes | None:
        """All records of a run one after the other, or ``None``."""

    @abstractmethod
    async def _tail(self, pipeline_id: str, run_id: str) -> bytes:
        """Some last bytes of :meth:`_read`, at least the last record if that is short."""

    async def _state(self, pipeline_id: str, run_id: str) -> bytes | None:
        """The last line that ``record.state`` gave for a run, empty if there is none.

        A backend that keeps none (``None``) cannot notice that records are missing at the end of a run.
        """
        return None

    @abstractmethod
    async def _set_aside(self, stamp: str) -> str:
        """Move all that is stored to where it can be looked at, and be empty; say where that is."""

    async def _mark(self, text: bytes | None) -> None:
        """Keep a text that stays when the store is set aside, or with ``None`` none.

        It says that a restore is under way; what reads or writes must call :meth:`_refuse_half`. A backend
        without marks cannot notice that a restore was stopped half-way.
        """

    async def _marked(self) -> bytes | None:
        """The text that :meth:`_mark` keeps, or ``None``."""
        return None

    # -- runs -------------------------------------------------------------------------------

    async def append(
        self, pipeline_id: str, run_id: str, events: Sequence[Event], *, token: int | None = None
    ) -> None:
        """Record events of a run: all of them or none. See :meth:`StorageBackend.append`."""
        kept = [event for event in events if not isinstance(event, PASSING)]
        if not kept:
            return
        key = (pipeline_id, run_id)
        summary = self._summaries.get(key)
        if summary is None:
            self._check(pipeline_id, run_id)
            pipeline_id = await self._place_to_record(pipeline_id, run_id)
            key = (pipeline_id, run_id)
            # By its name, a pipeline's counts are under its id.
            summary = self._summaries.get(key)
        if summary is None:
            summary = await self._summary(pipeline_id, run_id)
        try:
            for event in kept:
                summary.add(event)
            ending = any(isinstance(event, RunFinished) for event in kept)
            body = encode_events(kept, summary if ending else None, self._key)
            step, attempt = _about(kept)
            record = Draft(pipeline_id, run_id, body, step=step, attempt=attempt, key=self._key)
            await self._append(pipeline_id, run_id, record, token)
        except BaseException:
            # The counts may be ahead of what is stored: count again the next time.
            self._summaries.pop(key, None)
            raise
        if ending:
            self._summaries.pop(key, None)
            self._ended[pipeline_id] = self._ended.get(pipeline_id, 0) + 1

    async def read_run(
        self, pipeline_id: str, run_id: str, schemas: Mapping[str, type] | None = None
    ) -> list[Event]:
        """What happened in a run, in order. See :meth:`StorageBackend.read_run`."""
        place = self._check(pipeline_id, run_id)
        try:
            async with self._offering((place, "run", run_id)):
                return (await self._whole(place, run_id, schemas)).events
        except NotStoredError:
            other = await self._place_of_run(places_of(pipeline_id)[1:], run_id)
            if other is None:
                raise
        return await self.read_run(other, run_id, schemas)

    async def _whole(self, pipeline_id: str, run_id: str, schemas: Mapping[str, type] | None = None) -> _Run:
        stored = await self._stored(pipeline_id, run_id)
        if stored is not None:
            return await asyncio.to_thread(self._decode, pipeline_id, run_id, *stored, schemas)
        if await self._has_run(pipeline_id, run_id):
            raise self._records_gone(pipeline_id, run_id)
        raise self._unknown(pipeline_id, run_id)

    def _records_gone(self, pipeline_id: str, run_id: str) -> CorruptRecordError:
        return CorruptRecordError(
            f"{self._where(pipeline_id, run_id)}: state lost: the run is listed, and none of its records is "
            "there. Restore a backup, or delete the run."
        )

    async def _stored(self, pipeline_id: str, run_id: str) -> tuple[bytes, bytes | None] | None:
        """The records of a run, and what says where they end; ``None`` if there is no such run.

        Raises:
            CorruptRecordError: There was one, and none of its records is left.
        """
        before: bytes | None = None
        while True:
            # First: records that are added meanwhile are more than it says, never less.
            state = await self._state(pipeline_id, run_id)
            data = await self._read(pipeline_id, run_id)
            if data is None:
                if not state:
                    return None
                if state == before:
                    break
            elif state != b"" or before == b"":
                return data, state
            # Perhaps the run was begun or deleted between the two looks.
            before = state
        count = read_tail(state, pipeline_id, run_id, self._key).count
        if not count:
            return None
        raise CorruptRecordError(
            f"{self._where(pipeline_id, run_id)}: state lost: {count} records of the run were recorded, and "
            "none is there. Restore a backup, or delete the run."
        )

    async def _load(
        self, pipeline_id: str, name: str, schemas: Mapping[str, type] | None
    ) -> dict[str, Any] | None:
        async with self._offering((id_of(pipeline_id), "document", name)):
            return await super()._load(pipeline_id, name, schemas)

    async def runs(self, pipeline_id: str, *, limit: int | None = None) -> list[RunInfo]:
        """Runs of a pipeline, the newest last. See :meth:`StorageBackend.runs`.

        Raises:
            CorruptRecordError: The store is so damaged that they cannot be listed.
        """
        async with self._offering():
            return await super().runs(pipeline_id, limit=limit)

    async def newest_run(self, pipeline_id: str, *, besides: str | None = None) -> str | None:
        """The run that was begun last. See :meth:`StorageBackend.newest_run`; errors as for :meth:`runs`."""
        async with self._offering():
            return await super().newest_run(pipeline_id, besides=besides)

    async def list_pipelines(self) -> list[str]:
        """Ids of all stored pipelines, sorted.

        Raises:
            CorruptRecordError: The store is so damaged that they cannot be listed.
        """
        async with self._offering():
            return await super().list_pipelines()

    async def acquire(self, pipeline_id: str, run_id: str) -> Lease:
        """Become the one who records a run, new or interrupted. See :meth:`StorageBackend.acquire`."""
        async with self._offering():
            if await self._may_have_lost(pipeline_id):
                lost = await lost_store.keep_backups(self)
                if lost:
                    self._report(lost)
            return await super().acquire(pipeline_id, run_id)

    async def _may_have_lost(self, pipeline_id: str) -> bool:
        """Whether it is worth a look at all that is stored: there are backups, and no run of the pipeline."""
        folder = self._own_folder
        if folder is None or not await asyncio.to_thread(folder.is_dir):
            return False
        return await super().newest_run(pipeline_id) is None

    async def lost_runs(self) -> str:
        """Which backup holds the runs that the store lacks. See :meth:`StorageBackend.lost_runs`."""
        async with self._offering():
            return await lost_store.lost_runs(self)

    async def close(self) -> None:
        """Give back files and connections. The backend opens them again when it is used again."""
        self._summaries.clear()

    # -- values that JSON cannot hold -------------------------------------------------------

    def allow_pickle(self, key_file: str | Path) -> Self:
        """Pickle what JSON cannot hold, and sign. See :meth:`StorageBackend.allow_pickle`."""
        path = user_path(key_file, "key_file")
        # Also by way of a link to a folder of the store.
        if self._holds(path) or self._holds(path.parent.resolve() / path.name):
            raise DefinitionError(f"The key {path} would be within the store. Put it into another folder.")
        self._key = key_from(path)
        self._summaries.clear()
        return self

    def _holds(self, path: Path) -> bool:
        """Whether a file would be given away together with the store."""
        return False

    def keeps(self, output: Output) -> bool:
        """Whether a step's value can be recorded here."""
        return output.storable or seal(output, self._key) is not None

    # -- backups ----------------------------------------------------------------------------

    async def backup(self, folder: str | Path | None = None, *, keep: int = 3) -> BackupInfo:
        """Copy the store into one file. See :meth:`StorageBackend.backup`."""
        return await create.backup(self, folder_of(self, folder), keep)

    async def backups(self, folder: str | Path | None = None) -> list[BackupInfo]:
        """The backups in a folder, newest first. See :meth:`StorageBackend.backups`."""
        place = folder_of(self, folder)
        return await asyncio.to_thread(lambda: [inspect(path, self._key) for path in paths(place)])

    async def verify(self, which: str | Path) -> BackupInfo:
        """Read a backup from the first byte to the last. See :meth:`StorageBackend.verify`."""
        archive = await asyncio.to_thread(open_archive, user_path(which, "A backup"), self._key)
        archive.close()
        return archive.info

    async def restore(
        self, which: str | Path | None = None, *, folder: str | Path | None = None, replace: bool = False
    ) -> RestoreInfo:
        """Take from a backup what is damaged or missing here. See :meth:`StorageBackend.restore`."""
        info = await restore.restore(self, which, folder, replace=replace)
        await asyncio.to_thread(lost_store.let_go, self, info.backup)
        self._summaries.clear()
        return info

    @property
    def backup_folder(self) -> Path | None:
        """Where backups go if no folder is named."""
        return None

    @property
    def _own_folder(self) -> Path | None:
        """Where its backups go if no folder is named: the folder of its schedule, or its own."""
        schedule = self.backup_schedule
        if schedule is not None and schedule.folder is not None:
            return user_path(schedule.folder, "The folder for backups")
        return self.backup_folder

    async def _backup_if_due(self, pipeline_id: str) -> None:
        ended = self._ended.pop(pipeline_id, 0)
        if self.backup_schedule is not None and ended:
            await create.backup_if_due(self, self.backup_schedule, pipeline_id, ended)

    def _refuse_schedule(self, schedule: BackupSchedule) -> None:
        """Say before the first run ends that there is no folder."""
        folder_of(self, schedule.folder)

    @asynccontextmanager
    async def _offering(self, item: Item | None = None) -> AsyncIterator[None]:
        """Name the newest intact backup (that has the item) in an error about damage."""
        try:
            yield
        except CorruptRecordError as error:
            raise await restore.offer(self, error, item) from None

    def _refuse_half(self, marked: bytes | None) -> None:
        """Refuse to use a store that a restore has only begun to fill.

        Raises:
            CorruptRecordError: So it is, and this object is not what restores it.
        """
        if marked is not None and not self._restoring:
            raise restore.half_restored(marked)

    @property
    def _label(self) -> str:
        """What distinguishes this store's backups from those of others in the same folder: where it is."""
        return ""

    async def _put_run(self, pipeline_id: str, run_id: str, data: bytes) -> None:
        """Write a whole run that is not there."""
        place = 0
        while place < len(data):
            envelope, end = read_record(data, place, run_id, self._key)
            record = Copied(pipeline_id, run_id, data[place:end], envelope.digest, self._key)
            await self._append(pipeline_id, run_id, record, None)
            place = end

    # -- inside -----------------------------------------------------------------------------

    def _forget(self, pipeline_id: str, run_id: str) -> None:
        self._summaries.pop((pipeline_id, run_id), None)

    async def _summary(self, pipeline_id: str, run_id: str) -> Summary:
        """The counts of a run so far, from its records when this object did not write them."""
        self._check(pipeline_id, run_id)
        stored = await self._stored(pipeline_id, run_id)
        summary = Summary()
        if stored is not None:
            run = await asyncio.to_thread(self._decode, pipeline_id, run_id, *stored)
            summary.add_all(run.events)
            if not run.chained:
                self._report(
                    f"Run {run_id} was begun by an older version of tagent-nb, whose records carry no chain: "
                    "nothing shows whether some of those are missing. What is recorded from now on has one."
                )
        # Another task may have counted meanwhile; both then add to the same counts.
        return self._summaries.setdefault((pipeline_id, run_id), summary)

    def _decode(
        self,
        pipeline_id: str,
        run_id: str,
        data: bytes,
        state: bytes | None,
        schemas: Mapping[str, type] | None = None,
    ) -> _Run:
        where = self._where(pipeline_id, run_id)
        journal = split(data, where, kind="events", owner=run_id, key=self._key)
        if journal.torn is not None and not self.tears:
            raise CorruptRecordError(f"{journal.torn}. Restore a backup, or delete the run.")
        events: list[Event] = []
        for record in journal.records:
            events.extend(decode_events(record.body, where, schemas, self._key))
        problem = end_problem(journal, len(data), state, pipeline_id, run_id, self._key)
        if problem is not None:
            self._report(problem)
            events.append(Warned(run_id=run_id, at=events[-1].at, message=problem))
        return _Run(events, journal.chained, problem if journal.torn is None else None)

    async def _rows(self, pipeline_id: str, run_ids: Sequence[str]) -> list[Row]:
        """What is stored of some runs, as far as a list of runs needs it; without those that are gone.

        To be overridden where all of it takes one look.
        """
        sizes = dict(await self._runs(pipeline_id))
        rows: list[Row] = []
        for run_id in run_ids:
            if run_id in sizes:
                row = Row(run_id, sizes[run_id])
                try:
                    row.token, row.holder = await self._lease(pipeline_id, run_id)
                    # Before the last record: see _stored.
                    row.state = await self._state(pipeline_id, run_id)
                except CorruptRecordError as error:
                    row.problem = error
                else:
                    row.tail = await self._tail(pipeline_id, run_id)
                rows.append(row)
        return rows

    async def _described(self, pipeline_id: str, run_ids: Sequence[str]) -> list[tuple[RunInfo, int, bytes]]:
        now = await self._now()
        rows = await self._rows(pipeline_id, run_ids)
        infos = await asyncio.to_thread(lambda: [self._info_at_hand(pipeline_id, row, now) for row in rows])
        return [
            (await self._counted(pipeline_id, row, now) if info is None else info, row.token, row.holder)
            for info, row in zip(infos, rows, strict=True)
        ]

    def _info_at_hand(self, pipeline_id: str, row: Row, now: float) -> RunInfo | None:
        """What the last record of a run says of all of it, if it does."""
        if row.problem is not None:
            # One lease or run that cannot be read must not hide the others.
            return damaged(pipeline_id, row.run_id, row.size, row.problem)
        last = None if row.tail is None else self._last_record(row.run_id, row.tail)
        if last is None:
            return None
        alive = self._row_alive(pipeline_id, row, now)
        try:
            where = f"run {row.run_id} of pipeline {pipeline_id}"
            if not ends_with(last, row.state, pipeline_id, row.run_id, self._key):
                return None
            info = summary_of(last.body, where, pipeline_id, row.run_id, size=row.size, alive=alive)
        except CorruptRecordError as error:
            return damaged(pipeline_id, row.run_id, row.size, error)
        return info if info is None or last.place is not None else replace(info, chained=False)

    async def _counted(self, pipeline_id: str, row: Row, now: float) -> RunInfo:
        """What all records of a run say of it."""
        try:
            run = await self._whole(pipeline_id, row.run_id)
        except StorageUnavailableError:
            raise
        except StorageError as error:
            return damaged(pipeline_id, row.run_id, row.size, error)
        alive = self._row_alive(pipeline_id, row, now)
        info = Summary().add_all(run.events).to_info(pipeline_id, row.run_id, size=row.size, alive=alive)
        return replace(info, chained=run.chained, problem=run.problem)

    def _row_alive(self, pipeline_id: str, row: Row, now: float) -> bool:
        return self._claims.count(pipeline_id, row.run_id, row.token, row.holder, now)

    def _last_record(self, run_id: str, tail: bytes) -> Envelope | None:
        """The last record of a run if it is whole and at hand."""
        start = last_record(tail)
        if start is None:
            return None
        try:
            return unpack(tail[start:], "", kind="events", owner=run_id, key=self._key)
        except StorageError:
            # Reading all of the run shows whether it is torn or damaged.
            return None


def _about(events: Sequence[Event]) -> tuple[str, int]:
    """Step and attempt that a record is about: those of its last event that has them."""
    for event in reversed(events):
        if isinstance(event, StepEvent):
            return event.step, getattr(event, "attempt", 0)
    return "-", 0
