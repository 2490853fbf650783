"""Backups of a store: making, verifying and rotating them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

from tagent_nb.errors import CorruptRecordError
from tagent_nb.storage.backup.archive import (
    DOCUMENTS,
    Writer,
    check_item,
    inspect,
    made_at,
    new_path,
    tag_for,
)
from tagent_nb.storage.backup.lost_store import kept_until
from tagent_nb.storage.backup.store import BackedUpStore, folder_of, label_of, own_backups
from tagent_nb.storage.filesystem import (
    make_folder,
    mark_file,
    open_file,
    to_file_name,
    trouble,
    write_all,
)
from tagent_nb.storage.format.envelope import end_problem, split
from tagent_nb.storage.policy import BackupSchedule
from tagent_nb.storage.run_info import BackupInfo, Item

ENDED = ".ended"

UNLISTED = "?"
"""In the place of a run's id: the runs of a pipeline cannot be listed."""


async def backup(storage: BackedUpStore, folder: Path, keep: int) -> BackupInfo:
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


def _rotate(storage: BackedUpStore, folder: Path, keep: int, made: Path) -> None:
    """Remove the store's backups that are older than the last ``keep`` verified ones: not the one just made,
    and none that was made before the store lost its runs."""

    good, kept = 0, kept_until(storage, folder)
    for path in own_backups(storage, folder):
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


async def stored(storage: BackedUpStore) -> AsyncIterator[tuple[Item, bytes | CorruptRecordError]]:
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


async def _run(storage: BackedUpStore, item: Item) -> bytes | CorruptRecordError | None:
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
    storage: BackedUpStore, item: Item, data: bytes, state: bytes | None
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
    storage: BackedUpStore, item: Item, reading: Awaitable[bytes | None]
) -> bytes | CorruptRecordError | None:
    """The good bytes of an item, what is wrong with it, or ``None`` if it is not there."""
    try:
        data = await reading
    except CorruptRecordError as error:
        return error
    if data is None:
        return None
    return await asyncio.to_thread(_checked, storage, item, data)


def _checked(storage: BackedUpStore, item: Item, data: bytes) -> bytes | CorruptRecordError:
    try:
        return data[: check_item(item, data, storage._where(item[0], item[2]), storage._key)]
    except CorruptRecordError as error:
        return error


async def backup_if_due(
    storage: BackedUpStore, schedule: BackupSchedule, pipeline_id: str, ended: int
) -> None:
    """Make a backup if enough runs of a pipeline have ended since the last one.

    They are counted, since no clock shows what came first: by the bytes of a file beside the backups.

    Args:
        ended: Runs that have ended since this was last called.
    """
    folder = folder_of(storage, schedule.folder)
    count = await asyncio.to_thread(_count, storage, folder, pipeline_id, ended)
    if not await asyncio.to_thread(own_backups, storage, folder):
        # None was made yet: the runs of before count, too.
        count = max(count, len(await storage._last(pipeline_id, schedule.every)))
    if count >= schedule.every:
        await backup(storage, folder, schedule.keep)


def _count(storage: BackedUpStore, folder: Path, pipeline_id: str, ended: int) -> int:
    """Add ended runs of a pipeline to those since the last backup; how many there are."""
    make_folder(folder)
    path = folder / f"{label_of(storage)}.{to_file_name(pipeline_id)}{ENDED}"
    descriptor = open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, "write")
    try:
        write_all(descriptor, b"." * ended)
        return os.fstat(descriptor).st_size
    except OSError as error:
        raise trouble(error, "write", path) from error
    finally:
        os.close(descriptor)


def _ended(storage: BackedUpStore, folder: Path) -> dict[Path, int]:
    """The counts of all pipelines of a store."""
    return {path: path.lstat().st_size for path in folder.glob(f"{label_of(storage)}.*{ENDED}")}


def _uncount(counted: dict[Path, int]) -> None:
    """Take off what is in a backup; runs that have ended since it was begun still count."""
    for path, count in counted.items():
        left = path.lstat().st_size - count
        mark_file(path, b"." * left if left > 0 else None)
