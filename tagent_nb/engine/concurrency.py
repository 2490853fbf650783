"""Whose turn it is: SERIAL steps work one after the other, and whoever waits for a person steps aside."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping


class Turns:
    """The one turn that SERIAL steps share, and how many of a step's workers are at work.

    Args:
        order: Place of each step in the definition; those that are ready start in this order.
        freed: Called when somebody stepped aside: the next step may start.
    """

    def __init__(self, order: Mapping[str, int], freed: Callable[[], None]) -> None:
        self._order = order
        self._freed = freed
        self._ready: list[tuple[int, str]] = []
        self._holder: str | None = None
        self._returning: dict[str, list[asyncio.Future[None]]] = {}
        # Of steps that somebody steps aside from: workers at work, and those that wait.
        self._crews: dict[str, int] = {}
        self._aside: dict[str, int] = {}

    def offer(self, step: str) -> None:
        """A SERIAL step is ready."""
        heapq.heappush(self._ready, (self._order[step], step))

    def next(self) -> str | None:
        """Give the turn to the next in line; returns the step to start, if it has not begun yet."""
        if self._holder is not None or not self._ready:
            return None
        self._holder = step = heapq.heappop(self._ready)[1]
        returning = self._returning.pop(step, None)
        if returning is None:
            return step
        for one in returning:
            if not one.done():
                one.set_result(None)
        return None

    def release(self, step: str) -> None:
        """A step has ended."""
        if self._holder == step:
            self._holder = None

    # -- stepping aside ---------------------------------------------------------------------

    def crew(self, step: str, workers: int) -> None:
        """A mapped step begins with so many workers. (A step that says nothing has one.)"""
        self._crews[step] = workers

    def join(self, step: str) -> None:
        """One more worker of a step is at work."""
        self._crews[step] = self._crews.get(step, 1) + 1

    def leave(self, step: str) -> None:
        """A worker of a mapped step finds nothing more to do. Those who wait need no turn."""
        self._crews[step] = left = self._crews.get(step, 1) - 1
        if not left and self._aside.get(step) and self._holder == step:
            self._holder = None
            self._freed()

    def step_aside(self, step: str) -> None:
        """A worker of this step waits for a person. The last one at work gives the turn away."""
        self._aside[step] = self._aside.get(step, 0) + 1
        self.leave(step)

    def wait_over(self, step: str) -> None:
        """A worker that stepped aside waits no longer; all that is left to do is to record."""
        self._aside[step] -= 1

    async def come_back(self, step: str, serial: bool) -> None:
        """A worker that stepped aside goes on working, when it is its turn again."""
        if serial and self._holder != step:
            await self._in_line(step)
        self.wait_over(step)
        self.join(step)

    async def _in_line(self, step: str) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        others = self._returning.setdefault(step, [])
        others.append(waiting)
        if len(others) == 1:
            self.offer(step)
            self._freed()
        try:
            await waiting
        except asyncio.CancelledError:
            # Nobody would be there to take the turn, and to give it away again.
            others.remove(waiting)
            if not others and self._returning.pop(step, None) is not None:
                self._ready.remove((self._order[step], step))
                heapq.heapify(self._ready)
            raise


class Place:
    """The place of one unit of work among those that run: its slot, and its step's turn.

    Args:
        step: The step's name.
        serial: Whether the step needs the turn.
        slots: Those of the run.
        turns: Those of the run.
        on_aside: Called before it steps aside: somebody else may do its work.

    Attributes:
        away: Whether it waits aside.
        was_away: Whether it ever has.
        at_work: Whether it counts as one of its step's workers.
    """

    __slots__ = (
        "_has_slot",
        "_on_aside",
        "_serial",
        "_slots",
        "_step",
        "_turns",
        "at_work",
        "away",
        "was_away",
    )

    def __init__(
        self,
        step: str,
        serial: bool,
        slots: asyncio.Semaphore,
        turns: Turns,
        on_aside: Callable[[], None] | None = None,
    ) -> None:
        self._step = step
        self._serial = serial
        self._slots = slots
        self._turns = turns
        self._on_aside = on_aside
        self._has_slot = False
        self.away = False
        self.was_away = False
        self.at_work = True

    async def take(self) -> None:
        """Wait for the turn, where it was given away, and for a slot."""
        if self.away:
            await self._turns.come_back(self._step, self._serial)
            self.away, self.at_work = False, True
        await self._slots.acquire()
        self._has_slot = True

    def give(self) -> None:
        """Give the slot back."""
        if self._has_slot:
            self._has_slot = False
            self._slots.release()

    def step_aside(self) -> None:
        """Let others work while this one waits for a person."""
        if self._on_aside is not None and not self.was_away:
            self._on_aside()
        self.away = self.was_away = True
        self.at_work = False
        self._turns.step_aside(self._step)
        self.give()

    def end(self) -> None:
        """Nothing is left to do but to record."""
        self.give()
        if self.away:
            self.away = False
            self._turns.wait_over(self._step)
