"""Storage that lives as long as its process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

from tagent_nb.errors import DefinitionError, StorageError
from tagent_nb.events import PASSING, Event, Output
from tagent_nb.naming import places_of
from tagent_nb.storage.backend import LEASES, ORDER
from tagent_nb.storage.format.events import Summary
from tagent_nb.storage.policy import BackupSchedule
from tagent_nb.storage.run_info import BackupInfo, RestoreInfo, RunInfo
from tagent_nb.storage.run_storage import RunStorage


@dataclass
class _Pipeline:
    documents: dict[str, bytes] = field(default_factory=dict)
    memories: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, list[Event]] = field(default_factory=dict)


class MemoryStorageBackend(RunStorage):
    """Keeps everything in this process; events are kept as they are, not encoded."""

    durable = False
    capabilities = frozenset({LEASES, ORDER})

    def __init__(self) -> None:
        super().__init__()
        self._contents: dict[str, _Pipeline] = {}
        self._leases: dict[tuple[str, str], tuple[int, bytes]] = {}

    def __repr__(self) -> str:
        return "MemoryStorageBackend()"

    # Events are not bytes here, so what the base does with bytes is done with events.

    async def append(
        self, pipeline_id: str, run_id: str, events: Sequence[Event], *, token: int | None = None
    ) -> None:
        """Record events by reference. See :meth:`StorageBackend.append`."""
        if pipeline_id not in self._contents or run_id not in self._contents[pipeline_id].runs:
            self._check(pipeline_id, run_id)
            pipeline_id = await self._place_to_record(pipeline_id, run_id)
        if token is not None:
            lease = self._leases.get((pipeline_id, run_id), (0, b""))
            if lease[0] != token:
                raise self._lost(pipeline_id, run_id, lease[1])
        try:
            run = self._contents[pipeline_id].runs[run_id]
        except KeyError:
            run = []
        kept = [event for event in events if not isinstance(event, PASSING)]
        if kept and not run:
            self._pipeline(pipeline_id).runs[run_id] = run
        run.extend(kept)

    def appender(self, pipeline_id: str, run_id: str, token: int | None) -> Callable[[Event], bool] | None:
        """Events are only put into a list. See :meth:`StorageBackend.appender`."""
        if getattr(self.append, "__func__", None) is not MemoryStorageBackend.append:
            return None  # it may have something else to do
        unit = (pipeline_id, run_id)
        leases, contents = self._leases, self._contents

        def append(event: Event) -> bool:
            pipeline = contents.get(pipeline_id)
            run = None if pipeline is None else pipeline.runs.get(run_id)
            lease = leases.get(unit)
            if run is None or lease is None or lease[0] != token:
                return False
            run.append(event)
            return True

        return append

    def keeps(self, output: Output) -> bool:
        """Everything can be kept by reference."""
        return True

    async def read_run(
        self, pipeline_id: str, run_id: str, schemas: Mapping[str, type] | None = None
    ) -> list[Event]:
        """The very events that were recorded. See :meth:`StorageBackend.read_run`."""
        self._check(pipeline_id, run_id)
        place = await self._place_of_run(places_of(pipeline_id), run_id)
        if place is None:
            raise self._unknown(pipeline_id, run_id)
        return list(self._contents[place].runs[run_id])

    async def memories(self, pipeline_id: str, schemas: Mapping[str, type] | None = None) -> dict[str, Any]:
        """The saved memories themselves. See :meth:`StorageBackend.memories`."""
        kept = [self._contents[place].memories for place in places_of(pipeline_id) if place in self._contents]
        return dict(next(filter(None, kept), {}))

    async def save_memories(self, pipeline_id: str, memories: Mapping[str, Any]) -> None:
        """Keep memories by reference. See :meth:`StorageBackend.save_memories`."""
        self._pipeline(await self._place(pipeline_id)).memories = dict(memories)

    async def _holds_any_of(self, pipeline_id: str) -> bool:
        return pipeline_id in self._contents

    async def _described(self, pipeline_id: str, run_ids: Sequence[str]) -> list[tuple[RunInfo, int, bytes]]:
        described: list[tuple[RunInfo, int, bytes]] = []
        runs, now = self._contents[pipeline_id].runs if run_ids else {}, await self._now()
        for run_id in filter(runs.__contains__, run_ids):
            token, holder = self._leases.get((pipeline_id, run_id), (0, b""))
            alive = self._claims.count(pipeline_id, run_id, token, holder, now)
            summary = Summary().add_all(runs[run_id])
            described.append((summary.to_info(pipeline_id, run_id, size=0, alive=alive), token, holder))
        return described

    async def close(self) -> None:
        """There is nothing to give back; what was stored stays readable."""

    def _forget(self, pipeline_id: str, run_id: str) -> None:
        """Events are counted when runs are listed."""

    # -- what needs something that outlives the process --------------------------------------

    async def lost_runs(self) -> str:
        """Empty: there is no backup."""
        return ""

    async def backup(self, folder: str | Path | None = None, *, keep: int = 3) -> BackupInfo:
        """Refused: there is nothing to keep."""
        raise self._nothing_kept()

    async def backups(self, folder: str | Path | None = None) -> list[BackupInfo]:
        """Refused: there is nothing to keep."""
        raise self._nothing_kept()

    async def verify(self, which: str | Path) -> BackupInfo:
        """Refused: there is nothing to keep."""
        raise self._nothing_kept()

    async def restore(
        self, which: str | Path | None = None, *, folder: str | Path | None = None, replace: bool = False
    ) -> RestoreInfo:
        """Refused: there is nothing to keep."""
        raise self._nothing_kept()

    def allow_pickle(self, key_file: str | Path) -> Self:
        """Refused: nothing is encoded."""
        raise self._nothing_kept()

    def _nothing_kept(self) -> StorageError:
        return StorageError(f"{self!r} keeps nothing after this process. Use a folder, SQLite or Redis.")

    async def _backup_if_due(self, pipeline_id: str) -> None:
        raise self._nothing_kept()

    def _refuse_schedule(self, schedule: BackupSchedule) -> None:
        raise DefinitionError(f"{self!r} keeps nothing that could be backed up. Leave out backup_every.")

    # -- primitives -------------------------------------------------------------------------

    def _pipeline(self, pipeline_id: str) -> _Pipeline:
        return self._contents.setdefault(pipeline_id, _Pipeline())

    async def _put(self, pipeline_id: str, name: str, record: bytes) -> None:
        self._pipeline(pipeline_id).documents[name] = record

    async def _get(self, pipeline_id: str, name: str) -> bytes | None:
        pipeline = self._contents.get(pipeline_id)
        return pipeline.documents.get(name) if pipeline is not None else None

    async def _pipelines(self) -> list[str]:
        return list(self._contents)

    async def _runs(self, pipeline_id: str) -> list[tuple[str, int]]:
        pipeline = self._contents.get(pipeline_id)
        return [(run_id, 0) for run_id in pipeline.runs] if pipeline is not None else []

    async def _remove_run(self, pipeline_id: str, run_id: str, token: int) -> bool:
        if self._leases.get((pipeline_id, run_id), (token, b""))[0] != token:
            return False
        self._leases.pop((pipeline_id, run_id), None)
        self._contents[pipeline_id].runs.pop(run_id, None)
        return True

    async def _newest(self, pipeline_id: str, count: int) -> list[str]:
        pipeline = self._contents.get(pipeline_id)
        newest = [] if pipeline is None else list(islice(reversed(pipeline.runs), count))
        return newest[::-1]

    async def _has_run(self, pipeline_id: str, run_id: str) -> bool:
        return pipeline_id in self._contents and run_id in self._contents[pipeline_id].runs

    async def _remove_documents(self, pipeline_id: str) -> None:
        del self._contents[pipeline_id]

    async def _lease(self, pipeline_id: str, run_id: str) -> tuple[int, bytes]:
        return self._leases.get((pipeline_id, run_id), (0, b""))

    async def _swap_lease(
        self, pipeline_id: str, run_id: str, expected: int, token: int, holder: bytes
    ) -> bool:
        if self._leases.get((pipeline_id, run_id), (0, b""))[0] != expected:
            return False
        self._leases[pipeline_id, run_id] = (token, holder)
        return True
