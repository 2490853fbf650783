"""Storage that lives as long as its process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tagent_nb.events import PASSING, Event, Output
from tagent_nb.pipeline.names import safe_id
from tagent_nb.storage.base import StorageBackend
from tagent_nb.storage.leases import Holder
from tagent_nb.storage.records import RunInfo, Summary


@dataclass
class _Pipeline:
    documents: dict[str, bytes] = field(default_factory=dict)
    memories: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, list[Event]] = field(default_factory=dict)


class MemoryStorageBackend(StorageBackend):
    """Keeps everything in this process; events are kept as they are, not encoded."""

    durable = False

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[str, _Pipeline] = {}
        self._leases: dict[tuple[str, str], tuple[int, bytes]] = {}

    def __repr__(self) -> str:
        return "MemoryStorageBackend()"

    # Events are not bytes here, so what the base does with bytes is done with events.

    async def append(
        self, pipeline_id: str, run_id: str, events: Sequence[Event], *, token: int | None = None
    ) -> None:
        """Record events by reference. See :meth:`StorageBackend.append`."""
        if token is not None:
            lease = self._leases.get((pipeline_id, run_id), (0, b""))
            if lease[0] != token:
                raise self._lost(pipeline_id, run_id, lease[1])
        try:
            run = self._known[pipeline_id].runs[run_id]
        except KeyError:
            run = []
        kept = [event for event in events if not isinstance(event, PASSING)]
        if kept and not run:
            self._check(pipeline_id, run_id)
            self._pipeline(pipeline_id).runs[run_id] = run
        run.extend(kept)

    def keeps(self, output: Output) -> bool:
        """Everything can be kept by reference."""
        return True

    async def read_run(
        self, pipeline_id: str, run_id: str, schemas: Mapping[str, type] | None = None
    ) -> list[Event]:
        """The very events that were recorded. See :meth:`StorageBackend.read_run`."""
        self._check(pipeline_id, run_id)
        known = self._known.get(pipeline_id)
        if known is None or run_id not in known.runs:
            raise self._unknown(pipeline_id, run_id)
        return list(known.runs[run_id])

    async def memories(self, pipeline_id: str, schemas: Mapping[str, type] | None = None) -> dict[str, Any]:
        """The saved memories themselves. See :meth:`StorageBackend.memories`."""
        safe_id(pipeline_id, "pipeline id")
        known = self._known.get(pipeline_id)
        return dict(known.memories) if known is not None else {}

    async def save_memories(self, pipeline_id: str, memories: Mapping[str, Any]) -> None:
        """Keep memories by reference. See :meth:`StorageBackend.save_memories`."""
        safe_id(pipeline_id, "pipeline id")
        self._pipeline(pipeline_id).memories = dict(memories)

    async def _described(self, pipeline_id: str, run_ids: Sequence[str]) -> list[tuple[RunInfo, int, bytes]]:
        described: list[tuple[RunInfo, int, bytes]] = []
        runs, now = self._known[pipeline_id].runs if run_ids else {}, await self._now()
        for run_id in filter(runs.__contains__, run_ids):
            token, held = self._leases.get((pipeline_id, run_id), (0, b""))
            alive = self._claimed(pipeline_id, run_id, token, Holder.from_bytes(held), now)
            summary = Summary().add_all(runs[run_id])
            described.append((summary.to_info(pipeline_id, run_id, size=0, alive=alive), token, held))
        return described

    async def close(self) -> None:
        """There is nothing to give back; what was stored stays readable."""

    def _forget(self, pipeline_id: str, run_id: str) -> None:
        """Events are counted when somebody asks."""

    # -- primitives -------------------------------------------------------------------------

    def _pipeline(self, pipeline_id: str) -> _Pipeline:
        return self._known.setdefault(pipeline_id, _Pipeline())

    async def _put(self, pipeline_id: str, name: str, record: bytes) -> None:
        self._pipeline(pipeline_id).documents[name] = record

    async def _get(self, pipeline_id: str, name: str) -> bytes | None:
        known = self._known.get(pipeline_id)
        return known.documents.get(name) if known is not None else None

    async def _pipelines(self) -> list[str]:
        return list(self._known)

    async def _runs(self, pipeline_id: str) -> list[tuple[str, int]]:
        known = self._known.get(pipeline_id)
        return [(run_id, 0) for run_id in known.runs] if known is not None else []

    async def _remove_run(self, pipeline_id: str, run_id: str, token: int) -> bool:
        if self._leases.get((pipeline_id, run_id), (token, b""))[0] != token:
            return False
        self._leases.pop((pipeline_id, run_id), None)
        self._known[pipeline_id].runs.pop(run_id, None)
        return True

    async def _newest(self, pipeline_id: str, count: int) -> list[str]:
        known = self._known.get(pipeline_id)
        newest = [] if known is None else list(islice(reversed(known.runs), count))
        return newest[::-1]

    async def _has_run(self, pipeline_id: str, run_id: str) -> bool:
        return pipeline_id in self._known and run_id in self._known[pipeline_id].runs

    async def _remove_documents(self, pipeline_id: str) -> None:
        del self._known[pipeline_id]

    async def _lease(self, pipeline_id: str, run_id: str) -> tuple[int, bytes]:
        return self._leases.get((pipeline_id, run_id), (0, b""))

    async def _swap_lease(
        self, pipeline_id: str, run_id: str, expected: int, token: int, holder: bytes
    ) -> bool:
        if self._leases.get((pipeline_id, run_id), (0, b""))[0] != expected:
            return False
        self._leases[pipeline_id, run_id] = (token, holder)
        return True
