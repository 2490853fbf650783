"""What to do with arrays, columns and times that cannot be stored, in words, by what they are."""

from __future__ import annotations

import re
from datetime import tzinfo
from typing import TYPE_CHECKING, Any

from tagent_nb.serde.encoder import RefusedError

if TYPE_CHECKING:
    import numpy as np

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
