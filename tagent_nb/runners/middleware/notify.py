"""Waiting until another task has changed something."""

from __future__ import annotations

import asyncio


class Changes:
    """Lets tasks wait for the next change, in the order in which they came. On one loop at a time.

    Other than :class:`asyncio.Condition` it needs no lock, and may serve a run on another loop later.
    """

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Wait for the next :meth:`tell`."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(change)
        try:
            await change
        finally:
            if change in self._waiting:
                self._waiting.remove(change)

    def tell(self) -> None:
        """Wake all that wait now."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
