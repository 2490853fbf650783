"""Who may work when: pauses and stops, the lock that SERIAL steps share, and the slots of all units."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress


class RunSignals:
    """What units of a run look at before they go on.

    Attributes:
        paused_or_stopping: Whether :meth:`may_start` would wait or raise. Nearly always false.
        failing: Whether the run ends with an error of its own: what a step raises then is no failure of it.
    """

    def __init__(self) -> None:
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._stopping = False
        self.paused_or_stopping = False
        self.failing = False

    @property
    def ending(self) -> bool:
        """Whether the run ends before all is done: its tasks are cancelled, or about to be."""
        return self._stopping or self.failing

    @property
    def paused(self) -> bool:
        """Whether the run is paused."""
        return not self._unpaused.is_set()

    def pause(self) -> None:
        """Let nothing start until :meth:`unpause`."""
        self._unpaused.clear()
        self.paused_or_stopping = True

    def unpause(self) -> None:
        """Let what waits start."""
        self._unpaused.set()
        self.paused_or_stopping = self._stopping

    def stop(self) -> None:
        """Let nothing start any more."""
        self._stopping = self.paused_or_stopping = True

    async def may_start(self) -> None:
        """Wait while the run is paused.

        Raises:
            CancelledError: The run ends: a step that took no notice starts nothing further.
        """
        if not self._unpaused.is_set():
            await self._unpaused.wait()
        if self._stopping:
            raise asyncio.CancelledError


class SerialLock:
    """The lock that SERIAL steps share, given to them in definition order; and how many workers a step has.

    Args:
        order: Position of each step in the definition; those that are ready start in this order.

    Attributes:
        on_freed: Called when a step has yielded the lock: the next step may start. Who starts steps sets it.
        on_idle: Called with the name of a step of which no worker is at work.
        on_left: By mapped step, what is called when one of its workers has left.
    """

    on_freed: Callable[[], None]
    on_idle: Callable[[str], None] | None = None

    def __init__(self, order: Mapping[str, int]) -> None:
        self._order = order
        self._ready: list[tuple[int, str]] = []
        self._holder: str | None = None
        self._returning: dict[str, list[asyncio.Future[None]]] = {}
        # Of steps that have yielded a slot: workers at work, and those that wait.
        self._working: dict[str, int] = {}
        self.on_left: dict[str, Callable[[], None]] = {}
        self._waiting: dict[str, int] = {}

    def offer(self, step: str) -> None:
        """A SERIAL step is ready."""
        heapq.heappush(self._ready, (self._order[step], step))

    def next(self) -> str | None:
        """Give the lock to the next in line; returns the step to start, if it has not begun yet."""
        if self._holder is not None or not self._ready:
            return None
        self._holder = step = heapq.heappop(self._ready)[1]
        returning = self._returning.pop(step, None)
        if returning is None:
            return step
        for waiter in returning:
            if not waiter.done():
                waiter.set_result(None)
        return None

    def release(self, step: str) -> None:
        """A step has ended."""
        if self._holder == step:
            self._holder = None

    # -- yielding ---------------------------------------------------------------------------

    def begin_workers(self, step: str, workers: int) -> None:
        """A mapped step begins with so many workers. (A step for which this is not called has one.)"""
        self._working[step] = workers

    def join(self, step: str) -> None:
        """One more worker of a step is at work."""
        self._working[step] = self._working.get(step, 1) + 1

    def leave(self, step: str) -> None:
        """A worker of a mapped step finds nothing more to do. Workers that wait need no lock."""
        self._working[step] = left = self._working.get(step, 1) - 1
        if step in self.on_left:
            self.on_left[step]()
        if left:
            return
        if self._waiting.get(step) and self._holder == step:
            self._holder = None
            self.on_freed()
        if self.on_idle is not None:
            self.on_idle(step)

    def workers(self, step: str) -> int:
        """How many workers of a step are at work."""
        return self._working.get(step, 0)

    def yield_lock(self, step: str) -> None:
        """A worker of this step waits for a person. The last one at work gives the lock away."""
        self._waiting[step] = self._waiting.get(step, 0) + 1
        self.leave(step)

    def wait_over(self, step: str) -> None:
        """A worker that has yielded waits no longer; all that is left to do is to record."""
        self._waiting[step] -= 1

    async def take_back(self, step: str, serial: bool) -> None:
        """A worker that has yielded goes on working, when its step has the lock again."""
        if serial and self._holder != step:
            await self._in_line(step)
        self.wait_over(step)
        self.join(step)

    async def _in_line(self, step: str) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        others = self._returning.setdefault(step, [])
        others.append(waiter)
        if len(others) == 1:
            self.offer(step)
            self.on_freed()
        try:
            await waiter
        except asyncio.CancelledError:
            # No worker would be there to take the lock, and to give it away again.
            others.remove(waiter)
            if not others and self._returning.pop(step, None) is not None:
                self._ready.remove((self._order[step], step))
                heapq.heapify(self._ready)
            raise


class Slots:
    """How many attempts may be under way at the same time. Those that wait get a slot in the order they came.

    Args:
        free: Slots that there are.
        signals: Of the run: while it is paused, nothing gets a slot that has to wait for one.

    Attributes:
        free: Slots that are free now.
    """

    __slots__ = ("_signals", "_waiting", "free")

    def __init__(self, free: int, signals: RunSignals) -> None:
        self.free = free
        self._signals = signals
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take_now(self) -> bool:
        """Take a slot if one is free and nothing waits for it; whether it was so."""
        if self.free and not self._waiting:
            self.free -= 1
            return True
        return False

    async def take(self) -> None:
        """Take a slot, when one is free and the run is not paused."""
        while not self.take_now():
            await self._turn()
            if not self._signals.paused_or_stopping:
                return
            self.give_back()
            await self._signals.may_start()

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # who gave a slot back has passed over it already
                    self._waiting.remove(turn)
            else:
                self.give_back()  # it got the slot in the moment it was stopped
            raise

    def give_back(self) -> None:
        """Give a slot back: the next that waits has it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1


class Slot:
    """The slot of one unit of work among those that run, and its share of its step's lock.

    Args:
        step: The step's name.
        serial: Whether the step needs the lock.
        slots: Those of the run.
        lock: That of the run.
        on_yield: Called before the slot is yielded: another worker may do what comes next.

    Attributes:
        yielded: Whether it is yielded while its unit waits.
        was_yielded: Whether it ever was.
        at_work: Whether its unit counts as one of the step's workers.
    """

    __slots__ = (
        "_has_slot",
        "_lock",
        "_on_yield",
        "_serial",
        "_slots",
        "_step",
        "at_work",
        "was_yielded",
        "yielded",
    )

    def __init__(
        self,
        step: str,
        serial: bool,
        slots: Slots,
        lock: SerialLock,
        on_yield: Callable[[], None] | None = None,
    ) -> None:
        self._step = step
        self._serial = serial
        self._slots = slots
        self._lock = lock
        self._on_yield = on_yield
        self._has_slot = False
        self.yielded = False
        self.was_yielded = False
        self.at_work = True

    async def take(self) -> None:
        """Wait for the lock, where it was yielded, and for a slot."""
        if self.yielded:
            await self._lock.take_back(self._step, self._serial)
            self.yielded, self.at_work = False, True
        await self._slots.take()
        self._has_slot = True

    def give_back(self) -> None:
        """Give the slot back."""
        if self._has_slot:
            self._has_slot = False
            self._slots.give_back()

    def yield_slot(self) -> None:
        """Let others work while this unit waits for a person."""
        if self._on_yield is not None and not self.was_yielded:
            self._on_yield()
        self.yielded = self.was_yielded = True
        self.at_work = False
        self._lock.yield_lock(self._step)
        self.give_back()

    def end(self) -> None:
        """Nothing is left to do but to record."""
        self.give_back()
        if self.yielded:
            self.yielded = False
            self._lock.wait_over(self._step)
