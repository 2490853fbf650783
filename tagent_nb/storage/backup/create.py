"""Backups of a store: making, verifying and rotating them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tagent_nb.errors import CorruptRecordError, DefinitionError, StorageError
from tagent_nb.storage.backup.archive import (
    DOCUMENTS,
    BackupInfo,
    Item,
    Writer,
    check_item,
    inspect,
    made_at,
    new_path,
    paths,
    tag_for,
    tag_of,
)
from tagent_nb.storage.filesystem import (
    make_folder,
    mark_file,
    open_file,
    read_file,
    to_file_name,
    trouble,
    user_path,
    write_all,
)
from tagent_nb.storage.format.envelope import end_problem, split

if TYPE_CHECKING:
    from tagent_nb.storage.record_backend import RecordStoreBackend


ENDED = ".ended"

UNLISTED = "?"
"""In the place of a run's id: the runs of a pipeline cannot be listed."""

if TYPE_CHECKING:
    from tagent_nb.storage.record_backend import RecordStoreBackend


@dataclass(frozen=True, slots=True)
class BackupSchedule:
    """When a backup is made by itself: at the end of a run.

    Attributes:
        every: Ended runs of a pipeline after which a backup is made.
        keep: Verified backups to keep.
        folder: Where; ``None`` is the backend's own place.

    Raises:
        DefinitionError: A number is below 1.
    """

    every: int = 20
    keep: int = 3
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DefinitionError(f"{name} must be a whole number of at least 1, not {value!r}.")


def folder_of(storage: RecordStoreBackend, folder: str | Path | None) -> Path:
    """Where backups of a store are.

    Raises:
        DefinitionError: The backend has no place of its own and none is given.
    """
    if folder is not None:
        return user_path(folder, "The folder for backups")
    own = own_folder(storage)
    if own is None:
        raise DefinitionError(
            f"{storage!r} has no place for backups. Say one: backup('my-backups'), or with "
            "backup_every also backup_folder='my-backups'."
        )
    return own


def known(storage: RecordStoreBackend, folder: Path) -> list[Path]:
    """A store's backups in a folder, newest first.

    In the store's own place these are all. Elsewhere they are those that it has made, where it is now.
    """
    found = paths(folder)
    if folder == storage.backup_folder:
        return found
    tag = tag_for(storage._label)
    return [path for path in found if tag_of(path) in ("", tag)]


def own_folder(storage: RecordStoreBackend) -> Path | None:
    """Where a store's backups go if nobody says otherwise: the folder of its schedule, or beside it."""
    schedule = storage.backup_schedule
    if schedule is not None and schedule.folder is not None:
        return user_path(schedule.folder, "The folder for backups")
    return storage.backup_folder


async def backup(storage: RecordStoreBackend, folder: Path, keep: int) -> BackupInfo:
    """Copy a store into a file, verify it, and only then remove older ones beyond ``keep``.

    What is damaged is left out and reported, and then nothing older is removed.

    Raises:
        CorruptRecordError: The new backup is not as it was written; older ones are all there.
        StorageUnavailableError: It cannot be written.
    """
    BackupSchedule(keep=keep)
    counted = await asyncio.to_thread(_ended, storage, folder)
    path, damaged = new_path(folder, tag_for(storage._label)), 0
    key = storage._key
    with await asyncio.to_thread(Writer.create, path, key) as writer:
        async for item, data in stored(storage):
            if isinstance(data, bytes):
                await asyncio.to_thread(writer.add, item, data)
            else:
                storage._report(f"Left out of backup {path.name}: {data}")
            # An older one may hold more of it.
            damaged += not isinstance(data, bytes) or isinstance(data, Short)
        await asyncio.to_thread(writer.finish)
    info = await asyncio.to_thread(inspect, path, key)
    if info.problem is not None:
        raise CorruptRecordError(f"The new backup is damaged; older ones were kept. {info.problem}")
    await asyncio.to_thread(_uncount, counted)
    if not damaged:
        await asyncio.to_thread(_rotate, storage, folder, keep, path)
    return info


def _rotate(storage: RecordStoreBackend, folder: Path, keep: int, made: Path) -> None:
    """Remove the store's backups that are older than the last ``keep`` verified ones: not the one just made,
    and none that was made before the store lost its runs."""

    good, kept = 0, kept_until(storage, folder)
    for path in known(storage, folder):
        if made_at(path) <= kept:
            return
        if path == made:
            good += 1
        elif good >= keep:
            path.unlink(missing_ok=True)
        elif inspect(path, storage._key).problem is None:
            good += 1


class Short(bytes):
    """The records of a run whose end is missing; ``problem`` says so."""

    problem = ""


async def stored(storage: RecordStoreBackend) -> AsyncIterator[tuple[Item, bytes | CorruptRecordError]]:
    """All documents and runs of a store: their bytes, or what is wrong with them."""
    for pipeline_id in await storage.list_pipelines():
        for name in DOCUMENTS:
            item = (pipeline_id, "document", name)
            data = await _intact(storage, item, storage._get(pipeline_id, name))
            if data is not None:
                yield item, data
        try:
            run_ids = await storage._run_ids(pipeline_id)
        except CorruptRecordError as error:
            yield (pipeline_id, "run", UNLISTED), error
            continue
        for run_id in run_ids:
            item = (pipeline_id, "run", run_id)
            data = await _run(storage, item)
            # It may have been deleted while we looked.
            if data is not None:
                yield item, data


async def _run(storage: RecordStoreBackend, item: Item) -> bytes | CorruptRecordError | None:
    """The good bytes of a run, as :func:`_intact`; :class:`Short` if that is not all that was recorded."""
    pipeline_id, _, run_id = item
    try:
        whole = await storage._stored(pipeline_id, run_id)
    except CorruptRecordError as error:
        return error
    if whole is None:
        return None
    return await asyncio.to_thread(_checked_run, storage, item, *whole)


def _checked_run(
    storage: RecordStoreBackend, item: Item, data: bytes, state: bytes | None
) -> bytes | CorruptRecordError:
    pipeline_id, _, run_id = item
    try:
        journal = split(
            data, storage._where(pipeline_id, run_id), kind="events", owner=run_id, key=storage._key
        )
    except CorruptRecordError as error:
        return error
    if journal.torn is not None:
        return data[: journal.good]
    problem = end_problem(journal, len(data), state, pipeline_id, run_id, storage._key)
    if problem is None:
        return data
    storage._report(problem)
    short = Short(data)
    short.problem = problem
    return short


async def _intact(
    storage: RecordStoreBackend, item: Item, reading: Awaitable[bytes | None]
) -> bytes | CorruptRecordError | None:
    """The good bytes of an item, what is wrong with it, or ``None`` if it is not there."""
    try:
        data = await reading
    except CorruptRecordError as error:
        return error
    if data is None:
        return None
    return await asyncio.to_thread(_checked, storage, item, data)


def _checked(storage: RecordStoreBackend, item: Item, data: bytes) -> bytes | CorruptRecordError:
    try:
        return data[: check_item(item, data, storage._where(item[0], item[2]), storage._key)]
    except CorruptRecordError as error:
        return error


async def backup_if_due(
    storage: RecordStoreBackend, schedule: BackupSchedule, pipeline_id: str, ended: int
) -> None:
    """Make a backup if enough runs of a pipeline have ended since the last one.

    They are counted, since no clock tells what came first: by the bytes of a file beside the backups.

    Args:
        ended: Runs that have ended since this was last called.
    """
    folder = folder_of(storage, schedule.folder)
    count = await asyncio.to_thread(_count, storage, folder, pipeline_id, ended)
    if not await asyncio.to_thread(known, storage, folder):
        # None was made yet: the runs of before count, too.
        count = max(count, len(await storage._last(pipeline_id, schedule.every)))
    if count >= schedule.every:
        await backup(storage, folder, schedule.keep)


def _count(storage: RecordStoreBackend, folder: Path, pipeline_id: str, ended: int) -> int:
    """Add ended runs of a pipeline to those since the last backup; how many there are."""
    make_folder(folder)
    path = folder / f"{_owner(storage)}.{to_file_name(pipeline_id)}{ENDED}"
    descriptor = open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, "write")
    try:
        write_all(descriptor, b"." * ended)
        return os.fstat(descriptor).st_size
    except OSError as error:
        raise trouble(error, "write", path) from error
    finally:
        os.close(descriptor)


def _ended(storage: RecordStoreBackend, folder: Path) -> dict[Path, int]:
    """The counts of all pipelines of a store."""
    return {path: path.lstat().st_size for path in folder.glob(f"{_owner(storage)}.*{ENDED}")}


def _uncount(counted: dict[Path, int]) -> None:
    """Take off what is in a backup; runs that have ended since it was begun still count."""
    for path, count in counted.items():
        left = path.lstat().st_size - count
        mark_file(path, b"." * left if left > 0 else None)


def _owner(storage: RecordStoreBackend) -> str:
    return tag_for(storage._label) or "store"


async def told(storage: RecordStoreBackend) -> str:
    """Which backup holds the runs that the store lacks; empty if it has runs, or no backup has."""
    folder = own_folder(storage)
    found = [] if folder is None else await asyncio.to_thread(known, storage, folder)
    if not found:
        return ""
    for pipeline_id in await storage.list_pipelines():
        if await storage.newest_run(pipeline_id) is not None:
            return ""
    for path in found:
        info = await asyncio.to_thread(inspect, path, storage._key)
        if info.runs and info.problem is None:
            return (
                f"The store holds no run, and its backup {path} holds {info.runs}: "
                f"await storage.restore({str(path)!r}) brings them back."
            )
    return ""


async def keep(storage: RecordStoreBackend) -> str:
    """As :func:`told`, before the first run: the backups that are there are kept from now on.

    Else the backups of what comes would push out the only ones that have what was there.
    """
    message = await told(storage)
    folder = own_folder(storage)
    if not message or folder is None:
        return ""
    try:
        # Later ones are made later by their names, whatever the clock says.
        newest = max(map(made_at, await asyncio.to_thread(known, storage, folder)))
        await asyncio.to_thread(mark_file, _mark(storage, folder), f"{newest:.6f}".encode())
    except StorageError as error:
        return f"{message} {error}"
    return f"{message} No later backup removes it."


def kept_until(storage: RecordStoreBackend, folder: Path) -> float:
    """When :func:`keep` was last called: backups of that time and before are not removed."""
    text = read_file(_mark(storage, folder))
    try:
        return float(text or 0)
    except ValueError:
        return float("inf")  # it is damaged: all are kept


def let_go(storage: RecordStoreBackend, used: Path) -> None:
    """Count all backups again, since one of those that were kept is what the store holds now."""
    folder = own_folder(storage)
    if folder is not None and 0 < made_at(used) <= kept_until(storage, folder):
        mark_file(_mark(storage, folder), None)


def _mark(storage: RecordStoreBackend, folder: Path) -> Path:
    return folder / f"{tag_for(storage._label) or 'store'}.kept"
