"""Runs as documents of a backend that has nothing but the four methods of a storage.

A pipeline's saved data is the document of its id. Everything else has an id that begins with ``_tagent-``:

- ``run``: the head of a run: how many parts it has, its last records, and where it ends. What is recorded
  together is one save of this document, so that all of it is there or none.
- ``part``: records that the head has no room for any more, written once.
- ``lease``: who carries a run on.
- ``memories``, ``aside`` (what a restore has moved away) and ``restoring``.

A head's id names its pipeline, its place in the order of runs and its run, so that lists need no index that
two processes would have to change at once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import inspect
import json
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    FormatVersionError,
    NotStoredError,
    StorageError,
    StorageUnavailableError,
    TagentError,
)
from tagent_nb.naming import id_of
from tagent_nb.storage.backend import LEASES, OPENED, StorageBackend
from tagent_nb.storage.format.envelope import Draft, Tail, pack, read_tail, unpack
from tagent_nb.storage.record_backend import RecordStoreBackend, Row
from tagent_nb.storage.run_storage import is_safe

T = TypeVar("T")

OURS = "_tagent-"
"""How the ids of documents begin that are not a pipeline's saved data."""

RECORD = f"{OURS}record"
"""The key of what JSON alone does not protect: a record with its checksum or signature."""

ROOM = 1 << 16
"""Bytes of records in a head from which on they become a part: so many are written again with each record."""

AT_ONCE = 8
"""Documents that are asked for at the same time."""

MAX_HEADS = 64
"""Runs whose head is kept in memory between two records."""

_RUN = re.compile(OURS + r"run-(\d\d)([A-Za-z0-9_-]+)")
_BEHIND = re.compile(r"-(\d{1,12})-([A-Za-z0-9_-]{1,64})")
_FORMAT = 1
_making = threading.Lock()


def opened(backend: StorageBackend) -> DocumentStore:
    """What keeps runs in a backend of four methods: the same for the same object."""
    with _making:
        store = vars(backend).get(OPENED)
        if store is None or store.backend is not backend:
            store = vars(backend)[OPENED] = DocumentStore(backend)
        return store


@dataclass
class _Head:
    """The head of a run.

    Attributes:
        number: Its place among the runs of its pipeline.
        parts: Parts that are stored.
        size: Bytes of all records.
        records: Those behind the parts, in base64.
        state: Where the run ends, as a record's ``state`` gives it.
        room: Bytes of ``records``.
        token: The lease under which this process read or wrote it last.
    """

    number: int
    parts: int = 0
    size: int = 0
    records: list[str] = field(default_factory=list)
    state: str = ""
    room: int = 0
    token: int | None = None


@dataclass
class _Waiting:
    """A record that is to be stored."""

    record: Draft
    token: int | None
    done: asyncio.Future[None]


class DocumentStore(RecordStoreBackend):
    """A storage over a :class:`StorageBackend` of four methods; :func:`tagent_nb.open_storage` makes it.

    Of several processes that use the same documents, one at a time should carry on a run: a claim is looked
    up and written, not exchanged in one step.

    Args:
        backend: Has the four methods.
    """

    def __init__(self, backend: StorageBackend) -> None:
        super().__init__()
        self.backend = backend
        self.capabilities = backend.capabilities - {LEASES}
        self._loop = _Loop()
        weakref.finalize(self, _Loop.stop, self._loop)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._heads: OrderedDict[tuple[str, str], _Head] = OrderedDict()
        self._waiting: dict[tuple[str, str], list[_Waiting]] = {}
        self._report(
            f"{self._name} keeps runs through its four methods. These do not promise that of two processes "
            "which claim the same run at the same moment one is refused, nor that a crash while they save "
            "leaves what was saved before, unless they replace it in one step; and each record writes the "
            "last ones of its run again. A folder, SQLite and Redis promise more."
        )

    def __repr__(self) -> str:
        return f"<{self._name}, through its four methods>"

    @property
    def _name(self) -> str:
        return type(self.backend).__name__

    def _where(self, pipeline_id: str, name: str) -> str:
        return f"{name} of pipeline {pipeline_id} in {self._name}"

    async def close(self) -> None:
        """Forget what was read, and call the backend's own ``close`` if it has one."""
        await super().close()

        async def close() -> None:
            self._heads.clear()
            own = type(self.backend).close
            if own is not StorageBackend.close:
                ended: object = own(self.backend)
                if inspect.isawaitable(ended):
                    await ended

        await self._there(close())

    # -- the four methods -------------------------------------------------------------------

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the loop of the four methods. A cancellation does not stop it half-way."""
        return await asyncio.shield(asyncio.wrap_future(self._loop.submit(work)))

    async def _call(self, name: str, *args: Any) -> Any:
        """Call one of the four methods.

        Raises:
            DefinitionError: It is not ``async``.
            StorageUnavailableError: It raised something that is not ours.
        """
        try:
            answer = getattr(self.backend, name)(*args)
            if inspect.isawaitable(answer):
                return await answer
        except TagentError:
            raise
        except Exception as error:
            about = f"({args[0]!r}) " if args else "() "
            raise StorageUnavailableError(
                f"{self._name}.{name}{about}failed: {type(error).__name__}: {error}. The cause is there; "
                "what was recorded before can be resumed."
            ) from error
        raise DefinitionError(f"{self._name}.{name} must be an async method: write `async def {name}(...)`.")

    async def _ids(self) -> list[str]:
        """Ids of all documents.

        Raises:
            StorageError: A restore was stopped half-way.
        """
        ids = await self._listed()
        if not self._restoring and f"{OURS}restoring" in ids:
            self._refuse_half(await self._read_mark())
        return ids

    async def _listed(self) -> list[str]:
        return [name for name in await self._call("list_pipelines") if isinstance(name, str)]

    async def _document(self, name: str) -> dict[str, Any] | None:
        """A document, or ``None``. What answers that there is none is believed if no list has it either.

        Raises:
            CorruptRecordError: It is listed and cannot be read.
            StorageUnavailableError: As before, and the cause is not in the document.
        """
        problem: StorageError
        try:
            document = await self._call("load", name)
        except NotStoredError:
            return None
        except StorageUnavailableError as error:
            problem = error
            if isinstance(error.__cause__, ValueError | EOFError | LookupError | TypeError):
                problem = CorruptRecordError(f"{error} Restore a backup, or delete it.")
        else:
            if isinstance(document, dict) and document:
                return document
            what = f"gave {'an empty dict' if document == {} else f'a {type(document).__name__}'}"
            problem = CorruptRecordError(
                f"{self._name}.load({name!r}) {what}, and list_pipelines() has that id. Restore a backup, or "
                "delete it."
            )
            if document == {} and is_safe(name) and not name.startswith(OURS):
                return {} if name in await self._listed() else None
        if name in await self._listed():
            raise problem
        return None

    async def _drop(self, names: Iterable[str]) -> None:
        """Delete documents, one after the other. One that is not there any more is no error."""
        for name in names:
            try:
                await self._call("delete", name)
            except StorageError:
                if name in await self._listed():
                    raise

    def _lock(self, name: str) -> asyncio.Lock:
        """A lock that tasks on the loop of the four methods share as long as one of them has it."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    # -- documents --------------------------------------------------------------------------

    async def _place(self, pipeline_id: str) -> str:
        if id_of(pipeline_id).startswith(OURS):
            raise DefinitionError(f"Ids that begin with {OURS!r} are for parts of runs. Choose another name.")
        return await super()._place(pipeline_id)

    async def _put(self, pipeline_id: str, name: str, record: bytes) -> None:
        document: dict[str, Any] = {RECORD: _text(record)}
        if name == "snapshot" and self._key is None:
            # As a program that calls the backend itself saves and loads it.
            document = json.loads(unpack(record, name).body)
        where = _document_id(pipeline_id, name)

        async def put() -> None:
            async with self._lock(where):
                await self._call("save", where, document)

        await self._there(put())

    async def _get(self, pipeline_id: str, name: str) -> bytes | None:
        document = await self._there(self._document(_document_id(pipeline_id, name)))
        if document is None:
            return None
        where = self._where(pipeline_id, name)
        if RECORD in document:
            return _bytes(document[RECORD], where)
        if name != "snapshot":
            raise _not_ours(where)
        try:
            body = json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise CorruptRecordError(f"{where}: holds what JSON cannot ({error}).") from None
        return pack(name, pipeline_id, body)

    async def _pipelines(self) -> list[str]:
        ids = await self._there(self._ids())
        names = {name for name in ids if not name.startswith(OURS)}
        names.update(run[0] for run in map(_run_in, ids) if run is not None)
        memories = _document_id("", "memories")
        names.update(name.removeprefix(memories) for name in ids if name.startswith(memories))
        return list(names)

    async def _remove_documents(self, pipeline_id: str) -> None:
        saved = {_document_id(pipeline_id, name) for name in ("memories", "snapshot")}
        # A lease without a run, and parts of a run whose deletion was stopped half-way.
        marks = tuple(f"{_start(kind, pipeline_id)}-" for kind in ("lease", "run", "part"))

        async def remove() -> None:
            ids = await self._ids()
            await self._drop(name for name in ids if name.startswith(marks))
            await self._drop(name for name in ids if name in saved)

        await self._there(remove())

    # -- runs -------------------------------------------------------------------------------

    async def _numbers(self, pipeline_id: str) -> dict[str, int]:
        """The runs of a pipeline in their order, with their numbers."""
        runs = [run for run in map(_run_in, await self._ids()) if run is not None and run[0] == pipeline_id]
        return {run_id: number for _, number, run_id in sorted(runs, key=lambda run: run[1:])}

    async def _head(self, pipeline_id: str, run_id: str, number: int | None = None) -> _Head | None:
        """The head of a run as it is stored, or ``None``."""
        if number is None:
            number = (await self._numbers(pipeline_id)).get(run_id)
            if number is None:
                return None
        name = _id("run", pipeline_id, run_id, number)
        document = await self._document(name)
        if document is None:
            return None
        _check(document, pipeline_id, run_id, name)
        try:
            head = _Head(
                number,
                int(document["parts"]),
                int(document["size"]),
                [str(record) for record in document["records"]],
                str(document["state"]),
            )
        except (KeyError, TypeError, ValueError):
            raise _not_ours(name) from None
        head.room = sum(map(len, head.records)) * 3 // 4
        return head

    async def _append(self, pipeline_id: str, run_id: str, record: Draft, token: int | None) -> None:
        async def append() -> None:
            waiting = _Waiting(record, token, asyncio.get_running_loop().create_future())
            key = (pipeline_id, run_id)
            queue = self._waiting.setdefault(key, [])
            queue.append(waiting)
            async with self._lock(_id("run", pipeline_id, run_id)):
                # The write before may have had this, too: what waits goes out together.
                if not waiting.done.done():
                    batch = queue.copy()
                    queue.clear()
                    await self._write(pipeline_id, run_id, batch)
            if not queue and self._waiting.get(key) is queue:
                del self._waiting[key]
            waiting.done.result()

        await self._there(append())

    async def _write(self, pipeline_id: str, run_id: str, batch: Sequence[_Waiting]) -> None:
        """Store records of a run with one save; each learns how that went."""
        key = (pipeline_id, run_id)
        try:
            good = await self._with_good_tokens(pipeline_id, run_id, batch)
            if good:
                tokens = {waiting.token for waiting in good}
                token = tokens.pop() if len(tokens) == 1 else None
                head = self._heads.pop(key, None)
                # What another process may have recorded since is not overwritten.
                if head is None or token is None or head.token != token:
                    head = await self._head(pipeline_id, run_id)
                if head is not None:
                    await self._extend(pipeline_id, run_id, head, good)
                else:
                    async with self._lock(_start("run", pipeline_id)):
                        numbers = await self._numbers(pipeline_id)
                        head = _Head(max(numbers.values(), default=0) + 1)
                        await self._extend(pipeline_id, run_id, head, good)
                head.token = token
                self._heads[key] = head
                if len(self._heads) > MAX_HEADS:
                    self._heads.popitem(last=False)
        except BaseException as error:
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_exception(error)
        else:
            for waiting in good:
                waiting.done.set_result(None)

    async def _with_good_tokens(
        self, pipeline_id: str, run_id: str, batch: Sequence[_Waiting]
    ) -> list[_Waiting]:
        """Those whose lease is the present one; the others are refused."""
        if all(waiting.token is None for waiting in batch):
            return list(batch)
        token, holder = await self._read_lease(pipeline_id, run_id)
        good: list[_Waiting] = []
        for waiting in batch:
            if waiting.token is None or waiting.token == token:
                good.append(waiting)
            else:
                waiting.done.set_exception(self._lost(pipeline_id, run_id, holder))
        return good

    async def _extend(self, pipeline_id: str, run_id: str, head: _Head, batch: Sequence[_Waiting]) -> None:
        tail = Tail()
        if head.state:
            tail = read_tail(head.state.encode(), pipeline_id, run_id, self._key)
        for waiting in batch:
            if head.room >= ROOM:
                # Before the head that names it: a part which no head names yet is written again.
                part = _id("part", pipeline_id, run_id, head.number, head.parts)
                await self._call("save", part, _signed(pipeline_id, run_id, records=head.records))
                head.parts += 1
                head.records, head.room = [], 0
            record, tail = waiting.record.seal(tail)
            head.records.append(_text(record))
            head.room += len(record)
            head.size += len(record)
            head.state = waiting.record.state(tail).decode()
        document = _signed(
            pipeline_id,
            run_id,
            parts=head.parts,
            size=head.size,
            state=head.state,
            records=list(head.records),
        )
        await self._call("save", _id("run", pipeline_id, run_id, head.number), document)

    async def _stored(self, pipeline_id: str, run_id: str) -> tuple[bytes, bytes | None] | None:
        return await self._there(self._whole_run(pipeline_id, run_id))

    async def _whole_run(self, pipeline_id: str, run_id: str) -> tuple[bytes, bytes] | None:
        head = await self._head(pipeline_id, run_id)
        if head is None:
            return None
        number = head.number

        async def part(place: int) -> list[str]:
            name = _id("part", pipeline_id, run_id, number, place)
            document = await self._document(name)
            if document is None:
                raise CorruptRecordError(
                    f"{self._where(pipeline_id, run_id)}: state lost: part {place + 1} of {head.parts} is "
                    "missing. Restore a backup, or delete the run."
                )
            _check(document, pipeline_id, run_id, name)
            records = document.get("records")
            if not isinstance(records, list):
                raise _not_ours(name)
            return records

        parts = await _gathered([part(place) for place in range(head.parts)])
        where = self._where(pipeline_id, run_id)
        data = [_bytes(record, where) for records in [*parts, head.records] for record in records]
        return b"".join(data), head.state.encode()

    async def _read(self, pipeline_id: str, run_id: str) -> bytes | None:
        stored = await self._stored(pipeline_id, run_id)
        return None if stored is None else stored[0]

    async def _tail(self, pipeline_id: str, run_id: str) -> bytes:
        head = await self._there(self._head(pipeline_id, run_id))
        return b"" if head is None else self._last_of(head, pipeline_id, run_id)

    def _last_of(self, head: _Head, pipeline_id: str, run_id: str) -> bytes:
        return b"".join(_bytes(record, self._where(pipeline_id, run_id)) for record in head.records[-1:])

    async def _state(self, pipeline_id: str, run_id: str) -> bytes | None:
        head = await self._there(self._head(pipeline_id, run_id))
        return b"" if head is None else head.state.encode()

    async def _runs(self, pipeline_id: str) -> list[tuple[str, int]]:
        async def size(run_id: str, number: int) -> int:
            try:
                head = await self._head(pipeline_id, run_id, number)
            except CorruptRecordError:
                return 0
            return 0 if head is None else head.size

        async def runs() -> list[tuple[str, int]]:
            numbers = await self._numbers(pipeline_id)
            sizes = await _gathered([size(run_id, number) for run_id, number in numbers.items()])
            return list(zip(numbers, sizes, strict=True))

        return await self._there(runs())

    async def _ordered(self, pipeline_id: str) -> list[str]:
        return list(await self._there(self._numbers(pipeline_id)))

    async def _rows(self, pipeline_id: str, run_ids: Sequence[str]) -> list[Row]:
        async def row(run_id: str, number: int | None) -> Row | None:
            if number is None:
                return None
            row = Row(run_id, 0)
            try:
                row.token, row.holder = await self._read_lease(pipeline_id, run_id)
                head = await self._head(pipeline_id, run_id, number)
                if head is None:
                    return None
                row.size, row.state = head.size, head.state.encode()
                row.tail = self._last_of(head, pipeline_id, run_id)
            except CorruptRecordError as error:
                row.problem = error
            return row

        async def rows() -> list[Row]:
            numbers = await self._numbers(pipeline_id)
            stored = await _gathered([row(run_id, numbers.get(run_id)) for run_id in run_ids])
            return [row for row in stored if row is not None]

        return await self._there(rows())

    async def _remove_run(self, pipeline_id: str, run_id: str, token: int) -> bool:
        lease = _id("lease", pipeline_id, run_id)

        async def remove() -> bool:
            async with self._lock(_id("run", pipeline_id, run_id)), self._lock(lease):
                present, _ = await self._read_lease(pipeline_id, run_id)
                if present not in (token, 0):
                    return False
                self._heads.pop((pipeline_id, run_id), None)
                ids = await self._ids()
                heads = [name for name in ids if (run := _run_in(name)) and run[::2] == (pipeline_id, run_id)]
                parts = [f"{OURS}part-{name.removeprefix(f'{OURS}run-')}" for name in heads]
                # The head first: without it there is no run, whatever is left of it.
                await self._drop(heads)
                await self._drop(
                    name for name in ids if (end := name.rpartition("-"))[0] in parts and end[2].isdigit()
                )
                await self._drop(name for name in ids if name == lease)
                return True

        return await self._there(remove())

    # -- leases -----------------------------------------------------------------------------

    async def _lease(self, pipeline_id: str, run_id: str) -> tuple[int, bytes]:
        return await self._there(self._read_lease(pipeline_id, run_id))

    async def _read_lease(self, pipeline_id: str, run_id: str) -> tuple[int, bytes]:
        name = _id("lease", pipeline_id, run_id)
        document = await self._document(name)
        if document is None:
            return 0, b""
        _check(document, pipeline_id, run_id, name)
        try:
            return int(document["token"]), str(document["holder"]).encode("latin-1")
        except (KeyError, TypeError, ValueError):
            raise _not_ours(name) from None

    async def _swap_lease(
        self, pipeline_id: str, run_id: str, expected: int, token: int, holder: bytes
    ) -> bool:
        name = _id("lease", pipeline_id, run_id)

        async def swap() -> bool:
            async with self._lock(name):
                present, _ = await self._read_lease(pipeline_id, run_id)
                if present != expected:
                    return False
                document = _signed(pipeline_id, run_id, token=token, holder=holder.decode("latin-1"))
                await self._call("save", name, document)
                return True

        return await self._there(swap())

    # -- restoring --------------------------------------------------------------------------

    async def _set_aside(self, stamp: str) -> str:
        async def move() -> None:
            self._heads.clear()
            ids = [
                name
                for name in await self._ids()
                if not name.startswith((f"{OURS}aside-", f"{OURS}restoring"))
            ]
            for place, name in enumerate(sorted(filter(_may_be_ours, ids))):
                try:
                    document = await self._document(name)
                except CorruptRecordError as error:
                    # What cannot be read cannot be moved.
                    self._report(f"Not kept aside: {error}")
                else:
                    aside = {"id": name, "document": document}
                    await self._call("save", f"{OURS}aside-{stamp}-{place:06}", aside)
                await self._drop([name])

        await self._there(move())
        return f"the documents {OURS}aside-{stamp}-* of {self._name}"

    async def _mark(self, text: bytes | None) -> None:
        name = f"{OURS}restoring"
        work = (
            self._drop([name]) if text is None else self._call("save", name, {"mark": text.decode("latin-1")})
        )
        await self._there(work)

    async def _marked(self) -> bytes | None:
        return await self._there(self._read_mark())

    async def _read_mark(self) -> bytes | None:
        document = await self._document(f"{OURS}restoring")
        return None if document is None else str(document.get("mark")).encode("latin-1", "replace")


# -- ids and contents of documents ---------------------------------------------------------------


def _start(kind: str, pipeline_id: str) -> str:
    """How ids of a pipeline's documents of a kind begin. The length says where the pipeline's id ends."""
    return f"{OURS}{kind}-{len(pipeline_id):02}{pipeline_id}"


def _id(kind: str, pipeline_id: str, run_id: str, number: int | None = None, part: int | None = None) -> str:
    place = "" if number is None else f"-{number:06}"
    end = "" if part is None else f"-{part:05}"
    return f"{_start(kind, pipeline_id)}{place}-{run_id}{end}"


def _document_id(pipeline_id: str, name: str) -> str:
    return pipeline_id if name == "snapshot" else f"{OURS}{name}-{pipeline_id}"


def _run_in(name: str) -> tuple[str, int, str] | None:
    """Pipeline, number and run of a head's id; ``None`` of any other id."""
    match = _RUN.fullmatch(name)
    if match is None:
        return None
    length, rest = int(match[1]), match[2]
    behind = _BEHIND.fullmatch(rest[length:])
    return None if behind is None else (rest[:length], int(behind[1]), behind[2])


def _may_be_ours(name: str) -> bool:
    return is_safe(name) or name.startswith(OURS)


def _signed(pipeline_id: str, run_id: str, **content: Any) -> dict[str, Any]:
    """A document that says what it belongs to."""
    return {"tagent": _FORMAT, "pipeline": pipeline_id, "run": run_id, **content}


def _check(document: dict[str, Any], pipeline_id: str, run_id: str, name: str) -> None:
    version = document.get("tagent")
    if (document.get("pipeline"), document.get("run")) != (pipeline_id, run_id) or type(version) is not int:
        raise _not_ours(name)
    if version > _FORMAT:
        raise FormatVersionError(
            f"{name}: written in format {version}, and this tagent-nb reads up to {_FORMAT}. "
            "Install a newer tagent-nb; nothing was changed."
        )


def _not_ours(name: str) -> CorruptRecordError:
    return CorruptRecordError(
        f"{name}: the document is not what was saved under that id. Restore a backup, or delete it."
    )


def _text(data: bytes) -> str:
    """Bytes as text that every format of documents keeps as it is."""
    return base64.b64encode(data).decode()


def _bytes(text: object, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]
    except (binascii.Error, TypeError, ValueError):
        raise CorruptRecordError(
            f"{where}: a record is damaged. Restore a backup, or delete it; nothing was changed."
        ) from None


async def _gathered(work: Sequence[Awaitable[T]]) -> list[T]:
    """The results of some work, a few of which go on at the same time."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def limited(job: Awaitable[T]) -> T:
        async with limit:
            return await job

    return list(await asyncio.gather(*map(limited, work)))


class _Loop:
    """An event loop in a thread of its own, on which all calls of a backend are made."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._starting = threading.Lock()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something on the loop, which is started with the first."""
        with self._starting:
            # A forked child inherits the object but not the thread that ran it.
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(
                    target=_serve, args=(self._loop,), name="tagent-nb documents", daemon=True
                ).start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """End the thread, if there is one in this process."""
        if self._loop is not None and self._pid == os.getpid():
            self._loop.call_soon_threadsafe(self._loop.stop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()
