"""How long a provider that refused a request asks to wait, by its headers."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_ai.exceptions import ModelAPIError

MIN_WAIT = 0.1
"""Seconds. A wait that is shorter says nothing: a server that means it would not have refused."""

MAX_TOTAL_WAIT = 300.0
"""Most seconds that one request waits because its provider asks for fewer requests."""

MAX_RESET_WAIT = 30.0
"""Most seconds that are waited because of a header such as ``x-ratelimit-reset-requests``: it says when a
limit is whole again, and the next request may be allowed long before."""

_YEAR = 366 * 86_400.0
"""Numbers that are, in seconds or milliseconds since 1970, less than so many seconds from now are moments."""

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_UNITS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)

_RESETS = ("x-ratelimit-reset", "ratelimit-reset", "x-rate-limit-reset", "anthropic-ratelimit-")


def usable_wait(error: ModelAPIError, now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a provider asks to wait; ``None`` where it says nothing that could be followed.

    ``retry-after-ms`` comes first, then ``Retry-After`` in seconds, also with a fraction, or as a date, then
    what the provider's client has read elsewhere, then the headers that say when a limit is whole again.
    Zero, what is negative, over, no number, or less than :data:`MIN_WAIT` says nothing.

    Args:
        error: The refusal.
        now: Seconds since 1970.
    """
    headers: Mapping[str, str] = getattr(error, "headers", None) or {}
    for seconds in _waits(headers, error.retry_after, now):
        if seconds is not None and MIN_WAIT <= seconds < math.inf:
            return seconds
    return None


def _waits(
    headers: Mapping[str, str], parsed: float | None, now: Callable[[], float]
) -> Iterator[float | None]:
    milliseconds = _number(headers.get("retry-after-ms", ""))
    yield None if milliseconds is None else milliseconds / 1000
    after = headers.get("retry-after", "").strip()
    # A header that was sent twice is one with a comma, as is a date.
    several = [_number(part) for part in after.split(",")]
    numbers = [number for number in several if number is not None]
    yield _duration(str(max(numbers)) if len(numbers) == len(several) else after, now)
    if not after and milliseconds is None:
        yield parsed  # such as Google's, from the body
    resets = [wait for wait in _resets(headers, now) if wait is not None and wait >= MIN_WAIT]
    yield min(max(resets), MAX_RESET_WAIT) if resets else None


def _resets(headers: Mapping[str, str], now: Callable[[], float]) -> Iterator[float | None]:
    """Seconds until each limit is whole again, but for limits of which something is left."""
    for name, text in headers.items():
        if "reset" not in name or not name.startswith(_RESETS):
            continue
        left = _number(headers.get(name.replace("reset", "remaining"), ""))
        if left is None or left <= 0:
            yield _duration(text.strip(), now)


def _duration(text: str, now: Callable[[], float]) -> float | None:
    """``"2"``, ``"6m0s"``, ``"20ms"``, seconds or milliseconds since 1970, or a date, in seconds from now."""
    number = _number(text)
    if number is not None:
        waits = (moment - now() for moment in (number, number / 1000))
        return next((wait for wait in waits if abs(wait) < _YEAR), number)
    parts = _DURATION.fullmatch(text)
    if text and parts is not None:
        return sum(float(part) * unit for part, unit in zip(parts.groups(), _UNITS, strict=True) if part)
    return _until(text, now)


def _until(text: str, now: Callable[[], float]) -> float | None:
    """Seconds until a date of HTTP or ISO 8601; ``None`` where the text is none."""
    from email.utils import parsedate_to_datetime  # a dozen modules, for what is rare

    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(text)
            # Dates without a zone are UTC (RFC 9110).
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
            return moment.timestamp() - now()
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
