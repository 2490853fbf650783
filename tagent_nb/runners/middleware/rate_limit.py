"""The middleware that keeps providers from being asked too much at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import StepError
from tagent_nb.pipeline import Limit, checked_limits
from tagent_nb.runners.base import CallMiddleware, ModelCall, StepContext
from tagent_nb.runners.middleware.notify import Changes
from tagent_nb.runners.models.retry_after import MAX_TOTAL_WAIT, usable_wait

if TYPE_CHECKING:
    from pydantic_ai.exceptions import ModelRateLimitError
    from pydantic_ai.messages import ModelResponse


FIRST_BACKOFF, MAX_BACKOFF = 1.0, 30.0
"""Seconds to wait at most where the provider does not say: doubled each time, up to the second."""


def jittered(ceiling: float) -> float:
    """Seconds to wait where the provider does not say: at random, from half the ceiling on.

    Several processes that were refused at the same moment do not come back at the same moment.
    """
    return random.uniform(ceiling / 2, ceiling)


class RateLimiter(CallMiddleware):
    """Lets a request to a model pass when its provider may be asked; asks again when it was too much.

    An answer 429 is no failed attempt: all requests to that provider wait as long as it says
    (``Retry-After``), fewer are made at the same time from then on, and more again when it answers. Where it
    says nothing that can be followed (see :func:`~tagent_nb.runners.models.retry_after.usable_wait`), or
    again less than :data:`FIRST_BACKOFF`, they wait longer each time. A request that has waited
    :data:`MAX_TOTAL_WAIT` seconds in all is given up.

    Requests are let through in the order in which they came. Executors on one loop may share one.

    Args:
        limits: By provider, such as ``"openai"``; what is not named is limited only when it complains.
        clock: Seconds that never go back.
        sleep: Waits so many seconds.
        now: Seconds since 1970, for waits that are given as a date.
        jitter: Gives the seconds to wait for a ceiling, where the provider does not say.
    """

    def __init__(
        self,
        limits: Mapping[str, Limit] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
        jitter: Callable[[float], float] = jittered,
    ) -> None:
        self.paces: dict[str, Pace] = {}
        self._clock = clock
        self._sleep = sleep
        self._now = now
        self._jitter = jitter
        for provider, limit in checked_limits(limits).items():
            self.set(provider, limit)

    def set(self, provider: str, limit: Limit) -> None:
        """Limit a provider from now on, in place of what was."""
        self._pace(provider).set(limit)

    @property
    def limited(self) -> list[str]:
        """Providers that the user limits, by the names that she gave them."""
        return [name for name, pace in self.paces.items() if pace.limit != Limit()]

    def limit_of(self, model: Any) -> Limit:
        """How often the provider of a model, given as an object or by its name, may be asked."""
        from tagent_nb.runners.models.resolve import models_behind

        first = models_behind(model)[0]
        name = first.partition(":")[0] if isinstance(first, str) else getattr(first, "system", "")
        # Names such as openai-chat are of the provider openai, too.
        names = (name, name.partition("-")[0])
        return next((self.paces[each].limit for each in names if each in self.paces), Limit())

    def _pace(self, provider: str) -> Pace:
        pace = self.paces.get(provider)
        if pace is None:
            pace = self.paces[provider] = Pace(provider)
        return pace

    async def model_call(
        self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Ask when the provider may be asked.

        Raises:
            StepError: It asked for fewer requests for too long.
        """
        from pydantic_ai.exceptions import ModelRateLimitError

        if call.context.batch is not None:
            return await proceed(call)  # its batch is one request, which waits by itself
        pace = self._pace(self._provider(call))
        tokens = self._expected(pace, call)
        waited, ceiling = 0.0, FIRST_BACKOFF
        while True:
            request = await self._enter(pace, call.context, tokens)
            try:
                response = await proceed(call)
            except ModelRateLimitError as error:
                wait = usable_wait(error, self._now)
                if wait is None or (waited and wait < FIRST_BACKOFF):
                    wait = self._jitter(ceiling)
                waited += wait
                if waited > MAX_TOTAL_WAIT:
                    raise _given_up(call, pace, error, wait) from error
                pace.refused(request, self._clock() + wait)
                ceiling = min(MAX_BACKOFF, 2 * ceiling)
            else:
                from tagent_nb.runners.models.accounting import counted

                pace.answered(request, counted(response).total_tokens)
                return response
            finally:
                pace.leave()

    def _provider(self, call: ModelCall) -> str:
        """The provider by the name under which it is limited: the model's own, or as the user wrote it."""
        # Here, since a run of Python steps asks no provider.
        from tagent_nb.runners.models.resolve import models_behind

        # Of a fallback, the first one's: that is the one which is asked.
        system = models_behind(call.model)[0].system
        written = call.context.model.partition(":")[0] if isinstance(call.context.model, str) else system
        return written if written in self.paces and system not in self.paces else system

    @staticmethod
    def _expected(pace: Pace, call: ModelCall) -> int:
        if pace.limit.tokens_per_minute is None:
            return 0
        from tagent_nb.runners.models.accounting import input_tokens, most_output

        return input_tokens(call) + (most_output(call, None) or 0)

    async def _enter(self, pace: Pace, context: StepContext, tokens: int) -> PacedRequest:
        obstacle = pace.obstacle(self._clock(), tokens)
        if pace.queue or obstacle is not None:
            seconds, reason = obstacle or (None, f"its turn at {pace.provider}")
            with context.waiting(reason, seconds):
                await self._queue_up(pace, tokens)
        return pace.enter(self._clock(), tokens)

    async def _queue_up(self, pace: Pace, tokens: int) -> None:
        ticket = object()
        pace.queue.append(ticket)
        try:
            while True:
                if pace.queue[0] is not ticket:
                    await pace.changes.wait()
                    continue
                obstacle = pace.obstacle(self._clock(), tokens)
                if obstacle is None:
                    return
                if obstacle[0] is None:
                    await pace.changes.wait()
                else:
                    await self._sleep(obstacle[0])
        finally:
            pace.queue.remove(ticket)
            pace.changes.tell()


def _given_up(call: ModelCall, pace: Pace, error: ModelRateLimitError, wait: float) -> StepError:
    from tagent_nb.runners.models.errors import provider_message

    return StepError(
        f"Step {call.context.step!r}: {pace.provider} asks for fewer requests, now for {wait:g} s more, and "
        f"a request waits at most {MAX_TOTAL_WAIT:g} s ({provider_message(error)}). Resume the run later, "
        f"or ask it less: limits={{{pace.provider!r}: Limit(requests_per_minute=...)}}."
    )


WINDOW = 60.0
"""Seconds of the minute that limits are about."""


@dataclass(eq=False)
class PacedRequest:
    """One request that was let through.

    Attributes:
        at: When, in seconds of the clock.
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
        closed_until: When the provider may be asked again, by the clock.
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
    _recent: deque[PacedRequest] = field(default_factory=deque)

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
        over = sum(request.tokens for request in self._recent) + tokens - most
        leaves = 0.0
        for request in self._recent:
            if over <= 0:
                break
            over -= request.tokens
            leaves = request.at + WINDOW - now
        return (leaves, f"{most} tokens a minute at {self.provider}") if leaves else None

    def enter(self, now: float, tokens: int) -> PacedRequest:
        """Let a request through."""
        self.under_way += 1
        request = PacedRequest(now, tokens, self._cuts)
        self._recent.append(request)
        return request

    def leave(self) -> None:
        """A request has ended, however."""
        self.under_way -= 1
        self.changes.tell()

    def answered(self, request: PacedRequest, tokens: int) -> None:
        """It was answered: the provider bears what it gets."""
        request.tokens = tokens
        if self.places is None:
            return
        self._answers += 1
        if self._answers >= self.places and self.places != self.limit.concurrency:
            self.places, self._answers = self.places + 1, 0
            self.changes.tell()

    def refused(self, request: PacedRequest, until: float) -> None:
        """The provider asks for fewer requests until then. Requests of one burst cut the places once."""
        self.closed_until = max(self.closed_until, until)
        request.tokens = 0
        if request.cuts == self._cuts:
            self._cuts += 1
            self._answers = 0
            self.places = max(1, min(self.under_way, self.places or self.under_way) // 2)
