"""Steps with items: the same path for each item of a list, row of a DataFrame, and sample of an answer."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import Approvals, StepSuspended
from tagent_nb.engine.background import in_thread, is_cancelled
from tagent_nb.engine.batches import Batches
from tagent_nb.engine.concurrency import RunSignals, SerialLock
from tagent_nb.engine.unit.attempt import encoded, unprepared
from tagent_nb.engine.unit.conditions import item_condition
from tagent_nb.engine.unit.execute import Execution
from tagent_nb.engine.unit.failures import FailureLimit, least_good, too_few
from tagent_nb.engine.unit.prepared import PreparedStep, StepOutputs
from tagent_nb.engine.unit.work import (
    ItemUnits,
    Preparation,
    WorkItem,
    file_changes,
    is_trusted,
    joined_values,
    read_heavy,
    too_old,
)
from tagent_nb.errors import BudgetExceededError, StepError
from tagent_nb.events import NO_ENTRIES, Event, Output, StepCached, StepFailed, StepFinished, StepStarted
from tagent_nb.formatting import count
from tagent_nb.pipeline import PipelineStep, StepStatus
from tagent_nb.results import ONE_ROW, Row, StepRows, ending, rows_to_map, sample_key
from tagent_nb.serde import LARGE, StoredValue, is_bulky
from tagent_nb.templating import Reference, lookup

if TYPE_CHECKING:
    from tagent_nb.cache import ResultCache
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.pipeline import Change
    from tagent_nb.runners import RowGroups

READ_AHEAD = 256
"""Items whose answers are read from the cache together."""

READ_AHEAD_SECONDS = 0.005
"""Seconds after which no further items are added to them: the rest of the loop waits meanwhile."""

AT_ONCE = 200
"""Items whose condition is decided before anything else may happen."""


class MapExecution:
    """Runs the steps of one run that have items.

    Args:
        context: Of the run.
        recorder: Of the run.
        preparation: Says what an item is about.
        execution: Runs each item.
        approvals: Of the run.
        batches: Of the run.
        signals: Whether anything may start.
        lock: What SERIAL steps share.
    """

    def __init__(
        self,
        context: RunContext,
        recorder: Recorder,
        preparation: Preparation,
        execution: Execution,
        approvals: Approvals,
        batches: Batches,
        signals: RunSignals,
        lock: SerialLock,
    ) -> None:
        self._context = context
        self._recorder = recorder
        self._preparation = preparation
        self._execution = execution
        self._approvals = approvals
        self._batches = batches
        self._signals = signals
        self._lock = lock

    async def run(self, prepared: PreparedStep, outputs: StepOutputs) -> Change:
        """Run a step over its items, at most ``max_concurrency`` at a time."""
        recorder, step = self._recorder, prepared.step
        started = time.monotonic()
        try:
            work = await whole(self._preparation, prepared, outputs)
            rows = await self._rows(prepared, outputs)
            units = await self._preparation.item_units(prepared, outputs)
        except BaseException as error:  # the user's objects may raise anything
            if is_cancelled():
                raise
            failure = unprepared(recorder, step, error)
            return await recorder.record(
                replace(failure, seconds=time.monotonic() - started, metadata=StepRows([]).notes(1))
            )
        why = await self._preparation.why_it_runs(work) or await self._age(prepared, units, rows.rows)
        recorder.publish(
            StepStarted(
                run_id=self._context.run_id, step=step.name, items=len(rows.rows) * step.samples, why=why
            )
        )
        limit = FailureLimit(step)
        wanted = await self._wanted(step, outputs, rows.rows, limit)
        left = await self.run_items(prepared, units, self._failed_last(step, wanted), limit)
        # From here on others act on what the items gave.
        await recorder.settled()
        prepared.shared_inputs.clear()  # its items share nothing any more
        if left and not limit.is_reached:
            self._approvals.leave(step.name, left, self._batches.left.get(step.name, ""))
        try:
            notes = rows.notes(step.samples)
            if not step.is_python:
                from tagent_nb.runners import model_name

                notes["model"] = model_name(prepared.model)
            outcome = await self._outcome(step, work, started, notes, limit)
        except BaseException as error:  # the user's objects may raise anything
            if is_cancelled():
                raise
            outcome = unprepared(recorder, step, error)
        return await recorder.record(outcome)

    async def _age(self, prepared: PreparedStep, units: ItemUnits, rows: Sequence[Row]) -> str:
        """In words: that answers are too old for ``fresh_for``, going by the first item."""
        if prepared.step.fresh_for is None or not rows or prepared.passes_cache:
            return ""
        try:
            age = await too_old(await units.unit(*next(samples_of(rows, prepared.step.samples))))
        except Exception:  # of the user's objects; the item says so when it is its turn
            return ""
        return f"answers of its items are {age}" if age else ""

    async def _rows(self, prepared: PreparedStep, outputs: StepOutputs) -> StepRows:
        """What a step runs over, with a warning where something above it has no value or no list."""
        recorder, step = self._recorder, prepared.step
        if step.map_over is None:
            return ONE_ROW
        source = prepared.source
        output = outputs[source.step]
        await read_heavy([output])
        above = recorder.memory.steps.get(source.step)
        rows = source_rows(step, output, source, NO_ENTRIES if above is None else above.metadata)
        if output is None:
            recorder.warn(
                f"Step {step.name!r} ran over no items: step {source.step!r}, over which it maps, has no "
                f"value ({ending(recorder.memory.steps[source.step])}).",
                step.name,
            )
        elif rows.unlisted:
            recorder.warn(
                f"Step {step.name!r} ran over no elements of {count(len(rows.unlisted), 'item')} of "
                f"{source.text!r} that have no list, such as {rows.unlisted[0]!r}.",
                step.name,
            )
        return rows

    async def _wanted(
        self, step: PipelineStep, outputs: StepOutputs, rows: Sequence[Row], limit: FailureLimit
    ) -> Sequence[Row]:
        """The items whose condition is true. Others are recorded as skipped, or failed if it has an error."""
        if step.when is None or step.item_condition is None:
            return rows
        condition = item_condition(self._context, self._recorder, step, outputs)
        wanted: list[Row] = []
        left_out: list[Event] = []
        for number, row in enumerate(rows, 1):
            key, _, item = row
            reason = condition(key, item)
            if reason is None:
                wanted.append(row)
            elif step.samples == 1:
                left_out.append(reason)
                limit.note(reason)
            else:
                left_out += [replace(reason, item=sample_key(key, sample)) for sample in range(step.samples)]
                for event in left_out[-step.samples :]:
                    limit.note(event)
            if number % AT_ONCE == 0 or number == len(rows):
                # Many in one record, and then the rest of the loop may go on.
                if left_out:
                    await self._recorder.record(*left_out)
                left_out = []
                await asyncio.sleep(0)
        return wanted

    def _failed_last(self, step: PipelineStep, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows in the order in which they run.

        With ``max_failures``, what an earlier session has failed at comes last: else it would stop each
        session before any row that is left.
        """
        items = self._recorder.memory.steps[step.name].items
        if step.max_failures is None or not items:
            return rows

        def has_failed(row: Row) -> bool:
            samples = [items[key] for key, _, _ in samples_of([row], step.samples) if key in items]
            # A resumed run takes its items for pending; of those that have failed it keeps the error.
            return any(item.error_type and not item.status.has_value for item in samples)

        return sorted(rows, key=has_failed)

    async def run_items(
        self, prepared: PreparedStep, units: ItemUnits, rows: Sequence[Row], limit: FailureLimit
    ) -> int:
        """Workers that share one iterator: 50,000 items are never 50,000 tasks.

        A worker whose item waits for a person is replaced, and ends with that item. Returns how many items
        are left waiting.
        """
        step = prepared.step
        recorder, signals, lock = self._recorder, self._signals, self._lock
        queue = _Queue(recorder, prepared, units, rows, limit)
        groups: RowGroups | None = None
        left = 0

        async def worker() -> None:
            try:
                await work_off()
            except asyncio.CancelledError:
                raise
            except BaseException:
                # It ends the run: the group cancels the others now, and they are not to take that for theirs.
                signals.failing = True
                raise

        async def work_off() -> None:
            nonlocal left
            while True:
                if signals.paused_or_stopping:
                    await signals.may_start()
                work = await queue.next()
                if work is None:
                    break
                work.on_yield, work.rows = replaced, groups
                if await self._is_recorded(work):
                    continue
                try:
                    ended = await self._execution.events_of(work)
                    limit.note(ended[-1])
                    await recorder.record_item(ended)
                except StepSuspended:
                    left += 1
                if work.has_yielded:
                    if work.slot.at_work:
                        lock.leave(step.name)
                    return
            lock.leave(step.name)

        def replaced() -> None:
            lock.join(step.name)
            group.create_task(worker())

        workers = min(len(rows) * step.samples, prepared.at_once)
        lock.begin_workers(step.name, workers)
        if prepared.shares_calls:
            from tagent_nb.runners import RowGroups

            groups = RowGroups(step.rows_per_call, lambda: lock.workers(step.name), lambda: queue.left > 0)
            lock.on_left[step.name] = groups.look
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(worker())
        except ExceptionGroup as several:
            # Items report their own failures; what arrives here ends the run, and one cause is enough.
            raise several.exceptions[0] from None
        return left

    async def _is_recorded(self, work: WorkItem) -> bool:
        """Whether an earlier session of this run has recorded the very same item."""
        record = self._context.recorded.get(work.unit)
        if record is None or work.prepared.forced or await file_changes(record.metadata):
            return False
        if record.key != work.key and not is_trusted(self._context, record, work):
            return False
        item = (self._recorder.memory.steps[work.step.name].items or {}).get(str(work.item))
        return item is not None and item.status.has_value

    async def _outcome(
        self,
        step: PipelineStep,
        work: WorkItem,
        started: float,
        notes: Mapping[str, Any],
        limit: FailureLimit,
    ) -> StepFinished | StepCached | StepFailed:
        items, keys = self._recorder.memory.steps[step.name].items or {}, notes["item_keys"]
        if limit.is_reached:
            begun = sum(key in items and items[key].status is not StepStatus.PENDING for key in keys)
            return self._failure(step, "StepError", limit.message(len(keys) - begun), started, notes)
        mine = [items[key] for key in keys]
        good = sum(item.status.has_value for item in mine)
        skipped = sum(item.status is StepStatus.SKIPPED for item in mine)
        wanted = len(mine) - skipped
        metadata = {**notes, "items_failed": wanted - good, **({"items_skipped": skipped} if skipped else {})}
        over_budget = next((item for item in mine if item.error_type == BudgetExceededError.__name__), None)
        if over_budget is not None:
            # Not bad items, but ones for which no model was asked yet: however few must succeed.
            message = f"{good} of {wanted} items are done. {over_budget.error}"
            return self._failure(step, over_budget.error_type, message, started, notes)
        # A step that is not mapped has no value without any sample, whatever is let fail.
        least = least_good(step.min_success, wanted) or int(step.map_over is None)
        if good < least:
            first = next(item for item in mine if item.status is StepStatus.FAILED)
            what = "item" if step.samples == 1 else "sample"
            message = (
                f"{too_few(good, wanted, least, step.min_success, f'{what}s')} "
                f"The first failure is {what} {first.key!r}: {first.error_type}: {first.error}"
            )
            return self._failure(step, "StepError", message, started, notes)
        output = await self._joined(step, [item.output for item in mine])
        if wanted and sum(item.status is StepStatus.CACHED for item in mine) == wanted:
            return StepCached(
                run_id=self._context.run_id,
                step=step.name,
                output=output,
                key=work.key,
                components=work.components,
                metadata=metadata,
            )
        return StepFinished(
            run_id=self._context.run_id,
            step=step.name,
            output=output,
            key=work.key,
            components=work.components,
            seconds=time.monotonic() - started,
            metadata=metadata,
        )

    async def _joined(self, step: PipelineStep, outputs: list[Output | None]) -> Output:
        """The value of the step as a whole: those of its items. Much of it is put together in a thread."""

        def values() -> Any:
            return joined_values(step, outputs)

        context = self._context
        size = sum(output.size for output in outputs if isinstance(output, StoredValue))
        if size > LARGE or is_bulky(outputs):
            return await in_thread(lambda: encoded(context, values()))
        joined = StoredValue.of(values())
        return await in_thread(encoded, context, joined.value) if joined.is_heavy else joined

    def _failure(
        self, step: PipelineStep, kind: str, message: str, started: float, notes: Mapping[str, Any]
    ) -> StepFailed:
        return StepFailed(
            run_id=self._context.run_id,
            step=step.name,
            error_type=kind,
            message=message,
            seconds=time.monotonic() - started,
            metadata=notes,
        )


class _Queue:
    """The units of a map's items, one after the other for all of its workers.

    With a cache they are made some hundred at a time, and what is stored of these is read together.

    Args:
        recorder: Takes the failures of items of which no unit can be made.
        prepared: The step.
        units: Makes the units.
        rows: The items, of each of which there are as many units as samples.
        limit: Says when there are no further ones, however many are left.

    Attributes:
        left: Items that no worker has taken yet.
    """

    def __init__(
        self,
        recorder: Recorder,
        prepared: PreparedStep,
        units: ItemUnits,
        rows: Sequence[Row],
        limit: FailureLimit,
    ) -> None:
        self._recorder = recorder
        self._prepared = prepared
        self._units = units
        self._samples = samples_of(rows, prepared.step.samples)
        self._limit = limit
        self._cache = None if prepared.passes_cache else prepared.cache
        self._ready: deque[WorkItem] = deque()
        self.left = len(rows) * prepared.step.samples
        self._filling = asyncio.Lock()

    async def next(self) -> WorkItem | None:
        """The unit of the next item; ``None`` if there is none."""
        if self._cache is None:
            work = await self._make()
        else:
            if not self._ready and not self._limit.is_reached:
                async with self._filling:
                    if not self._ready:
                        await self._fill(self._cache)
            work = self._ready.popleft() if self._ready and not self._limit.is_reached else None
        self.left = 0 if work is None else self.left - 1
        return work

    async def _make(self) -> WorkItem | None:
        while not self._limit.is_reached:
            unit = next(self._samples, None)
            if unit is None:
                break
            key, item, sample = unit
            try:
                return await self._units.unit(key, item, sample)
            except BaseException as error:  # the user's objects may raise anything
                if is_cancelled():
                    raise
                failure = unprepared(self._recorder, self._prepared.step, error, key)
                self._limit.note(failure)
                await self._recorder.record(failure)
        return None

    async def _fill(self, cache: ResultCache) -> None:
        works: list[WorkItem] = []
        until = time.monotonic() + READ_AHEAD_SECONDS
        while len(works) < READ_AHEAD and time.monotonic() < until:
            work = await self._make()
            if work is None:
                break
            works.append(work)
        if works:
            ahead = await cache.read_ahead([work.key for work in works])
            for work in works:
                work.ahead = ahead
            self._ready.extend(works)


def samples_of(rows: Sequence[Row], samples: int) -> Iterator[tuple[str, Any, int]]:
    """Key, item and number of each sample, those of an item side by side."""
    for key, _, row in rows:
        if samples == 1:
            yield key, row, 0
        else:
            for sample in range(samples):
                yield sample_key(key, sample), row, sample


async def whole(preparation: Preparation, prepared: PreparedStep, outputs: StepOutputs) -> WorkItem:
    """The fingerprint of a step as a whole: of one with ``map_over`` and the like, over all of its source."""
    step = prepared.step
    more = whole_components(step)
    if step.runs_over is None:
        return await preparation.work_item(prepared, outputs, more=more)
    source = prepared.source
    references = [reference for reference in prepared.references if reference.step != source.step]
    # Which items have a value depends on it; each item's own does not.
    kinds = ("group",) if step.item_condition is None else ("when",)
    references += [
        reference
        for reference in step.references
        if reference.kind in kinds and (reference.kind == "group" or reference.step != source.step)
    ]
    # The part that a flattened one names is one of each row.
    source = Reference(source.step, (), "map") if step.flatten else source
    return await preparation.work_item(prepared, outputs, references=[*references, source], more=more)


def whole_components(step: PipelineStep) -> dict[str, str]:
    """What the fingerprint of a step as a whole has more than that of its units: what says which there are.

    Raises:
        TemplateError: Its condition cannot be read.
    """
    from tagent_nb.cache import text_digest

    fields = {name: getattr(step, name) for name in ("group_by", "combine", "reduce_tokens")}
    more = {name: text_digest(str(text)) for name, text in fields.items() if text is not None}
    if step.samples > 1:
        more["samples"] = str(step.samples)
    if step.flatten:
        more["flatten"] = step.map_over or ""
    condition = step.item_condition
    if condition is not None:
        more["when"] = text_digest(condition if isinstance(condition, str) else condition.describe())
    return more


def source_rows(
    step: PipelineStep, output: Output | None, source: Reference, notes: Mapping[str, Any] = NO_ENTRIES
) -> StepRows:
    """The items that a mapped step runs over, or the rows of one that reduces them.

    There are none if its source is allowed to end without a value, and did.

    Args:
        step: The step.
        output: The value of its source.
        source: What it maps over.
        notes: The metadata of its source.

    Raises:
        StepError: The value of its source has no items, or an item of it has no list to flatten.
        TemplateError: The value lacks the part that ``map_over`` names.
    """
    if output is None:
        return StepRows([])
    cannot = "cannot map over" if step.reduce_over is None else "cannot reduce"
    value = output.value
    part = value if step.flatten else lookup(value, source.path, name=source.step)
    if part is None:
        what = f"{source.text} of its value is None" if source.path else "its value is None"
        raise StepError(
            f"Step {step.name!r} {cannot} step {source.step!r}: {what}. Let {source.step!r} return "
            "a list or a DataFrame, an empty one if there is nothing to do."
        )
    try:
        return rows_to_map(value, source, flatten=step.flatten, notes=notes)
    except TypeError as error:
        raise StepError(f"Step {step.name!r} {cannot} {step.runs_over!r}: {error}") from None
