"""What backends of records and the one in memory share: documents, lists of runs, deleting, tidying up.

What is stored as records of bytes goes through :class:`tagent_nb.storage.record_backend.RecordStoreBackend`:
a backend only has to keep bytes, and what they mean is decided once.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from tagent_nb.errors import CorruptRecordError, DefinitionError, LeaseLostError, NotStoredError, StorageError
from tagent_nb.naming import id_of, places_of, safe_id
from tagent_nb.storage import lease as leases
from tagent_nb.storage.backend import OnWarning, StorageBackend
from tagent_nb.storage.backup.archive import DOCUMENTS
from tagent_nb.storage.format.envelope import pack, unpack
from tagent_nb.storage.format.pickled import decode_document, encode_document
from tagent_nb.storage.lease import TTL, Claims, Lease
from tagent_nb.storage.policy import BackupSchedule, Retention, age_of, size_of
from tagent_nb.storage.prune import LIMIT, prune
from tagent_nb.storage.run_info import RunInfo

CHUNK = 200
"""Runs that are looked at together."""


class Reporting:
    """Notes problems that stop nothing, each once.

    Attributes:
        problems: What was found wrong and got over, such as a dropped torn record; one sentence each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self._undelivered: list[str] = []
        self._subscribers: list[OnWarning] = []
        self._subscribing = threading.Lock()

    @contextmanager
    def subscribe(self, on_warning: OnWarning) -> Iterator[None]:
        """Call ``on_warning`` with each problem as it is found. See :meth:`StorageBackend.subscribe`."""
        with self._subscribing:
            undelivered, self._undelivered = self._undelivered, []
            self._subscribers.append(on_warning)
        try:
            for message in undelivered:
                on_warning(message)
            yield
        finally:
            with self._subscribing:
                self._subscribers.remove(on_warning)

    def _report(self, message: str) -> None:
        with self._subscribing:
            if message in self.problems:
                return
            self.problems.append(message)
            subscribers = tuple(self._subscribers)
            if not subscribers:
                self._undelivered.append(message)
        for on_warning in subscribers:
            on_warning(message)


class RunStorage(Reporting, StorageBackend):
    """Everything that does not depend on how the events of a run are kept."""

    _removed_at_once: int = 1
    """How many runs are removed together by :meth:`_remove_unclaimed_runs`, where that is quicker."""

    shared_clock: bool = False
    """Whether :meth:`_now` is the same clock for all machines that use the store."""

    def __init__(self) -> None:
        super().__init__()
        self.lease_ttl = TTL
        self._claims = Claims(self.shared_clock)
        self.retention: Retention | None = None
        self.backup_schedule: BackupSchedule | None = None
        self._key: bytes | None = None

    # -- primitives -------------------------------------------------------------------------

    @abstractmethod
    async def _lease(self, pipeline_id: str, run_id: str) -> tuple[int, bytes]:
        """Token and holder of a run's lease; ``(0, b"")`` if there never was one."""

    @abstractmethod
    async def _swap_lease(
        self, pipeline_id: str, run_id: str, expected: int, token: int, holder: bytes
    ) -> bool:
        """Set token and holder in one step if the token is still ``expected``; say whether it was."""

    async def _now(self) -> float:
        """The time by which heartbeats are judged, in seconds since the epoch."""
        return time.time()

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

    def _where(self, pipeline_id: str, name: str) -> str:
        """What messages call a run or a document of a pipeline."""
        return f"{name} of pipeline {pipeline_id}"

    # -- documents --------------------------------------------------------------------------

    async def save(self, pipeline_id: str, data: Mapping[str, Any]) -> None:
        """Keep ``data`` for a pipeline. See :meth:`StorageBackend.save`."""
        await self._save(pipeline_id, "snapshot", data)

    async def load(self, pipeline_id: str, schemas: Mapping[str, type] | None = None) -> dict[str, Any]:
        """What was saved last for a pipeline.

        Args:
            pipeline_id: The pipeline's storage id, or its name as for :meth:`runs`.
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
        """The saved memories of a pipeline. See :meth:`StorageBackend.memories`."""
        return await self._load(pipeline_id, "memories", schemas) or {}

    async def save_memories(self, pipeline_id: str, memories: Mapping[str, Any]) -> None:
        """Keep ``memories`` in place of the present ones. See :meth:`StorageBackend.save_memories`."""
        await self._save(pipeline_id, "memories", memories)

    async def _save(self, pipeline_id: str, name: str, data: Mapping[str, Any]) -> None:
        pipeline_id = await self._place(pipeline_id)
        body = encode_document(dict(data), name, self._key)
        await self._put(pipeline_id, name, pack(name, pipeline_id, body, key=self._key))

    async def _load(
        self, pipeline_id: str, name: str, schemas: Mapping[str, type] | None
    ) -> dict[str, Any] | None:
        for place in places_of(pipeline_id):
            record = await self._get(place, name)
            if record is None:
                continue
            where = self._where(place, name)
            envelope = unpack(record, where, kind=name, owner=place, key=self._key)
            data = decode_document(envelope.body, schemas, self._key)
            if not isinstance(data, dict):
                raise CorruptRecordError(f"{where}: holds a {type(data).__name__} in place of a dict.")
            return data
        return None

    async def _place(self, pipeline_id: str) -> str:
        """The id under which a document of a pipeline is saved: the one that holds something already."""
        first, *others = places_of(pipeline_id)
        if not await self._holds_any_of(first):
            for place in others:
                if await self._holds_any_of(place):
                    return place
        return first

    async def _holds_any_of(self, pipeline_id: str) -> bool:
        """Whether a run or a document is stored under an id, intact or not."""
        try:
            if await self._last(pipeline_id, 1):
                return True
            return any([await self._get(pipeline_id, name) is not None for name in DOCUMENTS])
        except CorruptRecordError:
            return True

    # -- runs -------------------------------------------------------------------------------

    @abstractmethod
    async def _described(self, pipeline_id: str, run_ids: Sequence[str]) -> list[tuple[RunInfo, int, bytes]]:
        """What a list of runs says about some; and token and holder of their leases. Without what is gone."""

    async def runs(self, pipeline_id: str, *, limit: int | None = None) -> list[RunInfo]:
        """Runs of a pipeline, the newest last. See :meth:`StorageBackend.runs`."""
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
        """The run that was begun last. See :meth:`StorageBackend.newest_run`."""
        newest: list[str] = []
        for place in places_of(pipeline_id):
            newest = newest or await self._last(place, 2)
        return next((run_id for run_id in reversed(newest) if run_id != besides), None)

    async def has_run(self, pipeline_id: str, run_id: str) -> bool:
        """Whether a run is stored. See :meth:`StorageBackend.has_run`."""
        places = places_of(pipeline_id)
        return is_safe(run_id) and await self._place_of_run(places, run_id) is not None

    async def _place_of_run(self, places: Sequence[str], run_id: str) -> str | None:
        """The first of some ids under which there is a run."""
        for place in places:
            if await self._has_run(place, run_id):
                return place
        return None

    async def _place_to_record(self, pipeline_id: str, run_id: str) -> str:
        """The id under which a run of a pipeline is recorded, for the pipeline's id or name."""
        places = places_of(pipeline_id)
        return await self._place_of_run(places, run_id) or places[0]

    async def _stored_id(self, pipeline_id: str) -> str:
        """The id under which there are runs, for the id or the name of a pipeline."""
        first, *others = places_of(pipeline_id)
        return first if not others or await self._last(first, 1) else others[0]

    async def _run_ids(self, pipeline_id: str) -> list[str]:
        """All runs in their order, without what a stranger has put beside them."""
        return [run_id for run_id in await self._ordered(pipeline_id) if is_safe(run_id)]

    async def _last(self, pipeline_id: str, count: int) -> list[str]:
        """The last ``count`` runs in their order."""
        newest = await self._newest(pipeline_id, count)
        return newest if all(map(is_safe, newest)) else (await self._run_ids(pipeline_id))[-count:]

    async def delete_run(self, pipeline_id: str, run_id: str) -> None:
        """Delete a run. See :meth:`StorageBackend.delete_run`."""
        self._check(pipeline_id, run_id)
        place = await self._place_of_run(places_of(pipeline_id), run_id)
        if place is None:
            raise self._unknown(pipeline_id, run_id)
        await self._delete_unclaimed("be deleted", place, [run_id])

    async def _delete_unclaimed(self, what: str, pipeline_id: str, run_ids: Sequence[str]) -> None:
        """Delete runs, none if a process may carry one of them on."""
        tokens = await leases.refuse_active(self, what, pipeline_id, run_ids)
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

    async def _remove_unclaimed_runs(self, pipeline_id: str, tokens: Mapping[str, int]) -> list[str]:
        """Remove the runs that no process has claimed since their leases had these tokens; their ids.

        One that cannot be removed is reported, and the others still are.
        """
        removed = []
        for run_id, token in tokens.items():
            try:
                if await self._remove_unclaimed(pipeline_id, run_id, token):
                    removed.append(run_id)
            except NotStoredError:
                continue
            except StorageError as error:
                self._report(str(error))
        return removed

    async def delete(self, pipeline_id: str) -> None:
        """Delete all of a pipeline. See :meth:`StorageBackend.delete`."""
        places, stored = places_of(pipeline_id), await self._pipelines()
        place = next((place for place in places if place in stored), None)
        if place is None:
            raise NotStoredError(f"Pipeline {pipeline_id!r} is not stored. list_pipelines() lists what is.")
        await self._delete_unclaimed("be deleted with its pipeline", place, await self._ordered(place))
        await self._remove_documents(place)

    async def list_pipelines(self) -> list[str]:
        """Ids of all stored pipelines, sorted. See :meth:`StorageBackend.list_pipelines`."""
        return sorted(name for name in await self._pipelines() if is_safe(name))

    # -- leases -----------------------------------------------------------------------------

    async def acquire(self, pipeline_id: str, run_id: str) -> Lease:
        """Become the one who records a run. See :meth:`StorageBackend.acquire`."""
        self._check(pipeline_id, run_id)
        pipeline_id = await self._place_to_record(pipeline_id, run_id)
        lease = await leases.acquire(self, pipeline_id, run_id)
        self._forget(pipeline_id, run_id)
        return lease

    async def renew(self, lease: Lease) -> None:
        """Say that the holder is alive. See :meth:`StorageBackend.renew`."""
        await leases.renew(self, lease)

    async def release(self, lease: Lease) -> None:
        """Give the run back. See :meth:`StorageBackend.release`."""
        await leases.release(self, lease)
        await self._tidy_after(lease)

    def _lost(self, pipeline_id: str, run_id: str, holder: bytes) -> LeaseLostError:
        """The error for a writer whose token is no longer good, by the lease's present holder."""
        return leases.lost(pipeline_id, run_id, holder)

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
        """Delete runs of a pipeline. See :meth:`StorageBackend.prune`."""
        rules = Retention(keep_last, age_of(older_than), size_of(max_bytes))
        return await prune(self, pipeline_id, rules, limit)

    async def _tidy_after(self, lease: Lease) -> None:
        """Back up and prune as far as the rules ask for it, once a run was given back."""
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
            # The run is recorded; that tidying up failed must not make it fail.
            self._report(f"After run {lease.run_id}: {error}")

    @abstractmethod
    async def _backup_if_due(self, pipeline_id: str) -> None:
        """Make a backup if the schedule asks for one now."""

    @abstractmethod
    def _refuse_schedule(self, schedule: BackupSchedule) -> None:
        """Say so before the first run ends.

        Raises:
            DefinitionError: By this schedule no backup could be made.
        """

    # -- inside -----------------------------------------------------------------------------

    @abstractmethod
    def _forget(self, pipeline_id: str, run_id: str) -> None:
        """Drop what this object remembers about a run: others may have changed it."""

    def _check(self, pipeline_id: str, run_id: str) -> str:
        """Refuse what can be neither a pipeline's id or name, nor a run's id; the pipeline's id."""
        safe_id(run_id, "run id")
        return id_of(pipeline_id)

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
