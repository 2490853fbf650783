"""What belongs to a class beside its methods and its JSON Schema: factories, options of fields, places of
validators, types behind names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping
from enum import Enum
from types import FunctionType, SimpleNamespace
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, get_args, get_origin, get_type_hints

from tagent_nb.cache.fingerprint.modules import is_user_class, name_of
from tagent_nb.cache.fingerprint.values import described
from tagent_nb.serde import fields_of_class, meaning_of, parts_of_type, sets_of

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_FUNCTION = re.compile(
    r"<function [^<>]* at 0x[0-9a-fA-F]+>|<function [^ ]*<(lambda|locals)>[^ ]* at 0x[0-9a-fA-F]+>"
)

_FIELD_DEFAULTS: Mapping[str, Any] = {
    "default_factory": None,
    "exclude": None,
    "exclude_if": None,
    "field_title_generator": None,
    "frozen": None,
    "validate_default": None,
    "repr": True,
    "init": None,
    "init_var": None,
    "kw_only": None,
}
"""Options of a pydantic field that its JSON Schema does not show, with what they are by themselves."""

_DATA_DEFAULTS: Mapping[str, Any] = {"init": True, "repr": True, "hash": None, "compare": True}
_BOUNDS = frozenset({"Gt", "Ge", "Lt", "Le", "MultipleOf", "MinLen", "MaxLen", "Len", "Interval"})
_NOTES = frozenset({"description", "title", "examples", "json_schema_extra", "wrapped_property"})
_SPECIAL = frozenset(
    f"__{name}__"
    for operators in (
        "bool bytes call class_getitem contains delattr delete delitem enter eq exit float format ge get",
        "getattr getattribute getitem gt hash index init instancecheck int iter le len lt match_args missing",
        "ne new next repr reversed set set_name setattr setitem str subclasscheck",
    )
    for name in operators.split()
)
"""Names to which Python itself looks in a class."""


def type_of(raw: Any, *scopes: Mapping[str, Any]) -> Any:
    """The type that an annotation means, which may be text or have text in it; as it is where that fails.

    Args:
        raw: The annotation.
        scopes: Where to look names up, the first one first.
    """
    if "'" not in repr(raw):  # neither text nor a ForwardRef
        return raw
    names: Any = ChainMap(*scopes)  # type: ignore[arg-type]  # nothing is written to it
    holder = SimpleNamespace(__annotations__={"type": raw})
    try:
        return get_type_hints(holder, {}, names, include_extras=True)["type"]
    except Exception:  # text in an annotation is the user's code, and may name what is local to a function
        return raw


def types_of(kind: type, home: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The annotations of a class: name, as it is written, and the type that it means.

    Args:
        kind: The class.
        home: Names to look in, besides those of the class and its module.
    """
    module = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
    fields = fields_of_class(kind)
    for name, raw in inspect.get_annotations(kind).items():
        meant = type_of(raw, module, home, dict(vars(kind)))
        field = fields.get(name)
        if meant is raw and field is not None and hasattr(field, "metadata") and hasattr(field, "annotation"):
            # Pydantic has looked where the class was made, which may be inside of a function.
            meant = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        yield name, raw, raw if meant is None else meant


def annotation_text(raw: Any, meant: Any, documented: bool = True) -> str:
    """The text of an annotation that is equal in every process: as it is written, if that says it all.

    Args:
        raw: The annotation.
        meant: The type that it means.
        documented: Whether descriptions in it count.
    """
    text = repr(raw)
    if isinstance(raw, str) or "ForwardRef(" in text or "{" in text or " at 0x" in _FUNCTION.sub("", text):
        return type_text(meant, documented)
    if any(not isinstance(part, type) and is_user_class(type(part)) for part in parts_of_type(raw)):
        return type_text(meant, documented)
    if _has_name(raw) or (not documented and "FieldInfo(" in text):
        return type_text(meant, documented)
    return _ADDRESS.sub("", text)


def _has_name(annotation: Any) -> bool:
    if meaning_of(annotation) and not isinstance(annotation, TypeVar):
        return True
    parts = annotation if isinstance(annotation, list | tuple) else get_args(annotation)
    return get_origin(annotation) is not Literal and any(map(_has_name, parts))


def type_text(annotation: Any, documented: bool = True, inside: tuple[Any, ...] = ()) -> str:
    """The text of a type with all that the names in it mean."""
    if any(annotation is outer for outer in inside):
        return f"again {len(inside)}"
    inside = (*inside, annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return f"Literal{[described(literal)[0] for literal in get_args(annotation)]}"
    if origin is Annotated:
        inner, *notes = get_args(annotation)
        # What fields are given beside descriptions, they have themselves.
        counted = [note for note in notes if documented or type(note).__name__ != "FieldInfo"]
        texts = [described(note)[0] for note in counted]
        return f"Annotated[{type_text(inner, documented, inside)}, {texts}]"
    if origin is not None or isinstance(annotation, list | tuple):
        parts = annotation if origin is None else get_args(annotation)
        head = "" if origin is None else type_text(origin, documented, inside)
        return f"{head}[{', '.join(type_text(part, documented, inside) for part in parts)}]"
    meant = meaning_of(annotation)
    if meant:
        return f"{annotation.__name__} = {[type_text(part, documented, inside) for part in meant]}"
    if isinstance(annotation, type):
        return name_of(annotation)
    text = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else str(annotation)
    return _ADDRESS.sub("", text)


def hidden_parts(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class has that neither its code nor its JSON Schema shows, by name."""
    fields = fields_of_class(kind)
    if "__pydantic_fields__" in vars(kind):
        for name, field in fields.items():
            yield from _field_parts(f"field {name}", field, bool(sets_of(kind)))
        for name, private in getattr(kind, "__private_attributes__", {}).items():
            yield f"private {name}", [private.default, private.default_factory]
        yield from _decorators(kind)
    else:
        for name, field in fields.items():
            yield from _data_parts(f"field {name}", field)
    if hasattr(kind, "__required_keys__"):
        yield "required", sorted(kind.__required_keys__)
    for name, value in vars(kind).items():
        if isinstance(value, functools.partialmethod):
            yield f"partial {name}", [value.args, value.keywords]
    if not issubclass(kind, Enum):
        yield from _special_parts(kind)


def _field_parts(name: str, field: Any, has_sets: bool) -> Iterator[tuple[str, Any]]:
    for option, default in _FIELD_DEFAULTS.items():
        value = getattr(field, option, default)
        if value is not default and not (value is False and default is None) and value is not list:
            yield f"{name} {option}", value
    # JSON does not show all of a value, and not the order of a list where sets are sorted.
    if has_sets or not _is_json(field.default):
        yield f"{name} default", field.default
    if has_sets:
        yield f"{name} examples", field.examples
    if callable(field.json_schema_extra):
        yield f"{name} json_schema_extra", field.json_schema_extra
    if field.discriminator is not None and not isinstance(field.discriminator, str):
        yield f"{name} discriminator", field.discriminator
    names = [field.alias, field.validation_alias, field.serialization_alias]
    if names[1:] != names[:1] * 2:
        yield f"{name} alias", names
    hidden = [note for note in field.metadata if not _is_shown(note)]
    if hidden:
        yield f"{name} constraints", hidden


def _is_json(value: Any) -> bool:
    """Whether a default is plain JSON, or none at all."""
    kind = type(value)
    if isinstance(value, Enum):
        return _is_json(value.value)
    if kind is list:
        return all(map(_is_json, value))
    if kind is dict:
        return all(type(key) is str for key in value) and all(map(_is_json, value.values()))
    return kind in (str, int, float, bool, type(None)) or kind.__name__ == "PydanticUndefinedType"


def _is_shown(note: Any) -> bool:
    """Whether JSON Schema, or the text of the annotation, has all of a constraint."""
    if isinstance(getattr(note, "func", None), FunctionType):
        return True
    if type(note).__name__ in _BOUNDS and dataclasses.is_dataclass(note):
        bounds = [getattr(note, field.name) for field in dataclasses.fields(note)]
        return all(type(bound) in (int, float, type(None)) for bound in bounds)
    return set(getattr(note, "__dict__", ())) == {"pattern"} and type(note.pattern) is str


def _decorators(kind: Any) -> Iterator[tuple[str, Any]]:
    """Validators, serializers and computed fields in their order, with their fields and modes."""
    infos = kind.__pydantic_decorators__
    for group in dataclasses.fields(infos):
        for name, decorator in getattr(infos, group.name).items():
            info = decorator.info
            options = {option.name: getattr(info, option.name) for option in dataclasses.fields(info)}
            noted = [[key, _plain(value)] for key, value in sorted(options.items()) if key not in _NOTES]
            yield f"{group.name} {name}", [noted, decorator.func]
        ordered = _ordered(getattr(infos, group.name))
        if ordered:
            yield group.name, ordered


def _ordered(group: Mapping[str, Any]) -> list[Any]:
    """The order of decorators of one kind, as far as it counts: of those that meet in a field."""
    places: dict[str, list[str]] = {}
    for name, decorator in group.items():
        for field in getattr(decorator.info, "fields", ("*",)):
            places.setdefault(field, []).append(name)
    if "*" in places:
        return list(group) if len(group) > 1 else []
    return sorted([field, names] for field, names in places.items() if len(names) > 1)


def _plain(value: Any) -> Any:
    return type_text(value) if isinstance(value, type) or get_origin(value) is not None else value


def _data_parts(name: str, field: Any) -> Iterator[tuple[str, Any]]:
    for option, default in _DATA_DEFAULTS.items():
        value = getattr(field, option)
        if value is not default:
            yield f"{name} {option}", value
    if field.default_factory is not dataclasses.MISSING:
        yield f"{name} default_factory", field.default_factory
    if field.metadata:
        yield f"{name} metadata", dict(field.metadata)


def _special_parts(kind: type) -> Iterator[tuple[str, Any]]:
    """What Python itself looks for, where it is no function of the class's own, as in ``__hash__ = None``."""
    own = vars(kind)
    for name in sorted(_SPECIAL & own.keys()):
        value = own[name]
        if name == "__match_args__" and value == _match_args(kind):
            continue
        if name == "__hash__" and value is None and "__eq__" in own:
            continue
        if not hasattr(value, "__code__") and not hasattr(value, "__wrapped__"):
            yield name, getattr(value, "__func__", value)


def _match_args(kind: Any) -> tuple[str, ...]:
    """The ``__match_args__`` that Python itself gives to a dataclass or named tuple."""
    if "__dataclass_fields__" in vars(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.init and not field.kw_only)
    return tuple(getattr(kind, "_fields", ()))
