"""Restoring a store from a backup, so that a restore that was stopped half-way can go on.

What the store is to hold is first written into a file, then the store is marked, moved aside and filled from
that file, and then the mark is removed. A marked store is not used for anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path

from tagent_nb.errors import CorruptRecordError, NotStoredError, StorageError, StorageUnavailableError
from tagent_nb.storage.backup.archive import Archive, Writer, open_archive, paths, tag_of
from tagent_nb.storage.backup.create import UNLISTED, Short, stored
from tagent_nb.storage.backup.store import BackedUpStore, folder_of, own_backups
from tagent_nb.storage.filesystem import user_path
from tagent_nb.storage.lease import refuse_active
from tagent_nb.storage.run_info import Item, RestoreInfo

MERGED = "restore-{}.merged"
"""Name of the file that holds what the store is to hold."""


async def newest(storage: BackedUpStore, backups: list[Path], item: Item | None = None) -> Archive | None:
    """The newest of some backups that is intact (and has an item); damaged ones before it are reported."""
    for path in backups:
        try:
            archive = await asyncio.to_thread(open_archive, path, storage._key)
        except StorageError as error:
            storage._report(f"Backup {path.name} cannot be used. {error}")
            continue
        if item is None or item in archive.items:
            return archive
        archive.close()
    return None


async def offer(storage: BackedUpStore, error: CorruptRecordError, item: Item | None) -> CorruptRecordError:
    """The same error, with the newest intact backup (that has the item), if there is one."""
    folder = storage._own_folder
    if folder is None or storage._restoring:
        return error
    backups = await asyncio.to_thread(own_backups, storage, folder)
    archive = await newest(storage, backups, item)
    if archive is not None:
        archive.close()
        return CorruptRecordError(f"{error} Backup {archive.info.path} is intact: restore() takes it.")
    archive = await newest(storage, backups)
    if archive is None:
        return error
    archive.close()
    return CorruptRecordError(
        f"{error} The newest intact backup, {archive.info.path}, has nothing of it; restore() takes the rest "
        "from there, and keeps this aside."
    )


async def restore(
    storage: BackedUpStore, which: str | Path | None, folder: str | Path | None, *, replace: bool
) -> RestoreInfo:
    """Put a backup in the place of what is damaged or missing; see :meth:`StorageBackend.restore`."""
    path = None if which is None else user_path(which, "A backup")
    storage._restoring = True
    try:
        await _refuse_active(storage)
        gone_on = await _go_on(storage, path)
        if gone_on is not None and path in (None, gone_on.backup):
            return gone_on
        if folder is None and path is not None and storage._own_folder is None:
            folder = path.parent
        return await _restore(storage, path, folder_of(storage, folder), replace=replace)
    finally:
        storage._restoring = False


async def _restore(storage: BackedUpStore, which: Path | None, folder: Path, *, replace: bool) -> RestoreInfo:
    older: list[Path] = []
    if which is None:
        older = await asyncio.to_thread(_candidates, storage, folder)
        archive = await newest(storage, older)
        if archive is None:
            raise NotStoredError(f"There is no intact backup in {folder}. backup() makes one.")
        older = older[older.index(archive.info.path) + 1 :]
    else:
        archive = await asyncio.to_thread(open_archive, which, storage._key)
    info = RestoreInfo(archive.info.path, "")
    before = await storage._marked()
    merged = folder / MERGED.format(_stamp())
    try:
        try:
            await _merge(storage, archive, older, merged, info, replace=replace)
        finally:
            archive.close()
        info.aside = await _fill(storage, merged)
    except BaseException:
        # A copy of the whole store, which only a restore that was stopped half-way still needs.
        if not await _is_needed(storage, merged):
            merged.unlink(missing_ok=True)
        # What is open now was opened to restore: it may not be used for anything else.
        await storage.close()
        raise
    left = None if before is None else _marks(before)[0]
    # What an earlier restore was to go on with. A mark that is damaged may name anything.
    if left is not None and left.match(MERGED.format("*")):
        left.unlink(missing_ok=True)
    return info


async def _is_needed(storage: BackedUpStore, content: Path) -> bool:
    """Whether a restore that was stopped half-way goes on with a file, as far as the store can say."""
    try:
        marked = await storage._marked()
    except StorageError:
        return True
    return marked is not None and _marks(marked)[0] == content


def _candidates(storage: BackedUpStore, folder: Path) -> list[Path]:
    """The store's own backups; without any, those of another store, such as it was elsewhere."""
    own = own_backups(storage, folder)
    if own:
        return own
    backups = paths(folder)
    if len({tag_of(path) for path in backups}) > 1:
        raise NotStoredError(
            f"{folder} has backups of several stores, and none that this one has made. "
            f"Name one: restore({str(backups[0])!r})."
        )
    return backups


# -- what the store is to hold -------------------------------------------------------------------


async def _merge(
    storage: BackedUpStore,
    archive: Archive,
    older: list[Path],
    merged: Path,
    info: RestoreInfo,
    *,
    replace: bool,
) -> None:
    """Write what the store will hold: what is intact now, and from the backup the rest.

    What is damaged now and not in the backup comes from the newest older one that has it.
    """
    written: set[Item] = set()

    async def take(item: Item) -> None:
        if item in archive.items and item not in written:
            await asyncio.to_thread(writer.add, item, archive.read(item))
            info.restored.append(item)
            written.add(item)

    with await asyncio.to_thread(Writer.create, merged, storage._key) as writer:
        if await _pipelines(storage):
            earlier = await _earlier(storage, archive)
            async for item, data in stored(storage):
                for other in earlier.get(item, []):
                    await take(other)
                theirs = replace and item in archive.items
                if isinstance(data, Short) and not theirs:
                    info.problems.append(data.problem)
                    theirs = item in archive.items and archive.read(item).startswith(data)
                if isinstance(data, bytes) and not theirs:
                    await asyncio.to_thread(writer.add, item, data)
                    info.kept.append(item)
                    written.add(item)
                    continue
                if not isinstance(data, bytes) and not theirs:
                    info.problems.append(str(data))
                    if item not in archive.items and item[2] != UNLISTED:
                        await _add_from(storage, older, item, writer, info)
                await take(item)
        for item in archive.items:
            await take(item)
        await asyncio.to_thread(writer.finish)


async def _earlier(storage: BackedUpStore, archive: Archive) -> dict[Item, list[Item]]:
    """For runs of the store those that only the archive has and that were begun before them.

    What the store holds afterwards is in the order in which it is written.
    """
    earlier: dict[Item, list[Item]] = {}
    for pipeline_id in await _pipelines(storage):
        try:
            run_ids = await storage._run_ids(pipeline_id)
        except CorruptRecordError:
            # That it cannot be listed is reported with what is restored.
            continue
        ours: list[Item] = [(pipeline_id, "run", run_id) for run_id in run_ids]
        theirs = [item for item in archive.items if item[:2] == (pipeline_id, "run")]
        present, places = set(ours), {item: place for place, item in enumerate(theirs)}
        # What was begun after all that both have is newer than the archive.
        last = max((place for place, item in enumerate(ours) if item in places), default=-1)
        place = 0
        for number, item in enumerate(ours):
            end = places.get(item, place) if number <= last else len(theirs)
            earlier[item] = [other for other in theirs[place:end] if other not in present]
            place = max(place, end)
    return earlier


async def _add_from(
    storage: BackedUpStore, older: list[Path], item: Item, writer: Writer, info: RestoreInfo
) -> None:
    archive = await newest(storage, older, item)
    if archive is None:
        info.problems[-1] += " No backup has it: it is only in what is kept aside."
        return
    try:
        await asyncio.to_thread(writer.add, item, archive.read(item))
    finally:
        archive.close()
    info.restored.append(item)


# -- filling the store ---------------------------------------------------------------------------


async def _fill(storage: BackedUpStore, content: Path) -> str:
    """Move the store aside and fill it with what a file holds; where it was moved to."""
    archive = await asyncio.to_thread(open_archive, content, storage._key)
    before, aside, whole = await _pipelines(storage), "", False
    try:
        await storage._mark(_text(content, aside))
        aside = await storage._set_aside(_stamp())
        await storage._mark(_text(content, aside))
        for item in archive.items:
            await _put_back(storage, item, archive.read(item))
        await storage._mark(None)
        whole = True
    except StorageError as error:
        if not aside and before and await _pipelines(storage) == before:
            # Nothing was moved.
            await storage._mark(None)
            raise
        raise type(error)(f"{error} {half_restored(_text(content, aside))}") from error
    finally:
        archive.close()
        if not whole:
            # What is open was opened to restore: it may not be used for anything else.
            await storage.close()
    await asyncio.to_thread(content.unlink)
    return aside


async def _go_on(storage: BackedUpStore, which: Path | None) -> RestoreInfo | None:
    """End a restore that was stopped half-way, if there was one."""
    marked = await storage._marked()
    if marked is None:
        return None
    content, before = _marks(marked)
    try:
        (await asyncio.to_thread(open_archive, content, storage._key)).close()
    except StorageError as error:
        # What it would have brought back is in the backup that is named, or aside.
        if which is None:
            raise type(error)(
                f"{error} A restore that was stopped half-way cannot go on without it. Name a backup that "
                "takes its place: restore('...backup')."
            ) from error
        storage._report(f"The restore that was stopped half-way cannot go on. {error}")
        return None
    aside = await _fill(storage, content)
    return RestoreInfo(content, before or aside)


def half_restored(marked: bytes) -> StorageError:
    """Of a store that a restore was filling: what to do."""
    content, aside = _marks(marked)
    kept = f" What it held before is kept in {aside}." if aside else ""
    return StorageError(
        f"This store is not whole: a restore was stopped half-way, or is under way. restore() goes on with "
        f"it, from {content}.{kept}"
    )


def _text(content: Path, aside: str) -> bytes:
    return json.dumps({"content": str(content), "aside": aside}).encode()


def _marks(marked: bytes) -> tuple[Path, str]:
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        mark = json.loads(marked)
        return Path(mark["content"]), str(mark["aside"])
    return Path("(unknown)"), ""


def _stamp() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"


async def _put_back(storage: BackedUpStore, item: Item, data: bytes) -> None:
    pipeline_id, kind, name = item
    if kind == "document":
        await storage._put(pipeline_id, name, data)
    else:
        await storage._put_run(pipeline_id, name, data)


async def _pipelines(storage: BackedUpStore) -> list[str]:
    """Pipelines of a store, none if it is so damaged that it cannot say."""
    try:
        return await storage.list_pipelines()
    except StorageUnavailableError:
        raise
    except StorageError as error:
        storage._report(f"The store cannot be read. {error}")
        return []


async def _refuse_active(storage: BackedUpStore) -> None:
    for pipeline_id in await _pipelines(storage):
        try:
            await refuse_active(storage, "be restored", pipeline_id, await storage._run_ids(pipeline_id))
        except CorruptRecordError as error:
            # A process that carries a run on in such a store has met the damage already.
            storage._report(str(error))
