"""Text of an answer while it comes, in pieces that a screen can follow."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Callable
from typing import Any

from tagent_nb.pipeline.texts import whole_text


class Coalesced:
    """Collects small pieces of text and passes them on at most every ``interval`` seconds.

    Args:
        write: Takes the text.
        interval: Seconds between two pieces.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        interval: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._interval = interval
        self._clock = clock
        self._kept: list[str] = []
        self._last = float("-inf")

    def write(self, text: str) -> None:
        """Take a piece."""
        self._kept.append(text)
        if self._clock() - self._last >= self._interval:
            self.flush()

    def flush(self) -> None:
        """Pass on what is kept."""
        text = "".join(self._kept)
        self._kept.clear()
        if text:
            self._write(whole_text(text))
            self._last = self._clock()


async def pass_on(events: AsyncIterable[Any], write: Callable[[str], None]) -> bool:
    """Write the text of an answer while it comes, and nothing else of a model's stream.

    Returns:
        Whether anything came.
    """
    pieces, came = Coalesced(write), False
    try:
        async for event in events:
            came = True
            if event.event_kind == "part_start" and event.part.part_kind == "text":
                pieces.write(event.part.content)
            elif event.event_kind == "part_delta" and event.delta.part_delta_kind == "text":
                pieces.write(event.delta.content_delta)
    finally:
        pieces.flush()
    return came
