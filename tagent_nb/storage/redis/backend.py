"""Storage in Redis, for runs that processes on several machines share.

Every command may be sent twice: a reply that got lost does not say whether the command was carried out.
Scripts compare before they set, so that the second time changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from tagent_nb.errors import CorruptRecordError, LeaseLostError, StorageUnavailableError
from tagent_nb.naming import safe_id
from tagent_nb.storage.format.envelope import Draft, Tail, has_begun, read_record, unpack
from tagent_nb.storage.format.events import begun, completed
from tagent_nb.storage.record_backend import RecordStoreBackend, Row
from tagent_nb.storage.redis.connection import DEADLINE, RedisConnection
from tagent_nb.storage.redis.write_queue import (
    APPEND,
    NOTE,
    RELIST,
    REMOVE,
    REORDER,
    SET_ASIDE,
    SWAP,
    Entry,
    Note,
    RunQueue,
    number,
    text,
)

CHUNK = 500

EMPTY = 5.0
"""Seconds for which a look at all keys is not repeated that has found nothing."""

WHOLE = ":"
"""Stands in the list of pipelines, which is no pipeline's id, once all keys were looked at: a server that has
lost the list has lost this, too."""

_LEASE_DAYS = 7


class RedisStorageBackend(RecordStoreBackend):
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

    shared_clock = True

    def __init__(
        self,
        url: str,
        *,
        durability: Literal["full", "fast"] = "full",
        prefix: str = "tagent-nb",
        deadline: float = DEADLINE,
    ) -> None:
        super().__init__()
        self._connection = RedisConnection(url, durability=durability, deadline=deadline, owner=self)
        self._server = self._connection.server
        self.durability = durability
        self.prefix = safe_id(prefix, "prefix")
        self._empty: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<RedisStorageBackend {self._server}, prefix {self.prefix!r}>"

    @property
    def deadline(self) -> float:
        """Seconds after which an operation fails, if the server is away or does not answer."""
        return self._connection.deadline

    @deadline.setter
    def deadline(self, seconds: float) -> None:
        self._connection.deadline = seconds

    async def close(self) -> None:
        """Close the connections of this event loop; they are opened again when they are needed."""
        await super().close()
        await self._connection.close()

    # -- runs -------------------------------------------------------------------------------

    async def _append(self, pipeline_id: str, run_id: str, record: Draft, token: int | None) -> None:
        here = self._connection.here()
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
                    # Whatever it is, those who wait must get it.
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
        token = "" if batch[0].token is None else str(batch[0].token)
        keys = [
            self._name(pipeline_id, "run", run_id),
            self._name(pipeline_id, "runs"),
            self._name(pipeline_id, "lease", run_id),
            self._pipelines_name(),
            self._name(pipeline_id, "order"),
            self._last_runs_name(),
        ]
        # Where the run ends there, what the server keeps to say so, and what it has lost of what it had.
        end, state, again = queue.end, queue.state, list[bytes]()
        relisted = False
        if not end.count:
            await self._look_before(pipeline_id, run_id)
        while True:
            records, after = list(again), queue.end if again else end
            for entry in batch:
                data, after = entry.record.seal(after)
                records.append(data)
            then = batch[0].record.state(after)
            # The very same bytes at the very same place, until we know whether they are there.
            values = [pipeline_id, run_id, token, end.count, end.digest, state, then, *records]
            outcome, *more = await self._connection.script(APPEND, keys, values)
            if outcome == b"lost":
                raise self._lost(pipeline_id, run_id, more[0])
            if outcome == b"unleased":
                raise LeaseLostError(
                    f"{self._where(pipeline_id, run_id)}: state lost: the server has thrown away who may "
                    "record the run. What was recorded is kept: resume the run. Check the server's "
                    "maxmemory-policy."
                )
            if outcome == b"unlisted":
                if relisted:
                    where = self._where(pipeline_id, "the list of runs")
                    raise StorageUnavailableError(
                        f"{where} was gone and cannot be put back: the server's memory is full. Raise "
                        "maxmemory, or prune old runs."
                    )
                await self._runs(pipeline_id)
                relisted = True
                continue
            if outcome == b"done":
                queue.recorded(records, after, more[1])
                self._empty.pop(pipeline_id, None)
                return
            # Others recorded this run, or this process did before; or the server has lost records.
            count, state, last = more
            end = self._end(pipeline_id, run_id, count, last)
            if end.count == queue.end.count and end != queue.end:
                # Where others record, too, there are more.
                raise self._replaced(pipeline_id, run_id)
            if end.count and end == queue.end and state != queue.state:
                self._report(
                    f"{self._where(pipeline_id, run_id)}: what says where the run ends was gone or changed; "
                    "it was put right, and all records are there. Another program may use this store."
                )
            again = self._lost_records(pipeline_id, run_id, queue, end)
            if again:
                # With them, it may have lost the list of runs.
                await self._newest(pipeline_id, 1)

    async def _look_before(self, pipeline_id: str, run_id: str) -> None:
        """Before a run begins or goes on: see to it that neither it nor the list of runs was lost."""
        # Also puts runs of a store of before in order, whatever the clock says now.
        await self._newest(pipeline_id, 1)
        listed, records = await self._look(
            lambda together: (
                together.hexists(self._name(pipeline_id, "runs"), run_id),
                together.exists(self._name(pipeline_id, "run", run_id)),
            )
        )
        if listed and not records:
            raise self._records_gone(pipeline_id, run_id)

    def _end(self, pipeline_id: str, run_id: str, count: int, last: bytes) -> Tail:
        """Where a run ends that has so many records on the server."""
        if not count:
            return Tail()
        where = self._where(pipeline_id, run_id)
        record = unpack(last, where, kind="events", owner=run_id, key=self._key)
        if record.place not in (None, count - 1):
            raise self._replaced(pipeline_id, run_id)
        return Tail(count, record.digest)

    def _replaced(self, pipeline_id: str, run_id: str) -> CorruptRecordError:
        return CorruptRecordError(
            f"{self._where(pipeline_id, run_id)}: another program has put others in the place of its "
            "records, and nothing was recorded behind them. Give the store another prefix, and restore a "
            "backup."
        )

    def _lost_records(self, pipeline_id: str, run_id: str, queue: RunQueue, end: Tail) -> list[bytes]:
        """Records that the server had acknowledged and has lost, if they are still known here."""
        missing = queue.end.count - end.count
        if missing <= 0:
            return []
        records = queue.last(missing)
        if records is None or read_record(records[0], 0, run_id, self._key)[0].previous != end.digest:
            raise StorageUnavailableError(
                f"State lost: Redis at {self._server} has lost {missing} records of run {run_id} of pipeline "
                f"{pipeline_id}: it was restarted without them. Turn on its append-only file, and run again."
            )
        self._report(
            f"Redis at {self._server} had lost the last {missing} records of run {run_id}; "
            "they were recorded again. Its setting 'appendfsync always' avoids that."
        )
        return records

    async def _state(self, pipeline_id: str, run_id: str) -> bytes | None:
        key = self._name(pipeline_id, "lease", run_id)
        return await self._connection.call(lambda client: client.hget(key, "tail")) or b""

    async def _read(self, pipeline_id: str, run_id: str) -> bytes | None:
        parts: list[bytes] = []
        key = self._name(pipeline_id, "run", run_id)
        # In chunks, so that a long run does not keep the server from others.
        while len(parts) % CHUNK == 0:
            start, end = len(parts), len(parts) + CHUNK - 1
            chunk = await self._connection.call(partial(_slice, key, start, end))
            parts.extend(chunk)
            if not chunk:
                break
        return b"".join(parts) if parts else None

    async def _tail(self, pipeline_id: str, run_id: str) -> bytes:
        return b"".join(
            await self._connection.call(partial(_slice, self._name(pipeline_id, "run", run_id), -1, -1))
        )

    async def _runs(self, pipeline_id: str) -> list[tuple[str, int]]:
        sizes = await self._sizes(pipeline_id)
        return [(run_id, sizes[run_id]) for run_id in await self._in_order(pipeline_id, sizes)]

    async def _ordered(self, pipeline_id: str) -> list[str]:
        return [run_id for run_id, _ in await self._runs(pipeline_id)]

    async def _newest(self, pipeline_id: str, count: int) -> list[str]:
        # No script: a server whose memory is full still answers these.
        newest, ordered, listed, noted = await self._look(
            lambda together: (
                together.zrange(self._name(pipeline_id, "order"), -count, -1),
                together.zcard(self._name(pipeline_id, "order")),
                together.hlen(self._name(pipeline_id, "runs")),
                together.hget(self._last_runs_name(), pipeline_id),
            )
        )
        order = [text(run_id) for run_id in newest]
        note = Note.from_bytes(noted)
        whole = ordered == listed and note in (None, Note(ordered, order[-1] if order else ""))
        if whole and (order or self._is_empty(pipeline_id)):
            if order and noted is None:
                await self._note_again(pipeline_id, order[-1])
            return order
        return [run_id for run_id, _ in await self._runs(pipeline_id)][-count:]

    async def _has_run(self, pipeline_id: str, run_id: str) -> bool:
        listed = self._name(pipeline_id, "runs")
        if await self._connection.call(lambda client: client.hexists(listed, run_id)):
            return True
        *traces, noted = await self._look(
            lambda together: (
                together.exists(self._name(pipeline_id, "run", run_id)),
                together.zscore(self._name(pipeline_id, "order"), run_id),
                together.hexists(self._name(pipeline_id, "lease", run_id), "tail"),
                together.hget(self._last_runs_name(), pipeline_id),
            )
        )
        note = Note.from_bytes(noted)
        if any(traces) or (note is not None and note.newest == run_id):
            # It has begun, and the list of runs was lost.
            return run_id in await self._ordered(pipeline_id)
        return False

    async def _in_order(self, pipeline_id: str, sizes: Mapping[str, int]) -> list[str]:
        """Runs in their order; what it lacks, as in a store of before, is put into it once."""
        key = self._name(pipeline_id, "order")
        answers = await self._look(
            lambda together: (together.zrange(key, 0, -1), together.hget(self._last_runs_name(), pipeline_id))
        )
        there, noted = [text(run_id) for run_id in answers[0]], answers[1]
        order = [run_id for run_id in there if run_id in sizes]
        missing = list(set(sizes).difference(order))
        if missing:
            starts: dict[str, float] = {}
            for run_id in [*missing, *order]:
                first = await self._connection.call(
                    partial(_slice, self._name(pipeline_id, "run", run_id), 0, 0)
                )
                starts[run_id] = begun(b"".join(first), run_id, self._key)
            order = completed(order, missing, starts.__getitem__)
        # A server whose memory is full, or a replica, is read all the same.
        with contextlib.suppress(StorageUnavailableError):
            if order != there:
                await self._connection.script(REORDER, [self._name(pipeline_id, "runs"), key], order)
            if noted is not None and Note.from_bytes(noted) != Note.of(order):
                keys = [self._name(pipeline_id, "runs"), key, self._last_runs_name()]
                await self._connection.script(NOTE, keys, [pipeline_id, noted])
        if noted is None and order:
            await self._note_again(pipeline_id, order[-1])
        return order

    async def _note_again(self, pipeline_id: str, newest: str) -> None:
        """There is no note of the runs: report it and make one, unless a version without notes began them."""
        lease = self._name(pipeline_id, "lease", newest)
        if not await self._connection.call(lambda client: client.hexists(lease, "counted")):
            return
        keys = [self._name(pipeline_id, "runs"), self._name(pipeline_id, "order"), self._last_runs_name()]
        made = True
        with contextlib.suppress(StorageUnavailableError):
            made = bool(await self._connection.script(NOTE, keys, [pipeline_id, ""]))
        if made:
            self._report(
                f"{self._where(pipeline_id, 'the count of runs')} was gone, and was made again from those "
                "that are there. State lost: runs of which nothing is left were not noticed. Check the "
                "server's maxmemory-policy, and compare with a backup."
            )

    async def _sizes(self, pipeline_id: str) -> dict[str, int]:
        """The list of runs. What the server has lost of it is put back."""
        listed, order, noted = await self._look(
            lambda together: (
                together.hgetall(self._name(pipeline_id, "runs")),
                together.zrange(self._name(pipeline_id, "order"), 0, -1),
                together.hget(self._last_runs_name(), pipeline_id),
            )
        )
        sizes = {text(run_id): number(size) for run_id, size in listed.items()}
        ordered = [text(run_id) for run_id in order]
        note = Note.from_bytes(noted)
        whole = set(ordered) == set(sizes) and note in (None, Note.of(ordered))
        if whole and (sizes or self._is_empty(pipeline_id)):
            return sizes
        return await self._relisted(pipeline_id, sizes, set(ordered))

    async def _relisted(self, pipeline_id: str, sizes: dict[str, int], ordered: set[str]) -> dict[str, int]:
        """The list of runs with those that it lacks, by the runs' own keys, their order and the note."""
        start = self._name(pipeline_id, "")
        keys = [key.removeprefix(start).partition(":") for key in await self._keys(start)]
        recorded = {name for kind, _, name in keys if kind == "run"}
        leased = [name for kind, _, name in keys if kind == "lease" and name not in recorded]
        states = [await self._state(pipeline_id, name) for name in leased]
        begun = {name for name, state in zip(leased, states, strict=True) if has_begun(state)}
        # Runs that began meanwhile are in the list by now.
        before, present, after = await self._look(
            lambda together: (
                together.hget(self._last_runs_name(), pipeline_id),
                together.hkeys(self._name(pipeline_id, "runs")),
                together.hget(self._last_runs_name(), pipeline_id),
            )
        )
        listed = {*sizes, *map(text, present)}
        # If it is another by now, a run has been begun or deleted: the next look shows it.
        note = Note.from_bytes(before) if before == after else None
        missing = []
        for name in sorted((recorded | begun | ordered | ({note.newest} if note else set())) - listed):
            size = len(await self._read(pipeline_id, name) or b"")
            if await self._relist(pipeline_id, name, size):
                missing.append(name)
                sizes[name] = size
        where = self._where(pipeline_id, "the list of runs")
        remedy = "Check the server's maxmemory-policy, and make a backup."
        if not sizes:
            self._empty[pipeline_id] = time.monotonic()
            await self._report_if_all_is_lost(pipeline_id)
        if missing:
            gone = [name for name in missing if name not in recorded]
            lost = f" State lost: of {', '.join(gone)} no record is left." if gone else ""
            self._report(
                f"{where} was gone or not whole; {len(missing)} runs were found by their keys.{lost} {remedy}"
            )
        traceless = note.count - len(listed.union(missing)) if note else 0
        if note and traceless > 0:
            self._report(
                f"{where} is not whole. State lost: {note.count} runs were begun and not deleted, and of "
                f"{traceless} of them nothing is left. {remedy}"
            )
        return sizes

    async def _report_if_all_is_lost(self, pipeline_id: str) -> None:
        """Report a pipeline that is listed, of which there is neither a run nor anything saved."""
        listed, runs, documents = await self._look(
            lambda together: (
                together.sismember(self._pipelines_name(), pipeline_id),
                together.exists(self._name(pipeline_id, "runs")),
                together.exists(self._name(pipeline_id, "documents")),
            )
        )
        # A delete of the last of them takes the pipeline from the list; that may just have happened.
        if listed and not runs and not documents:
            self._report(
                f"Redis at {self._server}, pipeline {pipeline_id}: state lost: the pipeline is listed, and "
                "nothing is left of what was recorded and saved for it. Check the server's maxmemory-policy, "
                f"and restore a backup, or delete the pipeline: await storage.delete({pipeline_id!r})."
            )

    async def _relist(self, pipeline_id: str, run_id: str, size: int) -> bool:
        """Put a run back into the list of runs; false if it has been deleted since it was found."""
        keys = [
            self._name(pipeline_id, "run", run_id),
            self._name(pipeline_id, "runs"),
            self._name(pipeline_id, "lease", run_id),
            self._name(pipeline_id, "order"),
            self._last_runs_name(),
        ]
        try:
            return bool(await self._connection.script(RELIST, keys, [pipeline_id, run_id, size]))
        except StorageUnavailableError:
            # A server whose memory is full, or a replica, is read all the same.
            return True

    async def _keys(self, start: str) -> list[str]:
        """All keys that begin so."""

        async def look(client: Any) -> list[bytes]:
            # No letter of an id or a prefix means anything in a pattern.
            return [key async for key in client.scan_iter(match=f"{start}*", count=CHUNK)]

        # A key may come twice.
        return sorted({text(key) for key in await self._connection.call(look)})

    def _is_empty(self, pipeline_id: str) -> bool:
        """Whether a look at all keys has just shown that there is no run."""
        return time.monotonic() - self._empty.get(pipeline_id, -EMPTY) < EMPTY

    async def _rows(self, pipeline_id: str, run_ids: Sequence[str]) -> list[Row]:
        def ask(together: Any) -> None:
            together.hmget(self._name(pipeline_id, "runs"), run_ids)
            for run_id in run_ids:
                together.hmget(self._name(pipeline_id, "lease", run_id), "token", "holder", "tail")
                together.lrange(self._name(pipeline_id, "run", run_id), -1, -1)

        sizes, *answers = await self._look(ask, refuse=False)
        rows: list[Row] = []
        for place, run_id in enumerate(run_ids):
            row, (lease, tail) = Row(run_id, 0), answers[2 * place : 2 * place + 2]
            problems = [answer for answer in (sizes, lease, tail) if isinstance(answer, Exception)]
            if problems:
                row.problem = self._connection.trouble(problems[0])
            elif sizes[place] is None and not tail and not has_begun(lease[2]):
                # Another process has deleted it.
                continue
            else:
                row.size, row.token, row.holder = number(sizes[place]), number(lease[0]), lease[1] or b""
                row.state, row.tail = lease[2] or b"", b"".join(tail)
            rows.append(row)
        return rows

    async def _look(self, ask: Callable[[Any], Any], *, refuse: bool = True) -> list[Any]:
        """Answers to several questions, asked together; with ``refuse`` false, errors among them.

        What others do may fall between them: a server whose memory is full answers no transaction.
        """

        async def look(client: Any) -> list[Any]:
            async with client.pipeline(transaction=False) as together:
                ask(together)
                answers: list[Any] = await together.execute(raise_on_error=refuse)
                return answers

        results: list[Any] = await self._connection.call(look)
        return results

    async def _remove_run(self, pipeline_id: str, run_id: str, token: int) -> bool:
        return await self._remove(pipeline_id, run_id, token)

    async def _remove(self, pipeline_id: str, run_id: str, token: int) -> bool:
        keys = [
            self._name(pipeline_id, "run", run_id),
            self._name(pipeline_id, "runs"),
            self._name(pipeline_id, "lease", run_id),
            self._name(pipeline_id, "documents"),
            self._pipelines_name(),
            self._name(pipeline_id, "order"),
            self._last_runs_name(),
        ]
        return bool(await self._connection.script(REMOVE, keys, [pipeline_id, run_id, token]))

    def _forget(self, pipeline_id: str, run_id: str) -> None:
        super()._forget(pipeline_id, run_id)
        self._connection.forget(pipeline_id, run_id)

    # -- leases -----------------------------------------------------------------------------

    async def _lease(self, pipeline_id: str, run_id: str) -> tuple[int, bytes]:
        key = self._name(pipeline_id, "lease", run_id)
        token, holder = await self._connection.call(lambda client: client.hmget(key, "token", "holder"))
        return number(token), holder or b""

    async def _swap_lease(
        self, pipeline_id: str, run_id: str, expected: int, token: int, holder: bytes
    ) -> bool:
        key = self._name(pipeline_id, "lease", run_id)
        # Without heartbeats for a week no process needs the token any more: new ones grow with time.
        seconds = _LEASE_DAYS * 86_400
        swapped = await self._connection.script(SWAP, [key], [str(expected), str(token), holder, seconds])
        if not holder:
            self._forget(pipeline_id, run_id)
        return bool(swapped)

    async def _now(self) -> float:
        """The server's time: clocks of several machines may differ."""
        seconds, microseconds = await self._connection.call(lambda client: client.time())
        return float(seconds) + float(microseconds) / 1e6

    # -- documents --------------------------------------------------------------------------

    async def _put(self, pipeline_id: str, name: str, record: bytes) -> None:
        async def put(client: Any) -> None:
            async with client.pipeline(transaction=True) as together:
                together.hset(self._name(pipeline_id, "documents"), name, record)
                together.sadd(self._pipelines_name(), pipeline_id)
                await together.execute()

        await self._connection.call(put)

    async def _get(self, pipeline_id: str, name: str) -> bytes | None:
        key = self._name(pipeline_id, "documents")
        record: bytes | None = await self._connection.call(lambda client: client.hget(key, name))
        return record

    async def _remove_documents(self, pipeline_id: str) -> None:
        await self._remove(pipeline_id, "", 0)

    async def _pipelines(self) -> list[str]:
        listed = self._pipelines_name()
        names = await self._members(listed)
        if WHOLE not in names and not self._is_empty(WHOLE):
            start = f"{self.prefix}:pipeline:"
            keys = [key.removeprefix(start).split(":") for key in await self._keys(start)]
            missing = {key[0] for key in keys if key[1] in ("run", "runs", "documents")}.difference(names)
            if missing:
                # Those that were begun meanwhile are in the list by now.
                names |= await self._members(listed)
                missing -= names
            names |= missing
            if not names:
                self._empty[WHOLE] = time.monotonic()
                return []
            with contextlib.suppress(StorageUnavailableError):
                await self._connection.call(partial(_add, listed, [*missing, WHOLE]))
            if missing:
                self._report(
                    f"Redis at {self._server}, the list of pipelines was gone or not whole; {len(missing)} "
                    "were found by their keys. Check the server's maxmemory-policy, and make a backup."
                )
        return list(names.difference({WHOLE}))

    async def _members(self, name: str) -> set[str]:
        return {text(member) for member in await self._connection.call(lambda client: client.smembers(name))}

    # -- backups ----------------------------------------------------------------------------

    @property
    def _label(self) -> str:
        return f"{self._server} {self._connection.database} {self.prefix}"

    @property
    def _mark_name(self) -> str:
        return f"{self.prefix}:restoring"

    async def _mark(self, text: bytes | None) -> None:
        if text is None:
            await self._connection.call(lambda client: client.delete(self._mark_name))
        else:
            await self._connection.call(lambda client: client.set(self._mark_name, text))

    async def _marked(self) -> bytes | None:
        mark: bytes | None = await self._connection.call(lambda client: client.get(self._mark_name))
        return mark

    async def _refuse_marked(self, client: Any) -> None:
        self._refuse_half(await client.get(self._mark_name))

    async def _set_aside(self, stamp: str) -> str:
        aside = f"{self.prefix}-damaged-{stamp}"
        for pipeline_id in await self.list_pipelines():
            for run_id in await self._run_ids(pipeline_id):
                self._forget(pipeline_id, run_id)
        # Not what the lists name: a lease that stays behind would say later that its run was lost.
        names = [*await self._keys(self._name("")), self._pipelines_name(), self._last_runs_name()]
        await self._connection.script(SET_ASIDE, [], ["\n".join(names), len(self.prefix) + 1, aside])
        return f"Redis at {self._server}, prefix {aside}"

    # -- inside -----------------------------------------------------------------------------

    def _name(self, pipeline_id: str, *parts: str) -> str:
        # Ids have no colon, so two different ones never make the same key.
        return ":".join((self.prefix, "pipeline", pipeline_id, *parts))

    def _pipelines_name(self) -> str:
        return f"{self.prefix}:pipelines"

    def _last_runs_name(self) -> str:
        return f"{self.prefix}:last-runs"

    def _where(self, pipeline_id: str, name: str) -> str:
        return f"Redis at {self._server}, {name} of pipeline {pipeline_id}"


def _slice(key: str, start: int, end: int, client: Any) -> Awaitable[list[bytes]]:
    records: Awaitable[list[bytes]] = client.lrange(key, start, end)
    return records


def _add(key: str, names: list[str], client: Any) -> Awaitable[Any]:
    done: Awaitable[Any] = client.sadd(key, *names)
    return done
