"""What a unit of work is about: its inputs, and its fingerprint with named components."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.background import in_thread
from tagent_nb.engine.concurrency import Slot
from tagent_nb.engine.memory.entries import last_time
from tagent_nb.engine.memory.store import known_facts
from tagent_nb.engine.unit.prepared import PreparedStep
from tagent_nb.errors import CorruptRecordError, StorageError
from tagent_nb.events import NO_ENTRIES, Output, StepCached, StepFinished, TokenUsage
from tagent_nb.formatting import count, seconds_text
from tagent_nb.pipeline import PipelineStep
from tagent_nb.results import agreed, failed_items
from tagent_nb.serde import StoredValue
from tagent_nb.templating import Reference

if TYPE_CHECKING:
    from tagent_nb.cache import CacheEntry, ItemKeys, ResultCache
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.memory.memory import PipelineMemory
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.runners import RowGroups

NOT_CACHED, NOT_ASKED = "its earlier answer is not in the cache", "the cache is not asked"
"""Why a step runs that has not changed."""

MADE_AT = "_made_at"
"""Where the metadata of a cache entry has the time at which it was made, if its step asks for fresh ones."""


@dataclass(slots=True)
class WorkItem:
    """What one unit is about: its step, its item, what it reads, its fingerprint, and its slot in the run.

    Attributes:
        prepared: What is the same for all units of its step.
        slot: Its slot among those that run, from its first attempt on.
        on_yield: Called before it waits for a person.
        counted: Tokens and USD that led to its value, where they were counted before it ended.
        ahead: What was read ahead from the cache, of this and other units.
        calls: How often each call of a tool was suspended in this attempt, by tool and arguments.
        waited: Seconds that it waited for a person.
        outdated: Files, with their states, that an earlier answer was made from and that have changed since.
        rows: Brings the rows of its step together that one call asks for, if any does.
    """

    prepared: PreparedStep
    outputs: Mapping[str, Output | None]
    key: str
    components: Mapping[str, str]
    item: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    memories: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    counted: tuple[TokenUsage, float | None] | None = None
    waited: float = 0.0
    on_yield: Callable[[], None] | None = None
    ahead: dict[str, bytes | None] | None = None
    rows: RowGroups | None = None
    outdated: Mapping[str, str] | None = None
    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    slot: Slot = field(init=False, repr=False)

    @property
    def step(self) -> PipelineStep:
        return self.prepared.step

    @property
    def has_yielded(self) -> bool:
        """Whether another worker does what it would have done next, since it waited for a person."""
        return hasattr(self, "slot") and self.slot.was_yielded

    def aside(self) -> AbstractContextManager[None]:
        """While it waits for an equal unit: no row that would share a call with it waits for it."""
        return nullcontext() if self.rows is None else self.rows.aside()

    @property
    def unit(self) -> tuple[str, str | None]:
        return (self.prepared.name, self.item)


class Preparation:
    """Works out what units of a run are about, and keeps what is the same for all units of a step.

    Args:
        context: Of the run.
        recorder: For the memory of the run, and for warnings.
        previous: Reads the memory of the run before this one, if there is one.
    """

    def __init__(
        self,
        context: RunContext,
        recorder: Recorder,
        previous: Callable[[], Awaitable[PipelineMemory | None]],
    ) -> None:
        self._context = context
        self._recorder = recorder
        self._read_previous = previous
        self._previous: asyncio.Future[PipelineMemory | None] | None = None
        self._sources: asyncio.Future[Any] | None = None
        self._steps: dict[str, PreparedStep] = {}
        # What the fingerprints of this run share.
        self.memo: dict[Any, Any] = {}

    def prepared(self, step: PipelineStep) -> PreparedStep:
        """What is the same for all units of a step, made when it is first asked for."""
        prepared = self._steps.get(step.name)
        if prepared is None:
            prepared = PreparedStep(self._context, step, self._recorder.machine.scheduler.above(step.name))
            if not prepared.short:  # it is over soon, and there may be 100,000 of them
                self._steps[step.name] = prepared
        return prepared

    async def work_item(
        self,
        prepared: PreparedStep,
        outputs: Mapping[str, Output | None],
        item: str | None = None,
        references: Sequence[Reference] | None = None,
        more: Mapping[str, str] = NO_ENTRIES,
    ) -> WorkItem:
        """A unit with its fingerprint; large values are examined in a thread.

        Args:
            prepared: The step.
            outputs: What it may read, by name; for an item, the item stands for its source.
            item: The item's key.
            references: What it reads, where that is not what the step says.
            more: Further components of its fingerprint.
        """
        facts, memories = self._facts_for(prepared)
        if not self._context.keyed:
            return WorkItem(prepared, outputs, "", {}, item, facts, memories)
        from tagent_nb.cache import GENERATION, unit_key

        parts = prepared.references if references is None else references
        components = await self._components(prepared, outputs, parts)
        components.update(more)
        key = unit_key(components)
        components.update(GENERATION)
        return WorkItem(prepared, outputs, key, components, item, facts, memories)

    async def _components(
        self,
        prepared: PreparedStep,
        outputs: Mapping[str, Output | None],
        references: Sequence[Reference],
    ) -> dict[str, str]:
        """The fingerprint of a unit that reads these parts of these values."""
        from tagent_nb.cache import add_components, class_components, input_components

        components = dict(await self._static_beside_the_loop(prepared))
        around: dict[str, Any] = {
            "step": prepared.step,
            "namespace": self._context.services.namespace,
            "memo": self.memo,
        }
        examine = partial(input_components, references, outputs, **around)
        heavy = any(is_heavy(outputs.get(part.step)) for part in references)
        add_components(components, await in_thread(examine) if heavy else examine())
        for name, notes in zip(("facts", "memories"), self._facts_for(prepared), strict=True):
            if notes:
                stored = StoredValue.of(notes)
                if stored.is_heavy:
                    await in_thread(getattr, stored, "digest")
                components[name] = stored.digest
                if stored.classes:
                    add_components(components, class_components(name, notes, stored.classes, **around))
        return components

    async def item_units(self, prepared: PreparedStep, outputs: Mapping[str, Output | None]) -> ItemUnits:
        """What makes the units of a step's items.

        Args:
            prepared: The step.
            outputs: What it may read, by name.
        """
        keys = []
        if self._context.keyed and prepared.step.runs_over is not None:
            from tagent_nb.cache import ItemKeys

            source = prepared.source.step
            shared = [reference for reference in prepared.references if reference.step != source]
            own = [reference for reference in prepared.references if reference.step == source]
            components = await self._components(prepared, outputs, shared)
            for sample in range(prepared.step.samples):
                keys.append(ItemKeys(components | of_sample(sample), own))
        return ItemUnits(self, prepared, outputs, keys, *self._facts_for(prepared))

    def forget_facts(self) -> None:
        """Look again at what is known when a mapped step begins."""
        for prepared in self._steps.values():
            prepared.facts = None

    async def why_it_runs(self, work: WorkItem) -> str:
        """In words: what differs from the last time this step ended with a value, or how it ended without."""
        context = self._context
        if work.item is not None or not context.keyed:
            return ""
        if work.prepared.passes_cache:
            return "forced"
        if work.prepared.name in context.retried:
            return tried_again(context, work.prepared.name)
        before = await self._last_time(work)
        if before is None:
            return "first run"
        components, ended, changed = before
        if not components:
            return ended or "it has no earlier result"
        from tagent_nb.cache import explain

        sentences = explain(components, work.components, None, None) or changed
        if sentences:
            return "; ".join(sentences)
        if work.step.has_items:
            return ended  # without failed items, these say for themselves whether they were cached
        return await why_not_cached(work)

    # -- inside -----------------------------------------------------------------------------

    def _facts_for(self, prepared: PreparedStep) -> tuple[dict[str, Any], dict[str, Any]]:
        memory, step = self._recorder.memory, prepared.step
        if not step.has_items:
            return known_facts(memory, step) if memory.facts or memory.memories else ({}, {})
        if prepared.facts is None:
            prepared.facts = known_facts(memory, step)
        return prepared.facts

    async def _static_beside_the_loop(self, prepared: PreparedStep) -> Mapping[str, str]:
        """The static components of a step; large values that it refers to are examined in a thread."""
        if prepared.components is not None:
            return prepared.components
        from tagent_nb.cache import SOURCES, LargeValue, refusing_large_values, remember_digest

        if prepared.cache is not None and SOURCES not in self.memo:
            if self._sources is None:
                self._sources = asyncio.ensure_future(prepared.cache.source_digests())
            # Units that begin at the same time go on at the same time: equal ones then make one call.
            self.memo[SOURCES] = await asyncio.shield(self._sources)
        examined: dict[int, Any] = {}
        while prepared.components is None:
            try:
                with refusing_large_values(examined):
                    prepared.components = prepared.static_components(self.memo)
            except LargeValue as large:
                examined[id(large.value)] = large.value
                await in_thread(remember_digest, large.value, self.memo)
        return prepared.components

    async def _last_time(self, work: WorkItem) -> tuple[Mapping[str, str], str, list[str]] | None:
        """The unit's last fingerprint, of this run or of the one before, what failed then, and which files
        that it read have changed since.

        ``None`` if there is no such run.
        """
        recorded = self._context.recorded.get(work.unit)
        if recorded is not None and recorded.components:
            return recorded.components, "", list((await file_changes(recorded.metadata)).values())
        ended = self._recorder.memory.steps[work.step.name].reason
        if ended:
            return {}, ended, []  # in an earlier session of this run
        if self._previous is None:
            self._previous = asyncio.ensure_future(self._previous_run())
        previous = await self._previous
        if previous is None:
            return None
        before = previous.steps.get(work.step.name)
        if before is None:
            return {}, "", []
        ended = last_time(before)
        if ended:
            return {}, ended, []
        bad = failed_items(before)
        return (
            before.components,
            f"the last time {bad}" if bad else "",
            await changed_since(previous, work.step.name),
        )

    async def _previous_run(self) -> PipelineMemory | None:
        try:
            return await self._read_previous()
        except StorageError as error:
            # It only says why a step runs; that must not keep the step from running.
            self._recorder.warn(
                f"Steps cannot tell why they run, since the run before cannot be read: {error}"
            )
            return None


def of_sample(sample: int) -> dict[str, str]:
    """What the fingerprint of a sample has more than that of its item: the first has nothing, so that it is
    answered by what a step without samples was."""
    return {"sample": str(sample)} if sample else {}


class ItemUnits:
    """Makes the units of a step's items, which share all of their fingerprint but the item.

    Args:
        preparation: Works out the fingerprint of an item that is more than plain data.
        prepared: The step.
        outputs: What it may read, by name.
        keys: By sample, what makes the keys of plain items; none for a run without fingerprints, and for a
            step that is not mapped.
        facts: The facts that reach the items.
        memories: The memories that do.
    """

    def __init__(
        self,
        preparation: Preparation,
        prepared: PreparedStep,
        outputs: Mapping[str, Output | None],
        keys: Sequence[ItemKeys],
        facts: Mapping[str, Any],
        memories: Mapping[str, Any],
    ) -> None:
        self._preparation = preparation
        self._prepared = prepared
        self._outputs = outputs
        self._keys = keys
        self._facts = facts
        self._memories = memories

    async def unit(self, key: str, row: Any, sample: int = 0) -> WorkItem:
        """The unit of a sample of an item, of which its step reads what the item is in place of its source's
        value."""
        prepared, more = self._prepared, of_sample(sample)
        if prepared.step.runs_over is None:
            return await self._preparation.work_item(prepared, self._outputs, key, more=more)
        value = StoredValue.of(row)
        outputs = {**self._outputs, prepared.source.step: value}
        unit_key = ""
        if self._keys:
            plain = None if value.is_heavy else self._keys[sample].of(value)
            if plain is None:
                return await self._preparation.work_item(prepared, outputs, key, more=more)
            unit_key = plain
        return WorkItem(prepared, outputs, unit_key, NO_ENTRIES, key, self._facts, self._memories)


# -- who answers for a unit -----------------------------------------------------------------


async def recorded_answer(context: RunContext, work: WorkItem) -> StepFinished | StepCached | None:
    """What this run has recorded of the unit, if that is still its answer."""
    if work.prepared.forced:
        return None
    event = context.recorded.get(work.unit)
    if event is None or not (_still_answers(event, work) or is_trusted(context, event, work)):
        return None
    return None if await _is_outdated(work, event.metadata) else event


async def why_not_cached(work: WorkItem) -> str:
    """In words: why the cache has no answer for a unit of which nothing has changed."""
    if work.prepared.cache is None:
        return NOT_ASKED
    age = await too_old(work)
    return f"its answer is {age}" if age else NOT_CACHED


async def too_old(work: WorkItem) -> str:
    """``"older than fresh_for (1 h 00 min)"`` if the cache has such an answer for a unit, else nothing."""
    prepared, fresh_for = work.prepared, work.step.fresh_for
    if prepared.cache is None or fresh_for is None:
        return ""
    entry = await prepared.cache.aget(work.key, prepared.classes, count=False)
    if entry is None or _is_fresh(work.step, entry):
        return ""
    return f"older than fresh_for ({seconds_text(fresh_for)})"


def _is_fresh(step: PipelineStep, entry: CacheEntry) -> bool:
    age = time.time() - entry.metadata.get(MADE_AT, 0.0)
    return step.fresh_for is None or 0 <= age < step.fresh_for


async def cached_answer(work: WorkItem, *, count: bool = True) -> CacheEntry | None:
    """What the cache answers for the unit, if it may.

    Args:
        work: The unit.
        count: Whether the cache counts the question among its hits and misses.
    """
    prepared = work.prepared
    if prepared.cache is None or prepared.passes_cache:
        return None
    return await prepared.cache.aget(
        work.key, prepared.classes, count=count, ahead=work.ahead, usable=partial(_is_current, work)
    )


def answer_ahead(work: WorkItem, cache: ResultCache, ahead: dict[str, bytes | None]) -> CacheEntry | None:
    """What was read ahead from the cache for the unit; ``None`` if :func:`cached_answer` has to be asked."""
    return cache.take(work.key, ahead, work.prepared.classes, partial(_answers_by_key, work))


def _answers_by_key(work: WorkItem, entry: CacheEntry) -> bool:
    """Whether the key of an entry says all."""
    return work.step.fresh_for is None and "files" not in entry.metadata


async def _is_current(work: WorkItem, entry: CacheEntry) -> bool:
    """Whether an entry may answer though its key says nothing of files, nor of time."""
    metadata = entry.metadata
    if not _is_fresh(work.step, entry):
        return False
    return not (metadata and await _is_outdated(work, metadata))


async def _is_outdated(work: WorkItem, metadata: Mapping[str, Any]) -> bool:
    """Whether a file that a unit's answer was made from is not as it was; the unit notes which."""
    changes = await file_changes(metadata)
    work.outdated = {name: metadata["files"][name] for name in changes}
    return bool(changes)


async def changed_since(memory: PipelineMemory, step: str) -> list[str]:
    """What is no longer as it was of the files that a step read in a run, items included, in sentences."""
    files = {}
    for event in ended(memory, step):
        files.update(event.metadata.get("files", {}))
    return list((await file_changes({"files": files})).values())


def ended(memory: PipelineMemory, step: str) -> Iterator[StepFinished | StepCached]:
    """How a step, and each of its items, got their values in a run."""
    for event in memory.events:
        if isinstance(event, StepFinished | StepCached) and event.step == step:
            yield event


async def file_changes(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    """What is no longer as it was of the files that a value was made from: by name, a sentence.

    Args:
        metadata: Of the value.
    """
    files = metadata.get("files")
    if not files:
        return NO_ENTRIES
    from tagent_nb.runners import are_untouched, changed_files

    # To read them takes long; all else goes on meanwhile.
    return NO_ENTRIES if are_untouched(files) else await in_thread(changed_files, files)


def tried_again(context: RunContext, step: str) -> str:
    """In words: how many failed items of a step are run again."""
    items = context.retried[step]
    return f"{count(items, 'failed item')} {'is' if items == 1 else 'are'} tried again"


def is_trusted(context: RunContext, event: StepFinished | StepCached, work: WorkItem) -> bool:
    """Whether an item's record without a fingerprint answers for it: nothing that it reads has changed."""
    prepared = work.prepared
    return (
        not event.key
        and work.item is not None
        and prepared.trusts_records
        and prepared.name in context.trusted
    )


def _still_answers(event: StepFinished | StepCached, work: WorkItem) -> bool:
    """Whether a record of this run is that of the unit as it is now, as far as its version can tell."""
    if event.key == work.key:
        return True
    from tagent_nb.cache import differing, is_earlier

    return is_earlier(event.components, work.components) and not differing(event.components, work.components)


# -- large values ---------------------------------------------------------------------------


def is_heavy(output: Output | None) -> bool:
    """Whether reading or examining a value takes so long that a thread does it."""
    return isinstance(output, StoredValue) and output.is_heavy


async def read_heavy(outputs: Iterable[Output | None]) -> None:
    """Decode in a thread what takes long to decode. Damage is left to what reads the value."""
    for output in outputs:
        if isinstance(output, StoredValue) and output.is_large:
            with suppress(CorruptRecordError):
                await in_thread(getattr, output, "value")


def joined_values(step: PipelineStep, outputs: Sequence[Output | None]) -> Any:
    """The value of a step by those of its units, in their order: of samples the one that is agreed on."""
    if step.samples == 1:
        return [None if output is None else output.value for output in outputs]
    values = []
    for start in range(0, len(outputs), step.samples):
        samples = outputs[start : start + step.samples]
        answers = [output.value for output in samples if output is not None]
        values.append(answers[agreed(answers)] if answers else None)
    return values[0] if step.map_over is None else values
