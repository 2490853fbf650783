"""Values that cannot be stored: the error that finds out their path, and what to do with them, in words."""

from __future__ import annotations

import functools
import inspect
import io
import re
import types
from array import array
from collections.abc import Iterator, MappingView
from datetime import tzinfo
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import EncodeError

if TYPE_CHECKING:
    import numpy as np


class RefusedError(Exception):
    """A value that cannot be stored, on its way up to where its path is known."""

    def __init__(self, what: str, *, unknown_type: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.unknown_type = unknown_type
        self._parts: list[str] = []
        self._holders: list[int] = []

    def inside(self, part: str, holder: object) -> RefusedError:
        """Note one part of the path on the way up."""
        self._parts.append(part)
        self._holders.append(id(holder))
        return self

    def to_error(self, path: str) -> EncodeError:
        """The error with the whole path; short where the value holds itself."""
        parts, holders = self._parts[::-1], self._holders[::-1]
        for place, holder in enumerate(holders):
            if holder in holders[:place]:
                return EncodeError(
                    path + "".join(parts[:place]), "an object that holds itself cannot be stored"
                )
        if len(parts) > 12:
            parts = [*parts[:6], "...", *parts[-3:]]
        return EncodeError(path + "".join(parts), self.what)


def field_part(key: object) -> str:
    """``.name``, or ``['some key']``, of a path."""
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    try:
        shown = repr(key)[:40]
    except Exception:  # __repr__ is the user's code, and a long integer has none
        shown = type(key).__name__
    return f"[{shown}]"


def _known_refusal(value: object) -> str | None:
    if hasattr(value, "get_secret_value"):
        return "a secret cannot be stored. Read it where it is used, and leave it out of the value"
    if inspect.isroutine(value) or isinstance(value, functools.partial):
        return "a function cannot be stored"
    if isinstance(value, type):
        return "a class cannot be stored"
    if isinstance(value, types.ModuleType):
        return "a module cannot be stored"
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        return "a generator cannot be stored. Return a list of what it yields"
    if inspect.isawaitable(value):
        return "a coroutine cannot be stored. Await it in the step"
    if isinstance(value, io.IOBase):
        return "an open file cannot be stored. Return its content or its path"
    return None


def refusal(value: object) -> RefusedError:
    """Says what a value is that cannot be stored, and what to return in its place."""
    what = _known_refusal(value)
    if what is not None:
        return RefusedError(what)
    return RefusedError(_unknown(value, type(value)), unknown_type=True)


def _unknown(value: object, kind: type) -> str:
    if isinstance(value, Iterator):
        return (
            f"a {kind.__name__} object, whose items can be taken once only, cannot be stored. "
            "Return list(...) of it"
        )
    if isinstance(value, MappingView | memoryview | array):
        plain = "bytes" if isinstance(value, memoryview) else "list"
        return f"an object of class {kind.__name__} cannot be stored. Return {plain}(...) of it"
    return (
        f"an object of class {kind.__module__}.{kind.__qualname__} cannot be stored. "
        "Return plain data, a dataclass, a pydantic model or a DataFrame"
    )


# -- of pandas and NumPy --

_OTHER_CLASSES = {
    "MaskedArray": "Return array.filled(...), or a Series with missing values",
    "matrix": "Return numpy.asarray(matrix)",
    "recarray": "Return pandas.DataFrame(array)",
    "memmap": "Return numpy.array(array)",
}


def array_refusal(array: np.ndarray) -> RefusedError:
    """For an array of NumPy whose class or dtype cannot be stored."""
    name = type(array).__name__
    if name in _OTHER_CLASSES:
        return RefusedError(f"a {name} of NumPy cannot be stored. {_OTHER_CLASSES[name]}")
    remedy = "Return pandas.DataFrame(array)" if array.dtype.names else "Convert it with .astype(...)"
    return RefusedError(f"an array of dtype {array.dtype} cannot be stored. {remedy}")


def dtype_refusal(dtype: Any, accessor: str) -> RefusedError:
    """For a column, index or array of pandas whose dtype cannot be stored.

    Args:
        dtype: Its dtype.
        accessor: What its methods for times are called by: ``".dt"`` of a column, empty for the others.
    """
    zone = getattr(dtype, "tz", None)
    if zone is not None:
        remedy = f"Convert it with {accessor}.tz_convert({_named_zone(zone)!r})"
    elif type(dtype).__name__ == "SparseDtype":
        remedy = f"Convert it with .astype({str(dtype.subtype)!r})"
    elif dtype.kind == "c":
        remedy = "Return .to_numpy(), or its .real and .imag"
    else:
        remedy = "Convert it with .astype(...)"
    return RefusedError(f"a column of dtype {dtype} cannot be stored. {remedy}")


def zone_refusal(zone: tzinfo) -> RefusedError:
    """For a time in a zone that has no name by which it could be found again, as those of dateutil."""
    return RefusedError(
        f"a time in the zone {zone!r} cannot be stored. Convert it with .tz_convert({_named_zone(zone)!r})"
    )


def _named_zone(zone: tzinfo) -> str:
    """The name in the path of a zone's file; UTC without one."""
    path = re.search(r"zoneinfo/(?:(?:posix|right)/)?([\w+-]+(?:/[\w+-]+)*)'", repr(zone))
    return path[1] if path is not None else "UTC"
