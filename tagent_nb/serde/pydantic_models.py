"""Pydantic models as they were recorded: what they hold was validated once, by the run that made them.

To validate a whole model again would run the validators of its author on what they returned, and a
validator that turns percents into fractions would do so twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter
from pydantic_core import PydanticUndefined

from tagent_nb.serde.annotations import is_class, tag_of
from tagent_nb.serde.encoder import Encoder, to_canonical

_PLAIN: frozenset[Any] = frozenset(
    {str, int, float, bool, bytes, type(None), list, dict, tuple, set, frozenset, date, datetime, time,
     timedelta, Decimal, UUID}
)  # fmt: skip
"""What values come back as by themselves."""
_GROUPS: frozenset[Any] = frozenset({list, dict, tuple, set, frozenset, Union, UnionType, Annotated})

_adapters: WeakKeyDictionary[type, dict[str, TypeAdapter[Any] | None]] = WeakKeyDictionary()
_parts: WeakKeyDictionary[type, dict[str, bool]] = WeakKeyDictionary()


def _from_json(kind: Any, name: str, fields: Mapping[str, Any]) -> Any:
    """A field that the model wrote as JSON itself, such as a URL."""
    value = fields[name]
    adapter = _adapter(kind, name)
    if adapter is not None:
        try:
            part = adapter.validate_python(value)
            if type(part) is not type(value) and adapter.dump_python(part, mode="json") == value:
                return part
        except Exception:  # a type of the user's own: only the model's validators may know how to read it
            pass
    model = _validated(kind, fields)
    return value if model is None else model.__dict__[name]


def _validated(kind: Any, fields: Mapping[str, Any]) -> Any:
    """The model that the class makes of these fields; ``None`` if it refuses them."""
    try:
        if kind.__pydantic_root_model__:
            return kind.model_validate(fields["root"], strict=False)
        return kind.model_validate(fields, strict=False, by_name=True, by_alias=False)
    except Exception:  # validators are the user's code
        return None


def model_of(kind: Any, node: Mapping[str, Any], fields: dict[str, Any]) -> Any:
    """The model of a node, as it was recorded; ``None`` where it has more fields than the class takes.

    Args:
        kind: The model's class.
        node: As :class:`~tagent_nb.serde.encoder.Encoder` writes it.
        fields: Its fields, as values.
    """
    written = set(node.get("json", ()))
    declared, others = {}, {}
    for name, value in fields.items():
        if name not in kind.model_fields:
            others[name] = value
        elif name in written:
            declared[name] = _from_json(kind, name, fields)
        elif _comes_back_whole(kind, name):
            declared[name] = value
        else:
            declared[name] = _typed(kind, name, value)
    open_to_more = kind.model_config.get("extra") == "allow"
    if others and not open_to_more:
        return None
    model = kind.__new__(kind)
    # What pickle does: no validator and no model_post_init runs a second time.
    BaseModel.__setstate__(
        model,
        {
            "__dict__": declared,
            "__pydantic_fields_set__": set(fields).difference(node.get("unset", ())),
            "__pydantic_extra__": others if open_to_more else None,
            "__pydantic_private__": _private(kind, node.get("beside", {})),
        },
    )
    return model


def _private(kind: Any, stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """Private attributes: those that are stored, and the defaults of the others."""
    if not kind.__private_attributes__:
        return None
    private = {}
    for name, declared in kind.__private_attributes__.items():
        if name in stored:
            private[name] = stored[name]
        elif declared.default_factory is not None:
            private[name] = declared.default_factory()
        elif declared.default is not PydanticUndefined:
            private[name] = declared.get_default()
    return private


def _comes_back_whole(kind: Any, name: str) -> bool:
    """Whether all values of a field's annotation come back by themselves, or as nodes of their classes."""
    answers = _parts.setdefault(kind, {})
    if name not in answers:
        answers[name] = _comes_back(kind.model_fields[name].annotation)
    return answers[name]


def _comes_back(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Literal or annotation is Ellipsis or annotation is Any:
        return True
    if origin in _GROUPS:
        inner = get_args(annotation)[:1] if origin is Annotated else get_args(annotation)
        return all(map(_comes_back, inner))
    return annotation in _PLAIN or bool(tag_of(annotation)) if is_class(annotation) else False


def _typed(kind: Any, name: str, value: Any) -> Any:
    """A field's value as its annotation has it, if that says the same, such as a text of its own class."""
    adapter = _adapter(kind, name)
    if adapter is None:
        return value
    try:
        read = adapter.validate_python(value)
        return read if read is value or _same(read, value) else value
    except Exception:  # validators are the user's code: the value stays as it was recorded
        return value


def _adapter(kind: Any, name: str) -> TypeAdapter[Any] | None:
    """What reads a field's annotation, without the validators that the model has for the field."""
    adapters = _adapters.setdefault(kind, {})
    if name not in adapters:
        try:
            adapters[name] = _new_adapter(kind, kind.model_fields[name].annotation)
        except Exception:  # schemas of annotations may be the user's code
            adapters[name] = None
    return adapters[name]


def _new_adapter(kind: Any, annotation: Any) -> TypeAdapter[Any]:
    config = ConfigDict(
        arbitrary_types_allowed=bool(kind.model_config.get("arbitrary_types_allowed")),
        use_enum_values=bool(kind.model_config.get("use_enum_values")),
    )
    try:
        return TypeAdapter(annotation, config=config)
    except PydanticUserError:  # models and dataclasses have a config of their own
        return TypeAdapter(annotation)


def _same(read: Any, value: Any) -> bool:
    """Whether a value that was read says what was recorded: 3.0 is another value than 3."""
    first, second = (to_canonical(Encoder(identity=True).tree(value)) for value in (read, value))
    return first == second
