"""A store that has lost its runs while a backup holds some: its files were taken away.

The backups that are there then are kept: else those of what comes next would push out the only ones that have
what was there.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tagent_nb.errors import StorageError
from tagent_nb.storage.backup.archive import inspect, made_at
from tagent_nb.storage.backup.store import BackedUpStore, label_of, own_backups
from tagent_nb.storage.filesystem import mark_file, read_file


async def lost_runs(storage: BackedUpStore) -> str:
    """Which backup holds the runs that the store lacks; empty if it has runs, or no backup has."""
    folder = storage._own_folder
    backups = [] if folder is None else await asyncio.to_thread(own_backups, storage, folder)
    if not backups:
        return ""
    for pipeline_id in await storage.list_pipelines():
        if await storage.newest_run(pipeline_id) is not None:
            return ""
    for path in backups:
        info = await asyncio.to_thread(inspect, path, storage._key)
        if info.runs and info.problem is None:
            return (
                f"The store holds no run, and its backup {path} holds {info.runs}: "
                f"await storage.restore({str(path)!r}) brings them back."
            )
    return ""


async def keep_backups(storage: BackedUpStore) -> str:
    """As :func:`lost_runs`, before the first run: the backups that are there are kept from now on.

    Else the backups of what comes would push out the only ones that have what was there.
    """
    message = await lost_runs(storage)
    folder = storage._own_folder
    if not message or folder is None:
        return ""
    try:
        # Later ones are made later by their names, whatever the clock says.
        newest = max(map(made_at, await asyncio.to_thread(own_backups, storage, folder)))
        await asyncio.to_thread(mark_file, _mark(storage, folder), f"{newest:.6f}".encode())
    except StorageError as error:
        return f"{message} {error}"
    return f"{message} No later backup removes it."


def kept_until(storage: BackedUpStore, folder: Path) -> float:
    """When :func:`keep_backups` was last called: backups of that time and before are not removed."""
    text = read_file(_mark(storage, folder))
    try:
        return float(text or 0)
    except ValueError:
        return float("inf")  # it is damaged: all are kept


def let_go(storage: BackedUpStore, used: Path) -> None:
    """Count all backups again, since one of those that were kept is what the store holds now."""
    folder = storage._own_folder
    if folder is not None and 0 < made_at(used) <= kept_until(storage, folder):
        mark_file(_mark(storage, folder), None)


def _mark(storage: BackedUpStore, folder: Path) -> Path:
    return folder / f"{label_of(storage)}.kept"
