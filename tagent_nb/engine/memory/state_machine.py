"""Where runs stand: who keeps their memories, and the state machine that moves one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tagent_nb.engine.background import in_thread, on_background_loop, submit
from tagent_nb.engine.memory.entries import STATUS_OF_EVENT, StepMemoryEntry
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    IllegalTransitionError,
    NotStoredError,
    RunError,
    did_you_mean,
)
from tagent_nb.events import (
    PASSING,
    Event,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStarted,
    RunUnpaused,
    SharedDataSaved,
)
from tagent_nb.naming import storage_id
from tagent_nb.pipeline import (
    Change,
    Phase,
    Pipeline,
    PipelineScheduler,
    PipelineStep,
    StepStatus,
    TaskBasedStateMachine,
    not_stored,
)
from tagent_nb.serde import digest, event_from_dict, event_to_dict, from_tree, is_bulky, registry, to_tree
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
        known = [info.run_id for info in await storage.runs(pipeline_id)]
        lost = "" if known else await storage.emptied()
        raise NotStoredError(
            f"Run {run_id!r} of pipeline {pipeline_name!r} is not stored.{did_you_mean(run_id, known)} "
            + (lost or f"Stored are: {', '.join(known[-5:]) or 'none'}.")
        )
    newest = await storage.newest_run(pipeline_id)
    if newest is None:
        raise _nothing_stored(pipeline_name, await storage.emptied())
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


class PipelineStateMachine(TaskBasedStateMachine):
    """A run's phase, its memory and its scheduler, moved by :meth:`apply`.

    What is recorded in the memory by other ways, such as ``pipeline_memory.save_step_result``, counts too.

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
        self.pipeline_memory = memory_manager.get_pipeline_memory(pipeline.name, self._classes())
        self._follow_memory()

    def _classes(self, more: Iterable[type] = ()) -> Mapping[str, type]:
        """Classes that stored values may become, as a run of the pipeline finds them: by step."""
        from tagent_nb.engine.session import schemas_of

        return schemas_of(self.pipeline, [*self.memory_manager.schemas.values(), *more], {})

    def _follow_memory(self) -> None:
        """Begin with a scheduler that knows what the memory has a value for."""
        memory = self.pipeline_memory
        memory.reads_of = self._steps_read
        self._scheduler = PipelineScheduler(self.pipeline)
        self._seen = len(memory.events)
        for name in [step.name for step in self.pipeline.steps]:
            step = memory.step(name)
            if step.output is not None:
                cached = step.status is StepStatus.CACHED
                self._scheduler.mark(name, StepStatus.CACHED if cached else StepStatus.COMPLETED)

    def _steps_read(self, name: str) -> list[str]:
        """The steps whose values a step of the pipeline reads."""
        from tagent_nb.engine.unit.work import reads

        if name not in self.pipeline:
            return []
        step = self.pipeline.get_step(name)
        above = {dependency.name: None for dependency in self.pipeline.dependencies(step)}
        names = dict.fromkeys(reference.step for reference in reads(step, above))
        return [name for name in names if not self.pipeline.is_input(name)]

    @property
    def scheduler(self) -> PipelineScheduler:
        """Order, readiness and status of the steps, as the memory has them now."""
        if self._seen != len(self.pipeline_memory.events):
            self._catch_up()
        return self._scheduler

    def _catch_up(self) -> None:
        """Take in the events that reached the memory by another way than :meth:`apply`."""
        events = self.pipeline_memory.events
        fresh, self._seen = events[self._seen :], len(events)
        for event in fresh:
            status = STATUS_OF_EVENT.get(type(event))
            if status is None or event.item is not None or event.step not in self._scheduler.step_status:  # type: ignore[attr-defined]
                continue
            try:
                self._scheduler.mark(event.step, status)  # type: ignore[attr-defined]
            except IllegalTransitionError:
                # A value for a step that had failed or been skipped: others may be ready again.
                self._follow_memory()
                return

    def get_ready_steps(self) -> list[PipelineStep]:
        """The steps that can start now, in definition order."""
        return self.scheduler.get_ready_steps()

    def apply(self, event: Event) -> Change | None:
        """Fold one event into memory, and tell the scheduler what it means.

        Returns what became ready or can never run, for an event that ends a whole step.
        """
        scheduler = self.scheduler
        self.pipeline_memory.apply(event)
        self._seen = len(self.pipeline_memory.events)
        status = STATUS_OF_EVENT.get(type(event))
        if status is None:
            self._follow(event)
            return None
        if event.item is not None:  # type: ignore[attr-defined]
            return None
        return scheduler.mark(event.step, status)  # type: ignore[attr-defined]

    def _follow(self, event: Event) -> None:
        """Move through the phases that an event of the run implies."""
        if isinstance(event, RunContinued):
            self._follow_memory()
        if isinstance(event, RunFinished):
            self.transition(Phase.EVALUATING)
            self.transition(Phase.COMPLETED if event.success else Phase.FAILED)
            return
        for phase in _PHASES.get(type(event), ()):
            self.transition(phase)

    @property
    def progress(self) -> tuple[int, int]:
        """How many steps have ended, and how many there are."""
        statuses = self.scheduler.step_status
        return sum(status.is_final for status in statuses.values()), len(statuses)

    # -- storing ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Definition, phase, history, status of each step, results and shared data as JSON-able data.

        Raises:
            EncodeError: A fact or a shared value cannot be stored; the message has the path to it.
        """
        from tagent_nb.pipeline import pipeline_to_dict

        memory = self.pipeline_memory
        return {
            **super().to_dict(),
            "pipeline": self.pipeline.name,
            "definition": pipeline_to_dict(self.pipeline, strict=False),
            "run_id": memory.run_id,
            "steps": {name: status.value for name, status in self.scheduler.step_status.items()},
            "shared_data": {
                name: to_tree(value, path=f"shared_data.{name}") for name, value in memory.shared_data.items()
            },
            "events": [_event_to_json(event) for event in memory.events if not isinstance(event, PASSING)],
        }

    def restore(self, data: Mapping[str, Any], *, schemas: Mapping[str, type] | None = None) -> Self:
        """Take over what :meth:`to_dict` gave: phase, statuses, results and run id. Steps that were running
        then are ready again.

        Args:
            data: The state of this pipeline.
            schemas: Classes by name that values are turned back into, besides the manager's and the steps'.

        Raises:
            DefinitionError: The data is not that of a state machine of this pipeline; nothing is changed.
        """
        classes = self._classes((schemas or {}).values())
        try:
            name, run_id = data["pipeline"], str(data["run_id"])
            statuses = {step: StepStatus(value) for step, value in data["steps"].items()}
            shared = {key: from_tree(tree, classes) for key, tree in data["shared_data"].items()}
            events = [_event_from_json(event, classes) for event in data["events"]]
        except (LookupError, TypeError, ValueError, AttributeError, CorruptRecordError) as error:
            raise not_stored("state machine of a pipeline", error) from error
        if name != self.pipeline.name:
            raise DefinitionError(
                f"This is the state of pipeline {name!r}, and this machine runs {self.pipeline.name!r}. "
                f"Make a machine of pipeline {name!r} to restore it."
            )
        super().restore(data)
        memory = PipelineMemory(self.pipeline.id, run_id, [step.name for step in self.pipeline.steps])
        memory.pipeline_name = self.pipeline.name
        for event in events:
            memory.apply(event)
        memory.shared_data = shared
        self.memory_manager.put(self.pipeline.name, memory)
        self.pipeline_memory = memory
        self._follow_memory()
        for step, status in statuses.items():
            if step in self.pipeline and status in _RESTORED and not memory.has_step_result(step):
                self._scheduler.mark(step, status)
        return self

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        *,
        schemas: Iterable[type] = (),
        tools: Iterable[Callable[..., Any]] = (),
        checks: Iterable[Callable[..., Any]] = (),
        memory_manager: PipelineMemoryManager | None = None,
    ) -> Self:
        """A new machine from :meth:`to_dict`, its pipeline too.

        Args:
            data: What :meth:`to_dict` gave.
            schemas: The model classes that the pipeline's steps and values name.
            tools: The functions that its steps name as tools.
            checks: The functions that its steps name as checks.
            memory_manager: Gets the memory; a new one without storage if none is given.

        Raises:
            DefinitionError: The data is not that of a state machine, or the pipeline cannot be rebuilt; the
                message says what to pass, or how to mend it. A machine of the pipeline itself can
                :meth:`restore` the data.
        """
        from tagent_nb.pipeline import pipeline_from_dict

        if not isinstance(data, Mapping) or "definition" not in data:
            raise not_stored("state machine of a pipeline", KeyError("definition"))
        classes = list(schemas)
        pipeline = pipeline_from_dict(data["definition"], schemas=classes, tools=tools, checks=checks)
        machine = cls(pipeline, memory_manager or PipelineMemoryManager())
        return machine.restore(data, schemas=registry(classes))


def _event_to_json(event: Event) -> dict[str, Any]:
    """An event as JSON-able data; a value that it brings is JSON already."""
    data = event_to_dict(event)
    if "blob" in data.get("output", ()):
        data["output"]["blob"] = data["output"]["blob"].decode()
    return data


def _event_from_json(data: Mapping[str, Any], schemas: Mapping[str, type]) -> Event:
    output = data.get("output")
    if isinstance(output, Mapping) and isinstance(output.get("blob"), str):
        data = {**data, "output": {**output, "blob": output["blob"].encode()}}
    return event_from_dict(data, schemas)


_RESTORED = frozenset({StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED, StepStatus.WAITING})
"""Statuses that a step without a value keeps when a machine is restored."""


_PHASES: dict[type[Event], tuple[Phase, ...]] = {
    RunStarted: (Phase.PLANNING, Phase.EXECUTING),
    RunContinued: (Phase.RESUMING, Phase.EXECUTING),
    RunPaused: (Phase.PAUSED,),
    RunUnpaused: (Phase.EXECUTING,),
}

__all__ = [
    "PipelineMemory",
    "PipelineMemoryManager",
    "PipelineStateMachine",
    "StepMemoryEntry",
    "read_memory",
]
