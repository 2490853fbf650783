"""Copies of what pandas and NumPy hold, the objects in cells included."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tagent_nb.serde.copies import FROZEN


def copy_of(value: Any, inner: Callable[[Any], Any]) -> Any:
    """A deep copy; pandas' own leaves the objects in cells the same.

    Args:
        value: Of a class of pandas or NumPy, or of one made of it.
        inner: Copies what is in a cell.
    """
    import numpy as np

    if isinstance(value, np.ndarray):
        return _cells(value, inner) if type(value) is np.ndarray else copy.deepcopy(value)
    import pandas as pd

    made: Any
    if isinstance(value, pd.DataFrame):
        # Deep also where nothing is an object: copy-on-write does not see what is written through .array.
        made = value.copy()
        for place, dtype in enumerate(value.dtypes):
            if dtype.kind == "O" and isinstance(dtype, np.dtype):
                cells = _cells(value.iloc[:, place].to_numpy(), inner)
                made.isetitem(place, pd.Series(cells, value.index, dtype=object))
        return _with_attributes(made, value, inner)
    if isinstance(value, pd.Series):
        made = value.copy()
        if value.dtype == object:
            cells = _cells(value.to_numpy(), inner)
            made = type(value)(cells, index=value.index, dtype=object).__finalize__(value)
        return _with_attributes(made, value, inner)
    if isinstance(value, pd.arrays.NumpyExtensionArray):
        return type(value)(_cells(value.to_numpy(), inner))
    return copy.deepcopy(value)


def _cells(array: Any, inner: Callable[[Any], Any]) -> Any:
    import numpy as np

    if array.dtype != object or FROZEN.issuperset(map(type, array.flat)):
        return array.copy()
    made = np.empty(array.size, dtype=object)
    for place, cell in enumerate(array.reshape(-1)):
        made[place] = inner(cell)
    return made.reshape(array.shape)


def _with_attributes(made: Any, value: Any, inner: Callable[[Any], Any]) -> Any:
    """With the attributes that a subclass says it has, such as the ``crs`` of a GeoDataFrame."""
    for name in value._metadata:
        if name in value.__dict__:
            object.__setattr__(made, name, inner(value.__dict__[name]))
    return made
