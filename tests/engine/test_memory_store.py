"""What runs know from each other: saved memories, facts, and who of two is the newer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import (
    FileStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    StorageUnavailableError,
)


class Lab:
    """A pipeline of cells on files; every run is one of a fresh kernel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[str] = []
        self.broken: set[str] = set()
        self.pipeline = Pipeline("lab")

    def cell(self, name: str, text: str, **options: Any) -> None:
        self.pipeline.put(PipelineStep.from_cell(name, text, python=True, max_retries=0, **options))

    def note(self, name: str) -> None:
        self.ran.append(name)
        if name in self.broken:
            raise RuntimeError(f"{name} is broken")

    def storage(self) -> FileStorageBackend:
        return FileStorageBackend(self.folder)

    async def go(self, storage: FileStorageBackend | None = None, **options: Any) -> Any:
        self.ran.clear()
        storage = storage or self.storage()
        executor = PipelineExecutor(self.pipeline, storage=storage, namespace={"run": self.note})
        try:
            return await executor.execute(**options)
        finally:
            await storage.close()

    async def memories(self) -> dict[str, Any]:
        storage = self.storage()
        try:
            return await storage.memories(self.pipeline.id)
        finally:
            await storage.close()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


async def test_a_resumed_run_leaves_newer_memories_as_they_are(lab: Lab) -> None:
    """An older run knows what it saved then; what another run saved since is newer, and stays."""
    lab.cell("teach", "context.save_memory('tone', 'old')\n1")
    lab.cell("use", "run('use')\nmemories['tone'] + str(teach)")
    lab.cell("more", "context.save_memory('more', use)\nuse")
    lab.broken = {"use"}
    older = await lab.go()
    lab.broken = set()
    lab.cell("teach", "context.save_memory('tone', 'new')\n1")
    await lab.go()
    lab.cell("teach", "context.save_memory('tone', 'old')\n1")
    resumed = await lab.go(resume=older.run_id)
    assert resumed["use"] == "new1"
    assert await lab.memories() == {"tone": "new", "more": "new1"}


class Interrupted(FileStorageBackend):
    """Stops the run between the record of a memory and its storing for other runs."""

    async def save_memories(self, pipeline_id: str, memories: Mapping[str, Any]) -> None:
        raise StorageUnavailableError("The disk went away.")


@pytest.mark.parametrize("before", [{}, {"tone": "first"}])
async def test_a_memory_that_was_recorded_but_not_stored_is_stored_by_the_next_session(
    lab: Lab, before: dict[str, Any]
) -> None:
    lab.cell("teach", "run('teach')\ncontext.save_memory('tone', 'second')\n1")
    storage = lab.storage()
    await storage.save_memories(lab.pipeline.id, {**before, "other": 1})
    await storage.close()
    with pytest.raises(StorageUnavailableError, match="went away"):
        await lab.go(Interrupted(lab.folder))
    assert await lab.memories() == {**before, "other": 1}
    result = await lab.go(resume=True)
    assert lab.ran == []
    assert result.saved_memories == {"tone": "second", "other": 1}
    assert await lab.memories() == {"tone": "second", "other": 1}


async def test_runs_at_the_same_time_keep_each_others_memories(lab: Lab) -> None:
    """A run stores what its steps save, and not the rest as it stood when the run began."""

    async def elsewhere() -> int:
        storage = lab.storage()
        await storage.save_memories(lab.pipeline.id, {"theirs": 1})
        await storage.close()
        return 1

    lab.pipeline.task(elsewhere)
    lab.cell("teach", "context.save_memory('ours', elsewhere)\n1")
    await lab.go()
    assert await lab.memories() == {"theirs": 1, "ours": 1}


@pytest.mark.parametrize(("say", "ask"), [("save_memory", "memories"), ("learn", "facts")])
async def test_items_that_overwrote_what_was_known_are_not_run_again(lab: Lab, say: str, ask: str) -> None:
    """An item's fingerprint is of what was known before the map, in a later session as well."""
    lab.cell("first", f"context.{say}('tone', 'old')\n[1, 2]")
    lab.cell(
        "each",
        f"run(f'each {{item}}')\ncontext.{say}('tone', f'of {{item}}')\n{ask}['tone']",
        map_over="first",
    )
    lab.broken = {"each 2"}
    assert not (await lab.go()).success
    assert lab.ran == ["each 1", "each 2"]
    lab.broken = set()
    result = await lab.go(resume=True)
    assert lab.ran == ["each 2"]
    assert result["each"] == ["old", "old"]


async def test_items_that_overwrote_a_memory_of_an_earlier_run_are_not_run_again(lab: Lab) -> None:
    storage = lab.storage()
    await storage.save_memories(lab.pipeline.id, {"tone": "old", "kept": 1})
    await storage.close()
    lab.cell("first", "[1, 2]")
    lab.cell(
        "each",
        "run(f'each {item}')\ncontext.save_memory('tone', item)\n[memories['tone'], memories['kept']]",
        map_over="first",
    )
    lab.broken = {"each 2"}
    assert not (await lab.go()).success
    lab.broken = set()
    result = await lab.go(resume=True)
    assert lab.ran == ["each 2"]
    assert result["each"] == [["old", 1], ["old", 1]]


async def test_steps_that_ask_for_nothing_get_nothing(lab: Lab) -> None:
    """A fact that no one asks for is in no fingerprint: to learn it does not make others run again."""
    lab.cell("teach", "context.learn('tone', 'kind')\n[1]")
    lab.cell("each", "run('each')\nitem", map_over="teach")
    lab.cell("plain", "run('plain')\neach")
    result = await lab.go()
    assert "facts" not in result.steps["plain"].components
    assert "facts" not in result.steps["each"].components
    assert lab.ran == ["each", "plain"]
