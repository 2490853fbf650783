"""What is known about one run: a fold over its events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from tagent_nb.engine.memory.batch_records import BatchRecords
from tagent_nb.engine.memory.entries import (
    ExecutionHistory,
    ItemTimes,
    StepMemoryEntry,
    StepResults,
    definition_digests,
    error_text,
    history_entry,
    inputs_of,
    metadata_of,
    new_run_id,
    note_rows,
    order_as_source,
    order_items,
    reset,
)
from tagent_nb.engine.memory.pending_approvals import PendingApprovals
from tagent_nb.errors import CorruptRecordError
from tagent_nb.events import (
    NO_USAGE,
    ApprovalGiven,
    ApprovalRequested,
    BatchCancelled,
    BatchPrepared,
    BatchSubmitted,
    CallRecorded,
    Event,
    FactLearned,
    InputTaken,
    MemorySaved,
    Output,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    RunUnpaused,
    SharedDataSaved,
    StepCached,
    StepCancelled,
    StepEvent,
    StepFailed,
    StepFinished,
    StepRetried,
    StepSkipped,
    StepStarted,
    StepStreamed,
    StepUnblocked,
    StepWaiting,
    TokenUsage,
    Warned,
)
from tagent_nb.formatting import is_lost
from tagent_nb.pipeline import Dependency, Pipeline, StepStatus, dependencies_of
from tagent_nb.results import (
    ONE_ROW,
    ItemResult,
    LazyMap,
    OutputMap,
    PipelineResult,
    StepResult,
    StepRows,
    rows_to_map,
)
from tagent_nb.serde import StoredValue
from tagent_nb.templating import Reference


class PipelineMemory:
    """What is known about one run: a fold over its events.

    Args:
        pipeline_id: The pipeline's storage id.
        run_id: The run; a new id if none is given.
        steps: Step names in definition order; others are added when an event names them.

    Attributes:
        steps: One :class:`StepResult` by name.
        shared_data: Values shared by all steps.
        inputs: Values that no step makes, by name, as this run took them.
        facts: Facts learned in this run.
        memories: Memories saved by this or an earlier run.
        began_with: The memories of the pipeline when this run started.
        pending: What waits for a decision.
        batches: What waits for the answers of batches.
        events: Everything applied so far in order, but streamed text and the starts of items.
        pipeline: The definition that ran, in the process that ran it.
        reads_of: Gives the names of the steps that a step reads, where the definition is at hand.
        budget: The run's budget as text; empty without one.
        forced: Steps that the run was to force and that have not ended since.
        use_cache: Whether the cache is asked and filled.
        offline: Whether no model is asked.
    """

    def __init__(self, pipeline_id: str, run_id: str | None = None, steps: Iterable[str] = ()) -> None:
        self.pipeline_id = pipeline_id
        self.run_id = run_id or new_run_id()
        self.pipeline_name = pipeline_id
        self.steps: dict[str, StepResult] = {name: StepResult(name) for name in steps}
        self.shared_data: dict[str, Any] = {}
        self.inputs: dict[str, Output] = {}
        self.facts: dict[str, Any] = {}
        self.memories: dict[str, Any] = {}
        self.began_with: Mapping[str, Any] = {}
        self.pending = PendingApprovals()
        self.batches = BatchRecords()
        self.events: list[Event] = []
        self.warnings: list[str] = []
        self.current_step: str | None = None
        self.definition: Mapping[str, Any] = {}
        self.pipeline: Pipeline | None = None
        self.reads_of: Callable[[str], list[str]] | None = None
        self.finished: RunFinished | None = None
        self.paused = False
        self.budget = ""
        self.forced: set[str] = set()
        self.use_cache, self.offline = True, False
        # Steps that this session does not have, such as those after ``until``: a later one may.
        self._left_out: dict[str, StepResult] = {}
        # Calls of attempts that have not ended.
        self._under_way: dict[tuple[str, str | None], tuple[TokenUsage, float | None]] = {}
        self._times = ItemTimes()
        self._began: float | None = None
        self._seconds = 0.0

    # -- the specified surface --------------------------------------------------------------

    def save_step_result(self, step_name: str, result: Any) -> None:
        """Record a value for a step, as if a run had computed it."""
        self.apply(StepFinished(run_id=self.run_id, step=step_name, output=StoredValue.of(result)))

    def get_step_result(self, step_name: str) -> Any:
        """The step's value; ``None`` if it has none (see :meth:`has_step_result`)."""
        step = self.steps.get(step_name)
        return step.value if step is not None else None

    def has_step_result(self, step_name: str) -> bool:
        """Whether the step has completed with a value, falsy ones too."""
        step = self.steps.get(step_name)
        return step is not None and step.output is not None

    @property
    def step_results(self) -> StepResults:
        """The recorded results by step name; to set an entry records its value for the step."""
        return StepResults(
            self._entry, lambda: [name for name in self.steps if self.has_step_result(name)], self._save_entry
        )

    def _entry(self, name: str) -> StepMemoryEntry:
        if not self.has_step_result(name):
            raise KeyError(name)
        step = self.steps[name]
        return StepMemoryEntry(
            step_name=name,
            pipeline_id=self.pipeline_id,
            data=step.value,
            timestamp=datetime.fromtimestamp(step.ended_at or 0.0, UTC),
            execution_id=self.run_id,
            dependencies_used=self._dependencies_used(step),
            metadata=dict(step.metadata),
        )

    def _dependencies_used(self, step: StepResult) -> list[str]:
        """Steps whose values a step read: as its fingerprint names them, else as its definition does."""
        if step.components or self.reads_of is None:
            return [name for name in inputs_of(step.components) if name not in self.inputs]
        return [name for name in self.reads_of(step.name) if self.has_step_result(name)]

    def _save_entry(self, name: str, entry: StepMemoryEntry) -> None:
        self.apply(
            StepFinished(
                run_id=self.run_id,
                at=entry.timestamp.timestamp(),
                step=name,
                output=StoredValue.of(entry.data),
                metadata=dict(entry.metadata),
            )
        )

    @property
    def execution_history(self) -> ExecutionHistory:
        """What happened, in order: ``event``, ``step`` (also as ``step_name``), ``status`` (a word such as
        ``"completed"``), ``item`` and ``timestamp`` (UTC)."""
        return ExecutionHistory(map(history_entry, self.events))

    # -- the fold ---------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Take one event in."""
        kind = type(event)
        if kind is StepStreamed:
            return
        # Stored runs have no starts. That of a step says why it ran; those of 100,000 items only take memory.
        if kind is not StepStarted or event.item is None:  # type: ignore[attr-defined]
            self.events.append(event)
        fold = _FOLDS.get(kind)
        if fold is not None:
            fold(self, event)

    def step(self, name: str) -> StepResult:
        """The state of a step, added if it is new."""
        result = self.steps.get(name)
        if result is None:
            # One that the last session left out is known, with what it has cost.
            result = self.steps[name] = self._left_out.pop(name, StepResult(name))
        return result

    def _unit(self, event: StepEvent) -> StepResult | ItemResult:
        step = self.steps.get(event.step) or self.step(event.step)
        if event.item is None:
            return step
        if step.items is None:
            step.items = {}
        item = step.items.get(event.item)
        if item is None:
            item = step.items[event.item] = ItemResult(event.item, event.item)
        return item

    def _call_recorded(self, event: CallRecorded) -> None:
        # What an attempt spends counts when it ends. If its process dies before, this is what is known.
        if self.batches:
            self.batches.answered(event)
        usage, cost = self._under_way.get((event.step, event.item), (NO_USAGE, 0.0))
        total = None if cost is None or event.cost is None else cost + event.cost
        self._under_way[event.step, event.item] = (usage + event.usage, total)

    def _spend(self, event: StepEvent, usage: TokenUsage, cost: float | None) -> None:
        self._under_way.pop((event.step, event.item), None)
        if cost == 0.0 and not usage:
            return
        units: list[StepResult | ItemResult] = [self.step(event.step)]
        if event.item is not None:
            units.append(self._unit(event))
        for unit in units:
            unit.usage = unit.usage + usage
            unit.cost = None if cost is None or unit.cost is None else unit.cost + cost

    def _run_started(self, event: RunStarted) -> None:
        self.run_id = event.run_id
        self.pipeline_name = event.pipeline
        self.definition = event.definition
        self.began_with = event.memories
        self.budget = event.budget
        self.forced = set(event.forced)
        self.use_cache, self.offline = event.use_cache, event.offline
        self._began = event.at
        for name in event.steps:
            self.step(name)

    def _run_resumed(self, event: RunResumed) -> None:
        for (name, item), (usage, cost) in list(self._under_way.items()):
            self._spend(StepEvent(run_id=event.run_id, step=name, item=item), usage, cost)
        self._times.session_ended()
        self._settle(self.events[-2].at if len(self.events) > 1 else event.at)
        self._began = event.at
        self.finished = None
        self.paused = False
        self.definition = event.definition or self.definition
        self.budget = event.budget
        self.forced.update(event.forced)
        if self.batches:
            self.batches.forget(event.forced)
            self.batches.begin_session()
        self.use_cache, self.offline = event.use_cache, event.offline
        steps = self._left_out | self.steps
        self.steps = {name: steps[name] if name in steps else StepResult(name) for name in event.steps}
        self._left_out = {name: step for name, step in steps.items() if name not in self.steps}
        for step in self.steps.values():
            if step.name not in event.kept:
                reset(step)

    def _input_taken(self, event: InputTaken) -> None:
        self.inputs[event.name] = event.output

    def _run_paused(self, event: RunPaused) -> None:
        self.paused = True

    def _run_unpaused(self, event: RunUnpaused) -> None:
        self.paused = False

    def _run_finished(self, event: RunFinished) -> None:
        self.finished = event
        for pending in self.pending.undecided() if event.waiting else []:
            self._unit(pending.request).status = StepStatus.WAITING
        in_batches = self.batches.units() if event.waiting and self.batches else []
        for name, item in in_batches:
            if name in event.waiting:
                self._unit(StepEvent(run_id=event.run_id, step=name, item=item)).status = StepStatus.WAITING
        for name in event.waiting:
            step = self.step(name)
            what = "its batch" if any(unit[0] == name for unit in in_batches) else "approval"
            step.status, step.waits_for = StepStatus.WAITING, step.waits_for or what
        self.paused = False
        self._settle(event.at, event.seconds)
        self.current_step = None

    def _took(self, event: StepFinished | StepFailed | StepCancelled, unit: StepResult | ItemResult) -> None:
        if isinstance(unit, StepResult):
            self._times.step_ended(unit, event.seconds)
            self._ended(unit, event.at, event.seconds)
        else:
            unit.seconds += event.seconds
            if type(event) is not StepCancelled:  # its step says it as well
                self._times.item_ended(self.step(event.step), event.at, event.seconds)

    def _ended(self, step: StepResult, at: float, seconds: float) -> None:
        """Note when a step ended, and when it began: a stored run does not have the event of its start."""
        if step.started_at is None or step.ended_at is not None:
            step.started_at = at - seconds
        step.ended_at = at

    def _settle(self, until: float, seconds: float = 0.0) -> None:
        """End a session: it took so many ``seconds``, or else the time between its first and last event."""
        if self._began is not None:
            self._seconds += seconds or max(0.0, until - self._began)
            self._began = None

    def _step_started(self, event: StepStarted) -> None:
        unit = self._unit(event)
        unit.status = StepStatus.RUNNING
        self.current_step = event.step
        if isinstance(unit, StepResult):
            if event.items is not None:
                unit.items_total = event.items
                unit.items = unit.items if unit.items is not None else {}
            else:
                unit.attempts += 1
            if unit.started_at is None or unit.ended_at is not None:
                unit.started_at, unit.ended_at = event.at, None
            unit.output = None
            unit.error_type = unit.error = unit.traceback = ""
            unit.reason = event.why or unit.reason
        else:
            unit.attempts += 1
            self.step(event.step).attempts += 1
            unit.output = None
            unit.error_type = unit.error = ""

    def _step_waiting(self, event: StepWaiting) -> None:
        self._unit(event).status = StepStatus.WAITING
        self.step(event.step).waits_for = event.reason

    def _step_unblocked(self, event: StepUnblocked) -> None:
        self._unit(event).status = StepStatus.RUNNING
        self.step(event.step).waits_for = ""

    def _approval_requested(self, event: ApprovalRequested) -> None:
        self.pending.add(event)
        self._unit(event).status = StepStatus.WAITING
        if not event.call:  # an attempt whose tool waits goes on, and says at its end what it used
            self._spend(event, event.usage, event.cost)

    def _approval_given(self, event: ApprovalGiven) -> None:
        self.pending.decide(event)

    def _batch_prepared(self, event: BatchPrepared) -> None:
        self.batches.prepared(event)

    def _batch_submitted(self, event: BatchSubmitted) -> None:
        self.batches.submitted(event)

    def _batch_cancelled(self, event: BatchCancelled) -> None:
        self.batches.cancelled(event)

    def _step_retried(self, event: StepRetried) -> None:
        if self.pending:
            self.pending.release(event, over=False)
        if self.batches:
            self.batches.release(event)
        unit = self._unit(event)
        unit.status = StepStatus.WAITING
        unit.error_type, unit.error = event.error_type, event.message
        self._spend(event, event.usage, event.cost)

    def _step_finished(self, event: StepFinished) -> None:
        if self.pending:
            self.pending.release(event, over=True)
        if self.batches:
            self.batches.release(event)
        unit = self._unit(event)
        if unit.status is not StepStatus.RUNNING:
            self._tried(event, unit)
        unit.status = StepStatus.COMPLETED
        unit.output = event.output
        self._took(event, unit)
        unit.error_type = unit.error = ""
        if event.usage is not NO_USAGE or event.cost != 0.0 or self._under_way:
            self._spend(event, event.usage, event.cost)
        if isinstance(unit, StepResult):
            self._valued(unit, event)
        elif event.metadata:
            note_rows(unit, event.metadata)
            unit.batch = event.metadata.get("batch", "")

    def _step_cached(self, event: StepCached) -> None:
        if self.pending:
            self.pending.release(event, over=True)
        if self.batches:
            self.batches.release(event)
        unit = self._unit(event)
        unit.status = StepStatus.CACHED
        unit.output = event.output
        step = self.step(event.step)
        # A mapped step's own event repeats what those of its items say.
        if event.item is not None or step.items is None:
            priced = step.saved_cost is not None and event.saved_cost is not None
            step.saved_cost = (step.saved_cost or 0.0) + (event.saved_cost or 0.0) if priced else None
        if isinstance(unit, StepResult):
            self._times.step_ended(unit, 0.0)
            self._ended(unit, event.at, 0.0)
            self._valued(unit, event)
        else:
            note_rows(unit, event.metadata)
            self._times.item_ended(step, event.at, 0.0)

    def _tried(self, event: StepFinished | StepFailed, unit: StepResult | ItemResult) -> None:
        """Count the attempts of a stored run, which does not have the events of their starts."""
        missing = event.attempt - unit.attempts
        # A mapped step as a whole makes no attempts; its items do.
        if unit.status is StepStatus.RUNNING or missing <= 0 or "item_keys" in event.metadata:
            return
        unit.attempts += missing
        if event.item is not None:
            self.step(event.step).attempts += missing

    def _valued(self, step: StepResult, event: StepFinished | StepCached) -> None:
        if self.forced:
            self.forced.discard(step.name)
        step.traceback = ""
        step.key = event.key
        step.components = event.components
        step.metadata = event.metadata
        if step.items is not None:
            order_items(step, event.metadata)

    def _step_failed(self, event: StepFailed) -> None:
        if self.pending:
            self.pending.release(event, over=True)
        if self.batches:
            self.batches.release(event)
        unit = self._unit(event)
        self._tried(event, unit)
        unit.status = StepStatus.FAILED
        unit.error_type, unit.error = event.error_type, event.message
        self._took(event, unit)
        self._spend(event, event.usage, event.cost)
        if isinstance(unit, StepResult):
            unit.traceback = event.traceback
            unit.metadata = event.metadata
            if unit.items is not None:
                order_items(unit, event.metadata)
        else:
            note_rows(unit, event.metadata)

    def _step_skipped(self, event: StepSkipped) -> None:
        unit = self._unit(event)
        unit.status = StepStatus.SKIPPED
        unit.reason = event.reason
        if isinstance(unit, StepResult):
            unit.ended_at = event.at
        else:
            unit.output = None
            unit.error_type = unit.error = ""

    def _step_cancelled(self, event: StepCancelled) -> None:
        unit = self._unit(event)
        if unit.status.has_value:
            return  # it was recorded in the moment it was stopped, and no reader could know
        unit.status = StepStatus.CANCELLED
        self._took(event, unit)
        self._spend(event, event.usage, event.cost)

    def _fact_learned(self, event: FactLearned) -> None:
        self.facts.pop(event.key, None)  # the newest last
        self.facts[event.key] = event.value

    def _memory_saved(self, event: MemorySaved) -> None:
        self.memories.pop(event.key, None)
        self.memories[event.key] = event.value

    def _shared_data_saved(self, event: SharedDataSaved) -> None:
        self.shared_data = dict(event.shared)

    def _warned(self, event: Warned) -> None:
        self.warnings.append(event.message)

    # -- results ----------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Seconds of this run until now, all its sessions together."""
        return self._seconds + (max(0.0, time.time() - self._began) if self._began is not None else 0.0)

    def spent(self) -> dict[str, tuple[TokenUsage, float | None]]:
        """Tokens and USD by step, of all sessions of the run."""
        spent = {name: (step.usage, step.cost) for name, step in (self._left_out | self.steps).items()}
        for (name, _), (more, price) in self._under_way.items():
            usage, cost = spent.get(name, (NO_USAGE, 0.0))
            spent[name] = (usage + more, None if cost is None or price is None else cost + price)
        return spent

    def to_result(self) -> PipelineResult:
        """The result as it stands now. Steps are the live ones: they change while the run goes on."""
        steps = self.steps
        if self.pipeline is None or self.finished is not None:  # else they are in the order of their starts
            self._order_items()
        failed = [name for name, step in steps.items() if step.status is StepStatus.FAILED]
        ran = [step for step in steps.values() if step.status is not StepStatus.PENDING or step.attempts]
        outputs = {name: step.output for name, step in steps.items() if step.output is not None}
        unpaid = self.batches.steps()  # what their batches cost is not known yet
        unpriced = [step.name for step in ran if step.cost is None or step.name in unpaid]
        ended = self.finished
        final = self._final_step()
        return PipelineResult(
            pipeline_name=self.pipeline_name,
            success=not failed and ended is not None and ended.success,
            execution_time=self.seconds,
            total_cost=_usd(sum(step.cost for step in ran if step.cost is not None)),
            cost_per_step={
                step.name: None
                if step.cost is None or (step.name in unpaid and not step.cost)
                else _usd(step.cost)
                for step in ran
            },
            token_usage={step.name: step.usage for step in ran},
            step_outputs=OutputMap(outputs),
            step_metadata=LazyMap(lambda: {step.name: metadata_of(step) for step in ran}),
            inputs=OutputMap(self.inputs),
            learned_facts=dict(self.facts),
            saved_memories=dict(self.memories),
            failed_steps=failed,
            error_details={name: error_text(steps[name]) for name in failed},
            run_id=self.run_id,
            cancelled=ended is not None and ended.cancelled,
            timed_out=ended is not None and ended.timed_out,
            unpriced_steps=unpriced,
            steps=steps,
            events=self.events,
            warnings=self.warnings,
            budget=self.budget,
            final_step=final,
            final_output=_readable(outputs.get(final)),
            sources=LazyMap(self._sources),
            samples=LazyMap(self._samples),
            flattened=self._flattened(),
            dependencies=LazyMap(self._dependencies),
            definitions=LazyMap(lambda: {} if self.pipeline is None else definition_digests(self.pipeline)),
        )

    def _order_items(self) -> None:
        """Put the items of mapped steps into the source's order that ended too early to record it."""
        open_maps = {
            name: step for name, step in self.steps.items() if step.items and "item_keys" not in step.metadata
        }
        if not open_maps:
            return
        sources, samples, flattened = self._sources(), self._samples(), self._flattened()
        for name, step in open_maps.items():
            rows = partial(self._rows, sources.get(name), name in flattened)
            order_as_source(step, rows, samples.get(name, 1))

    def _rows(self, map_over: str | None, flatten: bool) -> StepRows:
        """What a step with items runs over."""
        if map_over is None:
            return ONE_ROW
        source = Reference.parse(map_over)
        above = self.steps.get(source.step)
        output = self.inputs.get(source.step) if above is None else above.output
        notes = {} if above is None else above.metadata
        return rows_to_map(_readable(output), source, flatten=flatten, notes=notes)

    def _final_step(self) -> str:
        """Name of the step whose value is the final output; empty if there is none."""
        if self.pipeline is not None:
            return self.pipeline.final_step or ""
        steps = self.definition.get("steps", ())
        marked = next((step["name"] for step in steps if step.get("final")), None)
        return str(marked or self.definition.get("final", ""))

    def _sources(self) -> dict[str, str]:
        """What mapped steps run over, by step."""
        if self.pipeline is not None:
            return {step.name: step.map_over for step in self.pipeline.steps if step.map_over is not None}
        steps = self.definition.get("steps", ())
        return {step["name"]: step["map_over"] for step in steps if step.get("map_over")}

    def _samples(self) -> dict[str, int]:
        """How many samples there are of each answer, by step that has several."""
        if self.pipeline is not None:
            return {step.name: step.samples for step in self.pipeline.steps if step.samples > 1}
        steps = self.definition.get("steps", ())
        return {step["name"]: step["samples"] for step in steps if step.get("samples", 1) > 1}

    def _flattened(self) -> list[str]:
        """The mapped steps that run over elements of lists."""
        if self.pipeline is not None:
            return [step.name for step in self.pipeline.steps if step.flatten]
        return [step["name"] for step in self.definition.get("steps", ()) if step.get("flatten")]

    def _dependencies(self) -> dict[str, list[str]]:
        """The steps that each step waits for, by step."""
        pipeline = self.pipeline
        if pipeline is not None:
            return {
                step.name: [dependency.name for dependency in dependencies_of(pipeline, step)]
                for step in pipeline.steps
            }
        waits: dict[str, list[str]] = {}
        for step in self.definition.get("steps", ()):
            names = [Dependency.parse(text).name for text in step.get("depends_on", ())]
            state = self.steps.get(step["name"])
            read = [] if state is None else inputs_of(state.components)
            waits[step["name"]] = [
                name for name in dict.fromkeys([*names, *read]) if name in self.steps and name != step["name"]
            ]
        return waits


def _readable(output: Output | None) -> Any:
    """A value; ``None`` where it was lost or cannot be read, which ``result[step]`` says."""
    try:
        return None if output is None or is_lost(output) else output.value
    except CorruptRecordError:
        return None


def _usd(cost: float) -> float:
    """A sum of USD without the last digits of its float, which say nothing: 0.3, not 0.30000000000000004."""
    return round(cost, 12)


_FOLDS: dict[type[Event], Callable[[PipelineMemory, Any], None]] = {
    RunStarted: PipelineMemory._run_started,
    RunResumed: PipelineMemory._run_resumed,
    InputTaken: PipelineMemory._input_taken,
    CallRecorded: PipelineMemory._call_recorded,
    RunPaused: PipelineMemory._run_paused,
    RunUnpaused: PipelineMemory._run_unpaused,
    RunFinished: PipelineMemory._run_finished,
    StepStarted: PipelineMemory._step_started,
    StepWaiting: PipelineMemory._step_waiting,
    StepUnblocked: PipelineMemory._step_unblocked,
    ApprovalRequested: PipelineMemory._approval_requested,
    ApprovalGiven: PipelineMemory._approval_given,
    BatchPrepared: PipelineMemory._batch_prepared,
    BatchSubmitted: PipelineMemory._batch_submitted,
    BatchCancelled: PipelineMemory._batch_cancelled,
    StepRetried: PipelineMemory._step_retried,
    StepFinished: PipelineMemory._step_finished,
    StepCached: PipelineMemory._step_cached,
    StepFailed: PipelineMemory._step_failed,
    StepSkipped: PipelineMemory._step_skipped,
    StepCancelled: PipelineMemory._step_cancelled,
    FactLearned: PipelineMemory._fact_learned,
    MemorySaved: PipelineMemory._memory_saved,
    SharedDataSaved: PipelineMemory._shared_data_saved,
    Warned: PipelineMemory._warned,
}
