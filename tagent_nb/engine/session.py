"""What a session of a run begins with: what is known of the run, and its parts, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import Approvals
from tagent_nb.engine.concurrency import RunSignals, SerialLock
from tagent_nb.engine.context import RunContext
from tagent_nb.engine.memory.entries import new_run_id
from tagent_nb.engine.memory.load import PipelineMemoryManager, find_run, read_memory, read_previous
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.memory.state_machine import PipelineStateMachine
from tagent_nb.engine.memory.store import not_stored
from tagent_nb.engine.recorder import Recorder
from tagent_nb.engine.run_loop import RunLoop
from tagent_nb.engine.unit.attempt import Attempts
from tagent_nb.engine.unit.execute import Execution, run_step
from tagent_nb.engine.unit.value_checks import ValueChecks
from tagent_nb.engine.unit.work import Preparation
from tagent_nb.pipeline import AGENT_KINDS, Pipeline, PipelineStep, inputs_by_step
from tagent_nb.runners import PythonRunner, StepRunner

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunOptions, RunServices
    from tagent_nb.engine.resume import Recorded
    from tagent_nb.engine.unit.execute import StepOutputs
    from tagent_nb.events import Output
    from tagent_nb.pipeline import Change
    from tagent_nb.runners import Models
    from tagent_nb.storage import StorageBackend


async def run_id_of(storage: StorageBackend, pipeline: Pipeline, options: RunOptions) -> str:
    """A new id, or the id of the run to carry on.

    Raises:
        NotStoredError: There is no such run.
    """
    if options.resume is False:
        return new_run_id()
    wanted = options.resume if isinstance(options.resume, str) else None
    return await find_run(storage, pipeline.name, wanted)


async def memory_of(
    storage: StorageBackend,
    pipeline: Pipeline,
    options: RunOptions,
    schemas: Mapping[str, type],
    run_id: str,
    last: PipelineMemory | None,
) -> tuple[PipelineMemory, dict[str, Any]]:
    """What is known of the run, and what it saved without storing it: it was stopped between the two.

    Args:
        last: Memory of the executor's last run: if that is the run, its definition is still at hand.

    Raises:
        StorageError: It cannot be read.
    """
    if options.resume is False:
        memory = PipelineMemory(pipeline.id, run_id, [step.name for step in pipeline.steps])
        memory.pipeline_name = pipeline.name
    else:
        memory = await read_memory(storage, pipeline.name, run_id, schemas)
        if last is not None and last.run_id == memory.run_id:
            memory.pipeline = last.pipeline
    memory.shared_data = pipeline.shared_context
    stored = await storage.memories(pipeline.id, schemas)
    late = not_stored(memory, stored)
    memory.memories = {**stored, **late}
    return memory, late


def definition_of(storage: StorageBackend, pipeline: Pipeline) -> dict[str, Any]:
    """The definition as it is recorded, where it is."""
    if not storage.durable:
        return {}
    from tagent_nb.pipeline import pipeline_to_dict

    bare = pipeline.snapshot()
    bare.inputs = {}  # their values are recorded by themselves
    # What cannot be rebuilt, such as a model object, must not keep a run from being recorded.
    return pipeline_to_dict(bare, strict=False)


@dataclass(frozen=True)
class Session:
    """The parts of a run that goes on, put together.

    Attributes:
        context: What stays the same.
        recorder: Takes its events.
        approvals: What it suspends.
        loop: Drives it.
    """

    context: RunContext
    recorder: Recorder
    approvals: Approvals
    loop: RunLoop


async def context_of(
    pipeline: Pipeline,
    options: RunOptions,
    memory: PipelineMemory,
    services: RunServices,
    inputs: Mapping[str, Output],
    token: int | None = None,
) -> tuple[RunContext, dict[str, str]]:
    """The context of a run, and the steps whose recorded value cannot be read, with why.

    Args:
        pipeline: A snapshot, which is not changed from now on.
        options: How the run is to go.
        memory: What is known of it.
        services: What it works with.
        inputs: Values that no step makes, by name.
        token: That of its lease.
    """
    recorded: Recorded = {}
    unreadable: dict[str, str] = {}
    if options.resume is not False:
        from tagent_nb.engine.resume import readable, recorded_units

        recorded, unreadable = await readable(recorded_units(memory), pipeline)
    context = RunContext(
        run_id=memory.run_id,
        pipeline=pipeline,
        services=services,
        options=options,
        inputs=inputs,
        reads_inputs=inputs_by_step(pipeline) if inputs else {},
        recorded=recorded,
        # A fingerprint that neither a cache nor a later process can ask for is not worked out.
        # (A suspended value is known by it, too: a session of this process that resumes the run needs it.)
        keyed=(
            services.cache is not None
            or services.storage.durable
            or options.resume is not False
            or any(step.approve for step in pipeline.steps)
        ),
        token=token,
    )
    return context, unreadable


def recorder_of(context: RunContext, memory: PipelineMemory) -> Recorder:
    """A recorder that goes on with what is known of a run."""
    manager = PipelineMemoryManager(context.services.storage)
    manager.put(context.pipeline.name, memory)
    return Recorder(context, PipelineStateMachine(context.pipeline, manager))


def preparation_of(context: RunContext, recorder: Recorder) -> Preparation:
    """What works out the units of a run."""
    services = context.services
    previous = partial(
        read_previous, services.storage, context.pipeline.name, context.run_id, services.schemas
    )
    return Preparation(context, recorder, previous)


def session_of(
    context: RunContext, recorder: Recorder, preparation: Preparation, checks: ValueChecks
) -> Session:
    """Put the parts of a run together."""
    signals = RunSignals()
    lock = SerialLock({step.name: index for index, step in enumerate(context.pipeline.steps)})
    approvals = Approvals(context, recorder)
    attempts = Attempts(context, recorder, preparation, approvals, signals, lock, checks)
    execution = Execution(context, recorder, preparation, attempts, signals, checks)

    async def run_mapped(step: PipelineStep, outputs: StepOutputs) -> Change:
        from tagent_nb.engine.unit.map import MapExecution  # few pipelines map

        mapping = MapExecution(context, recorder, preparation, execution, attempts, approvals, signals, lock)
        return await mapping.run(step, outputs)

    run = partial(run_step, context, recorder, signals, execution.run, run_mapped)
    return Session(context, recorder, approvals, RunLoop(context, recorder, signals, lock, approvals, run))


class Runners(dict[str, StepRunner]):
    """Runners by kind. Those of agents are made when they are first asked for: not every pipeline has any."""

    def __init__(self) -> None:
        super().__init__(python=PythonRunner())
        self._models: Models | None = None

    def __missing__(self, key: str) -> StepRunner:
        kind = next((kind for kind in AGENT_KINDS.values() if kind.runner_key == key), None)
        if kind is None:
            raise KeyError(key)
        runner: StepRunner = getattr(import_module("tagent_nb.runners"), kind.runner)(self._shared())
        self[key] = runner
        return runner

    def _shared(self) -> Models:
        """The models of all kinds of agents: one client is enough for each."""
        if self._models is None:
            from tagent_nb.runners import Models

            self._models = Models()
        return self._models
