"""Events as the body of a record, and what its last record says of a whole run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tagent_nb.errors import CorruptRecordError, StorageError, TagentError
from tagent_nb.events import (
    ApprovalGiven,
    ApprovalRequested,
    BatchPrepared,
    CallRecorded,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCached,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepRetried,
    StepSkipped,
)
from tagent_nb.serde import Classes, StoredValue, event_from_dict, event_to_dict
from tagent_nb.storage.format.envelope import read_record
from tagent_nb.storage.format.pickled import PickledOutput, seal
from tagent_nb.storage.run_info import RunInfo, time_in

FIRST = 1 << 20
"""Bytes at the start of a run in which its first record is looked for."""

_WITH_OUTPUT = (StepFinished, StepCached)
_PICKLED = "it was pickled: open the store with allow_pickle() and its key"

_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


# -- bodies ------------------------------------------------------------------------------------


def encode_events(events: Sequence[Event], summary: Summary | None = None, key: bytes | None = None) -> bytes:
    """Events as a body: a line of JSON, and behind it the encoded values as they are.

    Args:
        events: What one transaction records.
        summary: Stored besides them with the event that ends a run, so that a list of runs need not
            read the whole run.
        key: The store's key; with one, outputs that JSON cannot hold are pickled.

    Raises:
        EncodeError: An event has a value that cannot be stored.
    """
    heads: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for event in events:
        head, blob = _head(event, key)
        if blob is not None:
            blobs.append(blob)
        heads.append(head)
    content: dict[str, Any] = {"events": heads}
    if summary is not None:
        content["summary"] = summary.to_dict()
    return b"%b\n%b" % (_to_json(content).encode(), b"".join(blobs))


def _head(event: Event, key: bytes | None) -> tuple[dict[str, Any], bytes | None]:
    """An event without its output's bytes, and the bytes: in the line they would be escaped once more."""
    if key is not None and isinstance(event, _WITH_OUTPUT):
        sealed = seal(event.output, key)
        if sealed is not None:
            digest = event.output.digest
            head = event_to_dict(replace(event, output=StoredValue.unstorable(_PICKLED, digest)))
            head["output"] = {"pickle": len(sealed), "digest": digest}
            return head, sealed
    head = event_to_dict(event)
    output = head.get("output")
    if output is None or output.get("blob") is None:
        return head, None
    blob: bytes = output["blob"]
    output["blob"] = len(blob)
    return head, blob


def decode_events(
    body: bytes, where: str, schemas: Mapping[str, type] | None = None, key: bytes | None = None
) -> list[Event]:
    """The events of a verified body. Without the ``key``, a pickled output is ``None`` and says why.

    Raises:
        CorruptRecordError: The body is not what :func:`encode_events` writes.
    """
    content, place = _content(body, where)
    schemas = Classes.of(schemas)
    events: list[Event] = []
    try:
        for head in content["events"]:
            output = head.get("output")
            if output is None or not {"blob", "pickle"} & set(output):
                events.append(event_from_dict(head, schemas))
                continue
            kind = "blob" if "blob" in output else "pickle"
            size = output.pop(kind)
            if type(size) is not int or not 0 <= size <= len(body) - place:
                raise CorruptRecordError(f"{where}: a value is longer than its record.")
            value = body[place : place + size]
            place += size
            output.update({"blob": value} if kind == "blob" else {"problem": _PICKLED})
            event = event_from_dict(head, schemas)
            if kind == "pickle" and key is not None and isinstance(event, _WITH_OUTPUT):
                event = replace(event, output=PickledOutput(value, event.output.digest, key))
            events.append(event)
    except TagentError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptRecordError(f"{where}: an event cannot be read ({error!r}).") from None
    if place != len(body):
        raise CorruptRecordError(f"{where}: {len(body) - place:,} bytes belong to no event.")
    return events


# -- the summary of a run ----------------------------------------------------------------------


@dataclass
class Summary:
    """A fold over a run's events that counts what :class:`RunInfo` shows."""

    pipeline: str = ""
    outcome: str = ""
    started_at: float = 0.0
    ended_at: float | None = None
    host: str = ""
    pid: int = 0
    steps: int = 0
    cost: float = 0.0
    unpriced: bool = False
    states: dict[str, str] = field(default_factory=dict)
    calls: dict[tuple[str, str | None], list[float | None]] = field(default_factory=dict)
    pending: dict[tuple[str, str | None], set[str]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Take one event in."""
        kind = type(event)
        if kind in _SPENDING and not getattr(event, "call", ""):
            # A call of a tool that waits for approval ends no attempt.
            self.calls.pop((event.step, event.item), None)  # type: ignore[attr-defined]
            self._spend(event.cost)  # type: ignore[attr-defined]
        elif isinstance(event, CallRecorded):
            # Counted with its attempt; if this is interrupted, by itself.
            self.calls.setdefault((event.step, event.item), []).append(event.cost)
        elif kind is RunResumed:
            self._interrupted()
        if kind is BatchPrepared:
            # Until the step ends, what its provider has is to be kept as well.
            self.pending.setdefault((event.step, None), set()).add(f"batch {event.marker}")  # type: ignore[attr-defined]
        elif kind in _APPROVALS:
            self._approval(event)
        state = _STATES.get(kind)
        if state is not None:
            if event.item is None:  # type: ignore[attr-defined]
                self.states[event.step] = state  # type: ignore[attr-defined]
        elif isinstance(event, RunStarted):
            self.pipeline, self.started_at, self.steps = event.pipeline, event.at, len(event.steps)
            self.host, self.pid = event.host, event.pid
        elif isinstance(event, RunResumed):
            self.states = {name: state for name, state in self.states.items() if name in event.kept}
            self.steps = len(event.steps) or self.steps
            self.host, self.pid = event.host, event.pid
            self.outcome, self.ended_at = "", None
        elif isinstance(event, RunFinished):
            self.ended_at = event.at
            self.outcome = "cancelled" if event.cancelled else "completed" if event.success else "failed"
            if event.waiting and not event.cancelled and "failed" not in self.states.values():
                self.outcome = "waiting"

    def _approval(self, event: Any) -> None:
        """Count what waits for a decision."""
        unit = (event.step, event.item)
        if isinstance(event, ApprovalRequested):
            self.pending.setdefault(unit, set()).add(event.call)
        elif isinstance(event, ApprovalGiven):
            self.pending.get(unit, set()).discard(event.call)
        elif self.pending:
            # The unit has come to an end, or begins anew.
            self.pending.pop(unit, None)

    def _spend(self, cost: float | None) -> None:
        if cost is None:
            self.unpriced = True
        else:
            self.cost += cost

    def _interrupted(self) -> None:
        """Count the calls of attempts whose process died."""
        for costs in self.calls.values():
            for cost in costs:
                self._spend(cost)
        self.calls.clear()

    def add_all(self, events: Iterable[Event]) -> Summary:
        """Take several events in."""
        for event in events:
            self.add(event)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with counts in place of the steps' states."""
        counted = replace(self, calls=dict(self.calls))
        counted._interrupted()
        data = asdict(counted)
        del data["calls"], data["pending"]
        data["undecided"] = sum(map(len, self.pending.values()))
        data["states"] = _counts(self.states)
        return data

    def to_info(self, pipeline_id: str, run_id: str, *, size: int, alive: bool) -> RunInfo:
        """The run as a list shows it; ``alive``: a process holds its lease."""
        return info_of(self.to_dict(), pipeline_id, run_id, size=size, alive=alive)


_SPENDING = (StepFinished, StepFailed, StepRetried, StepCancelled, ApprovalRequested)
_APPROVALS = {
    ApprovalRequested,
    ApprovalGiven,
    StepRetried,
    StepFinished,
    StepFailed,
    StepCached,
    StepSkipped,
}
_STATES: dict[type[Event], str] = {StepFinished: "done", StepCached: "cached", StepFailed: "failed"}


def _counts(states: Mapping[str, str]) -> dict[str, int]:
    values = list(states.values())
    return {state: values.count(state) for state in _STATES.values()}


def info_of(data: Mapping[str, Any], pipeline_id: str, run_id: str, *, size: int, alive: bool) -> RunInfo:
    """The run of a :meth:`Summary.to_dict`, as a list shows it; ``alive``: a process holds its lease."""
    counts = data["states"]
    return RunInfo(
        run_id=run_id,
        pipeline_id=pipeline_id,
        pipeline=data["pipeline"],
        status="running" if alive else data["outcome"] or "interrupted",
        started_at=data["started_at"],
        ended_at=None if alive else data["ended_at"],
        host=data["host"],
        pid=data["pid"],
        steps=data["steps"],
        steps_done=counts["done"] + counts["cached"],
        steps_cached=counts["cached"],
        steps_failed=counts["failed"],
        cost=data["cost"],
        unpriced=data["unpriced"],
        size=size,
        # Older versions did not count them.
        undecided=data.get("undecided", 0),
    )


def summary_of(
    body: bytes, where: str, pipeline_id: str, run_id: str, *, size: int, alive: bool
) -> RunInfo | None:
    """What the last record of a run says about all of it; ``None`` if it does not say.

    Raises:
        CorruptRecordError: The body cannot be read.
    """
    from pydantic_core import from_json

    try:
        # Five times as fast as _content. Reading the run reports a key that is there twice.
        content = from_json(body[: max(body.find(b"\n"), 0)], allow_inf_nan=False)
    except ValueError as error:
        raise CorruptRecordError(f"{where}: the record is not JSON ({error}).") from None
    if not isinstance(content, dict) or "summary" not in content:
        return None
    try:
        return info_of(content["summary"], pipeline_id, run_id, size=size, alive=alive)
    except (KeyError, TypeError) as error:
        raise CorruptRecordError(f"{where}: the summary cannot be read ({error!r}).") from None


def _content(body: bytes, where: str) -> tuple[dict[str, Any], int]:
    """The line of JSON, and where the values start."""
    end = body.find(b"\n")
    try:
        content = _from_json(body[: max(end, 0)].decode())
    except (ValueError, RecursionError) as error:
        raise CorruptRecordError(f"{where}: the record is not JSON ({error}).") from None
    if not isinstance(content, dict) or not isinstance(content.get("events"), list) or not content["events"]:
        raise CorruptRecordError(f"{where}: the record has no list of events.")
    return content, end + 1


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key occurs twice")
    return content


_from_json = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique).decode


def begun(first: bytes, run_id: str, key: bytes | None) -> float:
    """When a run began, by its first record or else its id; in seconds since the epoch, 0 if neither says.

    Without any record to ask, a run that was lost counts as the newest: no older one may be taken for it.
    """
    if not first:
        return time_in(run_id) or math.inf
    try:
        record, _ = read_record(first, 0, run_id, key)
        content, _ = _content(record.body, run_id)
        return float(content["events"][0]["at"])
    except (StorageError, LookupError, TypeError, ValueError, OverflowError):
        return time_in(run_id)


def completed(order: list[str], missing: Iterable[str], start: Callable[[str], float]) -> list[str]:
    """An order with what it lacks: each behind the last one that began no later.

    Args:
        order: What is in order already.
        missing: Other names.
        start: When the run of a name began.
    """
    missing = sorted(missing, key=lambda name: (start(name), name))
    if not order:
        return missing
    starts = [(start(name), name) for name in order]
    for name in missing:
        mine = start(name), name
        place = next((at for at in range(len(starts), 0, -1) if starts[at - 1] <= mine), 0)
        starts.insert(place, mine)
    return [name for _, name in starts]
