"""How fast one provider may be asked: places, a minute's requests and tokens, and what it says itself."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tagent_nb.pipeline.limits import Limit
from tagent_nb.steps.changes import Changes

WINDOW = 60.0
"""Seconds of the minute that limits are about."""


@dataclass(eq=False)
class Request:
    """One request that was let through.

    Attributes:
        at: When, in seconds of the gate's clock.
        tokens: What it takes: expected at first, and known once it is answered.
        cuts: How often the places had been cut by then.
    """

    at: float
    tokens: int
    cuts: int


@dataclass
class Pace:
    """What is known about one provider. The number of places follows what it bears: halved when it
    asks for fewer requests, and one more after as many answers as there are places (AIMD, as in
    RFC 5681).

    Attributes:
        provider: Its name.
        limit: What the user allows.
        places: Requests at the same time; ``None`` for any number, until the provider complains.
        under_way: Requests that are not answered yet.
        closed_until: When the provider may be asked again, by the gate's clock.
        queue: Who waits, in order.
    """

    provider: str
    limit: Limit = field(default_factory=Limit)
    places: int | None = None
    under_way: int = 0
    closed_until: float = 0.0
    queue: deque[object] = field(default_factory=deque)
    changes: Changes = field(default_factory=Changes)
    _cuts: int = 0
    _answers: int = 0
    _recent: deque[Request] = field(default_factory=deque)

    def set(self, limit: Limit) -> None:
        """Allow something else from now on."""
        self.limit, self.places = limit, limit.concurrency
        self.changes.tell()

    def obstacle(self, now: float, tokens: int) -> tuple[float | None, str] | None:
        """What keeps a request of so many tokens from being made now.

        Returns:
            Seconds after which to look again (``None``: when another request has ended) and what it
            waits for, in words; ``None`` if nothing does.
        """
        if now < self.closed_until:
            return self.closed_until - now, f"{self.provider}, which asks for fewer requests"
        if self.places is not None and self.under_way >= self.places:
            return None, f"one of {self.places} places at {self.provider}"
        while self._recent and self._recent[0].at + WINDOW <= now:
            self._recent.popleft()
        return self._of_the_minute(now, tokens)

    def _of_the_minute(self, now: float, tokens: int) -> tuple[float, str] | None:
        requests, most = self.limit.requests_per_minute, self.limit.tokens_per_minute
        if requests is not None and len(self._recent) >= requests:
            leaves = self._recent[-requests].at + WINDOW - now
            return leaves, f"{requests} requests a minute at {self.provider}"
        if most is None or not self._recent:
            return None  # one that is too large for any minute is made alone
        over = sum(one.tokens for one in self._recent) + tokens - most
        leaves = 0.0
        for one in self._recent:
            if over <= 0:
                break
            over -= one.tokens
            leaves = one.at + WINDOW - now
        return (leaves, f"{most} tokens a minute at {self.provider}") if leaves else None

    def enter(self, now: float, tokens: int) -> Request:
        """Let a request through."""
        self.under_way += 1
        request = Request(now, tokens, self._cuts)
        self._recent.append(request)
        return request

    def leave(self) -> None:
        """A request has ended, however."""
        self.under_way -= 1
        self.changes.tell()

    def answered(self, request: Request, tokens: int) -> None:
        """It was answered: the provider bears what it gets."""
        request.tokens = tokens
        if self.places is None:
            return
        self._answers += 1
        if self._answers >= self.places and self.places != self.limit.concurrency:
            self.places, self._answers = self.places + 1, 0
            self.changes.tell()

    def refused(self, request: Request, until: float) -> None:
        """The provider asks for fewer requests until then. Requests of one burst cut the places once."""
        self.closed_until = max(self.closed_until, until)
        request.tokens = 0
        if request.cuts == self._cuts:
            self._cuts += 1
            self._answers = 0
            self.places = max(1, min(self.under_way, self.places or self.under_way) // 2)
