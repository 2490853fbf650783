"""What every storage backend that outlives the process promises about its backups, as tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagent_nb.errors import DefinitionError, NotStoredError, StorageError
from tagent_nb.storage import BACKUPS, RunStorage
from tagent_nb.testing.samples import plain, require, sample_run


@pytest.mark.asyncio
class BackupContract:
    """Promises about backups; part of :class:`tagent_nb.testing.StorageContract`."""

    async def test_a_backup_brings_back_what_is_missing(self, store: RunStorage, tmp_path: Path) -> None:
        """What was deleted comes back, and what is newer than the backup stays."""
        if not store.durable:
            for call in (
                store.backup(tmp_path), store.backups(tmp_path), store.verify(tmp_path),
                store.restore(tmp_path),
            ):  # fmt: skip
                with pytest.raises(StorageError, match="keeps nothing"):
                    await call
            return
        require(store, BACKUPS)
        await store.append("p", "r", sample_run("r"))
        await store.save("p", {"saved": 1})
        made = await store.backup(tmp_path / "backups")
        assert await store.verify(made.path) == made
        assert await store.backups(tmp_path / "backups") == [made]
        await store.delete("p")
        await store.append("p", "newer", sample_run("newer"))
        info = await store.restore(made.path, folder=tmp_path / "backups")
        assert sorted(info.restored) == [("p", "document", "snapshot"), ("p", "run", "r")]
        assert info.kept == [("p", "run", "newer")]
        for run_id in ("r", "newer"):
            assert plain(await store.read_run("p", run_id)) == plain(sample_run(run_id))
        assert await store.load("p") == {"saved": 1}

    async def test_nothing_is_restored_over_an_active_run(self, store: RunStorage, tmp_path: Path) -> None:
        """Nor from a folder without a backup, nor from what is no path; nothing is changed."""
        require(store, BACKUPS)
        with pytest.raises(NotStoredError, match="no intact backup"):
            await store.restore(folder=tmp_path / "none")
        with pytest.raises(DefinitionError, match="must be the path"):
            await store.restore("")
        await store.append("p", "r", sample_run("r"))
        await store.backup(tmp_path / "backups")
        lease = await store.acquire("p", "r")
        with pytest.raises(StorageError, match="Stop it there first"):
            await store.restore(folder=tmp_path / "backups", replace=True)
        await store.release(lease)
        assert plain(await store.read_run("p", "r")) == plain(sample_run("r"))

    async def test_a_key_is_for_what_outlives_the_process(self, store: RunStorage, tmp_path: Path) -> None:
        """Values that only a pickle can hold come back, signed; in memory nothing needs a pickle."""
        if not store.durable:
            with pytest.raises(StorageError, match="keeps nothing"):
                store.allow_pickle(tmp_path / "key")
            return
        assert store.allow_pickle(tmp_path / "key") is store
        await store.save("p", {"odd": complex(1, 2)})
        assert await store.load("p") == {"odd": complex(1, 2)}
