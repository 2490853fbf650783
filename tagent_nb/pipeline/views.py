"""What goals and conditions see of a step's value: fields, items and rows, never the object itself.

A *view* is plain text, a number, a date, ``None``, or one of three wrappers: :class:`Record` (dicts,
pydantic models, dataclasses), :class:`Rows` (lists, tuples, sets, arrays) and :class:`Table`
(DataFrames). Wrappers read lazily and hand out views only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tagent_nb.errors import TemplateError, did_you_mean
from tagent_nb.pipeline.shapes import (
    PLAIN,
    cell,
    cells,
    distinct,
    fields_of,
    instance_of,
    items_of,
    key_text,
    short_floats,
    unwrap,
    with_index,
)

__all__ = ["MISSING", "Record", "Rows", "Table", "View", "join_path", "missing", "view"]


class _Missing:
    """The type of :data:`MISSING`."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()
"""Stands for "not there", since ``None`` is a value."""


def view(value: Any, path: str = "value") -> Any:
    """What goals and conditions see of ``value``; ``path`` names it in messages.

    Raises:
        TemplateError: The value is an object that they cannot read.
    """
    if isinstance(value, View):
        return value
    plain = unwrap(value)
    if isinstance(plain, PLAIN):
        return plain
    fields = fields_of(plain, path)
    if fields is not None:
        return Record(fields, path)
    if instance_of(plain, "pandas", "DataFrame"):
        return Table(with_index(plain), path)
    items = items_of(plain)
    if items is not None:
        return Rows(items, path)
    if instance_of(plain, "jinja2", "Undefined"):
        # A strict one raises its own message; that of an inline ``if`` without ``else`` is nothing.
        return str(plain) or None
    raise TemplateError(
        f"{path!r} is of type {type(plain).__name__}, which goals and conditions cannot read. "
        "Let its step return text, numbers, dates, lists, dicts, models or a DataFrame."
    )


# -- views ----------------------------------------------------------------------------------


class View(ABC):
    """Base of the wrappers."""

    __slots__ = ("_path",)
    _path: str
    methods: ClassVar[frozenset[str]] = frozenset()
    """Methods that a template may call where no field has their name."""

    @abstractmethod
    def part(self, key: object) -> Any:
        """The raw value under a key, or :data:`MISSING`."""

    @abstractmethod
    def known(self) -> list[str]:
        """Names that :meth:`part` knows, for messages."""

    def read(self, key: object) -> Any:
        """The view of the part under a key, or :data:`MISSING`."""
        raw = self.part(key)
        return MISSING if raw is MISSING else view(raw, join_path(self._path, key))

    def missing(self, key: object) -> str:
        """One sentence: what is not there, and what is."""
        return missing(self, key, self._path)

    def __str__(self) -> str:
        from tagent_nb.pipeline.delimiting import plain_text

        return plain_text(self)

    __repr__ = __str__


class Record(View, Mapping[str, Any]):
    """Fields by name. Iterates over the names, as a dict does."""

    __slots__ = ("_fields",)
    methods = frozenset({"items", "keys", "values", "get"})

    def __init__(self, fields: Mapping[str, Any], path: str) -> None:
        self._fields = fields
        self._path = path

    def part(self, key: object) -> Any:
        try:
            return self._fields[key_text(key)]
        except (KeyError, AttributeError):
            # A model made without validation may lack the attribute of a declared field.
            return MISSING

    def known(self) -> list[str]:
        return list(self._fields)

    def __getitem__(self, key: str) -> Any:
        found = self.read(key)
        if found is MISSING:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class Rows(View, Sequence[Any]):
    """Items in order."""

    __slots__ = ("_items",)

    def __init__(self, items: Sequence[Any], path: str) -> None:
        self._items = items
        self._path = path

    def known(self) -> list[str]:
        return []

    def part(self, key: object) -> Any:
        position = _position(key)
        if position is None or not -len(self) <= position < len(self):
            return MISSING
        return self._item(position)

    def _item(self, position: int) -> Any:
        return self._items[position]

    def _slice(self, some: slice) -> Rows:
        return Rows(self._items[some], self._path)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return self._slice(key)
        found = self.read(key)
        if found is MISSING:
            raise IndexError(key)
        return found

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows | list | tuple):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # its items may change


class Table(Rows):
    """Rows of a DataFrame as records; a column's name gives the list of its cells."""

    __slots__ = ("_columns", "_names")

    def __init__(self, frame: Any, path: str) -> None:
        super().__init__(frame, path)
        self._columns = [key_text(column) for column in frame.columns]
        # Of two columns of one name, records have the second under a name of its own.
        self._names = distinct(self._columns)

    def part(self, key: object) -> Any:
        if isinstance(key, str) and key in self._names:
            return cells(self._items.iloc[:, self._names.index(key)])  # type: ignore[attr-defined]
        return super().part(key)

    def known(self) -> list[str]:
        return self._columns

    def _item(self, position: int) -> Any:
        position %= len(self)
        return next(iter(self._slice(slice(position, position + 1)).records()))

    def _slice(self, some: slice) -> Table:
        return Table(self._items.iloc[some], self._path)  # type: ignore[attr-defined]

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows as dicts."""
        for row in self.cells():
            yield dict(zip(self._names, row, strict=True))

    def cells(self) -> Iterator[list[Any]]:
        """The rows as lists of cells, in Python's own types."""
        frame: Any = self._items
        short = {
            place: own for place, one in enumerate(frame.dtypes) if (own := short_floats(one)) is not None
        }
        for row in frame.itertuples(index=False, name=None):
            yield [cell(short[place](one) if place in short else one) for place, one in enumerate(row)]

    def __iter__(self) -> Iterator[Any]:
        for position, row in enumerate(self.records()):
            yield Record(row, join_path(self._path, position))


# -- paths and messages ---------------------------------------------------------------------


def join_path(path: str, key: object) -> str:
    """``load`` and ``text`` make ``load.text``; other keys ``load[0]`` or ``load['a b']``."""
    text = key_text(key)
    if text.isidentifier():
        return f"{path}.{text}"
    return f"{path}[{text}]" if _position(text) is not None else f"{path}[{text!r}]"


def _position(key: object) -> int | None:
    """An index, which a path keeps as text, as an integer."""
    if isinstance(key, int):
        return int(key)
    if isinstance(key, str) and key.isascii() and len(key) < 12 and key.removeprefix("-").isdigit():
        return int(key)
    return None


def missing(holder: Any, key: object, path: str = "") -> str:
    """The message for a part that ``holder``, a view named ``path``, does not have."""
    start = f"{join_path(path, key) if path else key_text(key)!r} is not there"
    before = repr(path) if path else "the value before it"
    if holder is None:
        return (
            f"{start}: {before} is None, as it is when a weak or optional step gave no value. "
            f"Test it first: {{% if {path or '...'} %}} in a goal, 'and' in a condition."
        )
    if isinstance(holder, Record | Table):
        known = holder.known()
        listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        return f"{start}.{did_you_mean(key_text(key), known)} Known: {listed or 'nothing, it is empty'}."
    if isinstance(holder, Rows):
        count = f"a list of {len(holder)}"
        if _position(key) is not None:
            return f"{start}: {path!r} is {count}, counted from 0."
        return (
            f"{start}: {path!r} is {count}. Take one item, as in {join_path(path, 0)}, "
            f"or loop: {{% for one in {path} %}} ... {{% endfor %}}."
        )
    return f"{start}: {before} is of type {type(holder).__name__}, which has no such field. Leave it out."
