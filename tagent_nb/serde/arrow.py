"""DataFrame, Series, Index, ndarray and their scalars as nodes of a tree, with index and dtypes intact.

Typed columns travel as one Arrow stream; columns of Python objects as trees, cell by cell, so that
lists stay lists, and what cannot be stored names its column and row. Nothing is ever pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, timezone
from importlib import import_module
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from tagent_nb.errors import CorruptRecordError
from tagent_nb.serde.arrow_stream import from_stream, to_stream
from tagent_nb.serde.errors import (
    RefusedError,
    array_refusal,
    dtype_refusal,
    field_part,
    refusal,
    zone_refusal,
)
from tagent_nb.serde.labels import plain_attributes
from tagent_nb.serde.nodes import TAG, Node, Walk
from tagent_nb.serde.offsets import freq_node, offset_node, offset_of
from tagent_nb.serde.scalars import fixed_zone, own_float, zone_from, zone_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def to_node(value: Any, walk: Walk, depth: int) -> Any:
    """The node of a value whose class is pandas' or NumPy's.

    Raises:
        RefusedError: It cannot be stored.
    """
    import numpy as np

    if isinstance(value, np.generic):
        return _numpy_scalar(value, walk, depth)
    if type(value) is np.ndarray:
        return _array(value, walk, depth)
    if type(value).__module__.partition(".")[0] == "numpy":
        raise array_refusal(value) if isinstance(value, np.ndarray) else refusal(value)
    import pandas as pd

    if type(value) is pd.DataFrame:
        return _frame(value, walk, depth)
    if type(value) is pd.Series:
        walk.enter(depth, len(value))
        return {
            TAG: "series",
            "index": _index(value.index, walk, depth),
            "name": walk.tree(value.name, depth + 1),
            "vectors": _vectors(value.to_frame(0), [""], walk, depth),
        }
    if isinstance(value, pd.Index):
        walk.enter(depth, len(value))
        return {TAG: "index", "v": _index(value, walk, depth)}
    if isinstance(value, pd.api.extensions.ExtensionArray):
        walk.enter(depth, len(value))
        return {TAG: "array", "v": _index(pd.Index(value), walk, depth, "")}
    if isinstance(value, pd.offsets.BaseOffset):
        return offset_node(value, walk, depth)
    return _pandas_scalar(value, walk, depth)


def from_node(node: Node) -> Any:
    """The value of a node that :func:`to_node` made; its parts are values already.

    Raises:
        CorruptRecordError: It is malformed.
    """
    try:
        return _READERS[node[TAG]](node)
    except Exception as error:  # pandas, NumPy and Arrow raise anything when bytes are not what they say
        raise CorruptRecordError(
            f"A stored {node[TAG]} cannot be read: {type(error).__name__}: {str(error)[:200]}"
        ) from None


# -- scalars ------------------------------------------------------------------------------------


_NUMBERS = {"b": bool, "i": int, "u": int, "f": float, "U": str, "S": bytes}
"""Python's classes of what NumPy's scalars hold, by kind of dtype."""


def _numpy_scalar(value: Any, walk: Walk, depth: int) -> Any:
    # A number of NumPy counts and fails otherwise than Python's: 1 / np.int64(0) is infinite.
    node = {TAG: "numpy", "dtype": value.dtype.str}
    if value.dtype.kind in "mM":
        return node | {"v": int(value.astype("i8"))}
    if value.dtype.kind == "f" and value.dtype.itemsize <= 8:
        return node | {"v": walk.tree(own_float(value), depth)}
    if value.dtype.kind in "US":
        # Their lengths are no part of what they are.
        return {TAG: "numpy", "dtype": value.dtype.kind, "v": walk.tree(value.item(), depth)}
    if value.dtype.kind in "biu":
        return node | {"v": value.item()}
    raise refusal(value)


def _to_numpy_scalar(node: Node) -> Any:
    import numpy as np

    dtype, value = _checked_dtype(node["dtype"], "mMbiufUS"), node["v"]
    if dtype.kind in "mM":
        return np.array([value], "i8").astype(dtype)[0]
    if type(value) is not _NUMBERS[dtype.kind]:
        raise TypeError(f"{type(value).__name__} for {dtype}")
    # NumPy 1 cuts off what does not fit, and NumPy 2 refuses it.
    if type(value) is int and value not in range(np.iinfo(dtype).min, np.iinfo(dtype).max + 1):
        raise OverflowError(f"{value} for {dtype}")
    return dtype.type(value)


def _pandas_scalar(value: Any, walk: Walk, depth: int) -> Node:
    import numpy as np
    import pandas as pd

    if value is pd.NaT:
        return {TAG: "nat"}
    if value is pd.NA:
        return {TAG: "na"}
    if isinstance(value, pd.Timestamp | pd.Timedelta):
        exact = value.asm8  # in UTC
        node: Node = {
            TAG: "timestamp" if isinstance(value, pd.Timestamp) else "pandas_timedelta",
            "unit": np.datetime_data(exact)[0],
            "v": int(exact.astype("i8")),
        }
        if isinstance(value, pd.Timestamp) and value.tzinfo is not None:
            offset: Any = value.utcoffset()
            node["zone"], node["offset"] = zone_of(value), offset.total_seconds()
            if node["zone"] is None and value.tzinfo.utcoffset(None) is None:
                raise zone_refusal(value.tzinfo)
        return node
    if isinstance(value, pd.Period | pd.Interval):
        return {TAG: "pandas_scalar", "v": _vectors(pd.DataFrame({0: [value]}), [""], walk, depth)}
    raise refusal(value)


def _to_timestamp(node: Node) -> Any:
    import numpy as np
    import pandas as pd

    value = pd.Timestamp(np.datetime64(int(node["v"]), node["unit"]))
    if "offset" not in node:
        return value
    return value.tz_localize("UTC").tz_convert(zone_from(node["zone"], fixed_zone(node["offset"])))


def _to_pandas_timedelta(node: Node) -> Any:
    import numpy as np
    import pandas as pd

    return pd.Timedelta(np.timedelta64(int(node["v"]), node["unit"]))


def _missing(name: str) -> Any:
    import pandas as pd

    return getattr(pd, name)


# -- arrays -------------------------------------------------------------------------------------

_KINDS = "biufcmMUS"


def _array(value: np.ndarray, walk: Walk, depth: int) -> Node:
    import pyarrow as pa

    walk.enter(depth, value.size if value.dtype.kind == "O" else 1)
    node: Node = {TAG: "ndarray", "dtype": value.dtype.str, "shape": list(value.shape)}
    flat = value.reshape(-1)
    if value.dtype.kind == "O":
        return node | {"cells": walk.items(flat.tolist(), depth)}
    if value.dtype.kind not in _KINDS or value.dtype.str[1:] in ("f16", "c32"):
        raise array_refusal(value)
    if value.size == 0 or value.dtype.itemsize == 0:
        return node
    native = value.dtype.newbyteorder("=")
    fixed = pa.from_numpy_dtype(native) if native.kind in "iuf" else pa.binary(native.itemsize)
    # By its buffer: converting would load pandas, which costs more than all the rest.
    column = pa.Array.from_buffers(fixed, flat.size, [None, pa.py_buffer(flat.astype(native).tobytes())])
    return node | {"v": to_stream(pa.Table.from_arrays([column], names=["0"]))}


def _to_array(node: Node) -> np.ndarray:
    import numpy as np

    shape = tuple(int(size) for size in node["shape"])
    if "cells" in node:
        cells = np.empty(len(node["cells"]), dtype=object)
        cells[:] = node["cells"]
        return cells.reshape(shape)
    dtype = _checked_dtype(node["dtype"], _KINDS)
    if "v" not in node:
        if 0 not in (*shape, dtype.itemsize):
            raise ValueError("its data is missing")
        return np.zeros(shape, dtype)
    column = from_stream(node["v"]).column("0").combine_chunks()
    flat = np.frombuffer(column.buffers()[1], dtype.newbyteorder("="), len(column))
    return flat.astype(dtype).reshape(shape)


def _checked_dtype(text: Any, kinds: str) -> np.dtype:
    import numpy as np

    dtype = np.dtype(str(text))
    if dtype.kind not in kinds:
        raise ValueError(f"dtype {text!r}")
    return dtype


# -- frames -------------------------------------------------------------------------------------


def _frame(value: pd.DataFrame, walk: Walk, depth: int) -> Node:
    walk.enter(depth, value.shape[1])
    labels = [field_part(label) for label in value.columns]
    node = {
        TAG: "frame",
        "columns": _index(value.columns, walk, depth),
        "index": _index(value.index, walk, depth),
        "vectors": _vectors(value, labels, walk, depth),
    }
    if value.attrs:
        node["attrs"] = walk.tree(dict(value.attrs), depth + 1)
    return node


def _to_frame(node: Node) -> pd.DataFrame:
    index, columns = _to_index(node["index"]), _to_index(node["columns"])
    frame = _to_vectors(node["vectors"], len(index), len(columns))
    frame.index, frame.columns = index, columns
    frame.attrs.update(node.get("attrs", {}))
    return frame


def _to_series(node: Node) -> pd.Series:
    index = _to_index(node["index"])
    series = _to_vectors(node["vectors"], len(index), 1)[0]
    series.index = index
    return series.rename(node["name"])


def _index(index: pd.Index, walk: Walk, depth: int, part: str = ".index") -> Node:
    import pandas as pd

    names = [walk.tree(name, depth + 1) for name in index.names]
    if isinstance(index, pd.RangeIndex):
        return {"names": names, "range": [index.start, index.stop, index.step]}
    if (
        index.dtype in ("str", object)
        and type(index) is pd.Index
        and all(type(label) is str for label in index)
    ):
        # By far the most common labels, and an Arrow stream has a heavy head.
        return {"dtype": str(index.dtype), "labels": walk.tree(index.tolist(), depth + 1), "names": names}
    if isinstance(index, pd.MultiIndex) and not walk.identity:
        walk.same = False
        return {"names": names} | _multi(index.remove_unused_levels(), walk, depth)
    multi = isinstance(index, pd.MultiIndex)
    # A list of names for several levels: one name would be a tuple, which a level may have as well.
    names_of_levels: Any = list(range(index.nlevels)) if multi else 0
    levels = index.set_names([None] * index.nlevels).to_frame(index=False, name=names_of_levels)
    node = {"multi": multi, "names": names, "rows": len(index)}
    node["vectors"] = _vectors(levels, [part] * index.nlevels, walk, depth, "")
    freq = None if multi or isinstance(index, pd.PeriodIndex) else freq_node(index, levels[0], walk, depth)
    return node if freq is None else node | {"freq": freq}


def _multi(index: pd.MultiIndex, walk: Walk, depth: int) -> Node:
    """By its levels, which have dtypes, orders and frequencies that the labels alone do not tell."""
    import pandas as pd

    codes = pd.DataFrame(dict(enumerate(index.codes)))
    return {
        "rows": len(index),
        "levels": [_index(level.rename(None), walk, depth + 1) for level in index.levels],
        "codes": _vectors(codes, [""] * index.nlevels, walk, depth),
    }


def _to_index(node: Node) -> pd.Index:
    index: pd.Index = _unnamed_index(node)
    index.names = node["names"]
    return index


def _unnamed_index(node: Node) -> Any:
    import pandas as pd

    if "range" in node:
        start, stop, step = node["range"]
        return pd.RangeIndex(start, stop, step)
    if "labels" in node:
        return pd.Index(node["labels"], dtype="str" if node["dtype"] == "str" else object)
    if "levels" in node:
        codes = _to_vectors(node["codes"], node["rows"], len(node["names"]))
        kept: list[Any] = [_to_index(level) for level in node["levels"]]
        return pd.MultiIndex(kept, [codes[place].tolist() for place in codes])
    levels = _to_vectors(node["vectors"], node["rows"], len(node["names"]))
    if node["multi"]:
        return pd.MultiIndex.from_arrays([levels[level] for level in levels])
    index = pd.Index(levels[0], dtype=levels[0].dtype)
    return type(index)(index, freq=node["freq"]) if "freq" in node else index


# -- vectors: the columns of a frame, without their labels ----------------------------------------


def _vectors(frame: pd.DataFrame, labels: list[str], walk: Walk, depth: int, accessor: str = ".dt") -> Node:
    """Columns by position: typed ones in an Arrow stream, those of objects as trees.

    ``accessor`` is what methods for times are called by, in messages: an index has none.
    """
    import pandas as pd

    node: Node = {}
    typed = []
    cells: dict[str, Any] = {}
    for place, label in enumerate(labels):
        column = frame.iloc[:, place]
        if column.dtype != object:
            typed.append(place)
            continue
        try:
            cells[str(place)] = walk.tree(column.tolist(), depth + 1)
        except RefusedError as refused:
            raise refused.inside(label, frame) from None
    if cells:
        node["cells"] = cells
    if not typed:
        return node
    part = frame.iloc[:, typed]
    for position, place in enumerate(typed):
        dtype = part.dtypes.iloc[position]
        if isinstance(dtype, pd.CategoricalDtype):
            # By hand: Arrow knows few types of categories, and not those that pandas.cut makes.
            part.isetitem(position, part.iloc[:, position].cat.codes.array)
            kept = {"index": _index(dtype.categories, walk, depth + 1), "ordered": dtype.ordered}
            node.setdefault("categories", {})[str(place)] = kept
    return node | _typed(part, typed, [labels[place] for place in typed], accessor)


def _typed(part: pd.DataFrame, places: list[int], labels: list[str], accessor: str) -> Node:
    import pandas as pd

    part = part.copy(deep=False)
    if part.attrs:
        part.attrs = plain_attributes(part.attrs)  # all of them are stored beside the table
    part.columns = pd.Index([str(place) for place in places])
    part.index = pd.RangeIndex(len(part))
    node: Node = {}
    for place in part.columns:
        dtype = part[place].dtype
        if isinstance(dtype, pd.ArrowDtype):
            node.setdefault("arrow", []).append(place)
        elif isinstance(dtype, pd.StringDtype):
            node.setdefault("strings", {})[place] = _parts_of_text(dtype)
        elif isinstance(dtype, pd.DatetimeTZDtype) and _is_named_utc(dtype.tz):
            node.setdefault("named_utc", []).append(place)
        elif isinstance(dtype, pd.DatetimeTZDtype) and _is_of_pytz(dtype.tz):
            node.setdefault("pytz", []).append(place)
    try:
        table = _to_table(part, node)
    except _NOT_WRITTEN:
        # Which column it is: they are tried one by one, now that it matters.
        columns = zip(part.columns, labels, strict=True)
        place, label = min(columns, key=lambda column: _survives(part[[column[0]]], node))
        raise dtype_refusal(part[place].dtype, accessor).inside(label, part) from None
    return node | {"v": to_stream(table)}


def _is_named_utc(zone: Any) -> bool:
    """Whether a zone is UTC by name, such as ``ZoneInfo("UTC")``, and not the ``datetime.UTC`` of pandas."""
    return zone is not UTC and str(zone) == "UTC"


def _is_of_pytz(zone: Any) -> bool:
    return type(zone).__module__.partition(".")[0] == "pytz"


def _zone_of(arrow: Any, place: str, node: Node) -> Any:
    """The zone that a column had, by the one that Arrow makes: of pytz for pandas 2, else of Python."""
    if str(arrow) == "UTC":
        # Arrow has one UTC only: rows whose zone is another than it was would count as new items.
        return ZoneInfo("UTC") if place in node.get("named_utc", ()) else UTC
    name = getattr(arrow, "key", None) or getattr(arrow, "zone", None)
    offset = arrow.utcoffset(None)  # of one without a name
    if place in node.get("pytz", ()):
        with suppress(ImportError):  # the same zone, of Python, tells the same times
            pytz: Any = import_module("pytz")
            return pytz.FixedOffset(offset.total_seconds() // 60) if name is None else pytz.timezone(name)
    return timezone(offset) if name is None else ZoneInfo(name)


_NOT_WRITTEN = (ValueError, TypeError, NotImplementedError)
"""What Arrow raises; ArrowInvalid, ArrowTypeError and ArrowNotImplementedError are among these."""


def _to_table(part: pd.DataFrame, node: Node) -> Any:
    """An Arrow table that is known to come back with the same dtypes, else one of ``_NOT_WRITTEN``."""
    import pandas as pd
    import pyarrow as pa

    arrow = [place for place in node.get("arrow", ()) if place in part.columns]
    by_hand = {*arrow, *node.get("strings", ())}
    table = pa.Table.from_pandas(part, preserve_index=False, nthreads=1)
    # The versions of pandas and Arrow must not make another digest of the same table.
    metadata = json.loads(table.schema.metadata[b"pandas"])
    kept = {key: metadata[key] for key in sorted(metadata) if key not in ("creator", "pandas_version")}
    kept["columns"] = [column for column in metadata["columns"] if column["name"] not in arrow]
    table = table.replace_schema_metadata({b"pandas": json.dumps(kept).encode()})
    restored = table.drop_columns(arrow).slice(0, 0).to_pandas().dtypes
    for place, dtype in part.dtypes.items():
        if place in by_hand:
            continue
        back = restored[place]
        if isinstance(back, pd.DatetimeTZDtype):
            back = pd.DatetimeTZDtype(back.unit, _zone_of(back.tz, str(place), node))
        if back != dtype:
            raise TypeError(f"{dtype} becomes {back}")
    return table


def _survives(part: pd.DataFrame, node: Node) -> bool:
    try:
        _to_table(part, node)
    except _NOT_WRITTEN:
        return False
    return True


def _to_vectors(node: Node, rows: int, count: int) -> pd.DataFrame:
    """Columns 0 to ``count``, all of ``rows`` rows."""
    import pandas as pd

    columns: dict[str, Any] = {}
    if "v" in node:
        table = from_stream(node["v"])
        arrow = list(node.get("arrow", ()))
        columns.update(table.drop_columns(arrow).to_pandas().items())
        for place, column in columns.items():
            if isinstance(column.dtype, pd.DatetimeTZDtype):
                columns[place] = column.dt.tz_convert(_zone_of(column.dtype.tz, place, node))
        columns.update({place: pd.Series(pd.arrays.ArrowExtensionArray(table[place])) for place in arrow})
    for place, (storage, missing) in node.get("strings", {}).items():
        columns[place] = columns[place].astype(text_dtype(storage, missing))
    for place, kept in node.get("categories", {}).items():
        categories = pd.CategoricalDtype(_to_index(kept["index"]), bool(kept["ordered"]))
        columns[place] = pd.Series(pd.Categorical.from_codes(columns[place], dtype=categories))
    for place, cells in node.get("cells", {}).items():
        columns[place] = pd.Series(cells, dtype=object)
    places = [str(place) for place in range(count)]
    if set(columns) != set(places):
        raise ValueError("columns are missing")
    if any(len(column) != rows for column in columns.values()):
        raise ValueError("columns and index differ in length")
    frame = pd.DataFrame({place: columns[place] for place in places}, index=pd.RangeIndex(rows))
    frame.columns = pd.RangeIndex(count)
    return frame


# -- text columns ----------------------------------------------------------------------------------
#
# pandas 3 has ``str``, with NaN where a text is missing. pandas 2 keeps texts as objects unless it is
# asked for ``string``; 2.3 knows ``str`` by another name, and 2.2 has it with Arrow's storage only. A frame
# of a newer pandas is read by an older one with the nearest that it has, which for ``str`` may be ``object``.

_OLD = "_numpy"
"""At the end of a storage's name: how pandas 2 spells that NaN is what is missing."""


def _parts_of_text(dtype: pd.StringDtype) -> list[str]:
    """A dtype for texts as ``["python" or "pyarrow", "NA" or "nan"]``: its storage, and what is missing."""
    import pandas as pd

    return [dtype.storage.removesuffix(_OLD), "NA" if dtype.na_value is pd.NA else "nan"]


def text_dtype(storage: str, missing: str) -> Any:
    """The dtype with these parts; the nearest one where this pandas has none.

    Raises:
        ValueError: There is no such storage.
    """
    import numpy as np
    import pandas as pd

    if missing == "NA":
        return pd.StringDtype(storage)
    try:
        return pd.StringDtype(storage, np.nan)
    except TypeError:  # pandas 2.2
        return pd.StringDtype(storage + _OLD) if storage == "pyarrow" else object


_READERS: dict[str, Callable[[Node], Any]] = {
    "frame": _to_frame,
    "series": _to_series,
    "index": lambda node: _to_index(node["v"]),
    "array": lambda node: _to_index(node["v"]).array.copy(),
    "offset": offset_of,
    "ndarray": _to_array,
    "numpy": _to_numpy_scalar,
    "timestamp": _to_timestamp,
    "pandas_timedelta": _to_pandas_timedelta,
    "pandas_scalar": lambda node: _to_vectors(node["v"], 1, 1)[0].iloc[0],
    "na": lambda node: _missing("NA"),
    "nat": lambda node: _missing("NaT"),
}
