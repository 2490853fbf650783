"""Rows of a mapped step that share a call of its model: which of them are asked for together, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

from tagent_nb.events import NO_USAGE, TokenUsage
from tagent_nb.runners.base import CallMiddleware, ModelCall, StepContext

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse


class Caller(Protocol):
    """Makes calls that several rows share."""

    def parts(self, seats: Sequence[Seat]) -> Iterable[Sequence[Seat]]:
        """These rows in as many calls as the model needs to read each at once."""
        ...

    async def ask(self, seats: Sequence[Seat]) -> list[ModelResponse | Exception]:
        """Make one call; returns each row's part of the answer, or what has failed for it, in order.

        Raises:
            Exception: It has failed for all of them.
        """
        ...


class Seat:
    """The seat of one row in a call that it shares with others.

    Args:
        context: Of the row's attempt.
        pieces: The row's task in pieces; those that are the same for all rows of a call are said once.
        caller: Makes the call.

    Attributes:
        begun: Done when the call begins.
        answer: The row's part of the answer, or what the call has failed with.
        call: The call, and the seats of all its rows; ``None`` before it begins.
        usage: The row's part of what the call has taken.
        cost: Its part of the USD; ``None`` when they are unknown.
    """

    def __init__(self, context: StepContext, pieces: Sequence[str], caller: Caller) -> None:
        loop = asyncio.get_running_loop()
        self.context = context
        self.pieces = pieces
        self.caller = caller
        self.begun: asyncio.Future[None] = loop.create_future()
        self.answer: asyncio.Future[ModelResponse] = loop.create_future()
        self.call: tuple[asyncio.Future[None], Sequence[Seat]] | None = None
        self.usage = NO_USAGE
        self.cost: float | None = 0.0

    @property
    def task(self) -> str:
        """The row's task as it is where the row is asked for by itself."""
        return "".join(self.pieces)

    @property
    def is_left(self) -> bool:
        """Whether the row does not wait for the answer any more: its attempt was stopped."""
        return self.begun.cancelled() or self.answer.cancelled()

    def spend(self, usage: TokenUsage, cost: float | None) -> None:
        """Count a part of what the call takes as the row's."""
        self.usage = self.usage + usage
        self.cost = None if cost is None or self.cost is None else self.cost + cost
        self.context.add(usage, cost)


class SharedContext(StepContext):
    """The context of a call that several rows share.

    What it spends, budgets count once, and the rows in equal parts. While it waits, all of them do.

    Args:
        seats: Of the rows.
    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.__dict__.update(seats[0].context.__dict__)
        self.middleware = [layer for layer in self.middleware if not layer.of_rows]
        self.metadata = {}
        self.usage, self.cost = NO_USAGE, 0.0
        self._seats = seats

    def spend(self, usage: TokenUsage, cost: float | None, *, counts: float | None = None) -> None:
        """Count what the call took: budgets once, and of the rows those that still wait."""
        super().spend(usage, cost, counts=counts)
        seats = self._waiting_seats()
        for seat, part, usd in zip(
            seats, usage_parts(usage, len(seats)), cost_parts(cost, len(seats)), strict=True
        ):
            seat.spend(part, usd)

    @contextmanager
    def waiting(self, reason: str, seconds: float | None = None) -> Iterator[None]:
        """Let all rows wait; see :meth:`StepContext.waiting`."""
        with ExitStack() as waits:
            for seat in self._waiting_seats():
                waits.enter_context(seat.context.waiting(reason, seconds))
            yield

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Let the timeouts of all rows stand still."""
        with ExitStack() as waits:
            for seat in self._waiting_seats():
                waits.enter_context(seat.context.untimed())
            yield

    def _waiting_seats(self) -> Sequence[Seat]:
        # When the last has left, its call is being stopped: what it took meanwhile is everyone's.
        return [seat for seat in self._seats if not seat.is_left] or self._seats


class RowGroups:
    """Brings rows of one mapped step together: a call begins when it is full, or no row will join it soon.

    No row will join it soon when every worker that is at work waits: for this call, for an equal unit, or for
    a call that has begun, where no row is left that it could take next. A row that waits for its next
    attempt, or for the run to be unpaused, is waited for.

    Args:
        size: Most rows of a call.
        at_work: How many workers take rows, without those that wait for a person.
        has_more: Whether there are rows that no worker has taken.
    """

    def __init__(self, size: int, at_work: Callable[[], int], has_more: Callable[[], bool]) -> None:
        self._size = size
        self._at_work = at_work
        self._has_more = has_more
        self._open: list[Seat] = []
        self._asking = 0
        self._aside = 0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """An attempt at a row is under way: what it does inside this block brings no other row."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A worker waits for a unit that is equal to its own."""
        self._aside += 1
        self.look()
        try:
            yield
        finally:
            self._aside -= 1

    async def answer(self, seat: Seat) -> ModelResponse:
        """Wait for a row's part of the answer of the next call; inside of :meth:`asking`.

        Raises:
            Exception: What the call has failed with.
        """
        self._open.append(seat)
        self.look()
        try:
            with seat.context.untimed():
                await seat.begun
            return await seat.answer
        except asyncio.CancelledError:
            seat.answer.cancel()
            if seat in self._open:
                self._open.remove(seat)
            elif seat.call is not None and all(other.is_left for other in seat.call[1]):
                # No row waits for it any more.
                seat.call[0].cancel()
                await asyncio.wait([seat.call[0]])
            raise

    def look(self) -> None:
        """Begin the call if nothing is to be waited for; to be called when a worker has left."""
        waits_for_rows = self._at_work() - self._asking - self._aside > 0
        waits_for_calls = self._has_more() and self._asking > len(self._open)
        seats = [seat for seat in self._open if not seat.is_left]
        if len(seats) >= self._size or (seats and not waits_for_rows and not waits_for_calls):
            self._open = []
            self._begin(seats)

    def _begin(self, seats: Sequence[Seat]) -> None:
        try:
            parts = list(seats[0].caller.parts(seats))
        except Exception as error:  # a model's own code: all of its rows say it
            for seat in seats:
                seat.begun.set_result(None)
                seat.answer.set_exception(error)
            return
        for part in parts:
            call = asyncio.ensure_future(_call(part))
            for seat in part:
                seat.call = (call, part)
                seat.begun.set_result(None)


async def _call(seats: Sequence[Seat]) -> None:
    try:
        answers = await seats[0].caller.ask(seats)
    except asyncio.CancelledError:
        for seat in seats:
            seat.answer.cancel()
        raise
    except BaseException as error:  # the model's side may raise anything, and each row says it
        for seat in seats:
            if not seat.answer.done():
                seat.answer.set_exception(error)
    else:
        for seat, answer in zip(seats, answers, strict=True):
            if seat.answer.done():
                continue
            if isinstance(answer, Exception):
                seat.answer.set_exception(answer)
            else:
                seat.answer.set_result(answer)


class Slots(Protocol):
    """How many calls may be under way at the same time."""

    async def take(self) -> None:
        """Take a slot, when one is free."""
        ...

    def give_back(self) -> None:
        """Give it back."""
        ...


class Signals(Protocol):
    """Whether a run may start anything."""

    async def may_start(self) -> None:
        """Wait while it is paused."""
        ...


class CallSlots(CallMiddleware):
    """Gives each call of a step whose rows share calls a slot of the run: its rows have none of their own.

    Args:
        slots: Those of the run.
        signals: Of the run: while it is paused, no call is made.
    """

    def __init__(self, slots: Slots, signals: Signals) -> None:
        self._slots = slots
        self._signals = signals

    async def model_call(
        self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Ask when a slot is free and the run is not paused."""
        with call.context.untimed():
            await self._signals.may_start()
            await self._slots.take()
        try:
            return await proceed(call)
        finally:
            self._slots.give_back()


def usage_parts(usage: TokenUsage, parts: int) -> list[TokenUsage]:
    """Tokens and calls in parts that add up to them; the first ones may have one more than the last."""
    counts: list[dict[str, int]] = [{} for _ in range(parts)]
    for name, total in usage.to_dict().items():
        share, more = divmod(total, parts)
        for place, part in enumerate(counts):
            part[name] = share + (place < more)
    return [TokenUsage(**part) for part in counts]


def cost_parts(cost: float | None, parts: int) -> list[float | None]:
    """USD in equal parts whose sum is the whole; ``None`` for each where the whole is unknown."""
    if cost is None:
        return [None] * parts
    equal = [cost / parts] * (parts - 1)
    return [*equal, cost - sum(equal)]
