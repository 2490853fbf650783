"""Mapped steps: the same path for each item of a list or each row of a DataFrame."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import StepHeld
from tagent_nb.engine.background import in_thread, is_cancelled
from tagent_nb.engine.step_reads import reads, source_of
from tagent_nb.engine.unit.attempt import encoded
from tagent_nb.engine.unit.execute import decided, guarded, unprepared
from tagent_nb.engine.unit.work import Work, prepare, read_heavy, step_model, why_it_runs
from tagent_nb.errors import BudgetExceededError, StepError
from tagent_nb.events import Event, Output, StepCached, StepFailed, StepFinished, StepSkipped, StepStarted
from tagent_nb.pipeline import PipelineStep, StepStatus
from tagent_nb.results import ending
from tagent_nb.serde import LARGE, StoredValue, is_bulky
from tagent_nb.templating import Reference, lookup

if TYPE_CHECKING:
    from tagent_nb.engine.run_loop import Run
    from tagent_nb.pipeline import Change

Row = tuple[str, Any, Any]
"""Key, label in the source's index, and the item itself."""


async def run_mapped(run: Run, step: PipelineStep, outputs: Mapping[str, Output | None]) -> Change:
    """Run a step over the items of its source, at most ``max_concurrency`` at a time."""
    started = time.monotonic()
    source = source_of(step)
    try:
        work = await whole(run, step, outputs)
        await read_heavy([outputs[source.step]])
        rows = source_rows(step, outputs[source.step], source)
    except BaseException as error:
        if is_cancelled():
            raise
        failure = unprepared(run, step, error)
        return await run.conclude(replace(failure, seconds=time.monotonic() - started, metadata=_labels([])))
    if outputs[source.step] is None:
        run.warn(
            f"Step {step.name!r} ran over no items: step {source.step!r}, over which it maps, has no value "
            f"({ending(run.memory.steps[source.step])}).",
            step.name,
        )
    run.emit(
        StepStarted(
            run_id=run.memory.run_id, step=step.name, items=len(rows), why=await why_it_runs(run, work)
        )
    )
    left = await _run_items(run, step, outputs, source.step, await _wanted(run, step, outputs, rows))
    run.common.pop(step.name, None)
    if left:
        run.approvals.leave(step.name, left)
    try:
        notes = _labels(rows, source_value(outputs[source.step], source))
        if not step.is_python:
            from tagent_nb.runners import model_name

            notes["model"] = model_name(step_model(run, step))
        outcome = await _outcome(run, step, work, rows, started, notes)
    except BaseException as error:
        if is_cancelled():
            raise
        outcome = unprepared(run, step, error)
    return await run.conclude(outcome)


async def whole(run: Run, step: PipelineStep, outputs: Mapping[str, Output | None]) -> Work:
    """The fingerprint of the mapped step as a whole, over the whole of its source."""
    source = source_of(step)
    references = [one for one in reads(step, outputs) if one.step != source.step]
    condition = step.item_condition
    if condition is None:
        return await prepare(run, step, outputs, references=[*references, source])
    # Which items have a value depends on it; each item's own does not.
    conditions = [one for one in step.references if one.kind == "when" and one.step != source.step]
    told = condition if isinstance(condition, str) else condition.describe()
    return await prepare(run, step, outputs, references=[*references, *conditions, source], when=told)


def source_rows(step: PipelineStep, output: Output | None, source: Reference) -> list[Row]:
    """The items that a mapped step runs over; none if its source is allowed to end without a value and did.

    Raises:
        StepError: The value of its source has no items.
        TemplateError: The value lacks the part that ``map_over`` names.
    """
    if output is None:
        return []
    value = source_value(output, source)
    if value is None:
        what = f"{source.text} of its value is None" if source.path else "its value is None"
        raise StepError(
            f"Step {step.name!r} cannot map over step {source.step!r}: {what}. Let {source.step!r} return "
            "a list or a DataFrame, an empty one if there is nothing to do."
        )
    from tagent_nb.results import rows_of

    try:
        return rows_of(value)
    except TypeError as error:
        raise StepError(f"Step {step.name!r} cannot map over {step.map_over!r}: {error}") from None


def source_value(output: Output | None, source: Reference) -> Any:
    """What a mapped step maps over: a step's value, or the part of it that ``map_over`` names.

    Raises:
        TemplateError: The value lacks that part.
    """
    return None if output is None else lookup(output.value, source.path, name=source.step)


def item_fates(
    run: Run, step: PipelineStep, outputs: Mapping[str, Output | None]
) -> Callable[[str, Any], StepSkipped | StepFailed | None]:
    """Tells of an item, by its key and value, whether the step's condition keeps it from running.

    Raises:
        TemplateError: The condition cannot be read.
    """
    when = step.item_condition
    if when is None:
        return lambda key, item: None
    values = {name: None if output is None else output.value for name, output in outputs.items()}
    return lambda key, item: decided(run, step, when, values, key=key, item=item, mapped=source_of(step))


async def _wanted(
    run: Run, step: PipelineStep, outputs: Mapping[str, Output | None], rows: list[Row]
) -> list[Row]:
    """The items whose condition holds. Others are recorded: skipped, or failed if it cannot be decided."""
    if step.when is None or step.item_condition is None:
        return rows
    fate_of = item_fates(run, step, outputs)
    wanted: list[Row] = []
    held: list[Event] = []
    for number, row in enumerate(rows, 1):
        fate = fate_of(row[0], row[2])
        if fate is None:
            wanted.append(row)
        else:
            held.append(fate)
        if number % AT_ONCE == 0 or number == len(rows):
            # Many in one record, and then the rest of the loop has its turn.
            if held:
                await run.conclude(*held)
            held = []
            await asyncio.sleep(0)
    return wanted


AT_ONCE = 200
"""Items whose condition is decided before anything else may happen."""


async def _run_items(
    run: Run, step: PipelineStep, outputs: Mapping[str, Output | None], source: str, rows: list[Row]
) -> int:
    """Workers that share one iterator: 50,000 items are never 50,000 tasks.

    A worker whose item waits for a person is replaced, and ends with that item. Returns how many items
    are left waiting.
    """
    queue: Iterator[Row] = iter(rows)
    left = 0

    async def work_off() -> None:
        nonlocal left
        for key, _, row in queue:
            if run.held:
                await run.may_start()
            try:
                unit = await prepare(run, step, {**outputs, source: StoredValue.of(row)}, key)
            except BaseException as error:
                if is_cancelled():
                    raise
                await run.conclude(unprepared(run, step, error, key))
                continue
            unit.on_aside = replaced
            if _is_recorded(run, unit):
                continue
            try:
                await run.conclude(*await guarded(run, unit))
            except StepHeld:
                left += 1
            if unit.stood_aside:
                if unit.place.at_work:
                    run.turns.leave(step.name)
                return
        run.turns.leave(step.name)

    def replaced() -> None:
        run.turns.join(step.name)
        group.create_task(work_off())

    workers = min(len(rows), run.equipment.max_concurrency)
    run.turns.crew(step.name, workers)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work_off())
    except ExceptionGroup as several:
        # Items report their own failures; what arrives here ends the run, and one cause is enough.
        raise several.exceptions[0] from None
    return left


def _is_recorded(run: Run, unit: Work) -> bool:
    """Whether an earlier sitting of this run has recorded the very same item."""
    recorded = run.restored.get(unit.unit)
    if recorded is None or recorded.key != unit.key or run.options.forces(unit.step.name):
        return False
    item = (run.memory.steps[unit.step.name].items or {}).get(str(unit.item))
    return item is not None and item.status.has_value


async def _outcome(
    run: Run, step: PipelineStep, work: Work, rows: list[Row], started: float, notes: Mapping[str, Any]
) -> StepFinished | StepCached | StepFailed:
    items = run.memory.steps[step.name].items or {}
    mine = [items[key] for key, _, _ in rows]
    good = sum(item.status.has_value for item in mine)
    skipped = sum(item.status is StepStatus.SKIPPED for item in mine)
    asked = len(rows) - skipped
    metadata = {**notes, "items_failed": asked - good, **({"items_skipped": skipped} if skipped else {})}
    broke = next((item for item in mine if item.error_type == BudgetExceededError.__name__), None)
    if broke is not None:
        # Not bad items, but ones that nobody has asked about yet: however few must succeed.
        message = f"{good} of {asked} items are done. {broke.error}"
        return _failure(run, step, broke.error_type, message, started, notes)
    if good < math.ceil(step.min_success * asked):
        first = next(item for item in mine if item.status is StepStatus.FAILED)
        message = (
            f"{asked - good} of {asked} items failed, and min_success is {step.min_success:g}. "
            f"The first is item {first.key!r}: {first.error_type}: {first.error}"
        )
        return _failure(run, step, "StepError", message, started, notes)
    output = await _joined(run, [item.output for item in mine])
    if asked and sum(item.status is StepStatus.CACHED for item in mine) == asked:
        return StepCached(
            run_id=run.memory.run_id,
            step=step.name,
            output=output,
            key=work.key,
            components=work.components,
            metadata=metadata,
        )
    return StepFinished(
        run_id=run.memory.run_id,
        step=step.name,
        output=output,
        key=work.key,
        components=work.components,
        seconds=time.monotonic() - started,
        metadata=metadata,
    )


async def _joined(run: Run, outputs: list[Output | None]) -> Output:
    """The value of the step as a whole: those of its items. Much of it is put together in a thread."""

    def values() -> list[Any]:
        return [None if output is None else output.value for output in outputs]

    size = sum(output.size for output in outputs if isinstance(output, StoredValue))
    if size > LARGE or is_bulky(outputs):
        return await in_thread(lambda: encoded(run, values()))
    whole_value = StoredValue.of(values())
    return await in_thread(encoded, run, whole_value.value) if whole_value.is_heavy else whole_value


def _failure(
    run: Run, step: PipelineStep, kind: str, message: str, started: float, notes: Mapping[str, Any]
) -> StepFailed:
    return StepFailed(
        run_id=run.memory.run_id,
        step=step.name,
        error_type=kind,
        message=message,
        seconds=time.monotonic() - started,
        metadata=notes,
    )


def _labels(rows: list[Row], source: Any = None) -> dict[str, Any]:
    """The order and labels of the items, which a stored run needs to show them as they were."""
    notes: dict[str, Any] = {
        "item_keys": [key for key, _, _ in rows],
        "item_index": [label for _, label, _ in rows],
    }
    from tagent_nb.serde import levels_of

    levels = levels_of(source)
    return notes if levels is None else notes | {"item_levels": levels}
