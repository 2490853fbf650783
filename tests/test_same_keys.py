"""Keys of units and of calls are what they were: an update must not make people pay for all answers again.

``python -m tests.test_same_keys`` writes them down. They are written again only where a change is meant to
make every stored answer a miss, which the changelog then says.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tagent_nb import (
    CallRecorded,
    Event,
    MemoryStorageBackend,
    PipelineExecutor,
    ResultCache,
    StepCached,
    StepFinished,
)

FOLDER = Path(__file__).parent / "fixtures" / "keys"
PINNED = FOLDER / "keys.json"


def load() -> ModuleType:
    """The module of the pinned steps, under the name that counts in their fingerprints."""
    spec = importlib.util.spec_from_file_location("keys_pipeline", FOLDER / "keys_pipeline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["keys_pipeline"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def steps() -> Iterator[ModuleType]:
    yield load()
    del sys.modules["keys_pipeline"]


def versions() -> dict[str, str]:
    """What the keys depend on besides our code."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        # A fingerprint has the version of a package that the step's code uses.
        "pandas": version("pandas"),
        "pydantic-ai-slim": version("pydantic-ai-slim").partition(".")[0],
    }


async def keys_of(steps: ModuleType, cache: Path) -> dict[str, Any]:
    """Keys and components of each unit of a run, and the keys of its calls, in their order."""
    events: list[Event] = []
    executor = PipelineExecutor(
        steps.pipeline(), storage=MemoryStorageBackend(), cache=ResultCache(cache), observers=[events.append]
    )
    result = await executor.execute()
    assert result.success, result
    return {"units": _units(events), "calls": _calls(events)}


def _units(events: Sequence[Event]) -> dict[str, Any]:
    return {
        f"{event.step}[{event.item}]" if event.item is not None else event.step: {
            "key": event.key,
            "components": dict(event.components),
        }
        for event in events
        if isinstance(event, StepFinished | StepCached)
    }


def _calls(events: Sequence[Event]) -> dict[str, list[str]]:
    calls: dict[str, list[str]] = {}
    for event in events:
        if isinstance(event, CallRecorded):
            calls.setdefault(f"{event.step}[{event.item}]", []).append(event.key)
    return calls


async def test_keys_of_units_and_calls_are_those_that_were_written_down(
    steps: ModuleType, tmp_path: Path
) -> None:
    """Functions, cells, steps mapped over lists and frames, agents with a schema, repeats and tools."""
    pinned = json.loads(PINNED.read_text())
    keys = await keys_of(steps, tmp_path / "cache")
    seen, written = versions(), pinned["versions"]
    for package in ("python", "pydantic-ai-slim"):
        if seen[package] != written[package]:
            pytest.skip(f"the keys were written down with {package} {written[package]}, not {seen[package]}")
    assert keys["calls"] == pinned["calls"]
    assert keys["units"].keys() == pinned["units"].keys()
    for unit, expected in pinned["units"].items():
        # Another pandas has another version in fingerprints, and may have other digests of frames.
        of_pandas = unit.partition("[")[0] in ("frame", "per_row", "prompted")
        if seen["pandas"] == written["pandas"] or not of_pandas:
            assert keys["units"][unit] == expected, unit


async def test_a_second_executor_takes_every_answer_from_the_cache(steps: ModuleType, tmp_path: Path) -> None:
    """The keys that a run asks for are those that it stored."""
    cache = ResultCache(tmp_path / "cache")
    for _ in range(2):
        executor = PipelineExecutor(steps.pipeline(), storage=MemoryStorageBackend(), cache=cache)
        result = await executor.execute()
    assert {step.status.value for step in executor.memory.steps.values()} == {"cached"}  # type: ignore[union-attr]
    assert result.success


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        keys = asyncio.run(keys_of(load(), Path(folder)))
    PINNED.write_text(json.dumps({"versions": versions(), **keys}, indent=1, sort_keys=True) + "\n")
