"""What every storage backend that outlives the process promises about its backups, as tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagent_nb.errors import DefinitionError, NotStoredError, StorageError
from tagent_nb.storage.base import StorageBackend
from tagent_nb.testing.samples import plain, sample_run


@pytest.mark.asyncio
class BackupContract:
    """Promises about backups; part of :class:`tagent_nb.testing.StorageContract`."""

    async def test_a_backup_brings_back_what_is_missing(
        self, storage: StorageBackend, tmp_path: Path
    ) -> None:
        """What was deleted comes back, and what is newer than the backup stays."""
        if not storage.durable:
            for call in (
                storage.backup(tmp_path), storage.backups(tmp_path), storage.verify(tmp_path),
                storage.restore(tmp_path),
            ):  # fmt: skip
                with pytest.raises(StorageError, match="keeps nothing"):
                    await call
            return
        await storage.append("p", "r", sample_run("r"))
        await storage.save("p", {"saved": 1})
        made = await storage.backup(tmp_path / "backups")
        assert await storage.verify(made.path) == made
        assert await storage.backups(tmp_path / "backups") == [made]
        await storage.delete("p")
        await storage.append("p", "newer", sample_run("newer"))
        info = await storage.restore(made.path, folder=tmp_path / "backups")
        assert sorted(info.restored) == [("p", "document", "snapshot"), ("p", "run", "r")]
        assert info.kept == [("p", "run", "newer")]
        for run_id in ("r", "newer"):
            assert plain(await storage.read_run("p", run_id)) == plain(sample_run(run_id))
        assert await storage.load("p") == {"saved": 1}

    async def test_nothing_is_restored_over_an_active_run(
        self, storage: StorageBackend, tmp_path: Path
    ) -> None:
        """Nor from a folder without a backup, nor from what is no path; nothing is changed."""
        if not storage.durable:
            return
        with pytest.raises(NotStoredError, match="no intact backup"):
            await storage.restore(folder=tmp_path / "none")
        with pytest.raises(DefinitionError, match="must be the path"):
            await storage.restore("")
        await storage.append("p", "r", sample_run("r"))
        await storage.backup(tmp_path / "backups")
        lease = await storage.acquire("p", "r")
        with pytest.raises(StorageError, match="Stop it there first"):
            await storage.restore(folder=tmp_path / "backups", replace=True)
        await storage.release(lease)
        assert plain(await storage.read_run("p", "r")) == plain(sample_run("r"))

    async def test_a_key_is_for_what_outlives_the_process(
        self, storage: StorageBackend, tmp_path: Path
    ) -> None:
        """Values that only a pickle can hold come back, signed; in memory nothing needs a pickle."""
        if not storage.durable:
            with pytest.raises(StorageError, match="keeps nothing"):
                storage.allow_pickle(tmp_path / "key")
            return
        assert storage.allow_pickle(tmp_path / "key") is storage
        await storage.save("p", {"odd": complex(1, 2)})
        assert await storage.load("p") == {"odd": complex(1, 2)}
