"""Where a run stands: the state machine that its events move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

from tagent_nb.engine.memory.entries import STATUS_OF_EVENT
from tagent_nb.engine.memory.load import PipelineMemoryManager, schemas_of
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.unit.prepared import reads
from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    IllegalTransitionError,
)
from tagent_nb.events import (
    PASSING,
    Event,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    RunUnpaused,
)
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
from tagent_nb.serde import event_from_dict, event_to_dict, from_tree, registry, to_tree


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
        memory = self.pipeline_memory
        scheduler = self._scheduler if self._seen == len(memory.events) else self.scheduler
        memory.apply(event)
        self._seen = len(memory.events)
        status = STATUS_OF_EVENT.get(type(event))
        if status is None:
            self._follow(event)
            return None
        if event.item is not None:  # type: ignore[attr-defined]
            return None
        return scheduler.mark(event.step, status)  # type: ignore[attr-defined]

    def _follow(self, event: Event) -> None:
        """Move through the phases that an event of the run implies."""
        if isinstance(event, RunResumed):
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
        if not isinstance(data, Mapping) or "definition" not in data:
            raise not_stored("state machine of a pipeline", KeyError("definition"))
        classes = list(schemas)
        pipeline = Pipeline.from_dict(data["definition"], schemas=classes, tools=tools, checks=checks)
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
    RunResumed: (Phase.RESUMING, Phase.EXECUTING),
    RunPaused: (Phase.PAUSED,),
    RunUnpaused: (Phase.EXECUTING,),
}
