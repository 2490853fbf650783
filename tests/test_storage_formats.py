"""Stores that earlier versions wrote are read by this one, and by all to come."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tagent_nb.events import StepCached, StepFinished
from tagent_nb.storage import open_storage
from tagent_nb.storage.recording import RecordingBackend

FIXTURES = Path(__file__).parent / "fixtures"
PIPELINE = "reviews-0123456789ab"


async def outputs(storage: RecordingBackend, run_id: str) -> dict[str, Any]:
    """The values that a run has recorded, by step."""
    events = await storage.read_run(PIPELINE, run_id)
    done = [event for event in events if isinstance(event, StepFinished | StepCached) and event.item is None]
    return {event.step: event.output.value for event in done}


@pytest.mark.parametrize("kind", ["folder", "database", "backup"])
async def test_format_1(kind: str, tmp_path: Path) -> None:
    """Runs, saved data and memories of a folder, a database and a backup; and runs can be carried on."""
    shutil.copytree(FIXTURES / "storage-format-1", tmp_path / "old")
    where = {
        "folder": str(tmp_path / "old" / "runs"),
        "database": f"sqlite:///{tmp_path}/old/runs.db",
        "backup": str(tmp_path / "new"),
    }
    storage = open_storage(where[kind])
    assert isinstance(storage, RecordingBackend)
    if kind == "backup":
        await storage.restore(tmp_path / "old" / "20260101T000000000000.backup")
    assert await storage.list_pipelines() == [PIPELINE]
    runs = await storage.runs(PIPELINE)
    assert [(info.run_id, info.status, info.steps_done) for info in runs] == [
        ("finished", "completed", 4),
        ("stopped", "interrupted", 2),
    ]
    found = await outputs(storage, "finished")
    assert found["a"]["rows"] == [1, 2.5, "three", None, True]
    assert (found["b"], found["c"], found["d"]) == ("", None, b"bytes")
    assert await storage.load(PIPELINE) == {
        "rows": [1, 2.5, "three", None, True], "pair": (1, 2), "raw": b"\x00\xff"
    }  # fmt: skip
    assert await storage.memories(PIPELINE) == {"seen": {"a", "b"}}
    lease = await storage.acquire(PIPELINE, "stopped")
    await storage.release(lease)
    assert storage.problems == []
    await storage.close()
