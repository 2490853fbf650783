"""Frames and series of polars, and Arrow tables, as nodes of a tree: by Arrow, without needing polars.

What such an object says of itself by the Arrow PyCapsule interface is stored; polars is loaded only to make
a polars object again.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tagent_nb.errors import CorruptRecordError
from tagent_nb.serde.arrow_stream import from_stream, to_stream
from tagent_nb.serde.errors import RefusedError, refusal
from tagent_nb.serde.nodes import TAG, Node, Walk

PACKAGES = frozenset({"polars", "pyarrow"})
"""Top-level modules of the objects that are stored here."""
_COLUMN = "values"


def to_arrow_node(value: Any, walk: Walk, depth: int) -> Node:
    """The node of a polars DataFrame or Series, or of an Arrow table.

    Raises:
        RefusedError: It is another object of polars or Arrow, or cannot be exported.
    """
    package, name = type(value).__module__.partition(".")[0], type(value).__name__
    if name == "LazyFrame":
        raise RefusedError("a LazyFrame, which holds no data yet, cannot be stored. Return frame.collect()")
    if name not in ("DataFrame", "Series", "Table") or not hasattr(value, "__arrow_c_stream__"):
        raise refusal(value)
    walk.enter(depth, len(value))
    import pyarrow as pa

    # Chunks are no part of a value: equal frames become equal bytes.
    whole = value.rechunk() if package == "polars" else value.combine_chunks()
    node: Node = {TAG: "arrow", "of": f"{package}.{name}"}
    try:
        if name == "Series":
            node["name"] = whole.name
            whole = whole.to_frame(_COLUMN)
        if package == "polars" and any("Object" in str(dtype) for dtype in whole.dtypes):
            raise TypeError("it has a column of Python objects")
        node["v"] = to_stream(pa.table(whole))
    except Exception as error:  # columns may have no form in Arrow
        raise RefusedError(
            f"a {package} {name} that Arrow cannot express ({error}) cannot be stored. "
            "Return plain columns, or a list of dicts"
        ) from None
    return node


def from_arrow_node(node: Node) -> Any:
    """The value of a node that :func:`to_arrow_node` made.

    Raises:
        CorruptRecordError: It is malformed, or polars is not installed.
    """
    kind = node["of"]
    try:
        table = from_stream(node["v"])
    except Exception as error:  # Arrow raises anything when bytes are not what they say
        raise CorruptRecordError(f"A stored {kind} cannot be read: {str(error)[:200]}") from None
    if kind == "pyarrow.Table":
        return table
    if kind not in ("polars.DataFrame", "polars.Series"):
        raise ValueError(f"{str(kind)[:40]!r} is no kind of table")
    try:
        polars: Any = import_module("polars")
    except ImportError:
        raise CorruptRecordError(
            f"A stored {kind} cannot be read without polars. Install it: pip install polars"
        ) from None
    frame = polars.from_arrow(table)
    return frame if kind == "polars.DataFrame" else frame[_COLUMN].alias(node["name"])


def polars_rows(value: Any) -> list[Any] | None:
    """The rows of a polars DataFrame as dicts, or the items of a Series; ``None`` for anything else."""
    if type(value).__module__.partition(".")[0] != "polars":
        return None
    name = type(value).__name__
    if name == "DataFrame":
        return list(value.to_dicts())
    return list(value.to_list()) if name == "Series" else None
