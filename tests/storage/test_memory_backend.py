"""Storage in memory keeps the contract, and keeps what it is given as it is."""

from __future__ import annotations

import pytest

from tagent_nb.errors import StorageError
from tagent_nb.events import MemorySaved, StepFinished
from tagent_nb.serde import StoredValue
from tagent_nb.storage import MemoryStorageBackend
from tagent_nb.testing.contract import StorageContract


class TestMemoryStorage(StorageContract):
    """The contract of all backends."""

    @pytest.fixture
    def storage(self) -> MemoryStorageBackend:
        return MemoryStorageBackend()


async def test_events_are_kept_by_reference() -> None:
    """Nothing is encoded: the very objects come back, storable or not."""
    storage = MemoryStorageBackend()
    event = StepFinished(run_id="r", step="a", output=StoredValue.of(len))
    await storage.append("p", "r", [event])
    assert (await storage.read_run("p", "r"))[0] is event


async def test_memories_need_not_be_storable() -> None:
    """A memory may be any object, and later changes of the caller's dict do not reach it."""
    storage = MemoryStorageBackend()
    memories = {"fn": len}
    await storage.save_memories("p", memories)
    memories.clear()
    assert await storage.memories("p") == {"fn": len}
    await storage.append("p", "r", [MemorySaved(run_id="r", step="a", key="k", value=len)])


def test_it_says_that_it_is_not_durable() -> None:
    """The engine asks this before it warns about values that cannot be stored."""
    assert MemoryStorageBackend().durable is False


async def test_errors_call_it_by_its_name() -> None:
    with pytest.raises(StorageError, match=r"^MemoryStorageBackend\(\) keeps nothing after this process"):
        await MemoryStorageBackend().backup()
