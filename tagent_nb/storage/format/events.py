"""Events as the body of a record."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tagent_nb.errors import CorruptRecordError, StorageError, TagentError
from tagent_nb.events import Event, StepCached, StepFinished
from tagent_nb.serde import Classes, StoredValue, event_from_dict, event_to_dict
from tagent_nb.storage.format.envelope import read_record
from tagent_nb.storage.format.pickled import PickledOutput, seal
from tagent_nb.storage.run_info import RunInfo, Summary, info_of, time_in

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
        content = json.loads(body[: max(end, 0)], parse_constant=_refuse_constant, object_pairs_hook=_unique)
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
