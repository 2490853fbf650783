"""From trees back to values. See :mod:`tagent_nb.pipeline.encoding`.

Classes come from the registry that the caller passes, by name; nothing is ever imported. Where a
class is missing or no longer fits, its value comes back as plain data.
"""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any

from tagent_nb.errors import CorruptRecordError
from tagent_nb.pipeline import containers
from tagent_nb.pipeline.encoding import is_model
from tagent_nb.pipeline.scalars import FROM_NODE, TAG, Node, parts_of

Schemas = Mapping[str, type]
_MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


def value_of(tree: Any, schemas: Schemas) -> Any:
    """The value of a tree; lists and dicts are new ones.

    Raises:
        CorruptRecordError: A node is malformed.
    """
    # Loops, where comprehensions would read better: those take a stack frame more for each level.
    if isinstance(tree, list):
        items = []
        for one in tree:
            items.append(value_of(one, schemas))
        return items
    if isinstance(tree, dict):
        fields = {}
        for key, one in tree.items():
            fields[key] = value_of(one, schemas)
        return resolve(fields, schemas) if TAG in fields else fields
    return tree


def resolve(node: Node, schemas: Schemas) -> Any:
    """The value of one node, whose parts are values already.

    Raises:
        CorruptRecordError: The node is malformed, or of a type that this version does not know.
    """
    tag = node[TAG]
    try:
        if tag in FROM_NODE:
            return FROM_NODE[tag](node)
        if tag in containers.FROM_NODE:
            return containers.FROM_NODE[tag](node)
        if tag in _FROM_NODE:
            return _FROM_NODE[tag](node, schemas)
    except _MALFORMED as error:
        raise CorruptRecordError(f"A stored {tag} cannot be read: {error}") from None
    raise CorruptRecordError(
        f"A stored value has the unknown type {str(tag)[:40]!r}: it is damaged, "
        "or was written by a newer version of tagent-nb."
    )


def _set(node: Node, schemas: Schemas) -> Any:
    kind = set if node[TAG] == "set" else frozenset
    parts = parts_of(node)
    try:
        found = kind(parts)
    except TypeError:
        return parts
    return found if len(found) == len(parts) else parts


def _class(node: Node, schemas: Schemas) -> type | None:
    name = node["name"]
    if not isinstance(name, str):
        raise TypeError("its class has no name")
    return schemas.get(name)


def _enum(node: Node, schemas: Schemas) -> Any:
    kind = _class(node, schemas)
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return node["v"]
    try:
        return kind(node["v"])
    except Exception:  # a ValueError, or whatever the user's own _missing_ raises
        return node["v"]


def _fields_of(node: Node) -> dict[str, Any]:
    fields = node["v"]
    if not isinstance(fields, dict):
        raise TypeError("its fields are no object")
    return fields


def _model(node: Node, schemas: Schemas) -> Any:
    fields = _fields_of(node)
    kind: Any = _class(node, schemas)
    if not is_model(kind):
        return fields["root"] if list(fields) == ["root"] else fields
    from tagent_nb.pipeline.rebuilding import model_of

    return model_of(kind, node, fields, schemas)


def _data(node: Node, schemas: Schemas) -> Any:
    fields = _fields_of(node)
    kind: Any = _class(node, schemas)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return fields
    if {one.name for one in dataclasses.fields(kind)} != set(fields):
        return fields
    try:
        # As copy does: neither __init__ nor __post_init__ runs a second time.
        found = object.__new__(kind)
        for name, value in fields.items():
            object.__setattr__(found, name, value)
    except (TypeError, AttributeError):
        return fields  # it is an int or an exception as well, or has a property in a field's place
    return found


def _namedtuple(node: Node, schemas: Schemas) -> Any:
    kind: Any = _class(node, schemas)
    names = tuple(name for name, _ in parts_of(node))
    values = [value for _, value in parts_of(node)]
    if isinstance(kind, type) and issubclass(kind, tuple) and getattr(kind, "_fields", None) == names:
        return tuple.__new__(kind, values)
    return _tuple_class(node["name"], names)(*values)


@lru_cache(maxsize=256)
def _tuple_class(name: str, names: tuple[str, ...]) -> Any:
    return namedtuple(name, names)  # a ValueError for names that are no identifiers


def _frame(node: Node, schemas: Schemas) -> Any:
    from tagent_nb.pipeline.frames.arrow import from_node

    return from_node(node)


_FROM_NODE: dict[str, Callable[[Node, Schemas], Any]] = {
    "tuple": lambda node, schemas: tuple(parts_of(node)),
    "set": _set,
    "frozenset": _set,
    "enum": _enum,
    "model": _model,
    "data": _data,
    "namedtuple": _namedtuple,
    **dict.fromkeys(
        (
            "frame",
            "series",
            "index",
            "array",
            "offset",
            "ndarray",
            "numpy",
            "timestamp",
            "pandas_timedelta",
            "pandas_scalar",
            "na",
            "nat",
        ),
        _frame,
    ),
}
