"""Containers of the module ``collections``, and views of dicts, as nodes of a tree.
See :mod:`tagent_nb.serde.encoder`."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

from tagent_nb.serde.nodes import TAG, Node, Walk, parts_of

_FACTORIES: dict[str, Callable[[], Any]] = {
    factory.__name__: factory
    for factory in (bool, int, float, str, bytes, tuple, list, dict, set, Counter, deque)
}
"""What a ``defaultdict`` may make and still be stored as one. No other function can be stored."""


VIEWS: dict[type, tuple[str, str]] = {
    type(getattr(made(), view)()): (view, name)
    for name, made in (("dict", dict), ("ordered", OrderedDict))
    for view in ("keys", "values", "items")
}
"""Classes of the views of dicts: what they show, and of which kind of dict."""


def view_node(value: Any, walk: Walk, depth: int) -> Node:
    """The node of what ``keys()``, ``values()`` or ``items()`` of a dict return.

    Raises:
        RefusedError: It holds something that cannot be stored.
    """
    walk.enter(depth, len(value))
    view, holder = VIEWS[type(value)]
    return {TAG: "view", "of": holder, "shows": view, "v": walk.items(value, depth)}


def container_node(value: Any, walk: Walk, depth: int) -> Node | None:
    """The node of a Counter, an OrderedDict, a defaultdict or a deque; ``None`` for anything else.

    Raises:
        RefusedError: It holds something that cannot be stored.
    """
    kind = type(value)
    if kind is deque:
        walk.enter(depth, len(value))
        return {TAG: "deque", "most": value.maxlen, "v": walk.items(value, depth)}
    if kind is Counter:
        walk.enter(depth, len(value))
        return {TAG: "counter", "v": walk.pairs(value, depth)}
    if kind is OrderedDict:
        walk.enter(depth, len(value))
        return {TAG: "ordered", "v": walk.pairs(value, depth, ordered=True)}
    if kind is defaultdict:
        made = value.default_factory
        name = None if made is None else getattr(made, "__name__", "")
        if name is not None and _FACTORIES.get(name) is not made:
            return None
        walk.enter(depth, len(value))
        return {TAG: "defaultdict", "makes": name, "v": walk.pairs(value, depth)}
    return None


def _mapping(node: Node, make: Callable[[dict[Any, Any]], Any]) -> Any:
    pairs = [(key, value) for key, value in parts_of(node)]
    try:
        made = dict(pairs)
    except TypeError:
        made = {}
    # Keys whose class is missing may be unhashable, or equal, as plain data: then the pairs remain.
    return make(made) if len(made) == len(pairs) else pairs


def _defaultdict(node: Node) -> Any:
    made = None if node["makes"] is None else _FACTORIES[node["makes"]]
    return _mapping(node, lambda pairs: defaultdict(made, pairs))


def _view(node: Node) -> Any:
    parts = parts_of(node)
    make: Callable[[Any], Any] = {"dict": dict, "ordered": OrderedDict}[node["of"]]
    if node["shows"] == "values":
        return make(enumerate(parts)).values()
    try:
        mapping = make(parts) if node["shows"] == "items" else make(dict.fromkeys(parts))
    except TypeError:
        return parts
    view = {"keys": mapping.keys(), "items": mapping.items()}[node["shows"]]
    # As with keys of dicts whose class is missing: then a list remains.
    return view if len(view) == len(parts) else parts


FROM_NODE: dict[str, Callable[[Node], Any]] = {
    "dict": lambda node: _mapping(node, dict),
    "deque": lambda node: deque(parts_of(node), node["most"]),
    "counter": lambda node: _mapping(node, Counter),
    "ordered": lambda node: _mapping(node, OrderedDict),
    "defaultdict": _defaultdict,
    "view": _view,
}
"""Tags, and how their nodes become values. Anything malformed raises a built-in error."""
