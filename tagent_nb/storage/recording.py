"""A backend that keeps runs as records of bytes: encoding, checking and counting, once for all of them."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tagent_nb.errors import CorruptRecordError, DefinitionError, StorageError, StorageUnavailableError
from tagent_nb.events import PASSING, Event, Output, RunFinished, StepEvent, Warned
from tagent_nb.storage import backup as backups
from tagent_nb.storage.archive import BackupInfo, inspect, open_archive, paths
from tagent_nb.storage.backup import BackupSchedule, RestoreInfo
from tagent_nb.storage.base import StorageBackend, is_safe
from tagent_nb.storage.codec import Envelope, last_record, pack, read_record, split, unpack
from tagent_nb.storage.pickles import key_from, seal
from tagent_nb.storage.records import RunInfo, Summary, damaged, decode_events, encode_events, summary_of


class RecordingBackend(StorageBackend):
    """Base of backends that keep runs as records of bytes."""

    tears: bool = False
    """Whether a crash may leave half a record at the end of a run, which is then dropped and reported."""

    def __init__(self) -> None:
        super().__init__()
        self._summaries: dict[tuple[str, str], Summary] = {}

    # -- primitives -------------------------------------------------------------------------

    @abstractmethod
    async def _append(self, pipeline_id: str, run_id: str, record: bytes, token: int | None) -> None:
        """Add a record to a run (made if it is new), all or nothing.

        Unless ``token`` is ``None``, check in the same transaction that it is the lease's token; if it is
        not, raise what :meth:`_lost` makes of the lease's present holder.
        """

    @abstractmethod
    async def _read(self, pipeline_id: str, run_id: str) -> bytes | None:
        """All records of a run one after the other, or ``None``."""

    @abstractmethod
    async def _tail(self, pipeline_id: str, run_id: str) -> bytes:
        """Some last bytes of :meth:`_read`, at least the last record if that is short."""

    @abstractmethod
    async def _set_aside(self, stamp: str) -> str:
        """Move all that is stored to where it can be looked at, and be empty; say where that is."""

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
            summary = await self._summary(pipeline_id, run_id)
        try:
            for event in kept:
                summary.add(event)
            ending = any(isinstance(event, RunFinished) for event in kept)
            body = encode_events(kept, summary if ending else None, self._key)
            step, attempt = _about(kept)
            record = pack("events", run_id, body, step=step, attempt=attempt, key=self._key)
            await self._append(pipeline_id, run_id, record, token)
        except BaseException:
            # The counts may be ahead of what is stored: count again the next time.
            self._summaries.pop(key, None)
            raise
        if ending:
            self._summaries.pop(key, None)

    async def read_run(
        self, pipeline_id: str, run_id: str, schemas: Mapping[str, type] | None = None
    ) -> list[Event]:
        """What happened in a run, in order. See :meth:`StorageBackend.read_run`."""
        try:
            return await self._events(pipeline_id, run_id, schemas)
        except CorruptRecordError as error:
            raise await self._offer(error) from None

    async def _events(
        self, pipeline_id: str, run_id: str, schemas: Mapping[str, type] | None = None
    ) -> list[Event]:
        self._check(pipeline_id, run_id)
        data = await self._read(pipeline_id, run_id)
        if data is None:
            raise self._unknown(pipeline_id, run_id)
        return await asyncio.to_thread(self._decode, pipeline_id, run_id, data, schemas)

    async def _load(
        self, pipeline_id: str, name: str, schemas: Mapping[str, type] | None
    ) -> dict[str, Any] | None:
        try:
            return await super()._load(pipeline_id, name, schemas)
        except CorruptRecordError as error:
            raise await self._offer(error) from None

    async def close(self) -> None:
        """Give back files and connections. The backend opens them again when it is used again."""
        self._summaries.clear()

    # -- values that JSON cannot hold -------------------------------------------------------

    def allow_pickle(self, key_file: str | Path) -> Self:
        """Pickle what JSON cannot hold, and sign every record (HMAC-SHA256). Off unless you call this.

        Loading a pickle runs code, so from now on this object takes only records that are signed with this
        key: begin with an empty store. Who has the key can make this process run code.

        Args:
            key_file: Holds the key; made (0600) if it is not there. Keep it outside of the store, and do
                not give it away with it.

        Raises:
            DefinitionError: The file is within the store, others may read it, or it holds no key.
            CorruptRecordError: It is a link, or no regular file.
            StorageUnavailableError: It cannot be read or made.
        """
        path = Path(key_file).expanduser().absolute()
        if self._holds(path):
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
        """Copy the store into one file, verify the file, and then remove older backups.

        Runs may go on meanwhile; of each, what was recorded by then is in the backup. What is damaged is
        left out and reported, and then no older backup is removed.

        Args:
            folder: Where; else the backend's own place (``backup_folder``).
            keep: Verified backups to keep, this one too.

        Raises:
            DefinitionError: There is no folder, or ``keep`` is below 1.
            CorruptRecordError: The file is not as it was written; older ones are all there.
            StorageUnavailableError: It cannot be written.
        """
        return await backups.backup(self, backups.folder_of(self, folder), keep)

    async def backups(self, folder: str | Path | None = None) -> list[BackupInfo]:
        """The backups in a folder, newest first, each verified; a damaged one has a ``problem``."""
        place = backups.folder_of(self, folder)
        return await asyncio.to_thread(lambda: [inspect(path, self._key) for path in paths(place)])

    async def verify(self, which: str | Path) -> BackupInfo:
        """Read a backup from the first byte to the last.

        Raises:
            CorruptRecordError: It is damaged.
            FormatVersionError: A newer version of tagent-nb wrote it.
            StorageUnavailableError: It cannot be read.
        """
        archive = await asyncio.to_thread(open_archive, Path(which).expanduser().absolute(), self._key)
        archive.close()
        return archive.info

    async def restore(
        self, which: str | Path | None = None, *, folder: str | Path | None = None, replace: bool = False
    ) -> RestoreInfo:
        """Take from a backup what is damaged or missing here; the store as it was is kept aside.

        Args:
            which: A backup's file; else the newest in ``folder`` that is intact.
            folder: Where backups are; else the backend's own place.
            replace: Take everything that the backup has, also in place of what is intact.

        Raises:
            NotStoredError: There is no intact backup.
            CorruptRecordError: ``which`` is damaged; nothing was changed.
            StorageError: Somebody carries a run on at this moment; nothing was changed.
            StorageUnavailableError: Something cannot be written.
        """
        if folder is None and which is not None and backups.own_folder(self) is None:
            folder = Path(which).expanduser().absolute().parent
        info = await backups.restore(self, which, backups.folder_of(self, folder), replace=replace)
        self._summaries.clear()
        return info

    @property
    def backup_folder(self) -> Path | None:
        """Where backups go if nobody says otherwise."""
        return None

    async def _backup_if_due(self, pipeline_id: str) -> None:
        if self.backup_schedule is not None:
            await backups.backup_if_due(self, self.backup_schedule, pipeline_id)

    def _refuse_schedule(self, schedule: BackupSchedule) -> None:
        """Say before the first run ends that there is no folder."""
        backups.folder_of(self, schedule.folder)

    async def _offer(self, error: CorruptRecordError) -> CorruptRecordError:
        """The same error, with the newest intact backup if there is one."""
        folder = backups.own_folder(self)
        if folder is None:
            return error
        archive = await backups.newest(self, folder)
        if archive is None:
            return error
        archive.close()
        return CorruptRecordError(f"{error} Backup {archive.info.path} is intact: restore() takes it.")

    async def _run_ids(self, pipeline_id: str) -> list[str]:
        return [run_id for run_id, _ in await self._runs(pipeline_id) if is_safe(run_id)]

    async def _put_run(self, pipeline_id: str, run_id: str, data: bytes) -> None:
        """Write a whole run that is not there."""
        place = 0
        while place < len(data):
            _, end = read_record(data, place, run_id, self._key)
            await self._append(pipeline_id, run_id, data[place:end], None)
            place = end

    # -- inside -----------------------------------------------------------------------------

    def _forget(self, pipeline_id: str, run_id: str) -> None:
        self._summaries.pop((pipeline_id, run_id), None)

    async def _summary(self, pipeline_id: str, run_id: str) -> Summary:
        """The counts of a run so far, from its records when this object did not write them."""
        self._check(pipeline_id, run_id)
        data = await self._read(pipeline_id, run_id)
        summary = Summary()
        if data is not None:
            summary.add_all(await asyncio.to_thread(self._decode, pipeline_id, run_id, data, None))
        # Another task may have counted meanwhile; both then add to the same counts.
        return self._summaries.setdefault((pipeline_id, run_id), summary)

    def _decode(
        self, pipeline_id: str, run_id: str, data: bytes, schemas: Mapping[str, type] | None
    ) -> list[Event]:
        where = self._where(pipeline_id, run_id)
        journal = split(data, where, kind="events", owner=run_id, key=self._key)
        if journal.torn is not None and not self.tears:
            raise CorruptRecordError(f"{journal.torn}. Restore a backup, or delete the run.")
        events: list[Event] = []
        for record in journal.records:
            events.extend(decode_events(record.body, where, schemas, self._key))
        if journal.torn is not None:
            lost = len(data) - journal.good
            message = f"The end of run {run_id} was torn and is left out ({lost:,} bytes; {journal.torn})."
            self._report(message)
            events.append(Warned(run_id=run_id, at=events[-1].at, message=message))
        return events

    async def _info(self, pipeline_id: str, run_id: str, size: int, alive: bool) -> RunInfo:
        where = self._where(pipeline_id, run_id)
        try:
            last = self._last(run_id, await self._tail(pipeline_id, run_id))
            if last is not None:
                info = summary_of(last.body, where, pipeline_id, run_id, size=size, alive=alive)
                if info is not None:
                    return info
            summary = Summary().add_all(await self._events(pipeline_id, run_id))
        except StorageUnavailableError:
            raise
        except StorageError as error:
            # One damaged run must not hide the others.
            return damaged(pipeline_id, run_id, size, error)
        return summary.to_info(pipeline_id, run_id, size=size, alive=alive)

    def _last(self, run_id: str, tail: bytes) -> Envelope | None:
        """The last record of a run if it is whole and at hand."""
        start = last_record(tail)
        if start is None:
            return None
        try:
            return unpack(tail[start:], "", kind="events", owner=run_id, key=self._key)
        except CorruptRecordError:
            # Reading all of the run tells whether it is torn or damaged.
            return None


def _about(events: Sequence[Event]) -> tuple[str, int]:
    """Step and attempt that a record is about: those of its last event that has them."""
    for event in reversed(events):
        if isinstance(event, StepEvent):
            return event.step, getattr(event, "attempt", 0)
    return "-", 0
