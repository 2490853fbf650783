"""Values of a step's own: what it changes in place must reach no other step."""

from __future__ import annotations

import copy
import sys
import sysconfig
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from types import MappingProxyType, SimpleNamespace
from typing import Any
from uuid import UUID

from tagent_nb.user_objects import ends_program

FROZEN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, date, datetime, time, timedelta, Decimal, UUID}
)
_DATA = (
    list,
    dict,
    set,
    frozenset,
    tuple,
    bytearray,
    deque,
    UserDict,
    UserList,
    ChainMap,
    SimpleNamespace,
    MappingProxyType,
)
_MANAGING = (
    "__enter__",
    "__aenter__",
    "__del__",
    "__next__",
    "__call__",
    "__reduce__",
    "__setstate__",
    "close",
)
"""What classes define whose objects stand for more than what they hold."""

Memo = dict[int, Any]


def own_copy(value: Any) -> Any:
    """A deep copy of what steps usually give one another, to be changed at will.

    Copied are containers and what is in them, pandas and NumPy objects with the objects in their cells,
    pydantic models, dataclasses, attrs classes, and objects of the user's own classes that only hold values.
    All else, such as a connection or a trained model, is the same object, and so is what cannot be copied;
    inside of a container, what a library made is copied if it can be.
    """
    if type(value) in FROZEN:
        return value
    try:
        return _copy(value, {}) if _is_data(value) else value
    except BaseException as error:
        if ends_program(error):
            raise
        return value


def is_bulky(value: Any, depth: int = 2) -> bool:
    """Whether encoding or copying a value takes so long that an event loop lets a thread do it.

    Decided at a glance: by the length of texts and containers, the cells of frames and arrays, and those of
    what lies in a container of a few.

    Args:
        value: Anything.
        depth: How many containers deep to look.
    """
    kind: Any = type(value)
    if kind in (str, bytes, bytearray):
        return len(value) > BULKY_TEXT
    if kind in (list, tuple, dict):
        if len(value) > FEW:
            return len(value) > BULKY_CELLS
        parts = value.values() if kind is dict else value
        return depth > 0 and any(is_bulky(part, depth - 1) for part in parts)
    module = _MODULE.__get__(kind)  # whatever the class and its metaclass say of themselves
    if type(module) is not str or module.partition(".")[0] not in ("pandas", "numpy"):
        return False
    return int(getattr(value, "size", 0)) > BULKY_CELLS


_MODULE: Any = type.__dict__["__module__"]
BULKY_TEXT, BULKY_CELLS = 1_000_000, 100_000
FEW = 16
"""Parts of a container that are looked at."""


def _is_data(value: Any) -> bool:
    kind: Any = type(value)
    return _is_kind_of_data(kind) or (_holds_values(kind) and _only_values(value))


@lru_cache(maxsize=1024)
def _is_kind_of_data(kind: Any) -> bool:
    return (
        issubclass(kind, _DATA)
        or _root(kind) in ("pandas", "numpy", "polars")
        or hasattr(kind, "model_fields")
        or hasattr(kind, "__attrs_attrs__")
        or is_dataclass(kind)
        or _is_pandas(kind)
    )


def _only_values(value: Any) -> bool:
    """Whether an object of the user's class holds no session, model or the like, which are shared with it."""
    kinds: set[Any] = set(map(type, getattr(value, "__dict__", {}).values()))
    return all(kind in FROZEN or _is_kind_of_data(kind) or _holds_values(kind) for kind in kinds)


def _copy(value: Any, memo: Memo) -> Any:
    kind = type(value)
    if kind in FROZEN:
        return value
    made = memo.get(id(value))
    if made is not None:
        return made
    copier = _COPIERS.get(kind)
    if copier is not None:
        return copier(value, memo)
    try:
        made = _special(value, kind, memo)
    except BaseException as error:  # it has its own idea of copies, as a lock has, or goes too deep
        if ends_program(error):
            raise
        return value
    memo[id(value)] = made
    return made


def _list(value: list[Any], memo: Memo) -> list[Any]:
    made: list[Any] = []
    memo[id(value)] = made
    made.extend(value if FROZEN.issuperset(map(type, value)) else [_copy(item, memo) for item in value])
    return made


def _dict(value: dict[Any, Any], memo: Memo) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    memo[id(value)] = made
    if FROZEN.issuperset(map(type, value)) and FROZEN.issuperset(map(type, value.values())):
        made.update(value)  # a row, most often
        return made
    for key, item in value.items():
        made[key if type(key) in FROZEN else _copy(key, memo)] = (
            item if type(item) in FROZEN else _copy(item, memo)
        )
    return made


def _tuple(value: tuple[Any, ...], memo: Memo) -> tuple[Any, ...]:
    parts = tuple([_copy(item, memo) for item in value])
    if all(part is item for part, item in zip(parts, value, strict=True)):
        return value
    made: tuple[Any, ...] = memo.setdefault(id(value), parts)  # it may hold itself, by way of a list
    return made


def _set(value: Any, memo: Memo) -> Any:
    made = memo[id(value)] = type(value)([_copy(item, memo) for item in value])
    return made


_COPIERS: dict[type, Callable[[Any, Memo], Any]] = {
    list: _list,
    dict: _dict,
    tuple: _tuple,
    set: _set,
    frozenset: _set,
}


def _special(value: Any, kind: type, memo: Memo) -> Any:
    if isinstance(value, type | Enum):
        return value
    if _root(kind) == "polars":
        return value.clone()  # its columns are shared until one of the two is changed
    if _root(kind) == "numpy" or _is_pandas(kind):

        def inner(cell: Any) -> Any:
            _keep(memo, cell)  # some arrays make the objects of their cells when they are asked
            return _copy(cell, memo)

        return _frame_copy(value, inner)
    if kind is MappingProxyType:
        plain = dict(value)
        _keep(memo, plain)
        return MappingProxyType(_dict(plain, memo))
    own = getattr(kind, "__deepcopy__", None)
    if own is not None and not own.__module__.startswith("pydantic"):
        return copy.deepcopy(value, memo)
    if _is_data(value):
        return _rebuilt(value, memo)
    return value if _holds_values(kind) else copy.deepcopy(value, memo)


def _frame_copy(value: Any, inner: Callable[[Any], Any]) -> Any:
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


def _rebuilt(value: Any, memo: Memo) -> Any:
    """As ``copy.deepcopy`` does it, but with these copies of what the object holds."""
    reduced = value.__reduce_ex__(4)
    make, arguments, *rest = reduced
    state, items, pairs = (*rest, None, None, None)[:3]
    # These were made for this call: once freed, the next object's state could get their ids in the memo.
    _keep(memo, reduced)
    if state is None and arguments == (type(value),) and items is None and pairs is None:
        return value  # it holds nothing: a mark, which is known by what it is
    made = memo[id(value)] = make(*[_copy(argument, memo) for argument in arguments])
    if state is not None:
        state = _copy(state, memo)
        if hasattr(made, "__setstate__"):
            made.__setstate__(state)
        else:
            named, slots = state if isinstance(state, tuple) else (state, None)
            if named:
                made.__dict__.update(named)
            for name, item in (slots or {}).items():
                object.__setattr__(made, name, item)
    for item in items or ():
        _keep(memo, item)
        made.append(_copy(item, memo))
    for pair in pairs or ():
        _keep(memo, pair)
        key, item = pair
        made[_copy(key, memo)] = _copy(item, memo)
    return made


def _keep(memo: Memo, made: object) -> None:
    """Let something live that only the copying has made, as long as its id counts. ``deepcopy`` keeps its
    own in the same place."""
    memo.setdefault(id(memo), []).append(made)


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]


@lru_cache(maxsize=1024)
def _is_pandas(kind: type) -> bool:
    """Whether it is a class of pandas, or one made of it, as GeoPandas has."""
    return any(_root(base) == "pandas" for base in kind.__mro__)


@lru_cache(maxsize=1024)
def _holds_values(kind: type) -> bool:
    """Whether it is a class of the user, not of a library, whose objects only hold values."""
    if kind.__flags__ & (1 << 9) == 0 or issubclass(kind, type | BaseException | Enum):
        return False  # not made by a class statement, or no data
    if any(name in vars(base) for base in kind.__mro__[:-1] for name in _MANAGING):
        return False
    return all(_is_users(base) for base in kind.__mro__[:-1])


def _is_users(kind: type) -> bool:
    if kind.__module__ == "__main__":
        return True
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is not None and not file.startswith(_LIBRARIES)


_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
