"""What a session of a run begins with: what is known of the run, and its parts, put together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import Approvals, unit_of
from tagent_nb.engine.background import run_shielded
from tagent_nb.engine.batches import Batches
from tagent_nb.engine.concurrency import RunSignals, SerialLock
from tagent_nb.engine.context import RunContext
from tagent_nb.engine.memory.entries import new_run_id
from tagent_nb.engine.memory.load import PipelineMemoryManager, find_run, read_memory, read_previous
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.memory.state_machine import PipelineStateMachine
from tagent_nb.engine.memory.store import not_stored
from tagent_nb.engine.recorder import Recorder, ValueChecks
from tagent_nb.engine.run_loop import RunLoop
from tagent_nb.engine.unit.attempt import Attempts
from tagent_nb.engine.unit.execute import Execution
from tagent_nb.engine.unit.prepared import model_of
from tagent_nb.engine.unit.work import Preparation
from tagent_nb.errors import LeaseLostError, StorageError
from tagent_nb.events import ApprovalGiven, BatchCancelled, Event, InputTaken, RunResumed, RunStarted
from tagent_nb.pipeline import AGENT_KINDS, Pipeline, inputs_by_step
from tagent_nb.runners import PythonRunner, StepRunner

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunOptions, RunServices
    from tagent_nb.engine.resume import Recorded
    from tagent_nb.engine.unit.prepared import PreparedStep, StepOutputs
    from tagent_nb.events import Output
    from tagent_nb.pipeline import Change
    from tagent_nb.runners import Models
    from tagent_nb.storage import Lease, StorageBackend


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
        batches: What it has sent to be answered later.
        loop: Drives it.
    """

    context: RunContext
    recorder: Recorder
    approvals: Approvals
    batches: Batches
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
    manager = PipelineMemoryManager()
    manager.storage = context.services.storage  # which the executor has opened
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
    batches = Batches(context, recorder, approvals, signals, lock)
    attempts = Attempts(context, recorder, preparation, approvals, batches, signals, lock, checks)

    async def run_mapped(prepared: PreparedStep, outputs: StepOutputs) -> Change:
        from tagent_nb.engine.unit.map import MapExecution  # few pipelines map

        mapping = MapExecution(context, recorder, preparation, execution, approvals, batches, signals, lock)
        if prepared.step.reduce_over is None:
            return await mapping.run(prepared, outputs)
        from tagent_nb.engine.unit.reduce import ReduceExecution

        return await ReduceExecution(context, recorder, preparation, approvals, mapping).run(
            prepared, outputs
        )

    execution = Execution(context, recorder, preparation, attempts, batches, signals, checks, run_mapped)
    loop = RunLoop(context, recorder, signals, lock, approvals, batches, preparation.prepared, execution.run)
    return Session(context, recorder, approvals, batches, loop)


async def begin(
    context: RunContext,
    recorder: Recorder,
    preparation: Preparation,
    checks: ValueChecks,
    changed: list[str],
    unreadable: Mapping[str, str],
    accepted: Callable[[], None],
) -> None:
    """Record that a run begins, or goes on.

    Args:
        context: Of the run.
        recorder: Of the run.
        preparation: Compares what is recorded with the steps of today.
        checks: Looks for secrets in inputs.
        changed: Inputs that are not what the run began with.
        unreadable: Steps whose recorded value cannot be read, with why.
        accepted: Called when nothing is left to refuse, before the first event.

    Raises:
        DefinitionError: An input holds a secret, and must not.
        ResumeConflictError: Recorded steps have changed, and ``on_change`` is ``"refuse"``.
        StorageError: It could not be recorded.
    """
    pipeline, options, memory = context.pipeline, context.options, recorder.memory
    budget = context.services.budget
    definition = definition_of(context.services.storage, pipeline)
    names = tuple(step.name for step in pipeline.steps)
    common: dict[str, Any] = {
        "run_id": context.run_id,
        "steps": names,
        "definition": definition,
        "host": platform.node(),
        "pid": os.getpid(),
        "budget": "" if budget is None else str(budget),
        "forced": tuple(name for name in names if options.forces(name)),
        "use_cache": options.use_cache,
        "offline": options.offline,
    }
    inputs = [
        InputTaken(run_id=context.run_id, name=name, output=output)
        for name, output in context.inputs.items()
        if memory.inputs.get(name) is not output
    ]
    warnings: list[str | None] = [checks.secret_of_input(event) for event in inputs]
    event: Event
    if options.resume is False:
        event = RunStarted(pipeline=pipeline.name, memories=dict(memory.memories), **common)
        warnings.append(await _undecided_before(context))
    else:
        from tagent_nb.engine.resume import judge, refuse_changes

        verdict = await judge(context, recorder, preparation, definition, changed)
        if options.on_change == "refuse":
            refuse_changes(pipeline.name, context.run_id, verdict.changed, changed)
        warnings += [
            f"Step {name!r} has changed while {memory.batches.names(name)} is out. What it asks as before is "
            "taken from there; the rest is paid as well, unless cancel_batches() cancels it."
            for name in verdict.changed
            if memory.batches.names(name)
        ]
        warnings += [
            f"Step {name!r} is forced while {memory.batches.names(name)} is out, which is paid as well."
            for name in common["forced"]
            if memory.batches.names(name)
        ]
        event = RunResumed(kept=tuple(verdict.kept), **common)
    accepted()
    memory.pipeline = pipeline
    await recorder.record(event, *inputs)
    for message in filter(None, warnings):
        recorder.warn(message)
    for name, problem in unreadable.items():
        recorder.warn(f"Step {name!r} runs again, since its recorded value cannot be read: {problem}", name)


async def _undecided_before(context: RunContext) -> str:
    """What to warn of when the last run waits for decisions on values that a new one asks for again."""
    storage, pipeline = context.services.storage, context.pipeline
    if not any(step.approve for step in pipeline.steps):
        return ""
    last = await storage.runs(pipeline.id, limit=1)
    if not last or not last[0].undecided:
        return ""
    memory = await read_memory(storage, pipeline.name, last[0].run_id, context.services.schemas)
    steps = {
        pending.request.step for pending in memory.pending.undecided() if pending.request.step in pipeline
    }
    if not steps:
        return ""
    return (
        f"Run {memory.run_id} waits for decisions on values of {', '.join(sorted(steps))}. This is a new "
        f"run, which makes them again; resume={memory.run_id!r} (--resume {memory.run_id}) goes on with "
        "those."
    )


async def record_decision(
    storage: StorageBackend, pipeline_id: str, last: PipelineMemory | None, decision: ApprovalGiven
) -> None:
    """Record a decision on what a run suspended, while no process carries the run on.

    Args:
        storage: Where the run is recorded.
        pipeline_id: The pipeline.
        last: Memory of the executor's last run, which takes the decision in if that is the run.
        decision: The decision.

    Raises:
        StorageError: It could not be recorded.
    """
    memory = last if last is not None and last.run_id == decision.run_id else None
    if memory is not None and memory.pending.get(unit_of(decision)) is None:
        return  # its run has ended meanwhile, and needed no other decision
    async with lease_held(storage, pipeline_id, decision.run_id, _taken_over) as lease:
        await storage.append(pipeline_id, decision.run_id, [decision], token=lease.token)
    if memory is not None:
        memory.apply(decision)


async def cancel_recorded(
    storage: StorageBackend, pipeline: Pipeline, memory: PipelineMemory, default: Any
) -> int:
    """Ask providers to cancel the batches of a run that no process carries on. Returns how many there were.

    Args:
        storage: Where the run is recorded.
        pipeline: Its definition.
        memory: What is known of it.
        default: The model of the executor, before the pipeline's.

    Raises:
        ModelAPIError: A provider refuses it.
        LeaseLostError: A process carries the run on.
        StorageError: It could not be recorded.
    """
    from tagent_nb.runners import Models, batch_of, cancel_batch, ends_giving_up

    models, batches = Models(), memory.batches.under_way()
    async with lease_held(storage, memory.pipeline_id, memory.run_id, _taken_over) as lease:
        for batch in batches:
            step = batch.prepared.step
            model = await models.get(model_of(pipeline, pipeline.get_step(step), default))
            try:
                await cancel_batch(model, batch_of(batch.handle or {}))
            except Exception as error:  # the provider's, or its client's
                if not ends_giving_up(error):
                    raise
            event = BatchCancelled(run_id=memory.run_id, step=step, marker=batch.prepared.marker)
            await storage.append(memory.pipeline_id, memory.run_id, [event], token=lease.token)
            memory.apply(event)
    return len(batches)


def _taken_over(error: LeaseLostError) -> None:
    """What is to be recorded is refused when another process has taken the run over, which says so."""


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


# -- the lease -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def lease_held(
    storage: StorageBackend, pipeline_id: str, run_id: str, lost: Callable[[LeaseLostError], None]
) -> AsyncIterator[Lease]:
    """Have the lease of a run, and renew it until the block ends.

    Args:
        storage: Where the run is recorded.
        pipeline_id: The pipeline.
        run_id: The run, new or interrupted.
        lost: Called on the loop, once, when another process has taken the run over.

    Raises:
        LeaseLostError: Another process carries the run on; the block is not entered.
    """
    lease = await _acquired(storage, pipeline_id, run_id)
    heartbeat = asyncio.ensure_future(_beat(storage, lease, lost))
    try:
        yield lease
    finally:
        heartbeat.cancel()
        await run_shielded(_give_back(storage, lease, heartbeat))


async def _give_back(storage: StorageBackend, lease: Lease, heartbeat: asyncio.Future[None]) -> None:
    await asyncio.wait([heartbeat])
    # A lease that cannot be given back ends by itself; the run's result or error is what counts.
    with contextlib.suppress(StorageError):
        await storage.release(lease)


async def _acquired(storage: StorageBackend, pipeline_id: str, run_id: str) -> Lease:
    acquiring = asyncio.ensure_future(storage.acquire(pipeline_id, run_id))
    try:
        return await asyncio.shield(acquiring)
    except asyncio.CancelledError:
        # Half-way through it cannot be stopped, and what is not given back keeps the run from all processes.
        await asyncio.wait([acquiring])
        if acquiring.exception() is None:
            await storage.release(acquiring.result())
        raise


async def _beat(storage: StorageBackend, lease: Lease, lost: Callable[[LeaseLostError], None]) -> None:
    while True:
        await asyncio.sleep(lease.ttl / 3)
        try:
            await storage.renew(lease)
        except LeaseLostError as error:
            lost(error)
            return
        except StorageError:
            # The next beat may succeed. If it comes too late, the token keeps us from recording.
            continue
