"""Storage in Redis, for runs that processes on several machines share.

Every command may be sent twice: a reply that got lost does not say whether the command was carried out.
Scripts compare before they set, so that the second time changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit
from weakref import WeakKeyDictionary

from tagent_nb.errors import (
    DefinitionError,
    MissingExtraError,
    StorageError,
    StorageUnavailableError,
)
from tagent_nb.pipeline.names import safe_id
from tagent_nb.storage.recording import RecordingBackend
from tagent_nb.storage.redis_queue import (
    APPEND,
    REMOVE,
    SIGNS,
    SWAP,
    UNTRUSTED,
    Entry,
    RunQueue,
    losing,
    number,
    said,
    text,
    wrong_url,
)

try:
    import redis.asyncio
    from redis import exceptions as problems
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as missing:
    raise MissingExtraError(
        "Storage in Redis needs the package redis. Install it: pip install 'tagent-nb[redis]'"
    ) from missing

DEADLINE = 20.0
"""Seconds after which an operation fails, however often it was tried."""

AWAY = 2.0
"""The same, after an operation has failed in this way."""

CHUNK = 500

_LEASE_DAYS = 7
_CONNECTIONS = 8


@dataclass(slots=True)
class _Loop:
    """A client, which belongs to one event loop."""

    client: redis.asyncio.Redis
    runs: dict[tuple[str, str], RunQueue] = field(default_factory=dict)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONNECTIONS))
    checked: bool = False
    away: bool = False


class RedisStorageBackend(RecordingBackend):
    """Keeps everything in a Redis server.

    Args:
        url: ``redis://host:6379/0``, with TLS ``rediss://user:password@host:6379/0``, or
            ``unix:///path/to/socket``.
        durability: With ``"full"``, ``problems`` says so if the server has no append-only file. What
            survives a crash of the server is the server's own setting.
        prefix: First part of every key; stores with different prefixes share nothing.
        deadline: Seconds after which an operation fails, if the server is away or does not answer.

    Raises:
        DefinitionError: An argument is not allowed.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: Literal["full", "fast"] = "full",
        prefix: str = "tagent-nb",
        deadline: float = DEADLINE,
    ) -> None:
        super().__init__()
        if durability not in ("full", "fast"):
            raise DefinitionError(f"durability must be 'full' or 'fast', not {durability!r}.")
        if not deadline > 0:
            raise DefinitionError(f"deadline must be a number of seconds above 0, not {deadline!r}.")
        self.durability = durability
        self.prefix = safe_id(prefix, "prefix")
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

    def __repr__(self) -> str:
        return f"<RedisStorageBackend {self._server}, prefix {self.prefix!r}>"

    async def close(self) -> None:
        """Close the connections of this event loop; they are opened again when they are needed."""
        await super().close()
        found = self._loops.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found.client.aclose()

    # -- runs -------------------------------------------------------------------------------

    async def _append(self, pipeline_id: str, run_id: str, record: bytes, token: int | None) -> None:
        here = self._here()
        queue = here.runs.setdefault((pipeline_id, run_id), RunQueue())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.waiting.append(Entry(record, token, done))
        if queue.task is None:
            queue.task = asyncio.ensure_future(self._send(pipeline_id, run_id, queue))
        await done

    async def _send(self, pipeline_id: str, run_id: str, queue: RunQueue) -> None:
        """Send what waits, batch by batch. Records of one batch are recorded all or none."""
        try:
            while queue.waiting:
                batch = queue.next_batch()
                error = None
                try:
                    await self._push(pipeline_id, run_id, queue, batch)
                except Exception as problem:
                    # Whatever it is, those who wait must be told.
                    error = problem
                for entry in batch:
                    if entry.done.done():
                        # Cancelled while it was under way.
                        continue
                    if error is None:
                        entry.done.set_result(None)
                    else:
                        entry.done.set_exception(error)
        finally:
            queue.task = None

    async def _push(self, pipeline_id: str, run_id: str, queue: RunQueue, batch: list[Entry]) -> None:
        fresh = [entry.record for entry in batch]
        token = "" if batch[0].token is None else str(batch[0].token)
        keys = [
            self._name(pipeline_id, "run", run_id),
            self._name(pipeline_id, "runs"),
            self._name(pipeline_id, "lease", run_id),
            self._pipelines_name(),
        ]
        records, expected = fresh, queue.length
        while True:
            # The very same bytes at the very same place, until we know whether they are there.
            outcome, more = await self._script(APPEND, keys, [pipeline_id, run_id, token, expected, *records])
            if outcome == b"lost":
                raise self._lost(pipeline_id, run_id, more)
            if outcome == b"done":
                queue.recorded(records, more)
                return
            # Others recorded this run, or this process did before; or the server has lost records.
            expected = more
            records = self._lost_records(pipeline_id, run_id, queue, more) + fresh

    def _lost_records(self, pipeline_id: str, run_id: str, queue: RunQueue, length: int) -> list[bytes]:
        """Records that the server had acknowledged and has lost, if they are still known here."""
        missing = queue.length - length
        if missing <= 0:
            return []
        found = queue.last(missing)
        if found is None:
            raise StorageUnavailableError(
                f"Redis at {self._server} has lost {missing} records of run {run_id} of pipeline "
                f"{pipeline_id}: it was restarted without them. Turn on its append-only file, and run again."
            )
        self._report(
            f"Redis at {self._server} had lost the last {missing} records of run {run_id}; "
            "they were recorded again. Its setting 'appendfsync always' avoids that."
        )
        return found

    async def _read(self, pipeline_id: str, run_id: str) -> bytes | None:
        parts: list[bytes] = []
        key = self._name(pipeline_id, "run", run_id)
        # In chunks, so that a long run does not keep the server from others.
        while len(parts) % CHUNK == 0:
            start, end = len(parts), len(parts) + CHUNK - 1
            chunk = await self._try(partial(_slice, key, start, end))
            parts.extend(chunk)
            if not chunk:
                break
        return b"".join(parts) if parts else None

    async def _tail(self, pipeline_id: str, run_id: str) -> bytes:
        return b"".join(await self._try(partial(_slice, self._name(pipeline_id, "run", run_id), -1, -1)))

    async def _runs(self, pipeline_id: str) -> list[tuple[str, int]]:
        found = await self._try(lambda client: client.hgetall(self._name(pipeline_id, "runs")))
        if not found and pipeline_id in await self._pipelines():
            return await self._runs_without_list(pipeline_id)
        return [(text(run_id), number(size)) for run_id, size in found.items()]

    async def _runs_without_list(self, pipeline_id: str) -> list[tuple[str, int]]:
        """Runs by their keys, for a server that has evicted the list of them, or for somebody's mistake."""
        # No letter of an id or a prefix means anything in a pattern.
        start = self._name(pipeline_id, "run", "")

        async def look(client: Any) -> list[bytes]:
            return [key async for key in client.scan_iter(match=f"{start}*", count=CHUNK)]

        names = [text(key).removeprefix(start) for key in await self._try(look)]
        if names:
            self._report(
                f"{self._where(pipeline_id, 'the list of runs')} was gone; {len(names)} runs were found "
                "by their keys. Check the server's maxmemory-policy, and make a backup."
            )
        found = [(name, len(await self._read(pipeline_id, name) or b"")) for name in names]
        for name, size in found:
            # So that the next record does not begin a list without the others.
            await self._try(partial(_list_run, self._name(pipeline_id, "runs"), name, size))
        return found

    async def _remove_run(self, pipeline_id: str, run_id: str) -> None:
        await self._remove(pipeline_id, run_id)

    async def _remove(self, pipeline_id: str, run_id: str) -> None:
        keys = [
            self._name(pipeline_id, "run", run_id),
            self._name(pipeline_id, "runs"),
            self._name(pipeline_id, "lease", run_id),
            self._name(pipeline_id, "documents"),
            self._pipelines_name(),
        ]
        await self._script(REMOVE, keys, [pipeline_id, run_id])

    def _forget(self, pipeline_id: str, run_id: str) -> None:
        super()._forget(pipeline_id, run_id)
        for here in list(self._loops.values()):
            here.runs.pop((pipeline_id, run_id), None)

    # -- leases -----------------------------------------------------------------------------

    async def _lease(self, pipeline_id: str, run_id: str) -> tuple[int, bytes]:
        key = self._name(pipeline_id, "lease", run_id)
        token, holder = await self._try(lambda client: client.hmget(key, "token", "holder"))
        return number(token), holder or b""

    async def _swap_lease(
        self, pipeline_id: str, run_id: str, expected: int, token: int, holder: bytes
    ) -> bool:
        key = self._name(pipeline_id, "lease", run_id)
        # Without heartbeats for a week nobody needs the token any more: new ones grow with time.
        seconds = _LEASE_DAYS * 86_400
        swapped = await self._script(SWAP, [key], [str(expected), str(token), holder, seconds])
        if not holder:
            self._forget(pipeline_id, run_id)
        return bool(swapped)

    async def _now(self) -> float:
        """The server's time: clocks of several machines may differ."""
        seconds, microseconds = await self._try(lambda client: client.time())
        return float(seconds) + float(microseconds) / 1e6

    # -- documents --------------------------------------------------------------------------

    async def _put(self, pipeline_id: str, name: str, record: bytes) -> None:
        async def put(client: Any) -> None:
            async with client.pipeline(transaction=True) as together:
                together.hset(self._name(pipeline_id, "documents"), name, record)
                together.sadd(self._pipelines_name(), pipeline_id)
                await together.execute()

        await self._try(put)

    async def _get(self, pipeline_id: str, name: str) -> bytes | None:
        key = self._name(pipeline_id, "documents")
        found: bytes | None = await self._try(lambda client: client.hget(key, name))
        return found

    async def _remove_documents(self, pipeline_id: str) -> None:
        await self._remove(pipeline_id, "")

    async def _pipelines(self) -> list[str]:
        found = await self._try(lambda client: client.smembers(self._pipelines_name()))
        return [text(name) for name in found]

    # -- backups ----------------------------------------------------------------------------

    @property
    def _label(self) -> str:
        return f"{self._server} {self._database} {self.prefix}"

    @property
    def _mark_name(self) -> str:
        return f"{self.prefix}:restoring"

    async def _mark(self, text: bytes | None) -> None:
        if text is None:
            await self._try(lambda client: client.delete(self._mark_name))
        else:
            await self._try(lambda client: client.set(self._mark_name, text))

    async def _marked(self) -> bytes | None:
        found: bytes | None = await self._try(lambda client: client.get(self._mark_name))
        return found

    async def _set_aside(self, stamp: str) -> str:
        aside = f"{self.prefix}-damaged-{stamp}"
        names = [self._pipelines_name()]
        for pipeline_id in await self.list_pipelines():
            names += [self._name(pipeline_id, "runs"), self._name(pipeline_id, "documents")]
            for run_id in await self._run_ids(pipeline_id):
                names += [self._name(pipeline_id, "run", run_id), self._name(pipeline_id, "lease", run_id)]
                self._forget(pipeline_id, run_id)
        for name in names:
            await self._try(partial(_rename, name, aside + name.removeprefix(self.prefix)))
        return f"Redis at {self._server}, prefix {aside}"

    # -- inside -----------------------------------------------------------------------------

    def _name(self, pipeline_id: str, *parts: str) -> str:
        # Ids have no colon, so two different ones never make the same key.
        return ":".join((self.prefix, "pipeline", pipeline_id, *parts))

    def _pipelines_name(self) -> str:
        return f"{self.prefix}:pipelines"

    def _where(self, pipeline_id: str, name: str) -> str:
        return f"Redis at {self._server}, {name} of pipeline {pipeline_id}"

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
                        marked: Any = await here.client.get(self._mark_name)
                        self._refuse_half(marked)
                        here.checked = True
                    answer = await action(here.client)
                    here.away = False
                    return answer
            except (problems.RedisError, OSError, TimeoutError) as error:
                if not _may_pass(error) or time.monotonic() + pause >= deadline:
                    here.away = _may_pass(error)
                    raise self._trouble(error) from error
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

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
        if _may_pass(error):
            return StorageUnavailableError(
                f"Redis at {self._server} did not answer within {self.deadline:g} s ({said(error)}). "
                "Check that it runs and can be reached; what was recorded before is kept."
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


def _slice(key: str, start: int, end: int, client: Any) -> Awaitable[list[bytes]]:
    found: Awaitable[list[bytes]] = client.lrange(key, start, end)
    return found


def _list_run(key: str, run_id: str, size: int, client: Any) -> Awaitable[Any]:
    done: Awaitable[Any] = client.hsetnx(key, run_id, size)
    return done


async def _rename(name: str, new_name: str, client: Any) -> None:
    # What is not there may have been renamed before the reply got lost.
    if await client.exists(name):
        await client.rename(name, new_name)
