"""Annotations of classes: which classes they lead to, and whether a value is what they say.

Nothing here validates or converts: validators are the user's code, and have run when a value was made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import types
import typing
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from weakref import WeakKeyDictionary

from tagent_nb.serde.schemas import json_schema, parts_of_type

__all__ = [
    "annotation_text",
    "field_annotations",
    "fits",
    "is_class",
    "is_model",
    "reach_of",
    "shape_hash",
    "tag_of",
]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_NAMED = ("properties", "patternProperties", "$defs")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_NESTED = ("items", "additionalProperties")
_STATED = ("type", "format", "enum", "const", "$ref", "uniqueItems")
"""What of a JSON Schema says which values there are: parts by name, in lists, single ones, and plain data."""


_EXACT = frozenset({int, float, str, bool, bytes})

_parts: WeakKeyDictionary[type, tuple[Any, ...]] = WeakKeyDictionary()


def is_class(thing: object) -> bool:
    """Whether this is a class, and not one with arguments such as ``list[int]``."""
    return issubclass(type(thing), type)  # isinstance would ask its metaclass, which is the user's code


def is_model(kind: object) -> bool:
    """Whether this is a pydantic model class; without pydantic loaded there are none."""
    pydantic = sys.modules.get("pydantic")
    return isinstance(kind, type) and pydantic is not None and bool(issubclass(kind, pydantic.BaseModel))


def tag_of(kind: Any) -> str:
    """The tag of a node whose value has this class; empty for a class whose values are no such node."""
    if not is_class(kind):
        return ""
    try:
        if issubclass(kind, Enum):
            return "enum"
        if is_model(kind):
            return "model" if hasattr(kind, "__pydantic_generic_metadata__") else ""  # BaseModel has none
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return "namedtuple"
        return "data" if dataclasses.is_dataclass(kind) else ""
    except Exception:  # metaclasses are the user's code
        return ""


def field_annotations(kind: Any) -> dict[str, Any]:
    """Names and annotations of the fields of a model or a dataclass, resolved where that is possible."""
    if is_model(kind):
        if not kind.__pydantic_complete__:
            kind.model_rebuild(raise_errors=False)
        return {name: field.annotation for name, field in kind.model_fields.items()}
    hints = _hints(kind)
    return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(kind)}


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception:  # annotations are the user's code; they may name what exists for type checkers only
        hints = {}
    for base in reversed(kind.__mro__):
        home = {**vars(sys.modules.get(base.__module__, typing)), **vars(base)}
        for name, annotation in vars(base).get("__annotations__", {}).items():
            try:
                hints[name] = eval(annotation, home) if isinstance(annotation, str) else annotation
            except Exception:  # as above: each annotation for itself
                continue
    return hints


def annotation_text(annotation: Any) -> str:
    """An annotation as it is written: the same in every process."""
    if isinstance(annotation, str):
        return annotation
    if is_class(annotation):
        return str(annotation.__qualname__)
    return _ADDRESS.sub("", repr(annotation))


def shape_hash(model: Any) -> str:
    """SHA-256 (hex, its first 16 digits) of the names and types of a model's fields.

    Docstrings, descriptions, titles, defaults, aliases, limits and validators do not count: a value that
    was recorded under other ones is the same value.
    """
    try:
        shape = _structure(json_schema(model, by_alias=False))
    except Exception:  # schemas of a model's own types are the user's code
        shape = {name: annotation_text(part) for name, part in field_annotations(model).items()}
    return hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _structure(schema: Mapping[str, Any]) -> Any:
    kept = {name: schema[name] for name in _STATED if name in schema}
    for name in _NAMED:
        if name in schema:
            kept[name] = {part: _structure(inner) for part, inner in schema[name].items()}
    for name in _LISTED:
        if name in schema:
            kept[name] = [_structure(inner) for inner in schema[name]]
    for name in _NESTED:
        if isinstance(schema.get(name), dict):  # True and False say whether there may be more fields
            kept[name] = _structure(schema[name])
    return kept


# -- which classes they lead to -------------------------------------------------------------------


def reach_of(roots: Iterable[Any]) -> list[type]:
    """Classes whose values are nodes, from classes and annotations on, nearest first: these themselves,
    those that the annotations of their fields name, and those that are defined inside them."""
    reached = []
    todo = deque(roots)
    seen: dict[int, Any] = {}  # an annotation that was made on the way lives as long as its id counts
    while todo:
        part = todo.popleft()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        try:
            if tag_of(part):
                reached.append(part)
            todo.extend(_parts_of(part) if is_class(part) else filter(is_class, parts_of_type(part)))
        except Exception:  # metaclasses are the user's code
            continue
    return reached


def _parts_of(kind: Any) -> tuple[Any, ...]:
    """Annotations of a class's fields, and the classes defined inside it."""
    parts = _parts.get(kind)
    if parts is None:
        parts = (*_annotations(kind), *_nested(kind))
        if getattr(kind, "__pydantic_complete__", True):
            _parts[kind] = parts
    return parts


def _nested(kind: type) -> Iterator[type]:
    inside = f"{kind.__qualname__}."
    for value in list(vars(kind).values()):
        if is_class(value) and str(value.__qualname__).startswith(inside):
            yield value


def _annotations(kind: Any) -> list[Any]:
    tag = tag_of(kind)
    if tag == "model":
        generic = kind.__pydantic_generic_metadata__
        extra = vars(kind).get("__annotations__", {}).get("__pydantic_extra__")
        return [*field_annotations(kind).values(), extra, generic["origin"], *generic["args"]]
    if tag == "enum" or not (tag or _is_typed_dict(kind)):
        return []
    return list(_hints(kind).values())


def _is_typed_dict(kind: Any) -> bool:
    # Those of typing_extensions, which pydantic asks for, are others than those of typing.
    return hasattr(kind, "__required_keys__")


# -- whether a value is what they say -------------------------------------------------------------


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value is, as it is, what an annotation says: 3.0 is no ``int`` and 3 no ``float``.

    What cannot be judged without the user's code fits.
    """
    try:
        return _fits(annotation, value)
    except Exception:  # metaclasses and values are the user's code; and some protocols know no instances
        return True


def _fits(annotation: Any, value: Any) -> bool:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return fits(args[0], value)
    if origin is Union or origin is types.UnionType:
        return any(fits(arg, value) for arg in args)
    if origin is Literal:
        return any(type(arg) is type(value) and arg == value for arg in args)
    if annotation is None:
        return value is None
    for name in ("__value__", "__supertype__"):
        if hasattr(annotation, name):
            return fits(getattr(annotation, name), value)
    if isinstance(origin, type):
        return isinstance(value, origin) and _parts_fit(args, value)
    if not is_class(annotation):
        return True
    if annotation in _EXACT:
        return type(value) is annotation
    if _is_typed_dict(annotation):
        return isinstance(value, dict)
    if annotation is Any or isinstance(value, annotation):
        return True
    # A type with a reader of its own may have any values.
    return hasattr(annotation, "__get_pydantic_core_schema__") and not is_model(annotation)


def _parts_fit(args: tuple[Any, ...], value: Any) -> bool:
    if isinstance(value, Mapping):
        return len(args) != 2 or all(
            fits(args[0], key) and fits(args[1], part) for key, part in value.items()
        )
    if isinstance(value, tuple) and not (len(args) == 2 and args[1] is Ellipsis):
        return len(args) == len(value) and all(map(fits, args, value))
    if isinstance(value, Collection) and args:
        return all(fits(args[0], part) for part in value)
    return True
