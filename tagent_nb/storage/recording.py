"""A backend that keeps runs as records of bytes: encoding, checking and counting, once for all of them."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from tagent_nb.errors import CorruptRecordError, StorageError, StorageUnavailableError
from tagent_nb.events import PASSING, Event, RunFinished, StepEvent, Warned
from tagent_nb.storage.base import StorageBackend
from tagent_nb.storage.codec import Envelope, last_record, pack, split, unpack
from tagent_nb.storage.records import RunInfo, Summary, decode_events, encode_events, summary_of


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
            body = encode_events(kept, summary if ending else None)
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
        self._check(pipeline_id, run_id)
        data = await self._read(pipeline_id, run_id)
        if data is None:
            raise self._unknown(pipeline_id, run_id)
        return await asyncio.to_thread(self._decode, pipeline_id, run_id, data, schemas)

    async def close(self) -> None:
        """Give back files and connections. The backend opens them again when it is used again."""
        self._summaries.clear()

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
            events.extend(decode_events(record.body, where, schemas))
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
            summary = Summary().add_all(await self.read_run(pipeline_id, run_id))
        except StorageUnavailableError:
            raise
        except StorageError as error:
            # One damaged run must not hide the others.
            return RunInfo(run_id, pipeline_id, status="damaged", size=size, problem=str(error))
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
