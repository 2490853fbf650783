"""What kind of thing a value is, for goals and conditions: text, a record, a list or a table.

Classes of pandas, NumPy and pydantic are recognised without importing them: where they are not
loaded there are no instances of them. Frames are read by their own methods only.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    Set,
    ValuesView,
)
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from tagent_nb.errors import TemplateError
from tagent_nb.serde import own_float

__all__ = [
    "PLAIN",
    "cell",
    "cells",
    "distinct",
    "fields_of",
    "instance_of",
    "is_array",
    "items_of",
    "key_text",
    "short_floats",
    "unwrap",
    "with_index",
]

PLAIN = (str, int, float, bytes, Decimal, datetime, date, time, timedelta, type(None))
"""Types that goals and conditions see as they are."""

_EXACT = frozenset({bool, *PLAIN})


def unwrap(value: Any) -> Any:
    """The plain value behind an enum, a root model, a path, a NumPy or pandas scalar, a subclass."""
    if type(value) in _EXACT:
        return value
    if isinstance(value, Enum):
        return unwrap(value.value)
    if instance_of(value, "numpy", "generic"):
        if value.dtype.kind == "f":
            return own_float(value)
        # .item() turns a datetime64 in nanoseconds into a bare integer.
        if value.dtype.kind in "mM":
            return str(value) if value == value else None
        return unwrap(value.item())
    if instance_of(value, "pydantic", "RootModel"):
        return unwrap(value.root)
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, PurePath | UUID | complex):
        return str(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return _pandas_scalar(value)


def _pandas_scalar(value: Any) -> Any:
    for name, convert in (("Timestamp", "to_pydatetime"), ("Timedelta", "to_pytimedelta")):
        if instance_of(value, "pandas", name):
            return getattr(value.floor("us"), convert)()
    for name in ("Period", "Interval"):
        if instance_of(value, "pandas", name):
            return str(value)
    return value


def instance_of(value: object, module: str, name: str) -> bool:
    """Whether ``value`` is of a class that may not be imported here: then there are no instances."""
    loaded = sys.modules.get(module)
    kind = getattr(loaded, name, None) if loaded is not None else None
    return kind is not None and isinstance(value, kind)


def is_array(value: object) -> bool:
    """Whether this is an array of pandas' own, as ``.array`` and ``.unique()`` of a column give it."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.api.extensions.ExtensionArray)


class _Attributes(Mapping[str, Any]):
    """Declared fields of a model or dataclass, read when asked for."""

    def __init__(self, owner: Any, names: Iterable[str]) -> None:
        self._owner = owner
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return getattr(self._owner, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def fields_of(value: Any, path: str) -> Mapping[str, Any] | None:
    """The fields of a record by name, or ``None`` if the value is none."""
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value):
            return value
        named = {key_text(key): key for key in value}
        if len(named) != len(value):
            raise TemplateError(
                f"{path!r} has keys that read the same as text ({', '.join(map(repr, value))}). "
                "Let its step return a dict whose keys differ as text."
            )
        return {name: value[key] for name, key in named.items()}
    if instance_of(value, "pydantic", "BaseModel"):
        kind = type(value)
        extra = value.model_extra or ()
        return _Attributes(value, [*kind.model_fields, *kind.model_computed_fields, *extra])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _Attributes(value, [field.name for field in dataclasses.fields(value)])
    if (
        instance_of(value, "pandas", "Series")
        and value.index.is_unique
        and value.index.inferred_type == "string"
    ):
        return dict(zip(value.index, cells(value), strict=True))
    return None


def key_text(key: Any) -> str:
    plain = unwrap(key)
    return plain if isinstance(plain, str) else str(plain)


def items_of(value: Any) -> Sequence[Any] | None:
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, deque | KeysView | ValuesView | ItemsView):
        return list(value)
    if isinstance(value, Set):
        # Sorted, since the order of a set differs from one kernel to the next.
        return sorted(value, key=_sort_key)
    if isinstance(value, Sequence):
        return value
    if instance_of(value, "pandas", "Series") or is_array(value):
        return cells(value)
    if any(instance_of(value, *kind) for kind in (("numpy", "ndarray"), ("pandas", "Index"))):
        short = short_floats(value.dtype)
        if short is not None and instance_of(value, "pandas", "Index"):
            return [short(item) for item in value.tolist()]
        if short is not None and value.ndim:
            return list(value)  # as they are: a reader unwraps them
        listed = value.tolist()
        return listed if isinstance(listed, list) else [listed]
    return None


def _sort_key(value: Any) -> tuple[str, Any]:
    return type(value).__name__, value if isinstance(value, int | float) else repr(value)


# -- DataFrames -----------------------------------------------------------------------------


def cell(value: Any) -> Any:
    """A cell of a frame: every mark for "missing" becomes ``None``."""
    plain = unwrap(value)
    return None if isinstance(plain, float) and plain != plain else plain


def cells(column: Any) -> list[Any]:
    short = short_floats(column.dtype)
    return [cell(item if short is None else short(item)) for item in column.tolist()]


def short_floats(dtype: Any) -> Callable[[Any], Any] | None:
    """What makes Python's floats of such a column or array read as its own do; ``None`` for other dtypes."""
    if getattr(dtype, "kind", "") != "f" or dtype.itemsize >= 8:
        return None
    import numpy as np

    own = np.dtype(f"f{dtype.itemsize}").type
    return lambda item: own_float(own(item)) if isinstance(item, float) else item


def distinct(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Names that all differ, and from those that are ``taken``: a second ``a`` becomes ``a_2``."""
    names = list(names)
    used, first = {*taken}, {*names}
    made = []
    for name in names:
        text, number = name, 2
        while text in used or (text != name and text in first):
            text, number = f"{name}_{number}", number + 1
        used.add(text)
        made.append(text)
    return made


def with_index(frame: Any) -> Any:
    """The frame with an index that says something (a name, or labels) as its first columns.

    A level with the name of a column is left out: it nearly always repeats it. Two levels of one name get
    distinct ones.
    """
    index = frame.index
    if not len(frame) or (index.dtype.kind in "iu" and index.name is None):
        return frame
    columns = [key_text(column) for column in frame.columns]
    named = {
        place: key_text(name) for place, name in enumerate(index.names) if name is not None and name != ""
    }
    levels = [place for place in range(index.nlevels) if named.get(place) not in columns]
    if not levels:
        return frame
    texts = [named.get(place) or ("index" if place == 0 else f"level_{place}") for place in levels]
    # By hand: reset_index cannot give two levels one name, and not every label the dtype that it likes.
    labels = index.set_names([None] * index.nlevels).to_frame(
        index=False, name=[*range(index.nlevels)] if index.nlevels > 1 else 0
    )
    labels = labels.iloc[:, levels].set_axis([f"level {place}" for place in levels], axis=1)
    rows = labels.join(frame.reset_index(drop=True).set_axis(range(len(columns)), axis=1))
    names = [*distinct(texts, columns), *frame.columns]
    rows.columns = sys.modules["pandas"].Index(names, dtype=object, tupleize_cols=False)
    return rows
