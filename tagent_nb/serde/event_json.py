"""Events as plain data and back, for records.

What a step computed stays bytes: ``data["output"]["blob"]`` is what :class:`StoredValue` encoded, so
that a record is written and read without decoding any value. All the rest is JSON-able.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from math import isfinite
from typing import Any

from tagent_nb import events
from tagent_nb.errors import CorruptRecordError, EncodeError
from tagent_nb.events import Event, TokenUsage
from tagent_nb.serde.classes import Classes
from tagent_nb.serde.value import StoredValue, clean, from_tree, notes_to_tree, to_tree

Schemas = Mapping[str, type] | None

_FORMER: dict[type[Event], str] = {events.RunResumed: "RunContinued"}
"""Kinds of events that records name as they were called before."""

STORED: dict[str, type[Event]] = {
    _FORMER.get(kind, kind.__name__): kind
    for name, kind in vars(events).items()
    if isinstance(kind, type)
    and issubclass(kind, Event)
    and kind not in (Event, events.StepEvent, *events.PASSING)
    and not kind.__name__.startswith("_")  # what an event is while it is made
}
"""The kinds of events that records keep, by name."""


def event_to_dict(event: Event) -> dict[str, Any]:
    """An event as JSON-able data, but for the bytes in ``data["output"]["blob"]``. Fields that have
    their default are left out.

    Raises:
        EncodeError: It is a fact or memory that cannot be stored, or an event that is never stored.
    """
    kind = type(event)
    name = _FORMER.get(kind) or kind.__name__
    if name not in STORED:
        raise EncodeError(name, "events of this kind are never stored")
    data: dict[str, Any] = {"event": name}
    for field, default, _, dump in _plan(kind):  # type: ignore[arg-type]  # mypy: dataclasses hash
        value = getattr(event, field)
        if value is not default and value != default:
            data[field] = _dump_simple(value, name, field) if dump is None else dump(value, event)
    return data


def event_from_dict(data: Mapping[str, Any], schemas: Schemas = None) -> Event:
    """The event of :func:`event_to_dict`. Values are decoded when they are read.

    Raises:
        CorruptRecordError: The data is not that of an event.
    """
    name = data.get("event") if isinstance(data, Mapping) else None
    kind = STORED.get(name) if isinstance(name, str) else None
    if kind is None:
        raise CorruptRecordError(
            f"A record holds {str(name)[:40]!r} for an event: it is damaged, "
            "or was written by a newer version of tagent-nb."
        )
    schemas = Classes.of(schemas, data.get("step"))
    loaders = _loaders(kind)  # type: ignore[arg-type]  # mypy: dataclasses hash
    values = {}
    try:
        data["at"]  # the only field whose default is not a constant
        for field, value in data.items():
            if field != "event":
                values[field] = loaders[field](value, schemas)
        return kind(**values)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CorruptRecordError(f"A recorded {name} cannot be read: {error}") from None


# -- fields ------------------------------------------------------------------------------------

_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}
_Dump = Callable[[Any, Event], Any]
_Load = Callable[[Any, Schemas], Any]


@cache
def _plan(kind: type[Event]) -> tuple[tuple[str, Any, _Load, _Dump | None], ...]:
    """Name, default, and how to read and write each field of an event."""
    plan = []
    for field in fields(kind):
        default = field.default
        if field.default_factory is not MISSING and field.name != "at":
            default = field.default_factory()
        special = _SPECIAL.get(field.name)
        load, dump = special if special is not None else (_simple(str(field.type)), None)
        plan.append((field.name, default, load, dump))
    return tuple(plan)


@cache
def _loaders(kind: type[Event]) -> dict[str, _Load]:
    """How to read each field of an event."""
    return {field: load for field, _, load, _ in _plan(kind)}  # type: ignore[arg-type]


def _simple(annotation: str) -> _Load:
    """A reader that takes only what the annotation says."""
    base, _, optional = annotation.partition(" | ")
    allowed: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (float, int),
        "bool": (bool,),
    }
    kinds = allowed[base]

    def load(value: Any, schemas: Schemas) -> Any:
        if value is None and optional:
            return None
        if type(value) not in kinds or (isinstance(value, float) and not isfinite(value)):
            raise TypeError(f"{str(value)[:40]!r} is not {annotation}")
        return value

    return load


def _dump_simple(value: Any, kind: str, field: str) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and not isfinite(value):
        raise EncodeError(f"{kind}.{field}", f"{value} cannot be stored")
    return value


def _dump_output(output: Any, event: Event) -> dict[str, Any]:
    if output.storable:
        blob = output.blob if isinstance(output, StoredValue) else StoredValue.of(output.value).blob
        return {"blob": blob, "digest": output.digest}
    return {"problem": output.problem, "digest": output.digest}


def _load_output(data: Any, schemas: Schemas) -> StoredValue:
    digest = data["digest"]
    if not isinstance(digest, str):
        raise TypeError("a value's digest is no text")
    if "blob" in data:
        if not isinstance(data["blob"], bytes):
            raise TypeError("a value is no bytes")
        return StoredValue.from_blob(data["blob"], digest, schemas)
    if not isinstance(data["problem"], str):
        raise TypeError("a value's problem is no text")
    return StoredValue.unstorable(data["problem"], digest)


def _load_usage(data: Any, schemas: Schemas) -> TokenUsage:
    counts = {name: data[name] for name in data}
    if not all(type(count) is int and count >= 0 for count in counts.values()):
        raise TypeError("token counts must be whole numbers")
    return TokenUsage(**counts)


def _dump_value(value: Any, event: Any) -> Any:
    where = "facts" if isinstance(event, events.FactLearned) else "memories"
    return to_tree(value, path=f"{event.step}.{where}[{event.key!r}]")


def _dump_answer(answer: Any, event: Any) -> Any:
    return to_tree(answer, path=f"{event.step}.answer")


def _dump_notes(notes: Mapping[str, Any], event: Event) -> dict[str, Any]:
    return notes_to_tree(notes)


def _dump_shared(shared: Mapping[str, Any], event: Event) -> dict[str, Any]:
    return {name: to_tree(value, path=f"shared_data.{name}") for name, value in shared.items()}


def _load_notes(data: Any, schemas: Schemas) -> dict[str, Any]:
    return {key: from_tree(value, schemas) for key, value in data.items()}


def _load_components(data: Any, schemas: Schemas) -> dict[str, str]:
    if not all(isinstance(digest, str) for digest in data.values()):
        raise TypeError("components must be texts")
    return dict(data)


def _load_names(data: Any, schemas: Schemas) -> tuple[str, ...]:
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise TypeError("names must be a list of texts")
    return tuple(data)


def _dump_names(names: tuple[str, ...], event: Event) -> list[str]:
    return list(names)


def _dump_usage(usage: TokenUsage, event: Event) -> dict[str, int]:
    return {name: count for name, count in usage.to_dict().items() if count}


_SPECIAL: dict[str, tuple[_Load, _Dump]] = {
    "output": (_load_output, _dump_output),
    "usage": (_load_usage, _dump_usage),
    "saved_usage": (_load_usage, _dump_usage),
    "steps": (_load_names, _dump_names),
    "kept": (_load_names, _dump_names),
    "forced": (_load_names, _dump_names),
    "waiting": (_load_names, _dump_names),
    "rows": (_load_names, _dump_names),
    "keys": (_load_names, _dump_names),
    "handle": (_load_notes, _dump_notes),
    "facts": (_load_notes, _dump_notes),
    "components": (_load_components, lambda components, event: dict(components)),
    "definition": (_load_notes, _dump_notes),
    "memories": (_load_notes, _dump_notes),
    "shared": (_load_notes, _dump_shared),
    "detail": (_load_notes, _dump_notes),
    "metadata": (_load_notes, _dump_notes),
    "request": (_load_notes, _dump_notes),
    "value": (from_tree, _dump_value),
    "answer": (from_tree, _dump_answer),
}
