"""What runs know from each other and steps from each other: saved memories, and facts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.unit.prepared import wants
from tagent_nb.events import Event, FactLearned, MemorySaved
from tagent_nb.pipeline import PipelineStep
from tagent_nb.serde import StoredValue

if TYPE_CHECKING:
    from tagent_nb.storage import StorageBackend


def not_stored(memory: PipelineMemory, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a run has recorded of its memories, but was stopped before it could store it for other runs.

    All else that is stored is newer than what the run saved in an earlier session: each memory was stored
    when it was saved.
    """
    if memory.finished is not None:
        return {}  # it came to its end: what is missing now has been deleted
    began = memory.began_with
    return {
        key: value
        for key, value in memory.memories.items()
        if key not in stored or (key in began and _same(stored[key], began[key]))
    }


def _same(value: object, other: object) -> bool:
    return StoredValue.of(value).digest == StoredValue.of(other).digest


async def save(
    storage: StorageBackend, pipeline_id: str, schemas: Mapping[str, type], saved: Mapping[str, Any]
) -> None:
    """Store memories that a step saved, beside what other runs have stored meanwhile.

    Args:
        storage: Where the pipeline has them.
        pipeline_id: The pipeline.
        schemas: Classes by name that stored values become.
        saved: The memories by key.

    Raises:
        StorageError: They could not be stored.
    """
    async with changing(storage, pipeline_id):
        stored = await storage.memories(pipeline_id, schemas)
        # The newest last: of many, prompts show the newest.
        older = {key: value for key, value in stored.items() if key not in saved}
        await storage.save_memories(pipeline_id, {**older, **saved})


_changing: WeakKeyDictionary[StorageBackend, dict[str, threading.Lock]] = WeakKeyDictionary()


@asynccontextmanager
async def changing(storage: StorageBackend, pipeline_id: str) -> AsyncIterator[None]:
    """Change the memories of a pipeline: of two who read and write them in this process, one waits."""
    lock = _changing.setdefault(storage, {}).setdefault(pipeline_id, threading.Lock())
    # They may be on different loops, and what they do is short.
    while not lock.acquire(blocking=False):
        await asyncio.sleep(0.005)
    try:
        yield
    finally:
        lock.release()


async def change_memories(
    storage: StorageBackend,
    pipeline_id: str,
    schemas: Mapping[str, type],
    change: Callable[[dict[str, Any]], None],
) -> None:
    """Let a function change the stored memories of a pipeline.

    Raises:
        StorageError: They could not be read or stored.
    """
    async with changing(storage, pipeline_id):
        stored = await storage.memories(pipeline_id, schemas)
        change(stored)
        await storage.save_memories(pipeline_id, stored)


def known_facts(memory: PipelineMemory, step: PipelineStep) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts and memories of this moment that reach a step.

    Items of a map know what was known before the map: were each to know what items before it learned,
    its fingerprint would depend on which of them happened to end first.
    """
    facts, memories = wants(step, "facts"), wants(step, "memories")
    if not step.has_items:
        return (dict(memory.facts) if facts else {}, dict(memory.memories) if memories else {})
    return (
        _without(step.name, memory.facts, {}, FactLearned, memory.events) if facts else {},
        _without(step.name, memory.memories, memory.began_with, MemorySaved, memory.events)
        if memories
        else {},
    )


def _without(
    step: str,
    now: Mapping[str, Any],
    began: Mapping[str, Any],
    kind: type[FactLearned | MemorySaved],
    events: list[Event],
) -> dict[str, Any]:
    """What would be known if the items of a step had learned nothing in an earlier session of this run."""
    before = dict(began)
    own: set[str] = set()
    for event in events:
        if isinstance(event, kind):
            if event.step == step:
                own.add(event.key)
            else:
                before[event.key] = event.value
    values = {key: value for key, value in now.items() if key not in own}
    values.update((key, before[key]) for key in own if key in before)
    return values
