"""What was stored before the package got its present layout is read as it was written: runs, cached answers,
pickles, signed records."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tagent_nb import (
    CallRecorded,
    Event,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    RecordStoreBackend,
    ResultCache,
    StepCached,
    open_storage,
)
from tagent_nb.runners.tools.registry import forget_tool

FIXTURE = Path(__file__).parents[1] / "fixtures" / "before-layout"


@pytest.fixture
def reviews() -> Iterator[ModuleType]:
    """The module that was the stored pipeline's."""
    spec = importlib.util.spec_from_file_location("reviews_pipeline", FIXTURE / "reviews_pipeline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reviews_pipeline"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["reviews_pipeline"]
    forget_tool("stock")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A copy of what was stored, private as it was."""
    folder = tmp_path / "stored"
    shutil.copytree(FIXTURE, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


@pytest.mark.parametrize("kind", ["folder", "database", "backup"])
async def test_stored_runs_are_listed_read_and_carried_on(
    kind: str, stored: Path, reviews: ModuleType
) -> None:
    """A completed run has its values as instances of their classes; one that waits for an approval goes on
    where it stood, and nothing is asked again."""
    where = {
        "folder": str(stored / "runs"),
        "database": f"sqlite:///{stored}/runs.db",
        "backup": str(stored / "new"),
    }
    storage = open_storage(where[kind])
    assert isinstance(storage, RecordStoreBackend)
    if kind == "backup":
        await storage.restore(next((stored / "backups").iterdir()))
    runs = await storage.runs((await storage.list_pipelines())[0])
    assert sorted(info.status for info in runs) == ["completed", "waiting"]
    executor = PipelineExecutor(reviews.pipeline(), storage=storage)
    completed = next(info.run_id for info in runs if info.status == "completed")
    result = await executor.execute(resume=completed)
    assert result["load"] == [reviews.Row("warm light", 5), reviews.Row("broke", 1)]
    assert result["double"] == [10, 2]
    assert result["count"]["stars"].tolist() == [5, 1]
    assert [type(verdict) for verdict in result["judge"]] == [reviews.Verdict] * 2
    assert result["report"] == "A short report."
    calls: list[Event] = []
    waiting = next(info.run_id for info in runs if info.status == "waiting")
    resuming = PipelineExecutor(
        reviews.pipeline(),
        storage=storage,
        observers=[lambda event: calls.append(event) if isinstance(event, CallRecorded) else None],
    )
    again = await resuming.execute(resume=waiting)
    assert again.waiting_steps == ["report"]
    resuming.approve("report")
    assert (await resuming.execute(resume=waiting)).success
    assert calls == []
    await storage.close()


async def test_cached_answers_are_still_answers(stored: Path, reviews: ModuleType) -> None:
    """Fingerprints name no module of ours: each step of the unchanged pipeline is answered by the cache."""
    events: list[Event] = []
    executor = PipelineExecutor(
        reviews.pipeline(), cache=ResultCache(stored / "cache"), observers=[events.append]
    )
    result = await executor.execute()
    assert result.success
    assert {event.step for event in events if isinstance(event, StepCached)} == set(result.steps)
    assert not [event for event in events if isinstance(event, CallRecorded)]


def test_pickles_are_read(stored: Path, reviews: ModuleType) -> None:
    """Pickles name modules of ours, which have moved."""
    pipeline = Pipeline.from_pickle((stored / "pipeline.pickle").read_bytes())
    assert pipeline == reviews.python_only()
    result = PipelineResult.from_pickle((stored / "result.pickle").read_bytes())
    assert result["double"] == [10, 2]
    text = (stored / "result.json").read_text()
    assert (
        result.to_dict() == PipelineResult.from_json(text, schemas=[reviews.Row, reviews.Verdict]).to_dict()
    )


async def test_signed_pickles_in_records_are_read(stored: Path, reviews: ModuleType) -> None:
    storage: Any = open_storage(str(stored / "signed")).allow_pickle(stored / "signed.key")
    result = await PipelineExecutor(reviews.odd_pipeline(), storage=storage).execute(resume=True)
    odd = result["odd"]
    assert isinstance(odd, reviews.Odd)
    assert odd.self is odd
