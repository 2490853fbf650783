"""What backups need of a store, and where its backups are."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tagent_nb.errors import DefinitionError
from tagent_nb.storage.backup.archive import paths, tag_for, tag_of
from tagent_nb.storage.filesystem import user_path
from tagent_nb.storage.lease import LeaseStore


class BackedUpStore(LeaseStore, Protocol):
    """A store of records that can be backed up and restored."""

    _key: bytes | None
    _restoring: bool

    @property
    def _own_folder(self) -> Path | None:
        """Where its backups go if no folder is named."""

    @property
    def backup_folder(self) -> Path | None:
        """The backend's own place for backups."""

    @property
    def _label(self) -> str:
        """What distinguishes this store's backups from those of others in the same folder."""

    async def list_pipelines(self) -> list[str]:
        """Ids of all stored pipelines."""

    async def newest_run(self, pipeline_id: str, /) -> str | None:
        """The run of a pipeline that was begun last."""

    async def close(self) -> None:
        """Give back files and connections."""

    async def _get(self, pipeline_id: str, name: str, /) -> bytes | None:
        """A document."""

    async def _put(self, pipeline_id: str, name: str, record: bytes, /) -> None:
        """Replace a document."""

    async def _run_ids(self, pipeline_id: str, /) -> list[str]:
        """All runs of a pipeline in their order."""

    async def _last(self, pipeline_id: str, count: int, /) -> list[str]:
        """The last ``count`` runs in their order."""

    async def _stored(self, pipeline_id: str, run_id: str, /) -> tuple[bytes, bytes | None] | None:
        """The records of a run, and what says where they end."""

    async def _put_run(self, pipeline_id: str, run_id: str, data: bytes, /) -> None:
        """Write a whole run that is not there."""

    async def _set_aside(self, stamp: str, /) -> str:
        """Move all that is stored aside, and be empty; say where it is."""

    async def _mark(self, text: bytes | None, /) -> None:
        """Keep a text that stays when the store is set aside, or none."""

    async def _marked(self) -> bytes | None:
        """The text that is kept."""

    def _where(self, pipeline_id: str, name: str, /) -> str:
        """What messages call a run or a document."""

    def _report(self, message: str, /) -> None:
        """Note a problem that stops nothing."""


def folder_of(storage: BackedUpStore, folder: str | Path | None) -> Path:
    """Where backups of a store are.

    Raises:
        DefinitionError: The backend has no place of its own and none is given.
    """
    if folder is not None:
        return user_path(folder, "The folder for backups")
    own = storage._own_folder
    if own is None:
        raise DefinitionError(
            f"{storage!r} has no place for backups. Say one: backup('my-backups'), or with "
            "backup_every also backup_folder='my-backups'."
        )
    return own


def own_backups(storage: BackedUpStore, folder: Path) -> list[Path]:
    """A store's backups in a folder, newest first.

    In the store's own place these are all. Elsewhere they are those that it has made, where it is now.
    """
    backups = paths(folder)
    if folder == storage.backup_folder:
        return backups
    tag = tag_for(storage._label)
    return [path for path in backups if tag_of(path) in ("", tag)]


def label_of(storage: BackedUpStore) -> str:
    """How the names of a store's own files beside its backups begin."""
    return tag_for(storage._label) or "store"
