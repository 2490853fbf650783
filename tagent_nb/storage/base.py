"""What every storage backend offers: documents, runs, leases, and lists of runs.

What is stored as records of bytes goes through :class:`tagent_nb.storage.recording.RecordingBackend`: a
backend only has to keep bytes, and what they mean is decided once.
"""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tagent_nb.errors import CorruptRecordError, DefinitionError, NotStoredError, StorageError
from tagent_nb.events import Event, Output
from tagent_nb.pipeline.names import safe_id, storage_id
from tagent_nb.storage.codec import pack, unpack
from tagent_nb.storage.leases import Lease
from tagent_nb.storage.leasing import Leasing
from tagent_nb.storage.pickles import decode_document, encode_document
from tagent_nb.storage.records import RunInfo
from tagent_nb.storage.retention import LIMIT, Retention, prune
from tagent_nb.storage.settings import age_of, size_of

if TYPE_CHECKING:
    from tagent_nb.storage.archive import BackupInfo
    from tagent_nb.storage.backup import BackupSchedule
    from tagent_nb.storage.restoring import RestoreInfo

CHUNK = 200
"""Runs that are looked at together."""

__all__ = ["Lease", "RunInfo", "StorageBackend"]


class StorageBackend(Leasing):
    """Keeps pipelines' runs, memories and snapshots.

    To write one, derive from :class:`tagent_nb.storage.recording.RecordingBackend`, implement the primitives
    (what starts with an underscore), and let :class:`tagent_nb.testing.StorageContract` test it. All methods
    may be called from any event loop. Storage in memory keeps nothing after the process: ``backup``,
    ``backups``, ``verify``, ``restore`` and ``allow_pickle`` raise a StorageError there.

    Attributes:
        durable: Whether what is stored survives this process.
        problems: What was found wrong and got over, such as a dropped torn record; one sentence each. The
            warnings of the run that goes on then say it, too.
        lease_ttl: Seconds without a heartbeat after which a lease expires.
        retention: Rules by which runs go when one ends, or ``None``.
        backup_schedule: When backups are made by themselves, or ``None``.
    """

    durable: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.retention: Retention | None = None
        self.backup_schedule: BackupSchedule | None = None
        self._key: bytes | None = None

    # -- primitives -------------------------------------------------------------------------

    @abstractmethod
    async def _put(self, pipeline_id: str, name: str, record: bytes) -> None:
        """Replace a document of a pipeline, all or nothing."""

    @abstractmethod
    async def _get(self, pipeline_id: str, name: str) -> bytes | None:
        """A document of a pipeline, or ``None``."""

    @abstractmethod
    async def _pipelines(self) -> list[str]:
        """Ids of all pipelines that have a document or a run."""

    @abstractmethod
    async def _runs(self, pipeline_id: str) -> list[tuple[str, int]]:
        """Id and size in bytes of each run of a pipeline, in the order in which they were made.

        That is the order in which their first records came, by whatever the backend can count: not by
        times, since clocks are set back and those of several machines differ.
        """

    @abstractmethod
    async def _remove_run(self, pipeline_id: str, run_id: str, token: int) -> bool:
        """Remove a run if its lease's token is still ``token``, in one step; say whether it was.

        Afterwards no token that was ever given for it is good. A run that is not there counts as removed.
        """

    async def _ordered(self, pipeline_id: str) -> list[str]:
        """The ids of :meth:`_runs`. To be overridden where they take less time than the sizes."""
        return [run_id for run_id, _ in await self._runs(pipeline_id)]

    async def _newest(self, pipeline_id: str, count: int) -> list[str]:
        """The last ``count`` of :meth:`_ordered`. To be overridden where these take less time than all."""
        return (await self._ordered(pipeline_id))[-count:]

    async def _has_run(self, pipeline_id: str, run_id: str) -> bool:
        """Whether a run is stored. To be overridden where that takes less time than to list all."""
        return run_id in await self._ordered(pipeline_id)

    @abstractmethod
    async def _remove_documents(self, pipeline_id: str) -> None:
        """Remove all documents of a pipeline."""

    @abstractmethod
    async def close(self) -> None:
        """Give back files and connections. The backend opens them again when it is used again."""

    def _where(self, pipeline_id: str, name: str) -> str:
        """What messages call a run or a document of a pipeline."""
        return f"{name} of pipeline {pipeline_id}"

    # -- documents --------------------------------------------------------------------------

    async def save(self, pipeline_id: str, data: Mapping[str, Any]) -> None:
        """Keep ``data`` for a pipeline in place of what was saved before.

        Raises:
            EncodeError: A value cannot be stored; the message has the path to it.
            StorageUnavailableError: It could not be written; what was saved before is unchanged.
        """
        await self._save(pipeline_id, "snapshot", data)

    async def load(self, pipeline_id: str, schemas: Mapping[str, type] | None = None) -> dict[str, Any]:
        """What was saved last for a pipeline.

        Args:
            pipeline_id: The pipeline's storage id.
            schemas: Classes by name that stored models become; without theirs they become dicts.

        Raises:
            NotStoredError: Nothing was saved.
            CorruptRecordError: It is damaged.
        """
        data = await self._load(pipeline_id, "snapshot", schemas)
        if data is None:
            raise NotStoredError(
                f"Nothing is saved for pipeline {pipeline_id!r}. Call save() first; "
                "runs are read with runs() and read_run()."
            )
        return data

    async def memories(self, pipeline_id: str, schemas: Mapping[str, type] | None = None) -> dict[str, Any]:
        """The saved memories of a pipeline; empty if there are none.

        Raises:
            CorruptRecordError: They are damaged.
        """
        return await self._load(pipeline_id, "memories", schemas) or {}

    async def save_memories(self, pipeline_id: str, memories: Mapping[str, Any]) -> None:
        """Keep ``memories`` in place of the pipeline's present ones. Errors as for :meth:`save`."""
        await self._save(pipeline_id, "memories", memories)

    async def _save(self, pipeline_id: str, name: str, data: Mapping[str, Any]) -> None:
        safe_id(pipeline_id, "pipeline id")
        body = encode_document(dict(data), name, self._key)
        await self._put(pipeline_id, name, pack(name, pipeline_id, body, key=self._key))

    async def _load(
        self, pipeline_id: str, name: str, schemas: Mapping[str, type] | None
    ) -> dict[str, Any] | None:
        safe_id(pipeline_id, "pipeline id")
        record = await self._get(pipeline_id, name)
        if record is None:
            return None
        where = self._where(pipeline_id, name)
        envelope = unpack(record, where, kind=name, owner=pipeline_id, key=self._key)
        data = decode_document(envelope.body, schemas, self._key)
        if not isinstance(data, dict):
            raise CorruptRecordError(f"{where}: holds a {type(data).__name__} in place of a dict.")
        return data

    # -- runs -------------------------------------------------------------------------------

    @abstractmethod
    async def append(
        self, pipeline_id: str, run_id: str, events: Sequence[Event], *, token: int | None = None
    ) -> None:
        """Record events of a run: all of them or none.

        Args:
            pipeline_id: The pipeline's storage id.
            run_id: The run; made with its first event.
            events: What happened. Events that only the living see are left out.
            token: The lease's token. ``None`` does without a check: only for a run nobody else knows.

        Raises:
            EncodeError: A value other than a step's output cannot be stored.
            LeaseLostError: Another process carries the run on.
            StorageUnavailableError: They could not be written; what was recorded before is unchanged.
        """

    @abstractmethod
    def keeps(self, output: Output) -> bool:
        """Whether a step's value can be recorded here; else the step runs again after a restart."""

    @abstractmethod
    async def read_run(
        self, pipeline_id: str, run_id: str, schemas: Mapping[str, type] | None = None
    ) -> list[Event]:
        """What happened in a run, in order. Values of steps stay encoded until somebody reads them.

        If the end of the run was torn by a crash, the last event is a :class:`Warned` that says so.

        Raises:
            NotStoredError: There is no such run.
            CorruptRecordError: It is damaged before its end.
            FormatVersionError: A newer version of tagent-nb wrote it.
        """

    @abstractmethod
    async def _described(self, pipeline_id: str, run_ids: Sequence[str]) -> list[tuple[RunInfo, int, bytes]]:
        """What a list of runs says about some; and token and holder of their leases. Without what is gone."""

    async def runs(self, pipeline_id: str, *, limit: int | None = None) -> list[RunInfo]:
        """Runs of a pipeline in the order in which they were begun, the newest last.

        That order is kept by the store, whatever the clocks said. A damaged run is listed as such.

        Args:
            pipeline_id: The pipeline's storage id. Where nothing is stored under it, it is taken for the
                pipeline's name.
            limit: At most so many, the newest; ``None`` lists all.

        Raises:
            DefinitionError: ``limit`` is below 1.
        """
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise DefinitionError(f"limit must be a whole number of at least 1, not {limit!r}.")
        pipeline_id = await self._stored_id(pipeline_id)
        run_ids = await (self._run_ids(pipeline_id) if limit is None else self._last(pipeline_id, limit))
        infos: list[RunInfo] = []
        for start in range(0, len(run_ids), CHUNK):
            part = await self._described(pipeline_id, run_ids[start : start + CHUNK])
            infos.extend(info for info, _, _ in part)
        return infos

    async def newest_run(self, pipeline_id: str, *, besides: str | None = None) -> str | None:
        """Id of the run of a pipeline that was begun last, or ``None``; however many there are, in one look.

        Args:
            pipeline_id: As for :meth:`runs`.
            besides: A run that does not count.
        """
        safe_id(pipeline_id, "pipeline id")
        newest = await self._last(pipeline_id, 2) or await self._last(storage_id(pipeline_id), 2)
        return next((run_id for run_id in reversed(newest) if run_id != besides), None)

    async def has_run(self, pipeline_id: str, run_id: str) -> bool:
        """Whether a run is stored, intact or not. Arguments as for :meth:`delete_run`."""
        safe_id(pipeline_id, "pipeline id")
        if not is_safe(run_id):
            return False
        if await self._has_run(pipeline_id, run_id):
            return True
        stored_id = await self._stored_id(pipeline_id)
        return stored_id != pipeline_id and await self._has_run(stored_id, run_id)

    async def _stored_id(self, pipeline_id: str) -> str:
        """The id under which there are runs, for the id or the name of a pipeline."""
        safe_id(pipeline_id, "pipeline id")
        return pipeline_id if await self._last(pipeline_id, 1) else storage_id(pipeline_id)

    async def _run_ids(self, pipeline_id: str) -> list[str]:
        """All runs in their order, without what a stranger has put beside them."""
        return [run_id for run_id in await self._ordered(pipeline_id) if is_safe(run_id)]

    async def _last(self, pipeline_id: str, count: int) -> list[str]:
        """The last ``count`` runs in their order."""
        newest = await self._newest(pipeline_id, count)
        return newest if all(map(is_safe, newest)) else (await self._run_ids(pipeline_id))[-count:]

    async def delete_run(self, pipeline_id: str, run_id: str) -> None:
        """Delete a run.

        Args:
            pipeline_id: The pipeline's storage id, or its name as for :meth:`runs`.
            run_id: The run.

        Raises:
            NotStoredError: There is no such run.
            StorageError: A process carries it on at this moment.
        """
        self._check(pipeline_id, run_id)
        name = pipeline_id
        if not await self._has_run(pipeline_id, run_id):
            pipeline_id = await self._stored_id(pipeline_id)
            if pipeline_id == name or not await self._has_run(pipeline_id, run_id):
                raise self._unknown(name, run_id)
        await self._delete_unclaimed("be deleted", pipeline_id, [run_id])

    async def _delete_unclaimed(self, what: str, pipeline_id: str, run_ids: Sequence[str]) -> None:
        """Delete runs, none if a process may carry one of them on."""
        tokens = await self._refuse_active(what, pipeline_id, run_ids)
        for run_id, token in tokens.items():
            if not await self._remove_unclaimed(pipeline_id, run_id, token):
                raise StorageError(
                    f"Run {run_id} of pipeline {pipeline_id} cannot {what}: another process has begun to "
                    "carry it on. Stop it there first."
                )

    async def _remove_unclaimed(self, pipeline_id: str, run_id: str, token: int) -> bool:
        """Remove a run unless a process has claimed it since its lease had this token."""
        self._forget(pipeline_id, run_id)
        return await self._remove_run(pipeline_id, run_id, token)

    async def delete(self, pipeline_id: str) -> None:
        """Delete all runs, memories and saved data of a pipeline.

        Raises:
            NotStoredError: There is nothing of it.
            StorageError: Somebody carries one of its runs on; nothing was deleted.
        """
        safe_id(pipeline_id, "pipeline id")
        if pipeline_id not in await self._pipelines():
            raise NotStoredError(f"Pipeline {pipeline_id!r} is not stored. list_pipelines() lists what is.")
        await self._delete_unclaimed(
            "be deleted with its pipeline", pipeline_id, await self._ordered(pipeline_id)
        )
        await self._remove_documents(pipeline_id)

    async def list_pipelines(self) -> list[str]:
        """Ids of all stored pipelines, sorted."""
        return sorted(name for name in await self._pipelines() if is_safe(name))

    async def emptied(self) -> str:
        """A sentence for a store that holds no run although a backup of it does: its files were taken away,
        and so that the backup is. Empty for all others."""
        return ""

    # -- tidying up -------------------------------------------------------------------------

    async def prune(
        self,
        pipeline_id: str,
        *,
        keep_last: int | None = None,
        older_than: timedelta | float | str | None = None,
        max_bytes: int | str | None = None,
        limit: float = math.inf,
    ) -> list[RunInfo]:
        """Delete runs of a pipeline, oldest first; return what was deleted.

        A run goes if any rule says so, but never one that is carried on at this moment or waits for an
        approval, and never the newest that completed.

        Args:
            pipeline_id: The pipeline's storage id, or its name as for :meth:`runs`.
            keep_last: Newest runs to keep.
            older_than: Age (a timedelta, seconds, or such as ``"30d"``) since its end, or else its start.
            max_bytes: Bytes that the pipeline's runs may take together, or such as ``"500MB"``.
            limit: Seconds after which pruning stops.

        Raises:
            DefinitionError: There is no rule, or a number is not allowed.
        """
        safe_id(pipeline_id, "pipeline id")
        rules = Retention(keep_last, age_of(older_than), size_of(max_bytes))
        return await prune(self, pipeline_id, rules, limit)

    async def _tidy_after(self, lease: Lease) -> None:
        try:
            if self.backup_schedule is not None:
                await self._backup_if_due(lease.pipeline_id)
            if self.retention is not None:
                async with asyncio.timeout(2 * LIMIT):
                    await prune(self, lease.pipeline_id, self.retention, LIMIT, lease.run_id)
        except TimeoutError:
            self._report(
                f"After run {lease.run_id}: no runs were pruned, since there are so many that to list them "
                f"takes more than {2 * LIMIT:g} s. Prune once by hand: prune({lease.pipeline_id!r}, ...)."
            )
        except StorageError as error:
            # The run is recorded; that nobody could tidy up must not make it fail.
            self._report(f"After run {lease.run_id}: {error}")

    async def _backup_if_due(self, pipeline_id: str) -> None:
        raise self._nothing_kept()

    def _refuse_schedule(self, schedule: BackupSchedule) -> None:
        """Say so before the first run ends.

        Raises:
            DefinitionError: By this schedule no backup could be made.
        """
        raise DefinitionError(f"{self!r} keeps nothing that could be backed up. Leave out backup_every.")

    # -- backups, and values that JSON cannot hold: only where something outlives the process --------

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
        raise self._nothing_kept()

    async def backups(self, folder: str | Path | None = None) -> list[BackupInfo]:
        """The backups in a folder, newest first, each verified; a damaged one has a ``problem``.

        Those that other stores have made are among them.
        """
        raise self._nothing_kept()

    async def verify(self, which: str | Path) -> BackupInfo:
        """Read a backup from the first byte to the last.

        Raises:
            CorruptRecordError: It is damaged.
            FormatVersionError: A newer version of tagent-nb wrote it.
            StorageUnavailableError: It cannot be read.
        """
        raise self._nothing_kept()

    async def restore(
        self, which: str | Path | None = None, *, folder: str | Path | None = None, replace: bool = False
    ) -> RestoreInfo:
        """Take from a backup what is damaged or missing here; the store as it was is kept aside.

        Of two stores that share a folder for backups, each takes its own; a store that has none there takes
        those of another, if they are all of one. A restore that was stopped half-way (a kill, a full disk)
        goes on.

        Args:
            which: A backup's file; else the newest in ``folder`` that is intact, and for what is damaged here
                and not in it an older one.
            folder: Where backups are; else the backend's own place.
            replace: Take everything that the backup has, also in place of what is intact.

        Raises:
            NotStoredError: There is no intact backup, or only those of several other stores.
            CorruptRecordError: ``which`` is damaged; nothing was changed.
            StorageError: Somebody carries a run on at this moment; nothing was changed.
            StorageUnavailableError: Something cannot be written.
        """
        raise self._nothing_kept()

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
        raise self._nothing_kept()

    def _nothing_kept(self) -> StorageError:
        return StorageError(f"{self!r} keeps nothing after this process. Use a folder, SQLite or Redis.")

    # -- inside -----------------------------------------------------------------------------

    def _unknown(self, pipeline_id: str, run_id: str) -> NotStoredError:
        return NotStoredError(
            f"Run {run_id!r} of pipeline {pipeline_id!r} is not stored. runs() lists what is."
        )


def is_safe(name: object) -> bool:
    """Whether a name that a store gave us is one that we could have given it."""
    try:
        safe_id(name)
    except DefinitionError:
        return False
    return True
