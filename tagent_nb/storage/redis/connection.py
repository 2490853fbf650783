"""The server of a Redis backend: a client for each event loop, a deadline, and errors in words."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import SplitResult, urlsplit
from weakref import WeakKeyDictionary, ref

from tagent_nb.errors import DefinitionError, MissingExtraError, StorageError, StorageUnavailableError
from tagent_nb.storage.redis.write_queue import (
    SIGNS,
    UNKNOWN_HOST,
    UNTRUSTED,
    RunQueue,
    losing,
    text_of,
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
class LoopClient:
    """A client, which belongs to one event loop, and the runs that are recorded through it."""

    client: redis.asyncio.Redis
    runs: dict[tuple[str, str], RunQueue] = field(default_factory=dict)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONNECTIONS))
    checked: bool = False
    away: bool = False


class Owner(Protocol):
    """What the connection to a server needs of the backend that has it."""

    def _report(self, message: str, /) -> None:
        """Note a problem that stops nothing."""

    async def _refuse_marked(self, client: redis.asyncio.Redis, /) -> None:
        """Refuse a store that a restore has only begun to fill; asked once per loop."""


class RedisConnection:
    """A server, reached through a client for each event loop.

    Attributes:
        url: As it was given, with its password.
        server: Host and port or socket, for messages.
        database: The number of the database.
        deadline: Seconds after which an operation fails.

    Args:
        url: As for :class:`RedisStorageBackend`, and so are ``durability`` and ``deadline``.
        owner: The backend, which this does not keep alive.

    Raises:
        DefinitionError: An argument is not allowed.
        MissingExtraError: The package for Redis is not installed.
    """

    def __init__(
        self, url: str, *, durability: Literal["full", "fast"], deadline: float, owner: Owner
    ) -> None:
        if _missing is not None:
            raise MissingExtraError(
                "Storage in Redis needs the package redis. Install it: pip install 'tagent-nb[redis]'"
            ) from _missing
        if durability not in ("full", "fast"):
            raise DefinitionError(f"durability must be 'full' or 'fast', not {durability!r}.")
        if not deadline > 0:
            raise DefinitionError(f"deadline must be a number of seconds above 0, not {deadline!r}.")
        self.url = url
        self._full = durability == "full"
        self.deadline = float(deadline)
        self._backend = ref(owner)
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
        self.server = getattr(options, "path", None) or f"{options.host}:{options.port}"
        self.database = options.db
        self._pid = os.getpid()
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopClient] = WeakKeyDictionary()

    async def close(self) -> None:
        """Close the connections of this event loop; they are opened again when they are needed."""
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.client.aclose()

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
            self.url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            # We retry ourselves, within one deadline.
            retry=Retry(NoBackoff(), 0),
        )

    @property
    def _owner(self) -> Owner:
        owner = self._backend()
        # It waits for what it has called.
        assert owner is not None
        return owner

    def here(self) -> LoopClient:
        """The client of the running loop; neither loops nor forked processes share one."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._loops = WeakKeyDictionary()
        loop = asyncio.get_running_loop()
        client = self._loops.get(loop)
        if client is None:
            client = self._loops[loop] = LoopClient(redis.asyncio.Redis.from_pool(self._pool()))
        return client

    def forget(self, pipeline_id: str, run_id: str) -> None:
        """Drop what each loop remembers of a run: others may have changed it."""
        for client in list(self._loops.values()):
            client.runs.pop((pipeline_id, run_id), None)

    async def script(self, script: str, keys: list[str], values: list[Any]) -> Any:
        """Run a script, sent whole only when the server does not have it yet."""
        return await self.call(lambda client: client.register_script(script)(keys, values))

    async def call(self, action: Callable[[Any], Awaitable[Any]]) -> Any:
        """Do something that may be done twice, again and again until the deadline."""
        here = self.here()
        # After a wait in vain, a failing run must not wait as long for the rest of what it does.
        deadline = time.monotonic() + (min(self.deadline, AWAY) if here.away else self.deadline)
        pause = 0.02
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())), here.slots:
                    if not here.checked:
                        await self._check_server(here.client)
                        await self._owner._refuse_marked(here.client)
                        here.checked = True
                    answer = await action(here.client)
                    here.away = False
                    return answer
            except (problems.RedisError, OSError, TimeoutError) as error:
                # A host that was there once may come back.
                permanent = not _may_pass(error) or (not here.checked and UNKNOWN_HOST.search(str(error)))
                if permanent or time.monotonic() + pause >= deadline:
                    here.away = not permanent
                    raise self.trouble(error) from error
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    async def _check_server(self, client: redis.asyncio.Redis) -> None:
        """Note settings of the server with which stored runs may vanish."""
        try:
            settings = await client.config_get("maxmemory-policy", "appendonly")
        except problems.ResponseError:
            self._owner._report(
                f"Redis at {self.server} does not show its settings; it was not checked that it keeps data."
            )
            return
        for problem in losing(settings, full=self._full):
            self._owner._report(f"Redis at {self.server} {problem}")

    def trouble(self, error: BaseException) -> StorageError:
        """What an error of the server or on the way to it says, and the remedy."""
        what = f"Redis at {self.server}: {text_of(error)}."
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
            tls = _TLS.get(self.url.partition("://")[0], "")
            return StorageUnavailableError(
                f"Redis at {self.server} did not answer within {self.deadline:g} s ({text_of(error)}). Check "
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
