"""Single values that JSON does not know, as tagged plain data and back."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from tagent_nb.serde.nodes import TAG, Node


def own_float(value: Any) -> float:
    """A NumPy float as Python's: the one that reads the same, 0.1 for ``float32(0.1)``.

    ``value.item()`` would give 0.10000000149011612. To ``float32``, both are the same number.
    """
    return float(value) if value.dtype.itemsize == 8 else float(str(value))


# -- times --------------------------------------------------------------------------------------


def zone_of(value: datetime | time) -> str | None:
    """The name of the value's time zone, if it has one that can be looked up."""
    # zoneinfo says ``key``, pytz says ``zone``; fixed offsets have neither.
    name = getattr(value.tzinfo, "key", None) or getattr(value.tzinfo, "zone", None)
    return name if isinstance(name, str) else None


def zone_from(name: object, otherwise: tzinfo | None) -> tzinfo | None:
    """The zone of this name; ``otherwise`` where this machine does not know it."""
    if name is None:
        return otherwise
    try:
        return ZoneInfo(str(name))
    except (LookupError, ValueError, OSError):
        # The fixed offset beside the name still tells the same instant.
        return otherwise


def _from_moment(value: datetime | time, tag: str) -> Node:
    node: Node = {TAG: tag, "v": value.isoformat()}
    zone = zone_of(value)
    if zone is not None:
        node["zone"] = zone
    if value.fold:
        node["fold"] = 1
    return node


def _to_datetime(node: Mapping[str, Any]) -> datetime:
    value = datetime.fromisoformat(node["v"])
    return value.replace(tzinfo=zone_from(node.get("zone"), value.tzinfo), fold=int(node.get("fold", 0)))


def _to_time(node: Mapping[str, Any]) -> time:
    value = time.fromisoformat(node["v"])
    return value.replace(tzinfo=zone_from(node.get("zone"), value.tzinfo), fold=int(node.get("fold", 0)))


def _to_timedelta(node: Mapping[str, Any]) -> timedelta:
    days, seconds, microseconds = node["v"]
    return timedelta(days, seconds, microseconds)


def fixed_zone(seconds: float) -> timezone:
    """A zone that is always this many seconds east of UTC."""
    return timezone(timedelta(seconds=seconds))


# -- the rest -----------------------------------------------------------------------------------


def _from_path(value: PurePath) -> Node:
    if isinstance(value, Path):
        return {TAG: "path", "v": str(value)}
    return {TAG: "posixpath" if isinstance(value, PurePosixPath) else "windowspath", "v": str(value)}


def pack_bytes(value: bytes | bytearray) -> str:
    """Bytes as text, in base64."""
    return base64.b64encode(value).decode("ascii")


def unpack_bytes(text: str) -> bytes:
    """Bytes from :func:`pack_bytes`; a ``ValueError`` for anything else."""
    return base64.b64decode(text, validate=True)


TO_NODE: tuple[tuple[type | tuple[type, ...], Callable[[Any], Node]], ...] = (
    # A datetime is a date as well: it comes first.
    (datetime, lambda value: _from_moment(value, "datetime")),
    (date, lambda value: {TAG: "date", "v": value.isoformat()}),
    (time, lambda value: _from_moment(value, "time")),
    (timedelta, lambda value: {TAG: "timedelta", "v": [value.days, value.seconds, value.microseconds]}),
    (Decimal, lambda value: {TAG: "decimal", "v": str(value)}),
    (bytes, lambda value: {TAG: "bytes", "v": pack_bytes(value)}),
    (bytearray, lambda value: {TAG: "bytearray", "v": pack_bytes(value)}),
    (UUID, lambda value: {TAG: "uuid", "v": str(value)}),
    (PurePath, _from_path),
    (range, lambda value: {TAG: "range", "v": [value.start, value.stop, value.step]}),
)
"""Types, the most special first, and how their values become nodes."""

FROM_NODE: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "datetime": _to_datetime,
    "date": lambda node: date.fromisoformat(node["v"]),
    "time": _to_time,
    "timedelta": _to_timedelta,
    "decimal": lambda node: Decimal(node["v"]),
    "bytes": lambda node: unpack_bytes(node["v"]),
    "bytearray": lambda node: bytearray(unpack_bytes(node["v"])),
    "uuid": lambda node: UUID(node["v"]),
    "path": lambda node: Path(node["v"]),
    "posixpath": lambda node: PurePosixPath(node["v"]),
    "windowspath": lambda node: PureWindowsPath(node["v"]),
    "range": lambda node: range(*node["v"]),
    "float": lambda node: {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}[node["v"]],
}
"""Tags, and how their nodes become values. Anything malformed raises a built-in error."""
