"""What a storage backend is: four methods to write, and everything else made from them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from tagent_nb.events import Event, Output
from tagent_nb.storage.lease import Lease
from tagent_nb.storage.policy import BackupSchedule, Retention
from tagent_nb.storage.run_info import BackupInfo, RestoreInfo, RunInfo

OnWarning = Callable[[str], None]


LEASES = "leases"
ORDER = "order"
ENDS = "ends"
BACKUPS = "backups"


class StorageBackend(ABC):
    """Keeps pipelines' runs, memories and snapshots.

    To write one, derive from this class and write four ``async`` methods: :meth:`save`, :meth:`load`,
    :meth:`delete` and :meth:`list_pipelines`. All the others are made from them: runs become documents of
    that backend, whose ids begin with ``_tagent-``. What four methods cannot promise is in
    :attr:`capabilities`; a backend that promises all derives from :class:`tagent_nb.RecordStoreBackend`.
    Either is tested by :class:`tagent_nb.testing.StorageContract`.

    Whatever takes a storage passes it through :func:`tagent_nb.open_storage`. That gives an object on which a
    pipeline may be named by its storage id or by its name, as :meth:`runs` says, and whose methods may be
    called from any thread and event loop. Your four methods are all called in one event loop in a thread of
    their own: open connections when they are first needed. Storage in memory keeps nothing after the
    process: ``backup``, ``backups``, ``verify``, ``restore`` and ``allow_pickle`` raise a StorageError there.

    Attributes:
        durable: Whether what is stored survives this process.
        capabilities: What it promises besides keeping what it is given. ``"leases"``: of two processes that
            claim a run at the same moment one gets it, and what the other writes is refused. ``"order"``:
            runs are listed in the order in which they were begun, whatever the clocks said. ``"ends"``: it is
            noticed if records are missing at the end of a run. ``"backups"``: the store can be backed up and
            restored. Four methods give all but ``"leases"``.
        problems: What was found wrong and got over, such as a dropped torn record; one sentence each. The
            warnings of the run that goes on then say it, too.
        lease_ttl: Seconds without a heartbeat after which a lease expires.
        retention: Rules by which runs go when one ends, or ``None``.
        backup_schedule: When backups are made by themselves, or ``None``.
    """

    durable: bool = True
    capabilities: frozenset[str] = frozenset({ORDER, ENDS, BACKUPS})
    problems: list[str]
    lease_ttl: float
    retention: Retention | None
    backup_schedule: BackupSchedule | None

    # -- the four to write ------------------------------------------------------------------

    @abstractmethod
    async def save(self, pipeline_id: str, data: dict[str, Any]) -> None:
        """Keep ``data`` for a pipeline in place of what was saved before, best all or nothing.

        In a backend of four methods, ``pipeline_id`` is 1 to 160 of ``A-Z a-z 0-9 _ -``, and ``data`` holds
        only what JSON can. On a backend that was opened, it is the id or the name of a pipeline, and ``data``
        holds what can be stored.

        Raises:
            EncodeError: A value cannot be stored; the message has the path to it.
            StorageUnavailableError: It could not be written; what was saved before is unchanged.
        """

    @abstractmethod
    async def load(self, pipeline_id: str) -> dict[str, Any]:
        """What was saved last for a pipeline.

        Where nothing was, a backend of four methods may raise NotStoredError or any error, or return ``{}``
        or ``None``: whether it is so is seen in :meth:`list_pipelines`.

        Raises:
            NotStoredError: Nothing was saved.
            CorruptRecordError: It is damaged.
        """

    @abstractmethod
    async def delete(self, pipeline_id: str) -> None:
        """Delete all runs, memories and saved data of a pipeline; what was saved under an id, where this is
        one of the four methods.

        Raises:
            NotStoredError: There is nothing of it.
            StorageError: A process carries one of its runs on; nothing was deleted.
        """

    @abstractmethod
    async def list_pipelines(self) -> list[str]:
        """Ids of all stored pipelines, sorted; all ids for which something is saved, in any order, where this
        is one of the four methods.

        Raises:
            CorruptRecordError: The store is so damaged that they cannot be listed.
        """

    # -- made from the four -----------------------------------------------------------------
    async def memories(self, pipeline_id: str, schemas: Mapping[str, type] | None = None) -> dict[str, Any]:
        """The saved memories of a pipeline; empty if there are none.

        Raises:
            CorruptRecordError: They are damaged.
        """
        return await _opened(self).memories(pipeline_id, schemas)

    async def save_memories(self, pipeline_id: str, memories: Mapping[str, Any]) -> None:
        """Keep ``memories`` in place of the pipeline's present ones. Errors as for :meth:`save`."""
        await _opened(self).save_memories(pipeline_id, memories)

    async def append(
        self, pipeline_id: str, run_id: str, events: Sequence[Event], *, token: int | None = None
    ) -> None:
        """Record events of a run: all of them or none.

        Args:
            pipeline_id: The pipeline's storage id.
            run_id: The run; made with its first event.
            events: What happened. Events that only the living see are left out.
            token: The lease's token. ``None`` does without a check: only for a run that no process knows yet.

        Raises:
            EncodeError: A value other than a step's output cannot be stored.
            LeaseLostError: Another process carries the run on.
            StorageUnavailableError: They could not be written; what was recorded before is unchanged.
        """
        await _opened(self).append(pipeline_id, run_id, events, token=token)

    def appender(self, pipeline_id: str, run_id: str, token: int | None) -> Callable[[Event], bool] | None:
        """What does :meth:`append` with one event without waiting, where that is possible; else ``None``.

        Args:
            pipeline_id: The pipeline's storage id.
            run_id: A run that has begun.
            token: The lease's token.

        Returns:
            A function that returns whether it has recorded an event; if not, :meth:`append` says why.
        """
        return None

    def keeps(self, output: Output) -> bool:
        """Whether a step's value can be recorded here; else the step runs again after a restart."""
        return _opened(self).keeps(output)

    async def read_run(
        self, pipeline_id: str, run_id: str, schemas: Mapping[str, type] | None = None
    ) -> list[Event]:
        """What happened in a run, in order. Values of steps stay encoded until they are read.

        If the end of the run was torn by a crash, the last event is a :class:`Warned` that says so.

        Raises:
            NotStoredError: There is no such run.
            CorruptRecordError: It is damaged before its end.
            FormatVersionError: A newer version of tagent-nb wrote it.
        """
        return await _opened(self).read_run(pipeline_id, run_id, schemas)

    async def runs(self, pipeline_id: str, *, limit: int | None = None) -> list[RunInfo]:
        """Runs of a pipeline in the order in which they were begun, the newest last.

        That order is kept by the store, whatever the clocks said. A damaged run is listed as such.

        Args:
            pipeline_id: The pipeline's storage id. Where nothing is stored under it, it is taken for the
                pipeline's name.
            limit: At most so many, the newest; ``None`` lists all.

        Raises:
            DefinitionError: ``limit`` is below 1.
            CorruptRecordError: The store is so damaged that they cannot be listed.
        """
        return await _opened(self).runs(pipeline_id, limit=limit)

    async def newest_run(self, pipeline_id: str, *, besides: str | None = None) -> str | None:
        """Id of the run of a pipeline that was begun last, or ``None``; however many there are, in one look.

        Args:
            pipeline_id: As for :meth:`runs`.
            besides: A run that does not count.
        """
        return await _opened(self).newest_run(pipeline_id, besides=besides)

    async def has_run(self, pipeline_id: str, run_id: str) -> bool:
        """Whether a run is stored, intact or not. Arguments as for :meth:`delete_run`."""
        return await _opened(self).has_run(pipeline_id, run_id)

    async def delete_run(self, pipeline_id: str, run_id: str) -> None:
        """Delete a run.

        Args:
            pipeline_id: The pipeline's storage id, or its name as for :meth:`runs`.
            run_id: The run.

        Raises:
            NotStoredError: There is no such run.
            StorageError: A process carries it on at this moment.
        """
        await _opened(self).delete_run(pipeline_id, run_id)

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
        return await _opened(self).prune(
            pipeline_id, keep_last=keep_last, older_than=older_than, max_bytes=max_bytes, limit=limit
        )

    async def acquire(self, pipeline_id: str, run_id: str) -> Lease:
        """Become the one who records a run, new or interrupted.

        Raises:
            LeaseLostError: Another process carries it on; the message names host and pid.
        """
        return await _opened(self).acquire(pipeline_id, run_id)

    async def renew(self, lease: Lease) -> None:
        """Say that the holder is alive.

        Raises:
            LeaseLostError: Another process has taken the run over.
        """
        await _opened(self).renew(lease)

    async def release(self, lease: Lease) -> None:
        """Give the run back; without effect if another process has taken it over."""
        await _opened(self).release(lease)

    async def lost_runs(self) -> str:
        """A sentence for a store that holds no run although a backup of it does: its files were taken away,
        and so that the backup is. Empty for all others."""
        return await _opened(self).lost_runs()

    async def emptied(self) -> str:
        """The former name of :meth:`lost_runs`."""
        return await self.lost_runs()

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
        return await _opened(self).backup(folder, keep=keep)

    async def backups(self, folder: str | Path | None = None) -> list[BackupInfo]:
        """The backups in a folder, newest first, each verified; a damaged one has a ``problem``.

        Those that other stores have made are among them.
        """
        return await _opened(self).backups(folder)

    async def verify(self, which: str | Path) -> BackupInfo:
        """Read a backup from the first byte to the last.

        Raises:
            CorruptRecordError: It is damaged.
            FormatVersionError: A newer version of tagent-nb wrote it.
            StorageUnavailableError: It cannot be read.
        """
        return await _opened(self).verify(which)

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
            StorageError: A process carries a run on at this moment; nothing was changed.
            StorageUnavailableError: Something cannot be written.
        """
        return await _opened(self).restore(which, folder=folder, replace=replace)

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
        _opened(self).allow_pickle(key_file)
        return self

    def subscribe(self, on_warning: OnWarning) -> AbstractContextManager[None]:
        """Call ``on_warning`` with each problem as it is found, first with those that no subscriber has got.

        Args:
            on_warning: Takes a sentence, on any thread; must return fast.
        """
        return _opened(self).subscribe(on_warning)

    def telling(self, on_warning: OnWarning) -> AbstractContextManager[None]:
        """The former name of :meth:`subscribe`."""
        return self.subscribe(on_warning)

    async def close(self) -> None:
        """Give back files and connections; they are opened again when they are needed.

        A backend of four methods may have one of its own, which is called when the opened one is closed.
        """
        await _opened(self).close()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but what keeps runs in this very object."""
        return {name: value for name, value in vars(self).items() if name != OPENED}


OPENED = "_tagent_opened"
"""The attribute in which a backend of four methods has what keeps runs in it."""


Opener = TypeVar("Opener", bound="Callable[[StorageBackend], StorageBackend]")

_openers: list[Callable[[StorageBackend], StorageBackend]] = []


def opens_backends(function: Opener) -> Opener:
    """Let ``function`` make what keeps runs in a backend of four methods.

    The face of this package has :class:`StorageBackend` from the module that calls this, so it is called
    before there is a backend.
    """
    _openers[:] = [function]
    return function


def _opened(backend: StorageBackend) -> StorageBackend:
    return _openers[0](backend)
