"""A store that holds no run while its backups do: somebody has taken its files away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from tagent_nb.errors import StorageError
from tagent_nb.storage.archive import inspect, made_at, tag_for
from tagent_nb.storage.backup import known, own_folder
from tagent_nb.storage.disk import mark_file, read_file

if TYPE_CHECKING:
    from tagent_nb.storage.recording import RecordStoreBackend


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
