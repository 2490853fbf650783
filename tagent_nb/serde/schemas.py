"""What stored data is checked against: its format, and model classes by name and JSON Schema."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NewType, TypeVar, get_args, get_origin
from weakref import WeakKeyDictionary

from tagent_nb.errors import FormatVersionError, TagentError

FORMAT = 1
"""Version of the JSON of pipelines and results."""

_hashes: WeakKeyDictionary[type, str] = WeakKeyDictionary()
_NOTES = ("default", "examples", "json_schema_extra", "metadata")
"""What a field has in which a set may be."""
_MAX_DEPTH = 50
_sets: WeakKeyDictionary[type, list[Any]] = WeakKeyDictionary()


def json_schema(model: Any, *, by_alias: bool = True) -> dict[str, Any]:
    """The JSON Schema of a pydantic model class; parts that JSON Schema cannot express are ``{}``."""
    from pydantic.json_schema import GenerateJsonSchema

    class Total(GenerateJsonSchema):
        ignored_warning_kinds = frozenset({"skipped-choice", "non-serializable-default"})  # type: ignore[assignment]

        def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
            return {}

    schema = model.model_json_schema(by_alias=by_alias, schema_generator=Total)
    ordered: dict[str, Any] = in_order(schema, model)
    return ordered


def in_order(schema: Any, kind: type) -> Any:
    """A class's JSON Schema in which all that comes from sets is sorted.

    A set of texts, such as a default or an example, has another order in every process.
    """
    sets = sets_of(kind)
    return _sorted_lists(schema, {_text(_sorted_lists(values, None)) for values in sets}) if sets else schema


def _sorted_lists(value: Any, contents: set[str] | None) -> Any:
    """A value with its sets sorted, and its lists that have the contents of one."""
    if isinstance(value, dict):
        return {key: _sorted_lists(part, contents) for key, part in value.items()}
    is_set = isinstance(value, set | frozenset)
    if not is_set and not isinstance(value, list | tuple):
        return value
    parts = [_sorted_lists(part, contents) for part in value]
    ordered = sorted(parts, key=_text)
    return ordered if is_set or (contents and _text(ordered) in contents) else parts


def _text(value: Any) -> str:
    from pydantic_core import to_jsonable_python

    try:
        value = to_jsonable_python(value)
    except Exception:  # serializers are the user's code
        value = repr(value)
    return json.dumps(value, sort_keys=True, default=repr)


def sets_of(kind: type) -> list[Any]:
    """The sets in defaults, examples and other notes of a model's fields, and of the classes they name."""
    sets = _sets.get(kind)
    if sets is None:
        sets = _sets[kind] = list(_find_sets(kind))
    return sets


def _find_sets(kind: type) -> Iterator[Any]:
    classes, seen = [kind], {kind}
    while classes:
        current: Any = classes.pop()
        config = getattr(current, "model_config", None)
        holders = [config.get("json_schema_extra")] if isinstance(config, dict) else []
        types = list(current.__annotations__.values()) if hasattr(current, "__required_keys__") else []
        for field in fields_of_class(current).values():
            holders += [getattr(field, name, None) for name in _NOTES]
            types.append(getattr(field, "annotation", None) or getattr(field, "type", None))
        for part in (part for annotation in types for part in parts_of_type(annotation)):
            if not isinstance(part, type):
                holders.append(part)
            elif part not in seen:
                seen.add(part)
                classes.append(part)
        for holder in holders:
            yield from _sets_in(holder)


def _sets_in(value: Any, depth: int = 0) -> Iterator[Any]:
    """The sets inside of what JSON Schema can show; what holds itself ends at some depth."""
    if depth > _MAX_DEPTH or isinstance(value, str | bytes | int | float | None):
        return
    if isinstance(value, set | frozenset):
        yield value
    parts: Iterable[Any] = ()
    if isinstance(value, set | frozenset | list | tuple):
        parts = value
    elif isinstance(value, dict):
        parts = value.values()
    elif fields_of_class(type(value)):
        parts = [getattr(value, name, None) for name in fields_of_class(type(value))]
    elif type(value).__module__.startswith("pydantic"):  # such as Field() inside of Annotated
        parts = [getattr(value, name, None) for name in (*_NOTES, "json_schema")]
    for part in parts:
        yield from _sets_in(part, depth + 1)


def fields_of_class(kind: Any) -> Mapping[str, Any]:
    """Fields by name of a pydantic model or a dataclass: pydantic's, or those of the standard library."""
    fields = getattr(kind, "__pydantic_fields__", None)
    if fields is None:
        fields = (
            {field.name: field for field in dataclasses.fields(kind)}
            if dataclasses.is_dataclass(kind)
            else {}
        )
    return fields if isinstance(fields, Mapping) else {}


def parts_of_type(annotation: Any) -> Iterator[Any]:
    """What a type is made of: the classes in it, and what ``Annotated`` adds to them.

    Looks behind names for types: ``type X = ...``, ``NewType`` and the bounds of type variables.
    """
    todo, seen = [annotation], set()
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        origin = get_origin(part)
        if origin is Literal:
            yield from {type(literal): None for literal in get_args(part)}
        elif origin is Annotated:
            inner, *notes = get_args(part)
            todo.append(inner)
            yield from notes
        elif origin is not None:
            todo += [origin, *get_args(part)]
        elif isinstance(part, type):
            yield part
        elif isinstance(part, list | tuple):  # the arguments of a Callable
            todo += part
        else:
            todo += meaning_of(part)


def meaning_of(name: Any) -> list[Any]:
    """The types behind a name for types; none for all else."""
    try:
        if isinstance(name, TypeVar):
            return [bound for bound in (name.__bound__, *name.__constraints__) if bound is not None]
        if isinstance(name, NewType):
            return [name.__supertype__]
        return [name.__value__] if type(name).__name__ == "TypeAliasType" else []
    except Exception:  # ``type X = ...`` is evaluated when it is read, and is the user's code
        return []


def schema_hash(model: type) -> str:
    """SHA-256 (hex, its first 16 digits) of a model's JSON Schema."""
    digest = _hashes.get(model)
    if digest is None:
        text = json.dumps(json_schema(model), sort_keys=True, default=str)
        digest = _hashes[model] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return digest


def registry(schemas: Iterable[type] | Mapping[str, type]) -> Mapping[str, type]:
    """Classes by the name under which stored values know them."""
    if isinstance(schemas, Mapping):
        return schemas
    return {schema.__name__: schema for schema in schemas}


def check_format(data: Mapping[str, Any], kind: str, problem: type[TagentError]) -> None:
    """Check kind and version of stored data.

    Raises:
        TagentError: ``problem``: it is something else.
        FormatVersionError: It is newer than this version knows.
    """
    version = data.get("format")
    if data.get("kind") != kind or type(version) is not int or version < 1:
        raise problem(
            f"This is not a stored {kind}: it has kind {data.get('kind')!r} and format {version!r}. "
            f"Pass what {kind}.to_dict() or to_json() returned."
        )
    if version > FORMAT:
        raise FormatVersionError(
            f"This {kind} was stored in format {version}; this version of tagent-nb reads up to {FORMAT}. "
            "Upgrade tagent-nb to read it."
        )
