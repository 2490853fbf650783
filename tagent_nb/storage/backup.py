"""Backups of a store: making, verifying, rotating and restoring them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    NotStoredError,
    StorageError,
    StorageUnavailableError,
)
from tagent_nb.storage.archive import (
    DOCUMENTS,
    Archive,
    BackupInfo,
    Item,
    Writer,
    check_item,
    inspect,
    made_at,
    new_path,
    open_archive,
    paths,
)

if TYPE_CHECKING:
    from tagent_nb.storage.recording import RecordingBackend


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


@dataclass(slots=True)
class RestoreInfo:
    """What a restore did.

    Attributes:
        backup: The backup that was used.
        aside: Where the store as it was before is kept.
        restored: What came from the backup.
        kept: What was intact and stayed.
        problems: What was found damaged, one sentence each.
    """

    backup: Path
    aside: str
    restored: list[Item] = field(default_factory=list)
    kept: list[Item] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def folder_of(storage: RecordingBackend, folder: str | Path | None) -> Path:
    """Where backups of a store are.

    Raises:
        DefinitionError: The backend has no place of its own and none is given.
    """
    if folder is not None:
        return Path(folder).expanduser().absolute()
    own = own_folder(storage)
    if own is None:
        raise DefinitionError(
            f"{storage!r} has no place for backups. Say one: backup('my-backups'), or with "
            "backup_every also backup_folder='my-backups'."
        )
    return own


def own_folder(storage: RecordingBackend) -> Path | None:
    """Where a store's backups go if nobody says otherwise: the folder of its schedule, or beside it."""
    schedule = storage.backup_schedule
    if schedule is not None and schedule.folder is not None:
        return Path(schedule.folder).expanduser().absolute()
    return storage.backup_folder


async def backup(storage: RecordingBackend, folder: Path, keep: int) -> BackupInfo:
    """Copy a store into a file, verify it, and only then remove older ones beyond ``keep``.

    What is damaged is left out and reported, and then nothing older is removed.

    Raises:
        CorruptRecordError: The new backup is not as it was written; older ones are all there.
        StorageUnavailableError: It cannot be written.
    """
    BackupSchedule(keep=keep)
    path, damaged = new_path(folder), 0
    key = storage._key
    with await asyncio.to_thread(Writer.create, path, key) as writer:
        async for item, data in _stored(storage):
            if isinstance(data, bytes):
                await asyncio.to_thread(writer.add, item, data)
            else:
                damaged += 1
                storage._report(f"Left out of backup {path.name}: {data}")
        await asyncio.to_thread(writer.finish)
    info = await asyncio.to_thread(inspect, path, key)
    if info.problem is not None:
        raise CorruptRecordError(f"The new backup is damaged; older ones were kept. {info.problem}")
    if not damaged:
        await asyncio.to_thread(_rotate, folder, keep, key)
    return info


def _rotate(folder: Path, keep: int, key: bytes | None) -> None:
    """Remove what is older than the last ``keep`` verified backups."""
    good = 0
    for path in paths(folder):
        if good >= keep:
            path.unlink(missing_ok=True)
        elif inspect(path, key).problem is None:
            good += 1


async def _stored(storage: RecordingBackend) -> AsyncIterator[tuple[Item, bytes | CorruptRecordError]]:
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
            yield (pipeline_id, "run", "?"), error
            continue
        for run_id in run_ids:
            item = (pipeline_id, "run", run_id)
            data = await _intact(storage, item, storage._read(pipeline_id, run_id))
            # It may have been deleted while we looked.
            if data is not None:
                yield item, data


async def _intact(
    storage: RecordingBackend, item: Item, reading: Awaitable[bytes | None]
) -> bytes | CorruptRecordError | None:
    """The good bytes of an item, what is wrong with it, or ``None`` if it is not there."""
    try:
        data = await reading
    except CorruptRecordError as error:
        return error
    if data is None:
        return None
    return await asyncio.to_thread(_checked, storage, item, data)


def _checked(storage: RecordingBackend, item: Item, data: bytes) -> bytes | CorruptRecordError:
    try:
        return data[: check_item(item, data, storage._where(item[0], item[2]), storage._key)]
    except CorruptRecordError as error:
        return error


async def newest(storage: RecordingBackend, folder: Path) -> Archive | None:
    """The newest backup that is intact; damaged ones before it are reported."""
    for path in await asyncio.to_thread(paths, folder):
        try:
            return await asyncio.to_thread(open_archive, path, storage._key)
        except StorageError as error:
            storage._report(f"Backup {path.name} cannot be used. {error}")
    return None


async def restore(
    storage: RecordingBackend, which: str | Path | None, folder: Path, *, replace: bool
) -> RestoreInfo:
    """Put a backup in the place of what is damaged or missing; see :meth:`RecordingBackend.restore`."""
    await _refuse_active(storage)
    if which is None:
        archive = await newest(storage, folder)
        if archive is None:
            raise NotStoredError(f"There is no intact backup in {folder}. backup() makes one.")
    else:
        path = Path(which).expanduser().absolute()
        archive = await asyncio.to_thread(open_archive, path, storage._key)
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    info = RestoreInfo(archive.info.path, "")
    # The new content is whole on the disk before the old is touched.
    merged = folder / f"restore-{stamp}.merged"
    try:
        await _merge(storage, archive, merged, info, replace=replace)
    finally:
        archive.close()
    content = await asyncio.to_thread(open_archive, merged, storage._key)
    try:
        info.aside = await storage._set_aside(stamp)
        await _put_all_back(storage, content, info.aside)
    finally:
        content.close()
    await asyncio.to_thread(merged.unlink)
    return info


async def _put_all_back(storage: RecordingBackend, content: Archive, aside: str) -> None:
    try:
        for item in content.items:
            await _put_back(storage, item, content.read(item))
    except StorageError as error:
        raise type(error)(
            f"{error} The store is not whole yet: what it held before is kept in {aside}, and "
            f"restore({str(content.info.path)!r}) goes on with what it is to hold."
        ) from error


async def _pipelines(storage: RecordingBackend) -> list[str]:
    """Pipelines of a store, none if it is so damaged that it cannot say."""
    try:
        return await storage.list_pipelines()
    except StorageUnavailableError:
        raise
    except StorageError as error:
        storage._report(f"The store cannot be read. {error}")
        return []


async def _refuse_active(storage: RecordingBackend) -> None:
    for pipeline_id in await _pipelines(storage):
        try:
            for run_id in await storage._run_ids(pipeline_id):
                await storage._refuse_active(pipeline_id, run_id, "be restored")
        except CorruptRecordError as error:
            # Whoever carries a run on in such a store has met the damage already.
            storage._report(str(error))


async def _merge(
    storage: RecordingBackend, archive: Archive, merged: Path, info: RestoreInfo, *, replace: bool
) -> None:
    """Write what the store will hold: what is intact now, and from the backup the rest."""
    with await asyncio.to_thread(Writer.create, merged, storage._key) as writer:
        if await _pipelines(storage):
            async for item, data in _stored(storage):
                if replace and item in archive.items:
                    continue
                if isinstance(data, bytes):
                    await asyncio.to_thread(writer.add, item, data)
                    info.kept.append(item)
                else:
                    info.problems.append(str(data))
        for item in archive.items:
            if item not in info.kept:
                await asyncio.to_thread(writer.add, item, archive.read(item))
                info.restored.append(item)
        await asyncio.to_thread(writer.finish)


async def _put_back(storage: RecordingBackend, item: Item, data: bytes) -> None:
    pipeline_id, kind, name = item
    if kind == "document":
        await storage._put(pipeline_id, name, data)
    else:
        await storage._put_run(pipeline_id, name, data)


async def backup_if_due(storage: RecordingBackend, schedule: BackupSchedule, pipeline_id: str) -> None:
    """Make a backup if enough runs of a pipeline have ended since the last one."""
    folder = folder_of(storage, schedule.folder)
    known = await asyncio.to_thread(paths, folder)
    since = made_at(known[0]) if known else 0.0
    recent = [run for run in await storage.runs(pipeline_id) if (run.ended_at or run.started_at) > since]
    if len(recent) >= schedule.every:
        await backup(storage, folder, schedule.keep)
