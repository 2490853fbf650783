"""Values as items for mapped steps, and as records and columns for DataFrames."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections import deque
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Sequence, ValuesView
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from tagent_nb.serde import index_from, is_model, own_float, polars_rows
from tagent_nb.templating import is_array

if TYPE_CHECKING:
    import pandas as pd

MAX_KEY = 100
"""Longest key of an item, in characters."""

_EXACT_FLOATS = 2**53
_INT64 = 2**63
DEEPEST = 50
"""Levels of a cell that become plain data; an object that holds itself has no end."""


def is_frame(value: object) -> bool:
    """Whether this is a pandas DataFrame. Loads no pandas: where it is not loaded, there are none."""
    return _of_pandas(value, "DataFrame")


def _of_pandas(value: object, name: str) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, getattr(pandas, name))


# -- items --------------------------------------------------------------------------------------


def rows_of(value: Any) -> list[tuple[str, Any, Any]]:
    """The items that a mapped step runs over.

    Items of a list, tuple, set (sorted) or array are themselves; rows of a DataFrame are dicts of
    Python values, in which a missing cell is ``None`` and an index that says something comes first.

    Returns:
        For each item its key (text, unique), its label in the source's index, and the item.

    Raises:
        TypeError: The value has no items; the message says what to return.
    """
    if is_frame(value):
        return _keyed(value.index.tolist(), _records(value))
    if _of_pandas(value, "Series"):
        return _keyed(value.index.tolist(), _cells(value))
    items = items_of(value)
    if items is None:
        raise TypeError(no_items(value))
    return [(str(place), place, item) for place, item in enumerate(items)]


def rows_in(value: Any) -> Sequence[Any] | None:
    """The items of a list, an array or the like, or the rows of a table; ``None`` for a single value."""
    if is_frame(value) or _of_pandas(value, "Series"):
        return [row for _, _, row in rows_of(value)]
    return items_of(value)


def keys_of(value: Any) -> list[str]:
    """The keys of the rows that a value has in a frame, as in :func:`rows_of`, without making the rows."""
    if is_frame(value) or _of_pandas(value, "Series"):
        return label_keys(value.index.tolist())
    items = items_of(value)
    return [str(place) for place in range(1 if items is None else len(items))]


def items_of(value: Any) -> Sequence[Any] | None:
    """The items of a list or the like; ``None`` for a single value."""
    if is_model(type(value)) and type(value).__pydantic_root_model__:
        return items_of(value.root)
    if isinstance(value, tuple) and hasattr(type(value), "_fields"):
        return None
    if isinstance(value, list | tuple):
        return value
    rows = polars_rows(value)
    if rows is not None:
        return rows
    if isinstance(value, deque | range | KeysView | ValuesView | ItemsView):
        return list(value)
    if isinstance(value, set | frozenset):
        # Sorted, since the order of a set differs from one kernel to the next.
        return sorted(value, key=_sort_key)
    numpy = sys.modules.get("numpy")
    if (numpy is not None and isinstance(value, numpy.ndarray) and value.ndim) or _of_pandas(value, "Index"):
        return _listed(value)
    return _cells(value) if is_array(value) else None


def _listed(array: Any) -> list[Any]:
    from tagent_nb.templating import short_floats

    listed: list[Any] = array.tolist()
    short = short_floats(array.dtype)
    if short is None:
        return listed
    return [short(item) for item in listed] if array.ndim == 1 else [_listed(item) for item in array]


def _sort_key(value: Any) -> tuple[str, Any]:
    return type(value).__name__, value if isinstance(value, int | float | str) else repr(value)


def no_items(value: Any) -> str:
    """In words, why a value has no items, and what to do."""
    fields = record_of(value)
    if fields:
        first = next(iter(fields))
        return (
            f"it is a single record with the fields {', '.join(map(str, fields))}. "
            f"Name the one that holds the items, such as its field {first!r}, or return a list."
        )
    return f"it is of type {type(value).__name__}, which has no items. Return a list or a DataFrame."


def _records(frame: Any) -> list[dict[str, Any]]:
    from tagent_nb.templating import key_text, with_index

    frame = with_index(frame)
    names = [key_text(label) for label in frame.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TypeError(f"it has two columns named {twice!r}. Rename one of them.")
    columns = [_cells(frame.iloc[:, place]) for place in range(len(names))]
    if not columns:
        return [{} for _ in range(len(frame))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _cells(column: Any) -> list[Any]:
    """Python values; ``None`` for whatever pandas counts as missing."""
    from tagent_nb.templating import short_floats

    short = short_floats(column.dtype)
    values: list[Any] = column.tolist() if short is None else [short(value) for value in column.tolist()]
    missing = column.isna().tolist()
    return [None if gone else value for value, gone in zip(values, missing, strict=True)]


def _keyed(labels: list[Any], items: Iterable[Any]) -> list[tuple[str, Any, Any]]:
    """Items with their labels, and these as keys."""
    return list(zip(label_keys(labels), labels, items, strict=True))


def label_keys(labels: Iterable[Any]) -> list[str]:
    """Labels as keys of items: texts that differ; later ones of those that read the same are numbered."""
    texts = [_key(label) for label in labels]
    taken = set(texts)
    seen: set[str] = set()
    keys = []
    for text in texts:
        key, number = text, 2
        while key in seen or (key != text and key in taken):
            key, number = f"{text}#{number}", number + 1
        seen.add(key)
        keys.append(key)
    return keys


def _key(label: Any) -> str:
    text = str(label).encode("utf-8", "backslashreplace").decode()
    if len(text) <= MAX_KEY:
        return text
    return f"{text[: MAX_KEY - 13]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


# -- records and columns ------------------------------------------------------------------------


def record_of(value: Any) -> Mapping[Any, Any] | None:
    """The fields of a dict, model, dataclass or named tuple; ``None`` for other values."""
    if isinstance(value, Mapping):
        return value
    kind: Any = type(value)
    if is_model(kind):
        if kind.__pydantic_root_model__:
            return record_of(value.root)
        names = [*kind.model_fields, *kind.model_computed_fields, *(value.model_extra or ())]
        return {name: getattr(value, name, None) for name in names}
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(kind)}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return dict(zip(kind._fields, value, strict=True))
    return None


def frame_of(values: Sequence[Any], index: Any = None, *, objects: bool = False) -> pd.DataFrame:
    """One row a value: records give columns, in the order in which fields first appear; if one of
    the values is no record, all of them are one column ``value``. ``None`` is a row of blanks.

    Columns get the dtype of what they hold where nothing is lost by it, else ``object``.

    Args:
        values: One a row.
        index: Labels of the rows; without them they are counted.
        objects: Whether records in the cells stay the objects that they are; else they become dicts.
    """
    import pandas as pd

    records = [record_of(value) for value in values]
    if any(record is None and value is not None for record, value in zip(records, values, strict=True)):
        return pd.DataFrame({"value": column_of(values, index, objects=objects)}, index=index)
    names = dict.fromkeys(name for record in records if record for name in record)
    if not names and any(record is None for record in records):
        return pd.DataFrame({"value": column_of(values, index, objects=objects)}, index=index)
    columns = [
        column_of([(record or {}).get(name) for record in records], index, objects=objects) for name in names
    ]
    frame = pd.DataFrame(dict(enumerate(columns)), index=_index_of(values, index))
    # A dict of columns would join names that are equal, such as 1 and True.
    frame.columns = index_from(list(names)) if names else pd.Index([], dtype="str")
    return frame


def grouped_frame(values: Sequence[Any], labels: Sequence[Any], name: str) -> pd.DataFrame:
    """:func:`frame_of` of one value a group; the labels of the groups are its index, which has this name."""
    import pandas as pd

    return frame_of(values, pd.Index(column_of(labels), name=name))


def _index_of(values: Sequence[Any], index: Any) -> Any:
    import pandas as pd

    return pd.RangeIndex(len(values)) if index is None else index


def column_of(values: Iterable[Any], index: Any = None, *, objects: bool = False) -> pd.Series:
    """A column with the dtype of its values where that loses nothing; ``None`` is missing.

    Args:
        values: The cells.
        index: Labels of the rows.
        objects: Whether values that are no single scalars stay the objects that they are.
    """
    import pandas as pd

    kept = list(values) if objects else []
    cells = [plain(value) for value in (kept or values)]
    if any(isinstance(cell, dict | list | tuple) for cell in cells):
        cells = kept or cells
    column: pd.Series = pd.Series(cells, index=index, dtype=_dtype(cells))
    return column


def plain(value: Any, depth: int = 0) -> Any:
    """A cell as plain data: models as dicts, enums as their values, NumPy scalars as Python's."""
    if depth > DEEPEST:
        return value
    if is_missing(value) and not isinstance(value, float):
        return None
    if isinstance(value, Enum):
        return plain(value.value, depth + 1)
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, tuple) and not hasattr(type(value), "_fields"):
        return tuple(plain(item, depth + 1) for item in value)
    record = record_of(value)
    if record is not None:
        return {key: plain(cell, depth + 1) for key, cell in record.items()}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in "biufUS":
        return own_float(value) if value.dtype.kind == "f" else value.item()
    return value


def class_labels(*columns: Sequence[Any]) -> list[list[str]]:
    """Cells of columns that are compared as names of classes: equal values have the same.

    1 and 1.0 are; so are ``True``, 1 and ``"true"`` where a column has truth values. A missing cell is
    :data:`NO_ANSWER`.
    """
    truth_values = any(isinstance(cell, bool) for column in columns for cell in column)
    return [[_class_label(cell, truth_values) for cell in column] for column in columns]


NO_ANSWER = "(no answer)"
"""Class of a row that has no value: it failed, or was skipped."""


def _class_label(cell: Any, truth_values: bool) -> str:
    if is_missing(cell):
        return NO_ANSWER
    if truth_values and isinstance(cell, str) and cell.strip().lower() in ("true", "false"):
        return cell.strip().capitalize()
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        if truth_values and cell in (0, 1):
            return str(bool(cell))
        return str(int(cell)) if float(cell).is_integer() else str(cell)
    return str(cell)


def is_missing(cell: Any) -> bool:
    """Whether a cell of a frame is none: ``None``, NaN, or what pandas has for a missing time or integer."""
    if cell is None or (isinstance(cell, float) and cell != cell):
        return True
    return type(cell).__name__ in ("NAType", "NaTType")


def _dtype(cells: list[Any]) -> Any:
    present = [cell for cell in cells if cell is not None]
    kinds = set(map(type, present))
    gaps = len(present) < len(cells)
    if not kinds:
        return object
    if kinds == {bool}:
        return "boolean" if gaps else "bool"
    if kinds == {int}:
        fits = min(present) >= -_INT64 and max(present) < _INT64
        return object if not fits else "Int64" if gaps else "int64"
    if kinds <= {int, float}:
        exact = all(abs(cell) <= _EXACT_FLOATS for cell in present if type(cell) is int)
        return "float64" if exact else object
    if kinds == {str}:
        return "str" if all(map(_is_text, present)) else object
    if all(issubclass(kind, timedelta) for kind in kinds):
        return None
    if all(issubclass(kind, datetime) for kind in kinds):
        # Without a dtype pandas takes that of the values; with several zones it would take none.
        zones = {str(cell.tzinfo) for cell in present}
        return None if len(zones) == 1 else object
    return object


def _is_text(value: str) -> bool:
    return value.isascii() or value.encode("utf-8", "replace").decode() == value
