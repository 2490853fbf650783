"""What an index is like besides its labels, as plain data: names, types and categories of its levels.

A mapped step keeps its labels item by item. With this, an index is made of them again that joins the
frame that it comes from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def plain_attributes(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Those of a frame's ``attrs`` that Arrow and Parquet can write, which is as JSON."""
    plain = {}
    for name, value in attributes.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError, RecursionError):
            continue
        plain[name] = value
    return plain


def levels_of(value: Any) -> list[dict[str, Any]] | None:
    """The levels of the index of a DataFrame or Series; ``None`` for values without one.

    Each level has its ``name`` and ``dtype``; if it is one of categories, ``ordered`` and these with
    their own level; if it is a range, its ``range``.
    """
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(value, pandas.DataFrame | pandas.Series):
        return None
    index: pd.Index = value.index
    if not isinstance(index, pandas.MultiIndex):
        return [_level(index)]
    return [_level(index.get_level_values(number)) | {"multi": True} for number in range(index.nlevels)]


def _level(index: pd.Index) -> dict[str, Any]:
    import pandas as pd

    level: dict[str, Any] = {"name": index.name, "dtype": str(index.dtype)}
    if isinstance(index, pd.RangeIndex):
        level["range"] = [index.start, index.stop, index.step]
    elif isinstance(index, pd.CategoricalIndex):
        level["ordered"] = index.ordered
        level["categories"] = index.categories.tolist()
        level["of"] = _level(index.categories)
    elif isinstance(index.dtype, pd.StringDtype) and index.dtype.na_value is pd.NA:
        level["dtype"] = f"string[{index.dtype.storage}]"
    elif (freq := getattr(index, "freq", None)) is not None and not isinstance(index, pd.PeriodIndex):
        level["freq"] = freq
    return level


def index_of(labels: Sequence[Any], levels: Sequence[Mapping[str, Any]] | None) -> pd.Index:
    """An index of labels, like the one that :func:`levels_of` has seen; of what the labels are without."""
    import pandas as pd

    if levels and "multi" in levels[0] and all(_has(label, len(levels)) for label in labels):
        columns = zip(*labels, strict=True) if labels else [()] * len(levels)
        made = [_index(list(column), level) for column, level in zip(columns, levels, strict=True)]
        return pd.MultiIndex.from_arrays(made, names=[level["name"] for level in levels])
    if levels and len(levels) == 1 and "multi" not in levels[0]:
        return _index(labels, levels[0])
    if labels and all(isinstance(label, tuple) for label in labels):
        return pd.MultiIndex.from_tuples(labels)
    return index_from(labels) if labels else pd.RangeIndex(0)


def index_from(labels: Sequence[Any]) -> pd.Index:
    """An index of the dtype that pandas gives to such labels; of objects where it has none for them."""
    import pandas as pd

    made: pd.Index
    try:
        made = pd.Index(list(labels), tupleize_cols=False)
    except UnicodeEncodeError:  # half a surrogate pair, which no text of Arrow can have
        made = pd.Index(list(labels), dtype=object, tupleize_cols=False)
    return made


def _has(label: Any, levels: int) -> bool:
    return isinstance(label, tuple) and len(label) == levels


def _index(labels: Sequence[Any], level: Mapping[str, Any]) -> pd.Index:
    import pandas as pd

    if "range" in level and len(range_index := pd.RangeIndex(*level["range"])) == len(labels):
        return range_index.rename(level["name"])
    try:
        index: Any = pd.Index(list(labels), dtype=_dtype(level), tupleize_cols=False)
    except (TypeError, ValueError, NotImplementedError):
        index = index_from(labels)  # pandas cannot read the type's own name
    if "freq" in level:
        with suppress(TypeError, ValueError):  # items that are gone have left gaps
            index = type(index)(index, freq=level["freq"])
    named: pd.Index = index.rename(level["name"])
    return named


def _dtype(level: Mapping[str, Any]) -> Any:
    import pandas as pd

    if "categories" in level:
        return pd.CategoricalDtype(_index(level["categories"], level["of"]), ordered=level["ordered"])
    return pd.api.types.pandas_dtype(level["dtype"])
