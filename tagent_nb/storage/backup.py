"""Backups of a store: making, verifying and rotating them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tagent_nb.errors import CorruptRecordError, DefinitionError
from tagent_nb.storage.archive import (
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
from tagent_nb.storage.codec import end_problem, split
from tagent_nb.storage.disk import user_path

UNLISTED = "?"
"""In the place of a run's id: the runs of a pipeline cannot be listed."""

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


def folder_of(storage: RecordingBackend, folder: str | Path | None) -> Path:
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


def known(storage: RecordingBackend, folder: Path) -> list[Path]:
    """A store's backups in a folder, newest first.

    In the store's own place these are all. Elsewhere they are those that it has made, where it is now.
    """
    found = paths(folder)
    if folder == storage.backup_folder:
        return found
    tag = tag_for(storage._label)
    return [path for path in found if tag_of(path) in ("", tag)]


def own_folder(storage: RecordingBackend) -> Path | None:
    """Where a store's backups go if nobody says otherwise: the folder of its schedule, or beside it."""
    schedule = storage.backup_schedule
    if schedule is not None and schedule.folder is not None:
        return user_path(schedule.folder, "The folder for backups")
    return storage.backup_folder


async def backup(storage: RecordingBackend, folder: Path, keep: int) -> BackupInfo:
    """Copy a store into a file, verify it, and only then remove older ones beyond ``keep``.

    What is damaged is left out and reported, and then nothing older is removed.

    Raises:
        CorruptRecordError: The new backup is not as it was written; older ones are all there.
        StorageUnavailableError: It cannot be written.
    """
    BackupSchedule(keep=keep)
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
    if not damaged:
        await asyncio.to_thread(_rotate, storage, folder, keep)
    return info


def _rotate(storage: RecordingBackend, folder: Path, keep: int) -> None:
    """Remove the store's backups that are older than the last ``keep`` verified ones, but none that was
    made before the store lost its runs."""
    from tagent_nb.storage.emptied import kept_until

    good, kept = 0, kept_until(storage, folder)
    for path in known(storage, folder):
        if made_at(path) <= kept:
            return
        if good >= keep:
            path.unlink(missing_ok=True)
        elif inspect(path, storage._key).problem is None:
            good += 1


class Short(bytes):
    """The records of a run whose end is missing; ``problem`` says so."""

    problem = ""


async def stored(storage: RecordingBackend) -> AsyncIterator[tuple[Item, bytes | CorruptRecordError]]:
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


async def _run(storage: RecordingBackend, item: Item) -> bytes | CorruptRecordError | None:
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
    storage: RecordingBackend, item: Item, data: bytes, state: bytes | None
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


async def backup_if_due(storage: RecordingBackend, schedule: BackupSchedule, pipeline_id: str) -> None:
    """Make a backup if enough runs of a pipeline have ended since the last one."""
    folder = folder_of(storage, schedule.folder)
    made = await asyncio.to_thread(known, storage, folder)
    since = made_at(made[0]) if made else 0.0
    recent = [run for run in await storage.runs(pipeline_id) if (run.ended_at or run.started_at) > since]
    if len(recent) >= schedule.every:
        await backup(storage, folder, schedule.keep)
