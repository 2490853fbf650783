"""From trees back to values. See :mod:`tagent_nb.serde.encoder`.

Classes come from what the caller passes, as :mod:`tagent_nb.serde.classes` finds them; nothing is
imported because a stored value names it. Where a class is missing or no longer fits, its value comes back
as plain data.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tagent_nb.errors import CorruptRecordError
from tagent_nb.serde import containers
from tagent_nb.serde.classes import Classes, member_of
from tagent_nb.serde.nodes import TAG, Node, parts_of
from tagent_nb.serde.scalars import FROM_NODE

_MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


def value_of(tree: Any, classes: Classes) -> Any:
    """The value of a tree; lists and dicts are new ones.

    Raises:
        CorruptRecordError: A node is malformed.
    """
    # Loops, where comprehensions would read better: those take a stack frame more for each level.
    if isinstance(tree, list):
        items = []
        for item in tree:
            items.append(value_of(item, classes))
        return items
    if isinstance(tree, dict):
        fields = {}
        for key, item in tree.items():
            fields[key] = value_of(item, classes)
        return resolve(fields, classes) if TAG in fields else fields
    return tree


def resolve(node: Node, classes: Classes) -> Any:
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
            return _FROM_NODE[tag](node, classes)
    except _MALFORMED as error:
        raise CorruptRecordError(f"A stored {tag} cannot be read: {error}") from None
    raise CorruptRecordError(
        f"A stored value has the unknown type {str(tag)[:40]!r}: it is damaged, "
        "or was written by a newer version of tagent-nb."
    )


def _set(node: Node, classes: Classes) -> Any:
    kind = set if node[TAG] == "set" else frozenset
    parts = parts_of(node)
    try:
        made = kind(parts)
    except TypeError:
        return parts
    return made if len(made) == len(parts) else parts


def _enum(node: Node, classes: Classes) -> Any:
    match = classes.find(node)
    if match is None:
        return node["v"]
    return member_of(match.kind, node["v"])


def _fields_of(node: Node) -> dict[str, Any]:
    fields = node["v"]
    if not isinstance(fields, dict):
        raise TypeError("its fields are no object")
    return fields


def _model(node: Node, classes: Classes) -> Any:
    fields = _fields_of(node)
    match = classes.find(node)
    if match is not None and match.takes(fields):
        from tagent_nb.serde.pydantic_models import model_of

        model = model_of(match.kind, node, fields)
        if model is not None:
            return model
    return fields["root"] if list(fields) == ["root"] else fields


def _data(node: Node, classes: Classes) -> Any:
    fields = _fields_of(node)
    match = classes.find(node)
    if match is None or not match.takes(fields):
        return fields
    try:
        # As copy does: neither __init__ nor __post_init__ runs a second time.
        value = object.__new__(match.kind)
        for name, part in fields.items():
            object.__setattr__(value, name, part)
        if "beside" in node:
            getattr(value, "__dict__", {}).update(node["beside"])
    except (TypeError, AttributeError):
        return fields  # it is an int or an exception as well, or has a property in a field's place
    return value


def _namedtuple(node: Node, classes: Classes) -> Any:
    names = tuple(name for name, _ in parts_of(node))
    values = [part for _, part in parts_of(node)]
    match = classes.find(node)
    if match is not None:
        return tuple.__new__(match.kind, values)
    kind = _tuple_class(node["name"], names)
    if kind._fields != names:
        raise ValueError(f"{names} are no names of fields")
    return kind(*values)


@lru_cache(maxsize=256)
def _tuple_class(name: str, names: tuple[str, ...]) -> Any:
    # Rows of a DataFrame have names such as _1, which only ``rename`` gives.
    return namedtuple(name, names, rename=True)


def _frame(node: Node, classes: Classes) -> Any:
    from tagent_nb.serde.arrow import from_node

    return from_node(node)


def _arrow(node: Node, classes: Classes) -> Any:
    from tagent_nb.serde.arrow_tables import from_arrow_node

    return from_arrow_node(node)


_FROM_NODE: dict[str, Callable[[Node, Classes], Any]] = {
    "tuple": lambda node, classes: tuple(parts_of(node)),
    "set": _set,
    "frozenset": _set,
    "enum": _enum,
    "model": _model,
    "data": _data,
    "namedtuple": _namedtuple,
    "arrow": _arrow,
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
