"""DataFrame, Series, Index, ndarray and their scalars as nodes of a tree, with index and dtypes intact.

Typed columns travel as one Arrow stream; columns of Python objects as trees, cell by cell, so that
lists stay lists, and what cannot be stored names its column and row. Nothing is ever pickled.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import CorruptRecordError
from tagent_nb.pipeline.encoding import Encoder, RefusedError, field_part, refusal
from tagent_nb.pipeline.frames.stream import from_stream, to_stream
from tagent_nb.pipeline.scalars import TAG, Node, fixed_zone, zone_from, zone_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def to_node(value: Any, walk: Encoder, depth: int) -> Any:
    """The node of a value whose class is pandas' or NumPy's.

    Raises:
        RefusedError: It cannot be stored.
    """
    import numpy as np

    if isinstance(value, np.generic):
        return _numpy_scalar(value, walk, depth)
    if type(value) is np.ndarray:
        return _array(value, walk, depth)
    pd = sys.modules.get("pandas")
    if pd is None:
        raise refusal(value)
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


def _numpy_scalar(value: Any, walk: Encoder, depth: int) -> Any:
    if value.dtype.kind in "mM":
        return {TAG: "numpy", "dtype": value.dtype.str, "v": int(value.astype("i8"))}
    if value.dtype.kind in "US" or (value.dtype.kind in "biuf" and value.dtype.itemsize <= 8):
        return walk.tree(value.item(), depth)
    raise refusal(value)


def _to_numpy_scalar(node: Node) -> Any:
    import numpy as np

    return np.array([node["v"]], "i8").astype(_checked_dtype(node["dtype"], "mM"))[0]


def _pandas_scalar(value: Any, walk: Encoder, depth: int) -> Node:
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


def _array(value: np.ndarray, walk: Encoder, depth: int) -> Node:
    import pyarrow as pa

    walk.enter(depth, value.size if value.dtype.kind == "O" else 1)
    node: Node = {TAG: "ndarray", "dtype": value.dtype.str, "shape": list(value.shape)}
    flat = value.reshape(-1)
    if value.dtype.kind == "O":
        return node | {"cells": walk.items(flat.tolist(), depth)}
    if value.dtype.kind not in _KINDS or value.dtype.str[1:] in ("f16", "c32"):
        raise RefusedError(f"an array of dtype {value.dtype} cannot be stored. Convert it with .astype(...)")
    if value.size == 0 or value.dtype.itemsize == 0:
        return node
    if value.dtype.kind in "biuf":
        column = pa.array(flat.astype(value.dtype.newbyteorder("=")))
    else:
        data = pa.py_buffer(flat.tobytes())
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(value.dtype.itemsize), flat.size, [None, data]
        )
    return node | {"v": to_stream(pa.table({"0": column}))}


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
    if dtype.kind in "biuf":
        flat: np.ndarray = column.to_numpy(zero_copy_only=False)
        return flat.astype(dtype).reshape(shape)
    return np.frombuffer(column.buffers()[1], dtype, len(column)).reshape(shape).copy()


def _checked_dtype(text: Any, kinds: str) -> np.dtype:
    import numpy as np

    dtype = np.dtype(str(text))
    if dtype.kind not in kinds:
        raise ValueError(f"dtype {text!r}")
    return dtype


# -- frames -------------------------------------------------------------------------------------


def _frame(value: pd.DataFrame, walk: Encoder, depth: int) -> Node:
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


def _index(index: pd.Index, walk: Encoder, depth: int) -> Node:
    import pandas as pd

    names = [walk.tree(name, depth + 1) for name in index.names]
    if isinstance(index, pd.RangeIndex):
        return {"names": names, "range": [index.start, index.stop, index.step]}
    if index.dtype in ("str", object) and type(index) is pd.Index and all(type(one) is str for one in index):
        # By far the most common labels, and an Arrow stream has a heavy head.
        return {"dtype": str(index.dtype), "labels": walk.tree(index.tolist(), depth + 1), "names": names}
    multi = isinstance(index, pd.MultiIndex)
    # A list of names for several levels: one name would be a tuple, which a level may have as well.
    names_of_levels: Any = list(range(index.nlevels)) if multi else 0
    levels = index.to_frame(index=False, name=names_of_levels)
    node = {"multi": multi, "names": names, "rows": len(index)}
    freq = getattr(index, "freqstr", None)
    if freq is not None and not isinstance(index, pd.PeriodIndex):
        node["freq"] = freq
    return node | {"vectors": _vectors(levels, ["index"] * index.nlevels, walk, depth)}


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
    levels = _to_vectors(node["vectors"], node["rows"], len(node["names"]))
    if node["multi"]:
        return pd.MultiIndex.from_arrays([levels[one] for one in levels])
    index = pd.Index(levels[0], dtype=levels[0].dtype)
    return type(index)(index, freq=node["freq"]) if "freq" in node else index


# -- vectors: the columns of a frame, without their labels ----------------------------------------


def _vectors(frame: pd.DataFrame, labels: list[str], walk: Encoder, depth: int) -> Node:
    """Columns by position: typed ones in an Arrow stream, those of objects as trees."""
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
    if typed:
        part = frame.iloc[:, typed]
        node.update(_typed(part, typed, [labels[place] for place in typed]))
    return node


def _typed(part: pd.DataFrame, places: list[int], labels: list[str]) -> Node:
    import pandas as pd
    import pyarrow as pa

    part = part.copy(deep=False)
    part.columns = pd.Index([str(place) for place in places])
    part.index = pd.RangeIndex(len(part))
    try:
        table = pa.Table.from_pandas(part, preserve_index=False, nthreads=1).combine_chunks()
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        raise _no_dtype(part, labels, str(error)) from None
    # The versions of pandas and Arrow must not make another digest of the same table.
    known = json.loads(table.schema.metadata[b"pandas"])
    kept = json.dumps({key: known[key] for key in sorted(known) if key not in ("creator", "pandas_version")})
    table = table.replace_schema_metadata({b"pandas": kept.encode()})
    strings = {}
    restored = table.slice(0, 0).to_pandas().dtypes
    for place, label in zip(part.columns, labels, strict=True):
        dtype = part[place].dtype
        if restored[place] == dtype:
            continue
        if not isinstance(dtype, pd.StringDtype):
            raise RefusedError(_NO_DTYPE.format(dtype)).inside(label, part)
        strings[place] = [dtype.storage, "NA" if dtype.na_value is pd.NA else "nan"]
    node: Node = {"v": to_stream(table)}
    return node | {"strings": strings} if strings else node


_NO_DTYPE = "a column of dtype {} cannot be stored. Convert it with .astype(...)"


def _no_dtype(part: pd.DataFrame, labels: list[str], message: str) -> RefusedError:
    """Which column it is: they are tried one by one, now that it matters."""
    import pyarrow as pa

    for place, label in zip(part.columns, labels, strict=True):
        try:
            pa.Table.from_pandas(part[[place]], preserve_index=False)
        except (pa.ArrowException, ValueError, TypeError, NotImplementedError):
            return RefusedError(_NO_DTYPE.format(part[place].dtype)).inside(label, part)
    return RefusedError(f"a table that Arrow refuses cannot be stored: {message}")


def _to_vectors(node: Node, rows: int, count: int) -> pd.DataFrame:
    """Columns 0 to ``count``, all of ``rows`` rows."""
    import numpy as np
    import pandas as pd

    typed = from_stream(node["v"]).to_pandas() if "v" in node else pd.DataFrame(index=pd.RangeIndex(rows))
    for place, (storage, missing) in node.get("strings", {}).items():
        typed[place] = typed[place].astype(pd.StringDtype(storage, pd.NA if missing == "NA" else np.nan))
    cells = node.get("cells", {})
    places = [str(place) for place in range(count)]
    if sorted([*typed.columns, *cells]) != sorted(places):
        raise ValueError("columns are missing")
    if any(len(one) != rows for one in (typed, *cells.values())):
        raise ValueError("columns and index differ in length")
    if cells:
        columns = {
            place: pd.Series(cells[place], dtype=object) if place in cells else typed[place]
            for place in places
        }
        typed = pd.DataFrame(columns, index=typed.index)
    typed.columns = pd.RangeIndex(count)
    return typed


_READERS: dict[str, Callable[[Node], Any]] = {
    "frame": _to_frame,
    "series": _to_series,
    "index": lambda node: _to_index(node["v"]),
    "ndarray": _to_array,
    "numpy": _to_numpy_scalar,
    "timestamp": _to_timestamp,
    "pandas_timedelta": _to_pandas_timedelta,
    "pandas_scalar": lambda node: _to_vectors(node["v"], 1, 1)[0].iloc[0],
    "na": lambda node: _missing("NA"),
    "nat": lambda node: _missing("NaT"),
}
