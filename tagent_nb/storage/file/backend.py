"""Storage in a folder: for each pipeline its documents, and for each run an append-only journal."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Literal, TypeVar

from tagent_nb.errors import CorruptRecordError, DefinitionError, StorageError
from tagent_nb.storage.file.checked import CHECKED
from tagent_nb.storage.file.copies import RECORD, Document, folder_locked, is_document, is_kept
from tagent_nb.storage.file.journal import TAIL, RunFile, had_records
from tagent_nb.storage.file.order import JOURNAL, LEASE, ORDER, RunOrder
from tagent_nb.storage.filesystem import (
    MAX_MARK,
    from_file_name,
    make_folder,
    mark_file,
    open_file,
    read_file,
    read_open,
    sweep,
    to_file_name,
    trouble,
    user_path,
)
from tagent_nb.storage.format.envelope import Draft
from tagent_nb.storage.format.events import FIRST, begun
from tagent_nb.storage.record_backend import RecordStoreBackend, Row

Durability = Literal["full", "fast"]
T = TypeVar("T")

_SUFFIXES = (RECORD, JOURNAL, LEASE, ORDER, CHECKED, ".tmp")

MAX_OPEN = 32
"""Runs whose files stay open between two records."""


class FileStorageBackend(RecordStoreBackend):
    """Keeps everything in a folder of private files (0700, 0600).

    Beside what is saved for a pipeline there is a verified copy of the version before. If what was saved is
    damaged, that one takes its place, with a warning; the damaged one is put aside.

    Args:
        base_path: The folder, made with the first record.
        durability: ``"full"``: what was recorded survives a loss of power. ``"fast"``: it survives the death
            of the process, but the last seconds may be lost with the power.

    Raises:
        DefinitionError: ``durability`` is neither of the two.
    """

    tears = True

    def __init__(
        self, base_path: str | Path = "./pipeline_memory", *, durability: Durability = "full"
    ) -> None:
        super().__init__()
        if durability not in ("full", "fast"):
            raise DefinitionError(f"durability must be 'full' or 'fast', not {durability!r}.")
        self.base_path = user_path(base_path, "Storage")
        self.durability = durability
        self._sync = durability == "full"
        self._pid = os.getpid()
        self._files: OrderedDict[tuple[str, str], RunFile] = OrderedDict()
        self._swept: set[str] = set()
        self._readers: ThreadPoolExecutor | None = None
        self._flusher: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"FileStorageBackend({str(self.base_path)!r}, durability={self.durability!r})"

    async def close(self) -> None:
        """Close files and threads; they are opened again when they are needed."""
        await super().close()
        while self._files:
            await self._in_thread(self._files.popitem()[1].close)
        for pool in (self._readers, self._flusher):
            if pool is not None:
                pool.shutdown(wait=False)
        self._readers = self._flusher = None

    # -- runs -------------------------------------------------------------------------------

    async def _append(self, pipeline_id: str, run_id: str, record: Draft, token: int | None) -> None:
        file = self._file(pipeline_id, run_id)
        try:
            # A write to the system's memory takes less time than a thread would need to wake up.
            size = file.append(record, token, wait=False)
        except BlockingIOError:
            size = await self._in_folder(pipeline_id, partial(file.append, record, token, wait=True))
        if self._sync:
            # One thread, so that a record which waits behind a flush is flushed with it.
            if self._flusher is None:
                self._flusher = ThreadPoolExecutor(1, "tagent-nb-flush")
            await asyncio.get_running_loop().run_in_executor(self._flusher, file.flush, size)

    async def _read(self, pipeline_id: str, run_id: str) -> bytes | None:
        return await self._in_thread(self._run_file(pipeline_id, run_id).read)

    async def _tail(self, pipeline_id: str, run_id: str) -> bytes:
        return await self._in_thread(partial(self._run_file(pipeline_id, run_id).read, TAIL)) or b""

    async def _state(self, pipeline_id: str, run_id: str) -> bytes | None:
        return await self._in_thread(self._run_file(pipeline_id, run_id).state)

    async def _runs(self, pipeline_id: str) -> list[tuple[str, int]]:
        def look() -> list[tuple[str, int]]:
            folder = self._folder(pipeline_id)
            runs: list[tuple[str, int]] = []
            for run_id, name in self._in_order(folder):
                size = 0
                # Another process may delete the run while we look, or its journal is gone.
                with contextlib.suppress(FileNotFoundError):
                    size = (folder / f"{name}{JOURNAL}").lstat().st_size
                if size or self._has_lost(folder, name):
                    runs.append((run_id, size))
            return runs

        return await self._in_thread(look)

    async def _ordered(self, pipeline_id: str) -> list[str]:
        return await self._in_thread(
            lambda: [run_id for run_id, _ in self._in_order(self._folder(pipeline_id))]
        )

    async def _newest(self, pipeline_id: str, count: int) -> list[str]:
        def look() -> list[str]:
            names = self._order(self._folder(pipeline_id)).newest(count)
            return [run_id for name in names if (run_id := from_file_name(name)) is not None]

        return await self._in_thread(look)

    async def _has_run(self, pipeline_id: str, run_id: str) -> bool:
        def look() -> bool:
            folder, name = self._folder(pipeline_id), to_file_name(run_id)
            return os.path.lexists(folder / f"{name}{JOURNAL}") or self._has_lost(folder, name)

        return await self._in_thread(look)

    async def _rows(self, pipeline_id: str, run_ids: Sequence[str]) -> list[Row]:
        def look() -> list[Row]:
            folder = self._folder(pipeline_id)
            order = self._order(folder)
            rows: list[Row] = []
            for run_id in run_ids:
                row = Row(run_id, 0)
                try:
                    file = self._file_of(folder, pipeline_id, run_id, order)
                    row.size, (row.token, row.holder, row.state), row.tail = file.look(TAIL)
                except FileNotFoundError:
                    # Another process has deleted it.
                    if not self._has_lost(folder, to_file_name(run_id)):
                        continue
                except CorruptRecordError as error:
                    row.problem = error
                rows.append(row)
            return rows

        return await self._in_thread(look)

    async def _remove_run(self, pipeline_id: str, run_id: str, token: int) -> bool:
        file = self._file(pipeline_id, run_id)
        del self._files[pipeline_id, run_id]
        return await self._in_thread(partial(file.remove, token))

    def _in_order(self, folder: Path) -> Iterator[tuple[str, str]]:
        """Ids of the runs in a folder in their order, and the names of their files without the ending."""
        for name in self._order(folder).names():
            run_id = from_file_name(name)
            if run_id is not None:
                yield run_id, name

    def _order(self, folder: Path) -> RunOrder:
        def start(name: str) -> float:
            run_id = from_file_name(name)
            first = b""
            # What cannot be read is reported where it is read.
            with contextlib.suppress(StorageError, FileNotFoundError):
                descriptor = open_file(folder / f"{name}{JOURNAL}", os.O_RDONLY, "read")
                try:
                    first = read_open(descriptor, folder / name, min(FIRST, os.fstat(descriptor).st_size))
                finally:
                    os.close(descriptor)
            return begun(first, run_id or name, self._key)

        return RunOrder(folder, cache(start), partial(self._has_lost, folder), sync=self._sync)

    def _holds_any(self, folder: Path) -> bool:
        """Whether there is a document or a run in a pipeline's folder, or a run that has lost its journal."""
        leases: list[str] = []
        # Not all have to be listed.
        for entry in _each_entry(folder):
            if is_document(entry.name) or entry.name.endswith(JOURNAL):
                return True
            if entry.name.endswith(LEASE):
                leases.append(entry.name[: -len(LEASE)])
        return any(self._has_lost(folder, name) for name in leases)

    def _has_lost(self, folder: Path, name: str) -> bool:
        """Whether the lease of a run, by the name of its files, says that it had records."""
        # What cannot be read is reported where it is read.
        with contextlib.suppress(StorageError):
            return from_file_name(name) is not None and had_records(folder / f"{name}{LEASE}")
        return False

    # -- leases -----------------------------------------------------------------------------

    async def _lease(self, pipeline_id: str, run_id: str) -> tuple[int, bytes]:
        return await self._in_thread(self._run_file(pipeline_id, run_id).lease)

    async def _swap_lease(
        self, pipeline_id: str, run_id: str, expected: int, token: int, holder: bytes
    ) -> bool:
        file = self._file(pipeline_id, run_id)
        done = await self._in_folder(pipeline_id, partial(file.swap_lease, expected, token, holder))
        if not holder:
            self._files.pop((pipeline_id, run_id), None)
            await self._in_thread(file.close)
        return done

    # -- documents --------------------------------------------------------------------------

    async def _put(self, pipeline_id: str, name: str, record: bytes) -> None:
        await self._in_folder(pipeline_id, lambda: self._document(pipeline_id, name).replace(record))

    async def _get(self, pipeline_id: str, name: str) -> bytes | None:
        return await self._in_thread(lambda: self._document(pipeline_id, name).read())

    async def _remove_documents(self, pipeline_id: str) -> None:
        folder = self._folder(pipeline_id)

        def remove() -> None:
            try:
                with folder_locked(folder):
                    # Copies first: none of them may be left for what comes after.
                    for file in sorted(folder.iterdir(), key=lambda file: not is_kept(file.name)):
                        if file.suffix in _SUFFIXES or (is_kept(file.name) and not file.is_dir()):
                            file.unlink()
                # Something of another program may be left.
                with contextlib.suppress(OSError):
                    folder.rmdir()
            except OSError as error:
                raise trouble(error, "delete", folder) from error

        self._swept.discard(pipeline_id)
        await self._in_thread(remove)

    async def _pipelines(self) -> list[str]:
        def look() -> list[str]:
            self._refuse_half(read_file(self._mark_path, MAX_MARK))
            return [
                pipeline_id
                for entry in _entries(self.base_path)
                if entry.is_dir(follow_symlinks=False)
                and (pipeline_id := from_file_name(entry.name)) is not None
                and self._holds_any(Path(entry))
            ]

        return await self._in_thread(look)

    # -- backups ----------------------------------------------------------------------------

    @property
    def backup_folder(self) -> Path:
        """A folder within the store; copy what is in it to another disk."""
        return self.base_path / ".backups"

    def _holds(self, path: Path) -> bool:
        return path.is_relative_to(self.base_path) or path.is_relative_to(self.base_path.resolve())

    async def _put_run(self, pipeline_id: str, run_id: str, data: bytes) -> None:
        def put() -> None:
            self._run_file(pipeline_id, run_id).put(data)

        await self._in_folder(pipeline_id, put)

    @property
    def _label(self) -> str:
        return os.path.realpath(self.base_path)

    @property
    def _mark_path(self) -> Path:
        return self.base_path / ".restoring"

    async def _mark(self, text: bytes | None) -> None:
        await self._in_thread(partial(mark_file, self._mark_path, text))

    async def _marked(self) -> bytes | None:
        return await self._in_thread(partial(read_file, self._mark_path, MAX_MARK))

    async def _set_aside(self, stamp: str) -> str:
        await self.close()
        aside = self.base_path / f".damaged-{stamp}"

        def move() -> None:
            make_folder(aside)
            try:
                for entry in _entries(self.base_path):
                    if from_file_name(entry.name) is not None:
                        Path(entry).rename(aside / entry.name)
            except OSError as error:
                raise trouble(error, "move", self.base_path) from error

        await self._in_thread(move)
        return str(aside)

    # -- inside -----------------------------------------------------------------------------

    def _where(self, pipeline_id: str, name: str) -> str:
        folder = self._folder(pipeline_id)
        document = folder / f"{name}{RECORD}"
        return str(document if document.exists() else folder / f"{to_file_name(name)}.journal")

    def _folder(self, pipeline_id: str) -> Path:
        self._refuse_half(read_file(self._mark_path, MAX_MARK))
        folder = self.base_path / to_file_name(pipeline_id)
        try:
            link = folder.is_symlink()
        except OSError as error:
            raise trouble(error, "read", folder) from error
        if link:
            raise CorruptRecordError(
                f"{folder} is a symbolic link. Put the folder itself there; nothing was changed."
            )
        return folder

    def _document(self, pipeline_id: str, name: str) -> Document:
        folder = self._folder(pipeline_id)
        changing = self._order(folder).checked.changing
        return Document(folder, name, pipeline_id, self._key, self._report, changing)

    def _file(self, pipeline_id: str, run_id: str) -> RunFile:
        """The run's files, kept open for the next record."""
        self._notice_fork()
        key = (pipeline_id, run_id)
        run_file = self._files.get(key)
        if run_file is not None:
            self._files.move_to_end(key)
            return run_file
        if len(self._files) >= MAX_OPEN:
            oldest, file = next(iter(self._files.items()))
            if file.close(wait=False):
                del self._files[oldest]
        run_file = self._files[key] = self._run_file(pipeline_id, run_id)
        return run_file

    def _run_file(self, pipeline_id: str, run_id: str) -> RunFile:
        return self._file_of(self._folder(pipeline_id), pipeline_id, run_id)

    def _file_of(self, folder: Path, pipeline_id: str, run_id: str, order: RunOrder | None = None) -> RunFile:
        return RunFile(
            folder / f"{to_file_name(run_id)}{JOURNAL}",
            pipeline_id,
            run_id,
            sync=self._sync,
            key=self._key,
            lost=partial(self._lost, pipeline_id, run_id),
            report=self._report,
            order=order or self._order(folder),
        )

    def _notice_fork(self) -> None:
        """After a fork, locks belong to the parent as well, and threads were not copied: start afresh."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._files.clear()
            self._readers = self._flusher = None

    async def _in_folder(self, pipeline_id: str, function: Callable[[], T]) -> T:
        """Call ``function`` in a thread, with the pipeline's folder made and swept."""

        def call() -> T:
            folder = self._folder(pipeline_id)
            make_folder(folder, sync=self._sync)
            if pipeline_id not in self._swept:
                self._swept.add(pipeline_id)
                sweep(folder)
            return function()

        return await self._in_thread(call)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        self._notice_fork()
        if self._readers is None:
            self._readers = ThreadPoolExecutor(4, "tagent-nb-storage")
        return await asyncio.get_running_loop().run_in_executor(self._readers, function)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    return list(_each_entry(folder))


def _each_entry(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        return
    except OSError as error:
        raise trouble(error, "read", folder) from error
