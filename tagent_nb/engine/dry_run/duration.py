"""How long steps and a run are likely to take, from and to, going by the seconds of earlier runs."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping, Sequence

from tagent_nb.engine.dry_run.quote import DRIFT, Quote, Range, sum_range
from tagent_nb.pipeline import Limit

WINDOW = 60.0
"""Seconds of the minute that limits of providers are about."""


def step_seconds(
    units: Range, at_once: int, seen: Sequence[float], floor: Range = (0.0, 0.0)
) -> Range | None:
    """Seconds of a step, from and to; ``None`` where none of its units has been seen.

    Args:
        units: How many units run, from and to.
        at_once: Most of them at the same time.
        seen: Seconds that earlier units took.
        floor: Seconds that the limits of its provider make of it, however fast it answers.
    """
    if not units[1]:
        return 0.0, 0.0
    if not seen:
        return None
    ends = []
    for end, number in enumerate(units):
        work = sum_range(seen, max(1, math.ceil(number)))[end]
        ends.append(work / max(1, min(number, at_once)))
    # Whatever runs side by side, the step ends with a unit, and that may be a long one.
    longest = max(seen) * (1 + DRIFT)
    low = max(ends[0], min(seen) * (1 - DRIFT) if units[0] else 0.0)
    high = ends[1] + (longest if units[1] > at_once else 0.0)
    return max(low, floor[0]), max(high, longest, floor[1] + longest)


def limit_seconds(limit: Limit, calls: int, quote: Quote | None) -> Range:
    """Seconds after which a provider that is limited so has let the last of these calls pass, from and to."""
    requests = _minutes(calls, limit.requests_per_minute)
    if quote is None or limit.tokens_per_minute is None:
        return requests, requests
    tokens = [
        _minutes(quote.input_tokens[end] + quote.output_tokens[end], limit.tokens_per_minute)
        for end in (0, 1)
    ]
    return max(requests, tokens[0]), max(requests, tokens[1])


def _minutes(amount: float, a_minute: int | None) -> float:
    """Seconds until an amount has passed of which so much may pass at once in each minute."""
    return 0.0 if not a_minute or amount <= 0 else (math.ceil(amount / a_minute) - 1) * WINDOW


def run_seconds(
    ranges: Mapping[str, Range | None], above: Mapping[str, Sequence[str]], serial: Sequence[str]
) -> Range | None:
    """Seconds of a run, from and to; ``None`` if those of a step are unknown.

    Args:
        ranges: Those of the steps that run or may run.
        above: Names of the steps that each step waits for.
        serial: The steps of which no two run at the same time, in the order in which they are defined.
    """
    lengths = {name: seconds for name, seconds in ranges.items() if seconds is not None}
    if len(lengths) < len(ranges):
        return None
    low, high = (
        _makespan({name: seconds[end] for name, seconds in lengths.items()}, above, serial) for end in (0, 1)
    )
    return low, high


def _makespan(
    lengths: Mapping[str, float], above: Mapping[str, Collection[str]], serial: Sequence[str]
) -> float:
    """When the last step ends, if each starts as soon as it may; steps without a length take no time."""
    places = {name: place for place, name in enumerate(serial)}
    waits_for = {name: set(names) for name, names in above.items()}
    below: dict[str, list[str]] = {}
    for name, names in waits_for.items():
        for other in names:
            below.setdefault(other, []).append(name)
    in_line: list[tuple[int, str]] = []
    under_way: list[tuple[float, str]] = []
    now, holder = 0.0, ""

    def ready(name: str) -> None:
        if name in places and lengths.get(name):
            heapq.heappush(in_line, (places[name], name))
        else:
            heapq.heappush(under_way, (now + lengths.get(name, 0.0), name))

    for name, names in waits_for.items():
        if not names:
            ready(name)
    while under_way or in_line:
        if in_line and not holder:
            holder = heapq.heappop(in_line)[1]
            heapq.heappush(under_way, (now + lengths[holder], holder))
        now, ended = heapq.heappop(under_way)
        if ended == holder:
            holder = ""
        for name in below.get(ended, ()):
            waits_for[name].discard(ended)
            if not waits_for[name]:
                ready(name)
    return now
