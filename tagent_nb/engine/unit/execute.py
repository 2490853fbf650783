"""One unit of work, in one line from its fingerprint to its record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import StepSuspended
from tagent_nb.engine.background import in_thread, is_cancelled
from tagent_nb.engine.batches import Batches
from tagent_nb.engine.concurrency import RunSignals
from tagent_nb.engine.recorder import ValueChecks
from tagent_nb.engine.unit.attempt import Attempts, encoded, failed, unprepared
from tagent_nb.engine.unit.prepared import PreparedStep, StepOutputs
from tagent_nb.engine.unit.work import (
    MADE_AT,
    Preparation,
    WorkItem,
    answer_ahead,
    cached_answer,
    joined_values,
    read_heavy,
    recorded_answer,
)
from tagent_nb.errors import OfflineMissError
from tagent_nb.events import (
    NO_ENTRIES,
    Event,
    FactLearned,
    MemorySaved,
    Output,
    StepCached,
    StepFailed,
    StepFinished,
    TokenUsage,
    step_cached,
)
from tagent_nb.pipeline import StepStatus
from tagent_nb.results import StepResult
from tagent_nb.runners import UNKNOWN_REASON
from tagent_nb.serde import StoredValue

if TYPE_CHECKING:
    from tagent_nb.cache import ResultCache
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.pipeline import Change

SUSPENDED = "suspended"
"""How a flight ends whose value waits for a decision that is not taken in this session."""


class Execution:
    """Runs the units of one run.

    Args:
        context: Of the run.
        recorder: Of the run.
        preparation: Says what a unit is about.
        attempts: Gets the values of units that neither a record nor the cache answers for.
        batches: Of the run.
        signals: Whether anything may start, and whether the run fails.
        checks: Looks at values before they are stored.
        run_mapped: Runs a step that has items: one with ``map_over``, ``reduce_over`` or samples.
    """

    def __init__(
        self,
        context: RunContext,
        recorder: Recorder,
        preparation: Preparation,
        attempts: Attempts,
        batches: Batches,
        signals: RunSignals,
        checks: ValueChecks,
        run_mapped: Callable[[PreparedStep, StepOutputs], Awaitable[Change]],
    ) -> None:
        self._context = context
        self._recorder = recorder
        self._preparation = preparation
        self._attempts = attempts
        self._batches = batches
        self._signals = signals
        self._checks = checks
        self._run_mapped = run_mapped
        self._flights: dict[str, asyncio.Future[StepFinished | str | None]] = {}

    async def run(self, prepared: PreparedStep) -> Change | Coroutine[Any, Any, Change]:
        """Run a step whose dependencies are done to its final event, and record it.

        Returns:
            What became ready, or can never run; or, where a first attempt has failed and another may succeed,
            what is left to do for that, which need not keep others waiting.
        """
        recorder = self._recorder
        if self._signals.paused_or_stopping:
            await self._signals.may_start()
        step, states = prepared.step, recorder.memory.steps
        outputs = {name: states[name].output for name in prepared.above}
        for name, output in outputs.items():
            if output is None and states[name].status is StepStatus.FAILED:
                outputs[name] = await self._good_rows(states[name])
        if prepared.inputs:
            outputs.update(prepared.inputs)
        if step.when is not None:
            from tagent_nb.engine.unit.conditions import unmet_condition

            await read_heavy(outputs.values())
            reason = unmet_condition(self._context, recorder, step, step.when, outputs)
            if reason is not None:
                return await recorder.record(reason)
        if step.has_items:
            return await self._run_mapped(prepared, outputs)
        if not prepared.short:
            try:
                work = await self._preparation.work_item(prepared, outputs)
            except BaseException as error:  # the user's objects may raise anything
                if is_cancelled():
                    raise
                return await recorder.record(unprepared(recorder, step, error))
            return await recorder.record(*await self.events_of(work))
        try:
            events = await self._attempts.run_plain(prepared, outputs)
        except BaseException as error:  # the user's objects may raise anything
            events = [self._own_failure(prepared, None, error)]
        if isinstance(events, list):
            return recorder.record_at_once(events) or await recorder.record(*events)
        return self._rest(prepared, events)

    async def _good_rows(self, source: StepResult) -> StoredValue | None:
        """What a weak dependent gets of a mapped step that failed: the values of its rows, ``None`` for
        the others, as if it had been let succeed; ``None`` if no row has one."""
        step, items = self._context.pipeline.get_step(source.name), source.items or {}
        keys = source.metadata.get("item_keys")
        if step.map_over is None or keys is None or not any(item.status.has_value for item in items.values()):
            return None
        outputs = [items[key].output if key in items else None for key in keys]
        return await in_thread(lambda: encoded(self._context, joined_values(step, outputs)))

    async def _rest(self, prepared: PreparedStep, rest: Awaitable[list[Event]]) -> Change:
        try:
            events = await rest
        except BaseException as error:  # the user's objects may raise anything
            events = [self._own_failure(prepared, None, error)]
        return await self._recorder.record(*events)

    async def events_of(self, work: WorkItem) -> list[Event]:
        """The events of a unit: facts and memories, and last the final event.

        What the user's objects raise outside of an attempt fails this unit alone.

        Raises:
            StepSuspended: It waits for a decision, and the run does not wait for that.
        """
        try:
            return await self._settle(work)
        except BaseException as error:  # the user's objects may raise anything
            return [self._own_failure(work.prepared, work.item, error)]

    def _own_failure(self, prepared: PreparedStep, item: str | None, error: BaseException) -> StepFailed:
        """The end of a unit that the user's objects broke outside of an attempt; called in its handler.

        Raises:
            BaseException: ``error`` itself, where it is about the run.
        """
        kind = type(error)
        if is_cancelled() or self._signals.failing or issubclass(kind, (StepSuspended, GeneratorExit)):
            raise error
        return unprepared(self._recorder, prepared.step, error, item)

    async def _settle(self, work: WorkItem) -> list[Event]:
        """Get a unit's value from its record, the cache, an equal unit under way, or its runner."""
        record = await recorded_answer(self._context, work)
        if record is not None:
            return [_from_record(record)]
        cache = work.prepared.cache
        if cache is None:
            return self._offline_miss(work) or await self._attempts.run(work)
        if work.ahead is not None and not work.step.approve:
            entry = answer_ahead(work, cache, work.ahead)
            if entry is not None:
                return self._from_cache(work, entry.output, entry.usage, entry.cost, entry.metadata)
        return await self._single_flight(work, cache)

    def _offline_miss(self, work: WorkItem) -> list[Event]:
        if not self._context.options.offline or work.step.is_python:
            return []
        if getattr(work.prepared.runner, "replays", False):
            return []  # its calls are answered by records, or fail
        error = OfflineMissError(
            f"Step {work.step.name!r} has no cached answer for these inputs, the run is offline, and its "
            "runner does not replay. Run it once without offline, or see what changed with %tagent_explain."
        )
        return [failed(self._context.run_id, work, error, attempt=1)]

    async def _single_flight(self, work: WorkItem, cache: ResultCache) -> list[Event]:
        """Let equal units under way make one call; if it fails, the next of them tries.

        To ask the cache is part of it: between a miss and the call, an equal unit could end.
        """
        while (flight := self._flights.get(work.key)) is not None:
            if work.step.batch:
                if not work.has_yielded:
                    work.slot = self._attempts.slot(work)
                done = await self._batches.beside(work, flight)
            else:
                with work.aside():
                    done = await asyncio.shield(flight)
            if done is SUSPENDED:
                raise StepSuspended
            if isinstance(done, StepFinished):
                return self._from_cache(work, done.output, done.usage, done.cost, done.metadata)
        mine: asyncio.Future[StepFinished | str | None] = asyncio.get_running_loop().create_future()
        self._flights[work.key] = mine
        done = None
        try:
            entry = await cached_answer(work)
            events = None
            if entry is not None:
                events = self._from_cache(work, entry.output, entry.usage, entry.cost, entry.metadata)
                if not _needs_approval(work, events):
                    return events
            events = (self._offline_miss(work) if events is None else None) or await self._attempts.run(
                work, events
            )
            done = _done(work, events[-1])
            if done is not None and done.output.storable and UNKNOWN_REASON not in done.metadata:
                await self._store(work, cache, events, done)
            return events
        except StepSuspended:
            done = SUSPENDED
            raise
        finally:
            if done is not SUSPENDED:
                # What is suspended stays: a twin that comes later must not ask the model either.
                del self._flights[work.key]
            mine.set_result(done)

    async def _store(
        self, work: WorkItem, cache: ResultCache, events: list[Event], final: StepFinished
    ) -> None:
        metadata = dict(final.metadata)
        if work.step.fresh_for is not None:
            metadata[MADE_AT] = time.time()
        # What a step learned belongs to its answer: from a cached answer the same is learned.
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
            pipeline=self._recorder.memory.pipeline_id,
            metadata=metadata,
            gather=work.item is not None,
        )
        self._checks.warn_of_losses(work.step.name, final.output)

    def _from_cache(
        self,
        work: WorkItem,
        output: Output,
        usage: TokenUsage,
        cost: float | None,
        metadata: Mapping[str, Any],
    ) -> list[Event]:
        name, run_id = work.step.name, self._context.run_id
        events: list[Event] = []
        if metadata:
            metadata = dict(metadata)
            metadata.pop(MADE_AT, None)
            for key, value in metadata.pop("_facts", {}).items():
                events.append(FactLearned(run_id=run_id, step=name, item=work.item, key=key, value=value))
            for key, value in metadata.pop("_memories", {}).items():
                events.append(MemorySaved(run_id=run_id, step=name, item=work.item, key=key, value=value))
        components = NO_ENTRIES if work.item is not None else work.components
        events.append(
            step_cached(run_id, name, work.item, output, work.key, components, usage, cost, metadata)
        )
        return events


def _needs_approval(work: WorkItem, events: list[Event]) -> bool:
    """Whether a cached answer needs an approval first: it was made before the step asked for one."""
    final = events[-1]
    return work.step.approve and isinstance(final, StepCached) and "approval" not in final.metadata


def _done(work: WorkItem, final: Event) -> StepFinished | None:
    """A unit's end as the cache is to know it; ``None`` for one without a value."""
    if isinstance(final, StepCached):
        usage, cost = final.saved_usage, final.saved_cost
    elif isinstance(final, StepFinished):
        usage, cost = work.counted or (final.usage, final.cost)
        if work.counted is None:
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


def _from_record(record: StepFinished | StepCached) -> StepFinished | StepCached:
    """A step that was recorded in this run, before something above it ran again to the same value."""
    if isinstance(record, StepCached):
        return replace(record, at=time.time(), saved_usage=TokenUsage(), saved_cost=0.0)
    # What it took has been counted when it was recorded.
    return replace(record, at=time.time(), usage=TokenUsage(), cost=0.0, seconds=0.0)
