"""Date offsets of pandas, such as business days with holidays, as nodes of a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tagent_nb.serde.errors import RefusedError
from tagent_nb.serde.nodes import TAG, Node, Walk

if TYPE_CHECKING:
    import pandas as pd


def offset_node(offset: Any, walk: Walk, depth: int) -> Node:
    """The node of an offset of pandas' own classes.

    Raises:
        RefusedError: It is of a class of the user, or would come back as another one.
    """
    import numpy as np

    name = type(offset).__name__
    parameters = dict(offset.kwds)
    if "holidays" in parameters:
        parameters["holidays"] = np.array(parameters["holidays"], "datetime64[D]")
    calendar = parameters.pop("calendar", None)
    if calendar is not None:
        parameters["calendar"] = [calendar.weekmask, calendar.holidays]
    if name == "DateOffset" and hasattr(parameters.get("weekday"), "weekday"):
        day = parameters["weekday"]  # MO(2) of dateutil
        parameters["weekday"] = (day.weekday, day.n)
    node: Node = {TAG: "offset", "class": name, "n": offset.n, "with": walk.tree(parameters, depth + 1)}
    if offset.normalize:
        node["normalize"] = True
    if not _is_own(offset):
        raise RefusedError(
            f"a date offset of class {type(offset).__module__}.{name} cannot be stored. "
            "Use one of pandas.offsets"
        )
    return node


def _is_own(offset: Any) -> bool:
    import pandas as pd

    return getattr(pd.offsets, type(offset).__name__, None) is type(offset)


def offset_of(node: Node) -> pd.offsets.BaseOffset:
    """The offset of a node whose parts are values already. Anything malformed raises."""
    import numpy as np
    import pandas as pd

    kind: Any = getattr(pd.offsets, node["class"])
    if not (isinstance(kind, type) and issubclass(kind, pd.offsets.BaseOffset)):
        raise TypeError(f"{node['class']!r} is no date offset")
    parameters = dict(node["with"])
    if "calendar" in parameters:
        weekmask, holidays = parameters["calendar"]
        parameters["calendar"] = np.busdaycalendar(weekmask, holidays)
    if "holidays" in parameters:
        parameters["holidays"] = tuple(parameters["holidays"])
    if isinstance(parameters.get("weekday"), tuple):
        from dateutil.relativedelta import weekday

        parameters["weekday"] = weekday(*parameters["weekday"])
    if node.get("normalize"):
        parameters["normalize"] = True
    offset: pd.offsets.BaseOffset = kind(node["n"], **parameters)
    return offset


def freq_node(index: Any, labels: Any, walk: Walk, depth: int) -> Any:
    """The frequency of an index: its name where that says all of it, else a node; ``None`` without one.

    Args:
        index: Any index.
        labels: Its labels as a Series, to try whether the frequency can be given back to them.

    Raises:
        RefusedError: The frequency cannot be stored.
    """
    from pandas.tseries.frequencies import to_offset

    freq = getattr(index, "freq", None)
    if freq is None:
        return None
    node: Any = None
    if not hasattr(freq, "calendar"):
        try:
            node = freq.freqstr if to_offset(freq.freqstr) == freq else None
        except ValueError:
            node = None  # such as <DateOffset: months=1>, which no parser reads
    try:
        if node is None:
            node = offset_node(freq, walk, depth)
        # pandas takes a frequency only if it makes the very labels, which slices and shifts do not promise.
        type(index)(labels, freq=freq)
    except (RefusedError, ValueError, TypeError):
        raise RefusedError(
            f"an index with the frequency {freq} cannot be stored. Leave it out: frame.index.freq = None"
        ) from None
    return node
