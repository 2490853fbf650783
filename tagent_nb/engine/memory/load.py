"""Reading runs from storage into memories: stored runs, their ids, and the classes of their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.background import in_thread, on_background_loop, submit
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.errors import NotStoredError, RunError, did_you_mean
from tagent_nb.events import RunStarted, SharedDataSaved
from tagent_nb.naming import storage_id
from tagent_nb.pipeline import Pipeline, PipelineStep
from tagent_nb.serde import Classes, Referred, digest, from_tree, is_bulky
from tagent_nb.storage import open_storage

if TYPE_CHECKING:
    from tagent_nb.storage import StorageBackend


class PipelineMemoryManager:
    """Gives each pipeline its memory, and keeps it in storage.

    Args:
        storage: Where to keep it, as for :func:`tagent_nb.open_storage`; without one it lives as long as this
            object.
        schemas: Classes by name that stored values are turned back into, besides those of a pipeline.
    """

    def __init__(
        self,
        storage: StorageBackend | str | Path | None = None,
        schemas: Mapping[str, type] | None = None,
    ) -> None:
        self.storage = None if storage is None else open_storage(storage)
        self.schemas: Mapping[str, type] = schemas or {}
        self._memories: dict[str, PipelineMemory] = {}
        self._stored: dict[str, _Stored] = {}

    def get_pipeline_memory(
        self, pipeline_name: str, schemas: Mapping[str, type] | None = None
    ) -> PipelineMemory:
        """The memory of a pipeline: the one in use, else that of its newest stored run, else an empty one.

        Storage is read on a loop in a thread of its own, and waited for; :meth:`load` does it without
        blocking.

        Args:
            pipeline_name: The pipeline.
            schemas: As in :meth:`load`.

        Raises:
            RunError: It would have to be read, and this is the loop that reads.
            StorageError: It could not be read.
        """
        memory = self._memories.get(pipeline_name)
        if memory is None:
            memory = self._newest(pipeline_name, schemas)
        if memory is None:
            memory = PipelineMemory(storage_id(pipeline_name))
            memory.pipeline_name = pipeline_name
            self._memories[pipeline_name] = memory
        return memory

    def _newest(self, pipeline_name: str, schemas: Mapping[str, type] | None) -> PipelineMemory | None:
        if self.storage is None:
            return None
        if on_background_loop():
            raise RunError(
                f"The memory of pipeline {pipeline_name!r} cannot be waited for here, on the loop that reads "
                f"it. Write: memory = await manager.load({pipeline_name!r})"
            )
        try:
            return submit(self.load(pipeline_name, schemas=schemas)).result()
        except NotStoredError:
            return None

    def put(self, pipeline_name: str, memory: PipelineMemory) -> None:
        """Use ``memory`` for this pipeline from now on."""
        self._memories[pipeline_name] = memory

    async def save(self, pipeline_name: str) -> None:
        """Write what is not stored yet, changed ``shared_data`` included.

        Raises:
            EncodeError: A shared value cannot be stored; the message has the path to it.
            StorageError: It could not be written.
        """
        memory = self._memories.get(pipeline_name)
        if self.storage is None or memory is None:
            return
        stored = self._stored.get(memory.run_id) or _Stored(0, _NO_SHARED_DATA)
        data = memory.shared_data
        shared = await in_thread(digest, data) if is_bulky(data) else digest(data)
        if shared != stored.shared:
            memory.apply(SharedDataSaved(run_id=memory.run_id, shared=dict(memory.shared_data)))
        fresh = memory.events[stored.events :]
        if fresh and not stored.events and not isinstance(fresh[0], RunStarted):
            started = RunStarted(
                run_id=memory.run_id, at=fresh[0].at, pipeline=pipeline_name, steps=tuple(memory.steps)
            )
            await self.storage.append(memory.pipeline_id, memory.run_id, [started])
        await self.storage.append(memory.pipeline_id, memory.run_id, fresh)
        self._stored[memory.run_id] = _Stored(stored.events + len(fresh), shared)

    async def load(
        self, pipeline_name: str, run_id: str | None = None, schemas: Mapping[str, type] | None = None
    ) -> PipelineMemory:
        """Rebuild the memory of a stored run, the newest one if no ``run_id`` is given.

        Args:
            pipeline_name: The pipeline.
            run_id: The run.
            schemas: Classes by name that its values are turned back into, in place of the manager's.

        Raises:
            NotStoredError: Nothing is stored under that name.
            StorageError: It could not be read.
        """
        classes = self.schemas if schemas is None else schemas
        memory = await read_memory(self.storage, pipeline_name, run_id, classes)
        self._memories[pipeline_name] = memory
        self._stored[memory.run_id] = _Stored(len(memory.events), digest(memory.shared_data))
        return memory


@dataclass(frozen=True, slots=True)
class _Stored:
    """How much of a memory is stored: how many of its events, and the digest of its shared data."""

    events: int
    shared: str


_NO_SHARED_DATA = digest({})


async def read_memory(
    storage: StorageBackend | None,
    pipeline_name: str,
    run_id: str | None = None,
    schemas: Mapping[str, type] | None = None,
) -> PipelineMemory:
    """Fold a stored run into a fresh memory; see :meth:`PipelineMemoryManager.load`."""
    if storage is None:
        raise _nothing_stored(pipeline_name)
    if run_id is None:
        run_id = await find_run(storage, pipeline_name)
    memory = PipelineMemory(storage_id(pipeline_name), run_id)
    memory.pipeline_name = pipeline_name
    for event in await storage.read_run(memory.pipeline_id, run_id, schemas):
        memory.apply(event)
    if not memory.shared_data:
        shared = memory.definition.get("shared_context", {})
        memory.shared_data = {name: from_tree(tree, schemas) for name, tree in shared.items()}
    return memory


async def find_run(storage: StorageBackend, pipeline_name: str, run_id: str | None = None) -> str:
    """The id of a stored run, the newest one if no ``run_id`` is given.

    Raises:
        NotStoredError: There is no such run.
    """
    pipeline_id = storage_id(pipeline_name)
    if run_id is not None:
        if await storage.has_run(pipeline_id, run_id):
            return run_id
        run_ids = [info.run_id for info in await storage.runs(pipeline_id)]
        lost = "" if run_ids else await storage.lost_runs()
        raise NotStoredError(
            f"Run {run_id!r} of pipeline {pipeline_name!r} is not stored.{did_you_mean(run_id, run_ids)} "
            + (lost or f"Stored are: {', '.join(run_ids[-5:]) or 'none'}.")
        )
    newest = await storage.newest_run(pipeline_id)
    if newest is None:
        raise _nothing_stored(pipeline_name, await storage.lost_runs())
    return newest


def _nothing_stored(pipeline_name: str, lost: str = "") -> NotStoredError:
    return NotStoredError(
        f"No run of pipeline {pipeline_name!r} is stored. "
        f"{lost or 'Run it first, under the same name and storage.'}"
    )


async def read_previous(
    storage: StorageBackend, pipeline_name: str, run_id: str, schemas: Mapping[str, type] | None = None
) -> PipelineMemory | None:
    """The memory of the newest run besides this one, or ``None``."""
    newest = await storage.newest_run(storage_id(pipeline_name), besides=run_id)
    return None if newest is None else await read_memory(storage, pipeline_name, newest, schemas)


def schemas_of(pipeline: Pipeline, own_classes: Iterable[type], namespace: Mapping[str, Any]) -> Classes:
    """Classes that stored values may become: those that a step's schema and code refer to, those that the
    user passed, and those of the namespace.

    Args:
        pipeline: Its steps say whose values are read.
        own_classes: Classes that the user passed.
        namespace: Globals of the notebook's cells.
    """
    passed = list(own_classes)
    classes = {name: value for name, value in list(namespace.items()) if isinstance(value, type)}
    classes.update({schema.__name__: schema for schema in passed})
    classes.update(
        {step.output_schema.__name__: step.output_schema for step in pipeline.steps if step.output_schema}
    )

    def referred(step: PipelineStep) -> Referred:
        from tagent_nb.engine.class_lookup import of_step

        return of_step(step, namespace)

    def around() -> Referred:
        from tagent_nb.engine.class_lookup import of_namespace

        return of_namespace(passed, namespace)

    return Classes(classes, _ByStep(pipeline.steps, referred), around, live=True)


class _ByStep(dict[str, Any]):
    """What gives the classes of each step, by its name. Made when it is asked for: most steps never are."""

    def __init__(self, steps: Iterable[PipelineStep], referred: Callable[[PipelineStep], Referred]) -> None:
        super().__init__((step.name, step) for step in steps)
        self._referred = referred

    def __getitem__(self, name: str) -> Callable[[], Referred]:
        return partial(self._referred, super().__getitem__(name))
