"""Where runs stand: who keeps their memories, and the state machine that moves one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tagent_nb.engine.entries import StepMemoryEntry
from tagent_nb.engine.memory import PipelineMemory
from tagent_nb.errors import NotStoredError, did_you_mean
from tagent_nb.events import (
    Event,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStarted,
    RunUnpaused,
    StepCached,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepGoesOn,
    StepRetried,
    StepSkipped,
    StepStarted,
    StepWaiting,
)
from tagent_nb.pipeline.models import Pipeline, PipelineStep, StepStatus
from tagent_nb.pipeline.names import storage_id
from tagent_nb.pipeline.scheduler import Change, PipelineScheduler
from tagent_nb.pipeline.state_machine import Phase, TaskBasedStateMachine

if TYPE_CHECKING:
    from tagent_nb.storage.base import StorageBackend


class PipelineMemoryManager:
    """Gives each pipeline its memory, and keeps it in storage.

    Args:
        storage: Where to keep it; without one it lives as long as this object.
    """

    def __init__(self, storage: StorageBackend | None = None) -> None:
        self.storage = storage
        self._memories: dict[str, PipelineMemory] = {}
        self._stored: dict[str, int] = {}

    def get_pipeline_memory(self, pipeline_name: str) -> PipelineMemory:
        """The memory of a pipeline, an empty one if it is new here."""
        found = self._memories.get(pipeline_name)
        if found is None:
            found = self._memories[pipeline_name] = PipelineMemory(storage_id(pipeline_name))
            found.pipeline_name = pipeline_name
        return found

    def put(self, pipeline_name: str, memory: PipelineMemory) -> None:
        """Use ``memory`` for this pipeline from now on."""
        self._memories[pipeline_name] = memory

    async def save(self, pipeline_name: str) -> None:
        """Write what is not stored yet.

        Raises:
            StorageError: It could not be written.
        """
        memory = self.get_pipeline_memory(pipeline_name)
        if self.storage is None:
            return
        done = self._stored.get(memory.run_id, 0)
        fresh = memory.events[done:]
        if fresh and not done and not isinstance(fresh[0], RunStarted):
            started = RunStarted(
                run_id=memory.run_id, at=fresh[0].at, pipeline=pipeline_name, steps=tuple(memory.steps)
            )
            await self.storage.append(memory.pipeline_id, memory.run_id, [started])
        await self.storage.append(memory.pipeline_id, memory.run_id, fresh)
        self._stored[memory.run_id] = done + len(fresh)

    async def load(
        self, pipeline_name: str, run_id: str | None = None, schemas: Mapping[str, type] | None = None
    ) -> PipelineMemory:
        """Rebuild the memory of a stored run, the newest one if no ``run_id`` is given.

        Raises:
            NotStoredError: Nothing is stored under that name.
            StorageError: It could not be read.
        """
        memory = await read_memory(self.storage, pipeline_name, run_id, schemas)
        self._memories[pipeline_name] = memory
        self._stored[memory.run_id] = len(memory.events)
        return memory


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
    return memory


async def find_run(storage: StorageBackend, pipeline_name: str, run_id: str | None = None) -> str:
    """The id of a stored run, the newest one if no ``run_id`` is given.

    Raises:
        NotStoredError: There is no such run.
    """
    known = [one.run_id for one in await storage.runs(storage_id(pipeline_name))]
    if run_id in known:
        return run_id
    if run_id is not None:
        lost = "" if known else await storage.emptied()
        raise NotStoredError(
            f"Run {run_id!r} of pipeline {pipeline_name!r} is not stored.{did_you_mean(run_id, known)} "
            + (lost or f"Stored are: {', '.join(known[-5:]) or 'none'}.")
        )
    if not known:
        raise _nothing_stored(pipeline_name, await storage.emptied())
    return known[-1]


def _nothing_stored(pipeline_name: str, lost: str = "") -> NotStoredError:
    return NotStoredError(
        f"No run of pipeline {pipeline_name!r} is stored. "
        f"{lost or 'Run it first, under the same name and storage.'}"
    )


async def read_previous(
    storage: StorageBackend, pipeline_name: str, run_id: str, schemas: Mapping[str, type] | None = None
) -> PipelineMemory | None:
    """The memory of the newest run besides this one, or ``None``."""
    runs = [one.run_id for one in await storage.runs(storage_id(pipeline_name)) if one.run_id != run_id]
    return await read_memory(storage, pipeline_name, runs[-1], schemas) if runs else None


class PipelineStateMachine(TaskBasedStateMachine):
    """A run's phase, its memory and its scheduler, moved by one call: :meth:`apply`.

    Args:
        pipeline: What runs.
        memory_manager: Holds the memory; recorded results count as completed.

    Raises:
        CycleError: Steps wait for each other.
        UnknownStepError: A step depends on one that does not exist.
    """

    TRANSITIONS: ClassVar[Mapping[Phase, frozenset[Phase]]] = {
        **TaskBasedStateMachine.TRANSITIONS,
        Phase.INIT: frozenset({Phase.PLANNING, Phase.RESUMING, Phase.FAILED}),
        Phase.RESUMING: frozenset({Phase.EXECUTING, Phase.FAILED}),
        Phase.EXECUTING: frozenset({Phase.PAUSED, Phase.EVALUATING, Phase.FAILED}),
        Phase.PAUSED: frozenset({Phase.EXECUTING, Phase.EVALUATING, Phase.FAILED}),
    }

    def __init__(self, pipeline: Pipeline, memory_manager: PipelineMemoryManager) -> None:
        super().__init__(pipeline.description, [])
        self.pipeline = pipeline
        self.memory_manager = memory_manager
        self.pipeline_memory = memory_manager.get_pipeline_memory(pipeline.name)
        self.scheduler = self._scheduled()

    def _scheduled(self) -> PipelineScheduler:
        """A scheduler that knows what memory has a value for."""
        scheduler = PipelineScheduler(self.pipeline)
        for step in self.pipeline.steps:
            if self.pipeline_memory.step(step.name).output is not None:
                scheduler.mark(step.name, StepStatus.COMPLETED)
        return scheduler

    def get_ready_steps(self) -> list[PipelineStep]:
        """The steps that can start now, in definition order."""
        return self.scheduler.get_ready_steps()

    def apply(self, event: Event) -> Change | None:
        """Fold one event into memory, and tell the scheduler what it means.

        Returns what became ready or can never run, for an event that ends a whole step.
        """
        self.pipeline_memory.apply(event)
        status = _STATUSES.get(type(event))
        if status is None:
            self._follow(event)
            return None
        if event.item is not None:  # type: ignore[attr-defined]
            return None
        return self.scheduler.mark(event.step, status)  # type: ignore[attr-defined]

    def _follow(self, event: Event) -> None:
        """Move through the phases that an event of the run implies."""
        if isinstance(event, RunContinued):
            self.scheduler = self._scheduled()
        if isinstance(event, RunFinished):
            self.transition(Phase.EVALUATING)
            self.transition(Phase.COMPLETED if event.success else Phase.FAILED)
            return
        for phase in _PHASES.get(type(event), ()):
            self.transition(phase)

    def to_dict(self) -> dict[str, Any]:
        """Phase, history and the status of each step as plain data."""
        statuses = {name: status.value for name, status in self.scheduler.step_status.items()}
        where = {"pipeline": self.pipeline.name, "run_id": self.pipeline_memory.run_id}
        return {**super().to_dict(), **where, "steps": statuses}

    @property
    def progress(self) -> tuple[int, int]:
        """How many steps have ended, and how many there are."""
        return sum(status.is_final for status in self.scheduler.step_status.values()), len(
            self.pipeline.steps
        )


_PHASES: dict[type[Event], tuple[Phase, ...]] = {
    RunStarted: (Phase.PLANNING, Phase.EXECUTING),
    RunContinued: (Phase.RESUMING, Phase.EXECUTING),
    RunPaused: (Phase.PAUSED,),
    RunUnpaused: (Phase.EXECUTING,),
}

_STATUSES: dict[type[Event], StepStatus] = {
    StepStarted: StepStatus.RUNNING,
    StepWaiting: StepStatus.WAITING,
    StepGoesOn: StepStatus.RUNNING,
    StepRetried: StepStatus.WAITING,
    StepFinished: StepStatus.COMPLETED,
    StepCached: StepStatus.CACHED,
    StepFailed: StepStatus.FAILED,
    StepSkipped: StepStatus.SKIPPED,
    StepCancelled: StepStatus.CANCELLED,
}

__all__ = [
    "PipelineMemory",
    "PipelineMemoryManager",
    "PipelineStateMachine",
    "StepMemoryEntry",
    "read_memory",
]
