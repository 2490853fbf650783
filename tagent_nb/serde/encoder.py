"""From values to trees: JSON-able plain data in which ``{"$t": type, "v": ...}`` marks what JSON lacks.

Only allowlisted types become nodes. A user's own dict that has the key ``"$t"``, or keys that are
not text, becomes a list of pairs, so that nothing can be mistaken for a tag and ``{1: "a", "1": "b"}``
survives.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from math import isfinite
from typing import Any

from tagent_nb.serde.annotations import is_model
from tagent_nb.serde.classes import MARKS, marks_of, remember
from tagent_nb.serde.containers import VIEWS, container_node, view_node
from tagent_nb.serde.errors import RefusedError, field_part, refusal
from tagent_nb.serde.nodes import TAG, Node
from tagent_nb.serde.scalars import TO_NODE
from tagent_nb.user_objects import blame

MAX_DEPTH = 200
"""Most containers inside each other."""
MAX_DIGITS = 4300
"""Most decimal digits of an integer: Python's own limit for reading one."""
MAX_PARTS = 20_000_000
"""Most items of all containers together: a few lists that share each other can unfold to billions."""

_BIG = 10**MAX_DIGITS
_PLAIN = frozenset({str, bool, type(None)})
_NUMBERS = frozenset({int, float})
_SIMPLE = _PLAIN | _NUMBERS
_TEXT = frozenset({str})
_BESIDE = ("unset", "json", *MARKS)
"""Parts of nodes that do not belong to a value's identity."""

_ordered = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)
_sorted = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False, sort_keys=True
)
to_json: Callable[[Any], str] = _ordered.encode
"""A tree as JSON text; dicts keep their order."""
to_canonical: Callable[[Any], str] = _sorted.encode
"""A tree as JSON text with sorted keys: equal for equal trees."""


class Encoder:
    """One walk over one value.

    Args:
        identity: Leave out what does not belong to a value's identity, and sort what has no order:
            what remains is what digests compare.
        careful: Check all texts here, and not only when they are written: this knows their path.

    Attributes:
        sorted: Whether its dicts have their keys in order already.
        same: Whether :meth:`strip` makes of the tree what a walk with ``identity`` makes of the value.
        classes: The user's classes whose values it has met, by which it knows what nodes keep of them.
        left_out: Attributes beside the fields of objects that cannot be stored, and why, as text.
    """

    def __init__(self, *, identity: bool = False, careful: bool = False) -> None:
        self.identity = identity
        self.sorted = True
        self.same = True
        self.classes: dict[type, Mapping[str, Any]] = {}
        self.left_out: set[str] = set()
        self._careful = careful
        self._parts = 0
        self._marked: list[Node] = []
        self._unordered: list[list[Any]] = []
        self._open: set[int] = set()
        self._beside = 0

    def strip(self) -> None:
        """Change the tree, which is not needed any more as it was, into that of a walk with ``identity``."""
        for node in self._marked:
            for mark in _BESIDE:
                node.pop(mark, None)
        # Inner ones were met first: what they are sorted by has its own order already.
        for parts in self._unordered:
            parts.sort(key=to_canonical)

    def tree(self, value: Any, depth: int = 0) -> Any:
        """The tree of a value. Plain lists and dicts may be passed through as they are.

        Raises:
            RefusedError: It holds something that cannot be stored.
        """
        kind = type(value)
        if kind is str:
            return _check_text(value) if self._careful else value
        if kind in _PLAIN:
            return value
        if kind is int:
            return _check_int(value)
        if kind is float:
            return value if isfinite(value) else _odd_float(value)
        if kind is dict:
            return self._dict(value, depth)
        if kind is list:
            return self._list(value, depth)
        return self._special(value, kind, depth)

    # -- containers ---------------------------------------------------------------------------

    def enter(self, depth: int, parts: int) -> None:
        """Count one container, its depth and its parts.

        Raises:
            RefusedError: It is too much.
        """
        if depth >= MAX_DEPTH:
            raise RefusedError(f"more than {MAX_DEPTH} containers inside each other cannot be stored")
        self._parts += parts
        if self._parts > MAX_PARTS:
            raise RefusedError(
                f"more than {MAX_PARTS:,} parts cannot be stored. Return a DataFrame, or write them "
                "to a file and return its path"
            )

    def _list(self, value: list[Any], depth: int) -> list[Any]:
        self.enter(depth, len(value))
        if _is_plain(value) and not (self._careful and _has_half_pair(value)):
            return value
        return self.items(value, depth)

    def items(self, value: Iterable[Any], depth: int) -> list[Any]:
        """The trees of all items."""
        trees: list[Any] = []
        try:
            for item in value:
                trees.append(self.tree(item, depth + 1))
        except RefusedError as refused:
            raise refused.inside(f"[{len(trees)}]", value) from None
        return trees

    def _dict(self, value: dict[Any, Any], depth: int) -> Node:
        self.enter(depth, len(value))
        if TAG in value or not _TEXT.issuperset(map(type, value)):
            return {TAG: "dict", "v": self.pairs(value, depth)}
        if len(value) > 1:
            self.sorted = False
        parts = value.values()
        if _is_plain(parts) and not (self._careful and _has_half_pair([*value, *parts])):
            return value
        return self.fields(value, depth)

    def fields(self, value: Mapping[str, Any], depth: int, holder: object = None) -> Node:
        """The trees of named parts."""
        trees = {}
        key: object = None
        try:
            for key, item in value.items():
                if self._careful:
                    _check_text(key)
                trees[key] = self.tree(item, depth + 1)
        except RefusedError as refused:
            raise refused.inside(field_part(key), value if holder is None else holder) from None
        return trees

    def pairs(self, value: Mapping[Any, Any], depth: int, *, ordered: bool = False) -> list[Any]:
        """The trees of all keys and values; sorted for identity, unless their order belongs to it."""
        pairs = []
        key: object = None
        try:
            for key, item in value.items():
                pairs.append([self.tree(key, depth + 1), self.tree(item, depth + 1)])
        except RefusedError as refused:
            raise refused.inside(field_part(key), value) from None
        if not ordered:
            self._sort(pairs)
        return pairs

    def _sort(self, parts: list[Any]) -> None:
        """What has no order: sorted for identity, now or by :meth:`strip`."""
        if self.identity:
            parts.sort(key=to_canonical)
        else:
            self._unordered.append(parts)

    def _set(self, value: set[Any] | frozenset[Any], tag: str, depth: int) -> Node:
        self.enter(depth, len(value))
        # A set has no order of its own: sorted, equal sets become equal bytes.
        items = sorted(self.items(value, depth), key=to_canonical)
        if self._marked:
            self._sort(items)
        return {TAG: tag, "v": items}

    def _marks(self, node: Node, kind: type) -> Node:
        """Note in a node by what its class is found again."""
        if self.identity:
            self.classes[kind] = node
        else:
            marks = self.classes.get(kind)
            if marks is None:
                marks = self.classes[kind] = marks_of(kind)
                remember(kind)
            node.update(marks)
            self._marked.append(node)
        return node

    # -- everything else ----------------------------------------------------------------------

    def _special(self, value: Any, kind: type, depth: int) -> Any:
        self.sorted = False
        if isinstance(value, Enum):
            return self._enum(value, kind, depth)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return self._namedtuple(value, kind, depth)
        package = kind.__module__.partition(".")[0]
        if package == "pandas" or package == "numpy":
            from tagent_nb.serde.arrow import to_node

            return to_node(value, self, depth)
        if package == "polars" or package == "pyarrow":
            from tagent_nb.serde.arrow_tables import to_arrow_node

            return to_arrow_node(value, self, depth)
        if kind is tuple:
            self.enter(depth, len(value))
            return {TAG: "tuple", "v": self.items(value, depth)}
        if kind.__module__ == "collections":
            node = container_node(value, self, depth)
            if node is not None:
                return node
        if kind in VIEWS:
            return view_node(value, self, depth)
        if isinstance(value, set | frozenset):
            return self._set(value, "set" if isinstance(value, set) else "frozenset", depth)
        for types_, convert in TO_NODE:
            if isinstance(value, types_):
                node = convert(value)
                if self._careful and isinstance(node["v"], str):
                    _check_text(node["v"])
                return node
        if is_model(kind):
            return self._object(value, kind, depth, self._model)
        if dataclasses.is_dataclass(kind):
            return self._object(value, kind, depth, self._dataclass)
        return self._subclass(value, kind, depth)

    def _object(self, value: Any, kind: Any, depth: int, make: Callable[[Any, Any, int], Node]) -> Node:
        """A model or dataclass, with the attributes that it has beside its fields."""
        place = id(value)
        if self._beside and place in self._open:
            raise RefusedError("an object that holds itself cannot be stored")
        is_first = place not in self._open
        self._open.add(place)
        try:
            node = make(value, kind, depth)
            beside = attributes_beside(value, kind)
            if beside:
                self._add_beside(node, beside, kind, depth)
            return node
        finally:
            if is_first:
                self._open.discard(place)

    def _add_beside(self, node: Node, beside: Mapping[str, Any], kind: type, depth: int) -> None:
        """Each attribute by itself: one that cannot be stored, such as a client, leaves the object whole."""
        stored: Node = {}
        careful, self._careful = self._careful, True  # text that cannot be written is noticed here
        self._beside += 1
        for name, item in beside.items():
            try:
                stored[name] = self.tree(item, depth + 1)
            except Exception as error:  # encoding asks the user's own objects, which may raise anything
                what = error.what if isinstance(error, RefusedError) else f"{blame(error)}"
                self.left_out.add(f"{kind.__module__}.{kind.__qualname__}.{name}: {what}")
        self._beside -= 1
        self._careful = careful
        if stored:
            node["beside"] = stored

    def _enum(self, value: Enum, kind: type, depth: int) -> Node:
        node = {TAG: "enum", "name": kind.__name__, "v": self.tree(value.value, depth + 1)}
        return self._marks(node, kind)

    def _namedtuple(self, value: Any, kind: Any, depth: int) -> Node:
        self.enter(depth, len(value))
        fields = self.fields(dict(zip(kind._fields, value, strict=True)), depth, value)
        # A list of pairs, since a named tuple has an order and JSON objects have none.
        node = {TAG: "namedtuple", "name": kind.__name__, "v": [list(pair) for pair in fields.items()]}
        return self._marks(node, kind)

    def _model(self, value: Any, kind: Any, depth: int) -> Node:
        self.enter(depth, len(value.__dict__))
        fields = {name: value.__dict__[name] for name in kind.model_fields if name in value.__dict__}
        fields.update(value.__pydantic_extra__ or {})
        trees, written = self._model_fields(value, fields, depth)
        node = {TAG: "model", "name": kind.__name__, "v": trees}
        if not self.identity:
            unset = [name for name in fields if name not in value.model_fields_set]
            if unset:
                node["unset"] = unset
            if written:
                node["json"] = written
        return self._marks(node, kind)

    def _model_fields(self, value: Any, fields: Mapping[str, Any], depth: int) -> tuple[Node, list[str]]:
        """The trees of its fields, and the names of those that the model wrote as JSON itself."""
        trees: Node = {}
        written = []
        for name, item in fields.items():
            try:
                trees.update(self.fields({name: item}, depth, value))
            except RefusedError as refused:
                if not refused.unknown_type:
                    raise
                # A type of the model's own, such as a URL: the model knows how to write and read it.
                trees[name] = self.tree(_as_json(value, name, refused), depth + 1)
                written.append(name)
        return trees, written

    def _dataclass(self, value: Any, kind: type, depth: int) -> Node:
        names = [field.name for field in dataclasses.fields(kind)]
        self.enter(depth, len(names))
        fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
        node = {TAG: "data", "name": kind.__name__, "v": self.fields(fields, depth, value)}
        return self._marks(node, kind)

    def _subclass(self, value: Any, kind: type, depth: int) -> Any:
        """Values of the user's own subclasses count as what they are subclasses of."""
        for base, convert in _BASES:
            if isinstance(value, base):
                return self.tree(convert(value), depth)
        raise refusal(value)


def attributes_beside(value: Any, kind: Any) -> dict[str, Any]:
    """What a model or a dataclass has beside its fields: private attributes with other values than their
    defaults, and what was set in a dataclass, in ``__post_init__`` for one.

    Cached properties are left out, since they are computed again.
    """
    if is_model(kind):
        own = value.__pydantic_private__
        if not own:
            return {}
        declared = kind.__private_attributes__
        return {
            name: item
            for name, item in own.items()
            if name in declared and not _is_default(item, declared[name])
        }
    own = getattr(value, "__dict__", None)
    if not own:
        return {}
    fields = {field.name for field in dataclasses.fields(kind)}
    if own.keys() <= fields:
        return {}
    return {
        name: item
        for name, item in own.items()
        if name not in fields
        and name.isidentifier()
        and not name.startswith("__")
        and not isinstance(inspect.getattr_static(kind, name, None), functools.cached_property)
    }


def _is_default(item: Any, declared: Any) -> bool:
    default = declared.default
    if declared.default_factory is not None:
        return False
    return item is default or (type(item) is type(default) and type(item) in _SIMPLE and item == default)


_BASES: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (tuple, tuple),
    (list, list),
    (dict | types.MappingProxyType, dict),
)


def _is_plain(value: Collection[Any]) -> bool:
    """Whether a list, or the values of a dict, may pass as they are: decided by a few fast passes."""
    kinds = set(map(type, value))
    if kinds <= _PLAIN:
        return True
    if not kinds <= _SIMPLE:
        return False
    if kinds & _PLAIN:
        value = [number for number in value if type(number) in _NUMBERS]
    # A long integer is no float, and isfinite would say so by an error.
    return bool(min(value) > -_BIG and max(value) < _BIG) and not (
        float in kinds and not all(isfinite(number) for number in value if type(number) is float)
    )


def _has_half_pair(value: list[Any]) -> bool:
    try:
        "".join(text for text in value if type(text) is str).encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_int(value: int) -> int:
    if not -_BIG < value < _BIG:
        raise RefusedError(f"an integer of more than {MAX_DIGITS:,} digits cannot be stored")
    return value


def _odd_float(value: float) -> Node:
    return {TAG: "float", "v": "nan" if value != value else "inf" if value > 0 else "-inf"}


def _check_text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RefusedError(
            f"text with half a surrogate pair ({value[:20]!a}) cannot be stored. "
            "Clean it: text.encode('utf-8', 'replace').decode()"
        ) from None
    return value


def _as_json(model: Any, name: str, refused: RefusedError) -> Any:
    try:
        if model.__pydantic_root_model__:
            return model.model_dump(mode="json", warnings=False)
        return model.model_dump(mode="json", include={name}, warnings=False)[name]
    except Exception:  # serializers are the user's code, and pydantic has errors of its own
        raise refused from None
