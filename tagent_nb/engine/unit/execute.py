"""One unit of work, in one line from its fingerprint to its record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import StepHeld
from tagent_nb.engine.background import is_cancelled
from tagent_nb.engine.unit.attempt import attempts, failed
from tagent_nb.engine.unit.work import (
    Work,
    asked_cache,
    inputs_for,
    prepare,
    read_heavy,
    runner_of,
    still_answers,
)
from tagent_nb.errors import OfflineMissError, TagentError
from tagent_nb.events import (
    NO_USAGE,
    Event,
    FactLearned,
    MemorySaved,
    Output,
    StepCached,
    StepFailed,
    StepFinished,
    StepSkipped,
    TokenUsage,
)
from tagent_nb.pipeline import PipelineStep
from tagent_nb.redaction import redact
from tagent_nb.runners import UNKNOWN_REASON, user_traceback
from tagent_nb.user_objects import blame, class_name, message_of

if TYPE_CHECKING:
    from tagent_nb.cache import ResultCache
    from tagent_nb.engine.run_loop import Run
    from tagent_nb.pipeline import Change, Condition


async def run_step(run: Run, step: PipelineStep) -> Change:
    """Run a step to its final event, and record it. Returns what became ready or doomed."""
    if run.held:
        await run.may_start()
    states = run.memory.steps
    outputs = {
        name: states[name].output if name in states else None
        for name in run.machine.scheduler.dependency_graph[step.name]
    }
    if run.inputs:
        outputs.update(inputs_for(run, step.name))
    if step.when is not None:
        await read_heavy(outputs.values())
    reason = held_back(run, step, outputs)
    if reason is not None:
        return await run.conclude(reason)
    if step.map_over is not None:
        from tagent_nb.engine.unit.map import run_mapped

        return await run_mapped(run, step, outputs)
    try:
        work = await prepare(run, step, outputs)
    except BaseException as error:
        if is_cancelled():
            raise
        return await run.conclude(unprepared(run, step, error))
    return await run.conclude(*await guarded(run, work))


async def guarded(run: Run, work: Work) -> list[Event]:
    """:func:`settle`, but whatever the user's objects raise outside of an attempt fails this unit alone."""
    try:
        return await settle(run, work)
    except BaseException as error:
        if is_cancelled() or run.broken or issubclass(type(error), (StepHeld, GeneratorExit)):
            raise
        return [unprepared(run, work.step, error, work.item)]


def unprepared(run: Run, step: PipelineStep, error: BaseException, item: str | None = None) -> StepFailed:
    """The end of a step, or of one item, that broke before or after its attempts.

    It has an unknown tool, say, or a value whose methods raise: any error of those is this unit's own, and so
    is a value of another step whose bytes are damaged.

    Raises:
        BaseException: ``error`` itself, if it ends the program, and so the run.
    """
    known = issubclass(type(error), TagentError)
    told = "What it reads, returns or refers to cannot be handled"
    message = message_of(error) if known else f"{told}: {blame(error)}"
    context = run.live.get((step.name, item))  # what its attempt has spent counts
    return StepFailed(
        run_id=run.memory.run_id,
        step=step.name,
        item=item,
        error_type=class_name(error),
        message=redact(message),
        traceback="" if known else user_traceback(error),
        attempt=1 if context is None else context.attempt,
        usage=NO_USAGE if context is None else context.usage,
        cost=0.0 if context is None else context.cost,
    )


def held_back(
    run: Run, step: PipelineStep, outputs: Mapping[str, Output | None]
) -> StepSkipped | StepFailed | None:
    """What keeps a step from running: its condition, which does not hold or cannot be decided.

    One that is to be decided for each item of a mapped step keeps back none.
    """
    if step.when is None:
        return None
    try:
        if step.item_condition is not None:
            return None
        values = {name: None if output is None else output.value for name, output in outputs.items()}
    except BaseException as error:
        return unprepared(run, step, error)
    return decided(run, step, step.when, values)


def decided(
    run: Run,
    step: PipelineStep,
    when: str | Condition,
    values: Mapping[str, Any],
    key: str | None = None,
    **about: Any,
) -> StepSkipped | StepFailed | None:
    """What a condition means for a step, or for the item of this ``key``.

    Args:
        run: The run.
        step: The step.
        when: Its condition.
        values: What the condition reads, by name.
        key: The item's.
        about: The ``item``, and what the step has ``mapped``.
    """
    from tagent_nb.pipeline import holds

    memory = run.memory
    try:
        about |= {"shared": run.pipeline.shared_context, "facts": memory.facts, "memories": memory.memories}
        if holds(when, values, step=step.name, **about):
            return None
    except BaseException as error:
        return unprepared(run, step, error, key)
    told = step.when if isinstance(step.when, str) or step.when is None else step.when.describe()
    return StepSkipped(run_id=memory.run_id, step=step.name, item=key, reason=f"condition not met: {told}")


async def settle(run: Run, work: Work) -> list[Event]:
    """Get a unit's value from its record, the cache, an equal unit under way, or its runner.

    Returns the events to record: facts and memories, and last the final event.
    """
    step = work.step
    if not run.options.forces(step.name):
        kept = run.restored.get(work.unit)
        if kept is not None and still_answers(kept, work):
            return [_from_record(kept)]
    cache = asked_cache(run, step)
    if cache is None:
        return _offline(run, work) or await attempts(run, work)
    return await _single_flight(run, work, cache, run.options.passes_cache(step.name))


def _offline(run: Run, work: Work) -> list[Event]:
    if not run.options.offline or work.step.is_python:
        return []
    if getattr(runner_of(run, work.step), "replays", False):
        return []  # its calls are answered by records, or fail
    error = OfflineMissError(
        f"Step {work.step.name!r} has no cached answer for these inputs, the run is offline, and its runner "
        "does not replay. Run it once without offline, or see what changed with %tagent_explain."
    )
    return [failed(run, work, error, attempt=1)]


async def _single_flight(run: Run, work: Work, cache: ResultCache, forced: bool) -> list[Event]:
    """Let equal units under way make one call; if it fails, the next of them tries.

    To ask the cache is part of it: between a miss and the call, an equal unit could end.
    """
    while (flight := run.flights.get(work.key)) is not None:
        done = await asyncio.shield(flight)
        if done is HELD:
            raise StepHeld
        if isinstance(done, StepFinished):
            return _from_cache(run, work, done.output, done.usage, done.cost, dict(done.metadata))
    mine: asyncio.Future[StepFinished | str | None] = asyncio.get_running_loop().create_future()
    run.flights[work.key] = mine
    done = None
    try:
        events = None if forced else await _asked(run, work, cache)
        if events is not None and not _must_be_held(work, events):
            return events
        events = (_offline(run, work) if events is None else None) or await attempts(run, work, events)
        done = _done(work, events[-1])
        if done is not None and done.output.storable and UNKNOWN_REASON not in done.metadata:
            await _remember(run, work, cache, events, done)
        return events
    except StepHeld:
        done = HELD
        raise
    finally:
        if done is not HELD:
            # What is held stays: a twin that comes later must not ask the model either.
            del run.flights[work.key]
        mine.set_result(done)


HELD = "held"
"""How a flight ends whose value waits for a decision that nobody takes in this sitting."""


async def _asked(run: Run, work: Work, cache: ResultCache) -> list[Event] | None:
    """What the cache answers."""
    entry = await cache.aget(work.key, run.schemas_of(work.step.name))
    if entry is None:
        return None
    return _from_cache(run, work, entry.output, entry.usage, entry.cost, dict(entry.metadata))


def _must_be_held(work: Work, events: list[Event]) -> bool:
    """Whether a cached answer needs somebody's word first: it was made before the step asked for that."""
    final = events[-1]
    return work.step.approve and isinstance(final, StepCached) and "approval" not in final.metadata


def _done(work: Work, final: Event) -> StepFinished | None:
    """A unit's end as the cache is to know it; ``None`` for one without a value."""
    if isinstance(final, StepCached):
        usage, cost = final.saved_usage, final.saved_cost
    elif isinstance(final, StepFinished):
        usage, cost = work.took or (final.usage, final.cost)
        if work.took is None:
            return final
    else:
        return None
    return StepFinished(
        run_id=final.run_id,
        step=final.step,
        item=final.item,
        output=final.output,
        key=final.key,
        usage=usage,
        cost=cost,
        metadata=final.metadata,
    )


async def _remember(
    run: Run, work: Work, cache: ResultCache, events: list[Event], final: StepFinished
) -> None:
    metadata = dict(final.metadata)
    # What a step learned belongs to its answer: a cached answer must teach the same.
    for name, kind in (("facts", FactLearned), ("memories", MemorySaved)):
        learned = {event.key: event.value for event in events if isinstance(event, kind)}
        if learned:
            metadata[f"_{name}"] = learned
    await cache.aput(
        work.key,
        final.output,
        usage=final.usage,
        cost=final.cost,
        step=work.step.name,
        pipeline=run.memory.pipeline_id,
        metadata=metadata,
    )
    run.look_at_classes(work.step.name, final.output)


def _from_cache(
    run: Run, work: Work, output: Output, usage: TokenUsage, cost: float | None, metadata: dict[str, Any]
) -> list[Event]:
    name, run_id = work.step.name, run.memory.run_id
    events: list[Event] = []
    for key, value in metadata.pop("_facts", {}).items():
        events.append(FactLearned(run_id=run_id, step=name, item=work.item, key=key, value=value))
    for key, value in metadata.pop("_memories", {}).items():
        events.append(MemorySaved(run_id=run_id, step=name, item=work.item, key=key, value=value))
    events.append(
        StepCached(
            run_id=run_id,
            step=name,
            item=work.item,
            output=output,
            key=work.key,
            components={} if work.item is not None else work.components,
            saved_usage=usage,
            saved_cost=cost,
            metadata=metadata,
        )
    )
    return events


def _from_record(kept: StepFinished | StepCached) -> StepFinished | StepCached:
    """A step that was recorded in this run, before something above it ran again to the same value."""
    if isinstance(kept, StepCached):
        return replace(kept, at=time.time(), saved_usage=TokenUsage(), saved_cost=0.0)
    # What it took has been counted when it was recorded.
    return replace(kept, at=time.time(), usage=TokenUsage(), cost=0.0, seconds=0.0)
