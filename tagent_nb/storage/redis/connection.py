"""A Redis server as the Redis backend reaches it: a client for each loop, a deadline, and errors in words."""

from __future__ import annotations

import asyncio
import os
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit
from weakref import WeakKeyDictionary

from tagent_nb.errors import DefinitionError, MissingExtraError, StorageError, StorageUnavailableError
from tagent_nb.storage.record_backend import RecordStoreBackend
from tagent_nb.storage.redis.write_queue import (
    SIGNS,
    UNKNOWN_HOST,
    UNTRUSTED,
    RunQueue,
    losing,
    said,
    wrong_url,
)

try:
    import redis.asyncio
    from redis import exceptions as problems
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as error:
    # Without the extra the backend can be looked at, as help() does, and says what it lacks when it is made.
    _missing: ImportError | None = error
else:
    _missing = None

DEADLINE = 20.0
"""Seconds after which an operation fails, however often it was tried."""

AWAY = 2.0
"""The same, after an operation has failed in this way."""

_CONNECTIONS = 8

_TLS = {
    "redis": ", and that its port takes no TLS (else write rediss://)",
    "rediss": ", and that its port takes TLS",
}
"""What to look at besides, by the scheme of the URL: a port of the other kind says nothing."""


@dataclass(slots=True)
class _Loop:
    """A client, which belongs to one event loop."""

    client: redis.asyncio.Redis
    runs: dict[tuple[str, str], RunQueue] = field(default_factory=dict)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONNECTIONS))
    checked: bool = False
    away: bool = False


class RedisLink(RecordStoreBackend):
    """The part of the backend that knows how to reach the server."""

    def __init__(self, url: str, *, durability: Literal["full", "fast"], deadline: float) -> None:
        super().__init__()
        if _missing is not None:
            raise MissingExtraError(
                "Storage in Redis needs the package redis. Install it: pip install 'tagent-nb[redis]'"
            ) from _missing
        if durability not in ("full", "fast"):
            raise DefinitionError(f"durability must be 'full' or 'fast', not {durability!r}.")
        if not deadline > 0:
            raise DefinitionError(f"deadline must be a number of seconds above 0, not {deadline!r}.")
        self.durability = durability
        self.deadline = float(deadline)
        self._url = url
        self._refuse_place(urlsplit(url))
        try:
            pool = self._pool()
            # A connection that is made, but not opened, shows whether the URL is right.
            options: Any = pool.connection_class(**pool.connection_kwargs)
        except (ValueError, TypeError) as error:
            raise DefinitionError(
                f"The URL of a Redis server is not right: {wrong_url(error)} "
                "Write redis://host:6379/0, rediss://user:password@host:6379/0 or unix:///path."
            ) from None
        # Never with the password: this is in messages.
        self._server = getattr(options, "path", None) or f"{options.host}:{options.port}"
        self._database = options.db
        self._pid = os.getpid()
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()

    async def close(self) -> None:
        """Close the connections of this event loop; they are opened again when they are needed."""
        await super().close()
        found = self._loops.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found.client.aclose()

    @staticmethod
    def _refuse_place(url: SplitResult) -> None:
        """redis-py takes what is no number for database 0, and a socket without a path for one."""
        place = url.path.strip("/")
        wrong = not place if url.scheme == "unix" else bool(place) and not place.isdecimal()
        if wrong:
            raise DefinitionError(
                "The URL of a Redis server names its database by a number, and a socket by its path. "
                "Write redis://host:6379/0 or unix:///path."
            )

    def _pool(self) -> redis.asyncio.ConnectionPool:
        timeout = min(self.deadline, 5.0)
        return redis.asyncio.ConnectionPool.from_url(
            self._url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            # We retry ourselves, within one deadline.
            retry=Retry(NoBackoff(), 0),
        )

    def _here(self) -> _Loop:
        """The client of the running loop; neither loops nor forked processes share one."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._loops = WeakKeyDictionary()
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = _Loop(redis.asyncio.Redis.from_pool(self._pool()))
        return found

    async def _script(self, script: str, keys: list[str], values: list[Any]) -> Any:
        """Run a script, sent whole only when the server does not have it yet."""
        return await self._try(lambda client: client.register_script(script)(keys, values))

    async def _try(self, action: Callable[[Any], Awaitable[Any]]) -> Any:
        """Do something that may be done twice, again and again until the deadline."""
        here = self._here()
        # Whoever has waited in vain just now must not wait as long for the rest of what a failing run does.
        deadline = time.monotonic() + (min(self.deadline, AWAY) if here.away else self.deadline)
        pause = 0.02
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())), here.slots:
                    if not here.checked:
                        await self._check_server(here.client)
                        await self._refuse_marked(here.client)
                        here.checked = True
                    answer = await action(here.client)
                    here.away = False
                    return answer
            except (problems.RedisError, OSError, TimeoutError) as error:
                # A host that was there once may come back.
                hopeless = not _may_pass(error) or (not here.checked and UNKNOWN_HOST.search(str(error)))
                if hopeless or time.monotonic() + pause >= deadline:
                    here.away = not hopeless
                    raise self._trouble(error) from error
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    @abstractmethod
    async def _refuse_marked(self, client: redis.asyncio.Redis) -> None:
        """Refuse a store that a restore has only begun to fill; asked once per loop."""

    async def _check_server(self, client: redis.asyncio.Redis) -> None:
        """Note settings of the server with which stored runs may vanish."""
        try:
            settings = await client.config_get("maxmemory-policy", "appendonly")
        except problems.ResponseError:
            self._report(
                f"Redis at {self._server} does not show its settings; nobody checked that it keeps data."
            )
            return
        for problem in losing(settings, full=self.durability == "full"):
            self._report(f"Redis at {self._server} {problem}")

    def _trouble(self, error: BaseException) -> StorageError:
        what = f"Redis at {self._server}: {said(error)}."
        if isinstance(error, problems.AuthenticationError | problems.NoPermissionError) or "NOAUTH" in str(
            error
        ):
            return StorageUnavailableError(
                f"{what} User or password are not right, or may not do this. Give them in the URL."
            )
        for sign, kind, remedy in SIGNS:
            if sign in str(error):
                return kind(f"{what} {remedy}")
        if UNKNOWN_HOST.search(str(error)):
            return StorageUnavailableError(f"{what} There is no such host: look at the URL.")
        if _may_pass(error):
            tls = _TLS.get(self._url.partition("://")[0], "")
            return StorageUnavailableError(
                f"Redis at {self._server} did not answer within {self.deadline:g} s ({said(error)}). Check "
                f"that it runs and can be reached{tls}; what was recorded before is kept."
            )
        return StorageUnavailableError(f"{what} What was recorded before is kept.")


def _may_pass(error: BaseException) -> bool:
    """Whether the same may succeed a little later. A wrong password or certificate never will."""
    wrong = isinstance(error, problems.AuthenticationError | problems.AuthorizationError)
    if wrong or UNTRUSTED in str(error):
        return False
    return isinstance(
        error,
        problems.ConnectionError | problems.TimeoutError | problems.TryAgainError | OSError | TimeoutError,
    )
