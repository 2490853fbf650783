"""Storage in a folder keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagent_nb.storage.base import StorageBackend
from tagent_nb.storage.file import FileStorageBackend
from tagent_nb.testing import StorageContract


class TestFileStorageFull(StorageContract):
    """The contract of all backends."""

    durability = "full"

    @pytest.fixture
    def storage(self, tmp_path: Path) -> StorageBackend:
        return FileStorageBackend(tmp_path / "runs", durability=self.durability)

    def another(self, storage: StorageBackend) -> StorageBackend:
        return FileStorageBackend(storage.base_path, durability=self.durability)


class TestFileStorageFast(TestFileStorageFull):
    """The same without a flush per record."""

    durability = "fast"
