"""The batches of a run that a provider has, as a fold over its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tagent_nb.events import (
    BatchCancelled,
    BatchPrepared,
    BatchSubmitted,
    CallRecorded,
    StepCached,
    StepEvent,
    StepFinished,
)


@dataclass(slots=True)
class RecordedBatch:
    """A batch that was about to be sent.

    Attributes:
        prepared: What was to be in it.
        handle: What finds it at the provider; ``None`` where it is not recorded that this has taken it.
        supposed: As in :class:`~tagent_nb.events.BatchSubmitted`.
        cancelled: Whether the provider was asked to cancel it.
    """

    prepared: BatchPrepared
    handle: Mapping[str, Any] | None = None
    supposed: bool = False
    cancelled: bool = False


class BatchRecords:
    """Which requests of a run wait in which batch, and which units have had the answer of one."""

    def __init__(self) -> None:
        self._sent: dict[str, RecordedBatch] = {}
        # Marker and number of each request that is not answered, by unit and its canonical key.
        self._open: dict[tuple[str, str | None], dict[str, tuple[str, int]]] = {}
        self._left: dict[str, int] = {}  # how many these are, by batch
        self._answered: set[tuple[str, str | None]] = set()
        # Units whose request an earlier session has sent, by step and key: rows may have moved since.
        self._earlier: dict[tuple[str, str], dict[tuple[str, str | None], None]] = {}

    def __bool__(self) -> bool:
        return bool(self._sent)

    def find(self, step: str, item: str | None, key: str) -> tuple[RecordedBatch, int] | None:
        """The batch that a request waits in, and its number there; ``None`` if it waits in none.

        What an earlier session has sent for another row answers for this one, if it is the same question and
        no other row has asked for it.
        """
        unit = step, item
        if key in self._open.get(unit, {}):
            self._earlier.get((step, key), {}).pop(unit, None)
        elif not self._moved(unit, key):
            return None
        marker, number = self._open[unit][key]
        return self._sent[marker], number

    def _moved(self, unit: tuple[str, str | None], key: str) -> bool:
        """Let a unit wait for an equal request of another one; whether there is one."""
        others = self._earlier.get((unit[0], key), {})
        while others:
            other, _ = others.popitem()
            places = self._open.get(other, {})
            if key in places:
                self._open.setdefault(unit, {})[key] = places.pop(key)
                if not places:
                    del self._open[other]
                return True
        return False

    def drop(self, step: str, item: str | None, key: str) -> None:
        """Wait for this request no longer: it is sent again."""
        self._pop((step, item), key)

    def _pop(self, unit: tuple[str, str | None], key: str) -> bool:
        """Wait for a request no longer; whether it was waited for."""
        places = self._open.get(unit, {})
        place = places.pop(key, None)
        if place is None:
            return False
        self._left[place[0]] -= 1
        if not places:
            del self._open[unit]
        return True

    def is_answered(self, step: str, item: str | None) -> bool:
        """Whether a batch has answered a unit, or has failed to."""
        return (step, item) in self._answered

    def ids(self) -> set[str]:
        """What providers call the batches that they have taken."""
        return {str(batch.handle["id"]) for batch in self._sent.values() if batch.handle is not None}

    def has(self, marker: str) -> bool:
        """Whether the run knows a batch."""
        return marker in self._sent

    def is_open(self, step: str, item: str | None) -> bool:
        """Whether a request of a unit waits for the answer of a batch."""
        return (step, item) in self._open

    def steps(self) -> set[str]:
        """Steps with a request that waits for the answer of a batch."""
        return {batch.prepared.step for batch in self._waited_for()}

    def names(self, step: str) -> str:
        """The batches that requests of a step wait for, in words; empty without any."""
        batches = [batch for batch in self._waited_for() if batch.prepared.step == step]
        ids = ["?" if batch.handle is None else str(batch.handle["id"]) for batch in batches]
        return f"batch{'es' if len(ids) > 1 else ''} {', '.join(ids)}" if ids else ""

    def models(self, step: str) -> set[str]:
        """The models of batches that requests of a step wait for, as their providers call them."""
        return {
            str(batch.handle["model_name"])
            for batch in self._waited_for()
            if batch.prepared.step == step and batch.handle is not None
        }

    def units(self) -> list[tuple[str, str | None]]:
        """Units with a request that waits for the answer of a batch."""
        return list(self._open)

    def under_way(self) -> list[RecordedBatch]:
        """Batches that the provider has and whose answers are not all read, oldest first.

        Those that may be another program's are not among them.
        """
        return [batch for batch in self._waited_for() if batch.handle is not None and not batch.supposed]

    def supposed(self) -> list[str]:
        """What the provider calls batches that would be under way, and may be another program's."""
        return [str(batch.handle["id"]) for batch in self._waited_for() if batch.handle and batch.supposed]

    def _waited_for(self) -> list[RecordedBatch]:
        return [batch for marker, batch in self._sent.items() if self._left[marker] and not batch.cancelled]

    # -- the fold ---------------------------------------------------------------------------

    def prepared(self, event: BatchPrepared) -> None:
        """Take in that a batch is about to be sent."""
        self._sent[event.marker] = RecordedBatch(event)
        self._left[event.marker] = len(event.rows)
        for number, (row, key) in enumerate(zip(event.rows, event.keys, strict=True)):
            unit = event.step, row
            if event.of_run and key in self._open.get(unit, {}):
                self._left[event.marker] -= 1
                continue
            self._pop(unit, key)
            self._open.setdefault(unit, {})[key] = (event.marker, number)
            if event.of_run:
                self._earlier.setdefault((event.step, key), {})[unit] = None

    def begin_session(self) -> None:
        """From now on, what was sent before answers for equal questions of whatever row."""
        self._earlier = {}
        for unit, places in self._open.items():
            for key in places:
                self._earlier.setdefault((unit[0], key), {})[unit] = None

    def submitted(self, event: BatchSubmitted) -> None:
        """Take in that the provider has a batch."""
        batch = self._sent[event.marker]
        batch.handle, batch.supposed = event.handle, event.supposed

    def cancelled(self, event: BatchCancelled) -> None:
        """Take in that a batch is cancelled."""
        self._sent[event.marker].cancelled = True

    def answered(self, event: CallRecorded) -> None:
        """Take in that a request has its answer, of whatever source."""
        unit = event.step, event.item
        if self._pop(unit, event.key) or (self._moved(unit, event.key) and self._pop(unit, event.key)):
            self._answered.add((event.step, event.item))

    def release(self, event: StepEvent) -> None:
        """Take in that an attempt has ended: what its unit asks from now on is another request.

        One that has a value did not wait for what is left of earlier sessions: this was another question, is
        paid as well, and can be cancelled.
        """
        unit = event.step, event.item
        has_value = isinstance(event, StepFinished | StepCached)
        for key in [*self._open.get(unit, ())]:
            if not (has_value and unit in self._earlier.get((event.step, key), ())):
                self._pop(unit, key)
                self._answered.add(unit)

    def forget(self, steps: Iterable[str]) -> None:
        """These steps are forced: what was asked before answers for nothing any more."""
        forced = frozenset(steps)
        for unit in [unit for unit in self._open if unit[0] in forced]:
            for key in [*self._open[unit]]:
                self._pop(unit, key)
        self._answered = {unit for unit in self._answered if unit[0] not in forced}
