"""Stores that earlier versions wrote are read by this one, and by all to come."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tagent_nb.errors import CorruptRecordError
from tagent_nb.events import StepCached, StepFinished, Warned
from tagent_nb.storage import RecordStoreBackend, open_storage
from tests.storage_kinds import replace_records, stored_records

FIXTURES = Path(__file__).parents[1] / "fixtures"
PIPELINE = "reviews-0123456789ab"


async def outputs(storage: RecordStoreBackend, run_id: str) -> dict[str, Any]:
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
    assert isinstance(storage, RecordStoreBackend)
    if kind == "backup":
        await storage.restore(tmp_path / "old" / "20260101T000000000000.backup")
    assert await storage.list_pipelines() == [PIPELINE]
    runs = await storage.runs(PIPELINE)
    assert [(info.run_id, info.status, info.steps_done) for info in runs] == [
        ("finished", "completed", 4),
        ("stopped", "interrupted", 2),
    ]
    values = await outputs(storage, "finished")
    assert values["a"]["rows"] == [1, 2.5, "three", None, True]
    assert (values["b"], values["c"], values["d"]) == ("", None, b"bytes")
    assert await storage.load(PIPELINE) == {
        "rows": [1, 2.5, "three", None, True], "pair": (1, 2), "raw": b"\x00\xff"
    }  # fmt: skip
    assert await storage.memories(PIPELINE) == {"seen": {"a", "b"}}
    lease = await storage.acquire(PIPELINE, "stopped")
    await storage.release(lease)
    assert storage.problems == []
    await storage.close()


@pytest.mark.parametrize("kind", ["folder", "database"])
async def test_runs_of_format_1_say_that_they_carry_no_chain_and_get_one(kind: str, tmp_path: Path) -> None:
    """The list of runs says so of each, and one that goes on says so once; its new records are a chain that
    hangs on the last of the old ones."""
    shutil.copytree(FIXTURES / "storage-format-1", tmp_path / "old")
    where = str(tmp_path / "old/runs") if kind == "folder" else f"sqlite:///{tmp_path}/old/runs.db"
    storage = open_storage(where)
    assert isinstance(storage, RecordStoreBackend)
    assert [info.chained for info in await storage.runs(PIPELINE)] == [False, False]
    before = await stored_records(storage, "stopped", PIPELINE)
    for text in ("one", "two"):
        lease = await storage.acquire(PIPELINE, "stopped")
        await storage.append(PIPELINE, "stopped", [Warned(run_id="stopped", message=text)], token=lease.token)
        await storage.release(lease)
    assert len(storage.problems) == 1
    assert "whose records carry no chain" in storage.problems[0]
    assert [info.chained for info in await storage.runs(PIPELINE)] == [False, True]
    records = await stored_records(storage, "stopped", PIPELINE)
    assert records[: len(before)] == before
    for left_out in (len(before) - 1, len(before)):
        await replace_records(storage, [*records[:left_out], *records[left_out + 1 :]], "stopped", PIPELINE)
        with pytest.raises(CorruptRecordError, match="of run stopped"):
            await storage.read_run(PIPELINE, "stopped")
    await storage.close()
