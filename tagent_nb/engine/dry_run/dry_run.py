"""Goes through a run step by step without calling a runner or recording anything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tagent_nb.cache import GENERATION, explain
from tagent_nb.engine.batches import batches_of_others
from tagent_nb.engine.dry_run.duration import limit_seconds, run_seconds, step_seconds
from tagent_nb.engine.dry_run.history import EarlierRuns
from tagent_nb.engine.dry_run.plan import RUNS, StepPlan
from tagent_nb.engine.dry_run.quote import (
    Range,
    SharedPrompts,
    answer_tokens,
    prompt_pieces_of,
    quote,
    with_later,
)
from tagent_nb.engine.unit.conditions import item_condition, unmet_condition
from tagent_nb.engine.unit.map import samples_of, source_rows, whole, whole_components
from tagent_nb.engine.unit.prepared import PreparedStep, source_of, wants
from tagent_nb.engine.unit.reduce import Reduction
from tagent_nb.engine.unit.work import (
    NOT_CACHED,
    Preparation,
    WorkItem,
    cached_answer,
    joined_values,
    of_sample,
    recorded_answer,
    too_old,
    tried_again,
    why_not_cached,
)
from tagent_nb.errors import TagentError
from tagent_nb.events import NO_ENTRIES, Output, StepFailed, StepSkipped
from tagent_nb.formatting import count, failures_text
from tagent_nb.pipeline import DependencyType, Limit, PipelineStep
from tagent_nb.redaction import redact
from tagent_nb.results import ONE_ROW, StepRows
from tagent_nb.runners import RateLimiter
from tagent_nb.serde import StoredValue
from tagent_nb.user_objects import blame, ends_program

if TYPE_CHECKING:
    from tagent_nb.cache import CacheEntry
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.engine.resume import Verdict

YIELD_EVERY = 200
"""Items after which the loop may do something else: runs go on while one is planned."""


@dataclass(frozen=True, slots=True)
class StepForecast:
    """What is known of a step's value before the run.

    Attributes:
        certain: Whether its value is certain.
        output: The value; ``None`` without one.
        gone: Whether it certainly has none: what needs it is skipped.
        why: Why it has none.
    """

    certain: bool
    output: Output | None = None
    gone: bool = False
    why: str = ""


UNKNOWN = StepForecast(False)
NOTHING = StoredValue.of(None)
"""The value of an item that is skipped."""


class DryRun:
    """Plans the steps of one run.

    Args:
        context: Of the run.
        recorder: With a memory of its own: what is learned from cached answers is written to it.
        preparation: Works out fingerprints.
        verdict: What a resumed run keeps, and what has changed; ``None`` for a new run.
        unreadable: Steps whose recorded value cannot be read.
        history: Earlier runs, for what steps take.
    """

    def __init__(
        self,
        context: RunContext,
        recorder: Recorder,
        preparation: Preparation,
        verdict: Verdict | None,
        unreadable: Iterable[str],
        history: EarlierRuns,
    ) -> None:
        self._context = context
        self._recorder = recorder
        self._preparation = preparation
        self._kept = frozenset(verdict.kept) if verdict is not None else frozenset()
        self._changed: dict[str, list[str]] = {}
        if verdict is not None:
            lost = {name: ["its recorded value cannot be read"] for name in unreadable}
            self._changed = {**lost, **verdict.changed}
        self._history = history
        self._forecasts: dict[str, StepForecast] = {
            name: StepForecast(True, output) for name, output in context.inputs.items()
        }
        self._actions: dict[str, str] = {}
        self._under_way: dict[str, tuple[str, str | None]] = {}
        # The order and labels of the items that steps have, by step.
        self._notes: dict[str, Mapping[str, Any]] = {}
        # Tokens of the prompts that would be sent, by step.
        self._prompts: dict[str, list[int]] = {}
        # What is yet to be combined, by step.
        self._reductions: dict[str, Reduction] = {}
        # Of steps whose rows share calls, the prompts of these.
        self._shared: dict[str, SharedPrompts] = {}
        # Keys that steps may learn anew, with the step.
        # Steps whose items are in batches already.
        self._sent: set[str] = set()
        self._learned: dict[str, dict[str, str]] = {"facts": {}, "memories": {}}

    async def steps(self) -> list[StepPlan]:
        """The plan of every step, in the order in which they would start."""
        plans = []
        for name in self._recorder.machine.scheduler.get_execution_order():
            step = self._context.pipeline.get_step(name)
            try:
                plan, forecast = await self._forecast(step)
            except TagentError as error:
                plan, forecast = _gone(step, "fail", redact(str(error)))
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException as error:  # the user's objects, which fingerprints ask, may raise anything
                plan, forecast = _gone(step, "fail", redact(blame(error)))
            self._forecasts[name], self._actions[name] = forecast, plan.action
            if plan.action in RUNS:
                if step.max_failures is not None:
                    early = f"stops early beyond {failures_text(step.max_failures)}"
                    plan = replace(plan, why="; ".join(part for part in (plan.why, early) if part))
                plan = await self._quoted(step, await self._history.expected(step, plan))
                plan = replace(plan, seconds_range=await self._seconds(step, plan))
                for kind, keys in (await self._history.learned(name)).items():
                    self._learned[kind].update(dict.fromkeys(keys, name))
            plans.append(plan)
        return plans

    def seconds_range(self, plans: Sequence[StepPlan]) -> Range | None:
        """Seconds that the run is likely to take, from and to; ``None`` if those of a step are unknown."""
        serial = [step.name for step in self._context.pipeline.steps if step.execution_mode.value == "serial"]
        ranges = {plan.step: plan.seconds_range for plan in plans if plan.action in RUNS}
        return run_seconds(ranges, self._recorder.machine.scheduler.dependency_graph, serial)

    async def _seconds(self, step: PipelineStep, plan: StepPlan) -> Range | None:
        """Seconds that a step which runs or may run is likely to take, from and to."""
        if step.batch:
            return None  # its provider answers when it likes
        prepared = self._preparation.prepared(step)
        if plan.items is not None and plan.items_done is not None:
            units = plan.items - plan.items_done
        else:
            units = await self._history.units(step)
        if not units and step.has_items:
            return None  # how many there are is unknown
        most, places, floor = units, prepared.at_once, (0.0, 0.0)
        if plan.quote is not None:
            most += plan.quote.later_calls[1]
        if prepared.asks_network:
            limit = self._limit(prepared.model)
            if limit.concurrency is not None:
                places = min(places, limit.concurrency * step.rows_per_call)
            floor = limit_seconds(limit, units if plan.quote is None else plan.quote.calls, plan.quote)
        seen = await self._history.unit_seconds(step.name, shared=prepared.shares_calls)
        low, high = (0 if plan.action == "may run" else units), most
        return step_seconds((low, high), places, seen, floor if low else (0.0, floor[1]))

    def _limit(self, model: Any) -> Limit:
        """How often the provider of a model may be asked."""
        limiter = next(
            (layer for layer in self._context.services.paid if isinstance(layer, RateLimiter)), None
        )
        return Limit() if limiter is None else limiter.limit_of(model)

    async def _quoted(self, step: PipelineStep, plan: StepPlan) -> StepPlan:
        """The plan of a step that runs or may run, with what its calls are likely to take."""
        if step.is_python or self._context.options.offline:
            return plan
        prompts = self._prompts.get(step.name, [])
        units = len(prompts) or (0 if step.name in self._sent else await self._history.units(step))
        if not units:
            return plan
        prepared = self._preparation.prepared(step)
        seen = await self._history.answers(step.name, shared=prepared.shares_calls)
        shared = self._shared.get(step.name)
        try:
            quoted = quote(prepared, prompts, units, seen, self._context.services.prices, shared)
            reduction = self._reductions.get(step.name)
            if quoted is not None and reduction is not None:
                answer = answer_tokens(prepared, seen)
                calls, tokens = reduction.later(*answer)
                if plan.items_done:
                    # New answers that are as the old ones have been combined before.
                    calls, tokens = (0, calls[1]), (0.0, tokens[1])
                quoted = with_later(quoted, prepared, calls, tokens, answer, self._context.services.prices)
        except BaseException as error:  # a model's own code: the step that asks it says so
            if ends_program(error):
                raise
            return plan
        return replace(plan, quote=quoted)

    def _note_prompt(self, work: WorkItem) -> str:
        """Note how long the prompt of a unit that runs is. Says in words if its model cannot read it."""
        if work.step.is_python:
            return ""
        from tagent_nb.runners import tokens_of, too_long

        try:
            pieces = prompt_pieces_of(work, self._context.pipeline.shared_context)
            task = "".join(pieces)
            problem = too_long(work.prepared.model, task)
        except Exception:  # the unit itself reports a prompt that cannot be written, when it runs
            return ""
        if not problem:
            name = work.step.name
            self._prompts.setdefault(name, []).append(tokens_of(task))
            if work.prepared.shares_calls:
                self._shared.setdefault(name, SharedPrompts(work.prepared)).add(pieces)
        return problem

    # -- one step ---------------------------------------------------------------------------

    async def _forecast(self, step: PipelineStep) -> tuple[StepPlan, StepForecast]:
        context = self._context
        prepared = self._preparation.prepared(step)
        outputs = prepared.outputs({name: self._forecasts[name].output for name in prepared.above})
        if step.name in self._kept:
            kept = context.recorded[step.name, None]
            self._notes[step.name] = kept.metadata
            return self._answered(step, "recorded", kept.output)
        for dependency in context.pipeline.dependencies(step):
            upstream = self._forecasts[dependency.name]
            if dependency.type is DependencyType.STRONG and upstream.gone:
                return _gone(step, "skip", f"step {dependency.name!r} {upstream.why}")
        doubt = self._doubt(step)
        if step.when is not None and not doubt:
            unmet = unmet_condition(context, self._recorder, step, step.when, outputs)
            if isinstance(unmet, StepFailed):
                return _gone(step, "fail", unmet.message)
            if unmet is not None:
                return _gone(step, "skip", unmet.reason)
        plan, forecast = await self._judge(prepared, outputs)
        if doubt and plan.action != "fail":
            # Skipped or not: its value is not certain.
            action = "may run" if plan.action == "run" else plan.action
            plan = replace(plan, action=action, why="; ".join(part for part in (plan.why, doubt) if part))
            forecast = UNKNOWN
        return plan, forecast

    def _doubt(self, step: PipelineStep) -> str:
        """In words, if the condition of a step reads a step whose value is not certain."""
        if step.when is None:
            return ""
        sources = [reference.step for reference in step.references if reference.kind == "when"]
        if step.item_condition is not None:
            # Whether the items are certain is another question: without them nothing is decided.
            sources = [name for name in sources if name != source_of(step).step]
        unsure = [name for name in dict.fromkeys(sources) if not self._forecasts[name].certain]
        return f"its condition depends on {', '.join(unsure)}" if unsure else ""

    async def _judge(
        self, prepared: PreparedStep, outputs: Mapping[str, Output | None]
    ) -> tuple[StepPlan, StepForecast]:
        """Who answers for a step whose condition holds."""
        step = prepared.step
        unsure = self._unsure(prepared)
        if unsure:
            return await self._in_the_dark(prepared, unsure), UNKNOWN
        if step.reduce_over is not None:
            return await self._judge_parts(prepared, outputs)
        if step.has_items:
            return await self._judge_items(prepared, outputs)
        work = await self._preparation.work_item(prepared, outputs)
        action, output = await self._answer(work)
        if action:
            return self._answered(step, action, output)
        if self._is_missed(step):
            why = "the run is offline: recorded calls answer, or it fails"
            return StepPlan(step.name, "may run", why), UNKNOWN
        twin = self._twin(work)
        if twin:
            return StepPlan(step.name, "cached", f"it does the same as {twin}"), UNKNOWN
        too_long = self._note_prompt(work)
        if too_long:
            return _gone(step, "fail", too_long)
        return StepPlan(step.name, "run", await self._why(work)), UNKNOWN

    async def _judge_items(
        self, prepared: PreparedStep, outputs: Mapping[str, Output | None]
    ) -> tuple[StepPlan, StepForecast]:
        step = prepared.step
        rows = self._rows(prepared, outputs)
        self._notes[step.name] = rows.notes(step.samples)
        values: list[Output | None] = []
        too_long: list[str] = []
        done = skipped = sent = 0
        age = ""
        condition = None
        if not self._doubt(step):
            condition = item_condition(self._context, self._recorder, step, outputs)
        recorded = False
        for index, (key, row, sample) in enumerate(samples_of(rows.rows, step.samples)):
            if index % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)
            unmet = None if condition is None else condition(key, row)
            if isinstance(unmet, StepSkipped):
                skipped += 1
                values.append(NOTHING)
                continue
            if unmet is not None:
                values.append(None)
                continue
            item_outputs = dict(outputs)
            if step.map_over is not None:
                item_outputs[prepared.source.step] = StoredValue.of(row)
            work = await self._preparation.work_item(prepared, item_outputs, key, more=of_sample(sample))
            action, output = await self._answer(work)
            recorded = (recorded or len(values) == skipped) and action == "recorded"
            answered = bool(action or self._twin(work))
            done += answered
            is_sent = not answered and self._is_sent(work)
            sent += is_sent
            age = age or ("" if answered or is_sent else await too_old(work))
            problem = "" if answered or is_sent else self._note_prompt(work)
            too_long += [f"item {key}: {problem}"] if problem else []
            values.append(output if action else None)
        counts: dict[str, Any] = {"items": len(values) - skipped, "items_done": done}
        if all(value is not None for value in values):
            whole_value = StoredValue.of(joined_values(step, values))
            plan, forecast = self._answered(step, "recorded" if recorded else "cached", whole_value)
            return replace(plan, **counts), forecast
        if self._is_missed(step):
            why = "the run is offline: recorded calls answer, or items fail"
            return StepPlan(step.name, "may run", why, **counts), UNKNOWN
        why = await self._why(await whole(self._preparation, prepared, outputs))
        if step.name in self._context.retried:
            why = tried_again(self._context, step.name)
        elif sent:
            self._sent.add(step.name)
            why = f"{count(sent, 'item')} wait for {self._recorder.memory.batches.names(step.name)}"
        elif age and (done or why == NOT_CACHED):
            why = f"answers of {'other' if done else 'its'} items are {age}"
        elif done:
            why = "the other items are new, have changed, or failed"
        if step.batch and not sent:
            why = "; ".join(part for part in (why, await self._asked_elsewhere(step)) if part)
        if skipped:
            left_out = f"its condition skips {skipped} of {len(values)} items"
            why = "; ".join(part for part in (why, left_out) if part)
        if too_long:
            why = f"{why}; {count(len(too_long), 'item')} will fail: {too_long[0]}"
        return StepPlan(step.name, "run", why, **counts), UNKNOWN

    async def _judge_parts(
        self, prepared: PreparedStep, outputs: Mapping[str, Output | None]
    ) -> tuple[StepPlan, StepForecast]:
        """A step with ``reduce_over``: calls of a level are known once all those before are answered."""
        step = prepared.step
        reduction = Reduction(self._context, self._preparation, prepared, outputs, self._recorder.memory)
        if reduction.is_empty:
            return _gone(step, "skip", reduction.why_empty)
        actions: list[str] = []
        too_long: list[str] = []
        is_answered = True
        while is_answered and (parts := await reduction.parts()):
            answers = {}
            for part in parts:
                work = await reduction.work_item(part)
                action, output = await self._answer(work)
                if output is not None:
                    answers[part.key] = output.value
                elif not self._twin(work):
                    problem = self._note_prompt(work)
                    too_long += [f"part {part.text}: {problem}"] if problem else []
                actions.append(action)
                await asyncio.sleep(0)
            is_answered = len(answers) == len(parts)
            if is_answered:
                reduction.take(answers)
            else:
                self._reductions[step.name] = reduction
        if is_answered:
            action = "recorded" if set(actions) == {"recorded"} else "cached"
            plan, forecast = self._answered(step, action, StoredValue.of(reduction.value))
            return replace(plan, items=len(actions), items_done=len(actions)), forecast
        done = sum(map(bool, actions))
        if self._is_missed(step):
            why = "the run is offline: recorded calls answer, or parts fail"
            return StepPlan(step.name, "may run", why, items=len(actions), items_done=done), UNKNOWN
        why = await self._why(await whole(self._preparation, prepared, outputs))
        if step.name in self._context.retried:
            why = tried_again(self._context, step.name)
        if too_long:
            why = f"{why}; {count(len(too_long), 'part')} will fail: {too_long[0]}"
        return StepPlan(step.name, "run", why, items=len(actions), items_done=done), UNKNOWN

    def _rows(self, prepared: PreparedStep, outputs: Mapping[str, Output | None]) -> StepRows:
        if prepared.step.map_over is None:
            return ONE_ROW
        source = prepared.source
        notes = self._notes.get(source.step, NO_ENTRIES)
        return source_rows(prepared.step, outputs[source.step], source, notes)

    # -- who answers ------------------------------------------------------------------------

    async def _answer(self, work: WorkItem) -> tuple[str, Output | None]:
        """``"recorded"`` or ``"cached"`` with the value, or ``""`` if the unit runs."""
        record = await recorded_answer(self._context, work)
        if record is not None:
            return "recorded", record.output
        entry = await cached_answer(work, count=False)
        if entry is None:
            return "", None
        self._learn(entry)
        return "cached", entry.output

    def _twin(self, work: WorkItem) -> str:
        """The step that does the very same before this unit, so that its answer serves both; else ``""``."""
        if work.prepared.cache is None or work.prepared.passes_cache:
            return ""
        first = self._under_way.setdefault(work.key, work.unit)
        return "" if first == work.unit else first[0]

    def _is_sent(self, work: WorkItem) -> bool:
        """Whether the request of a unit is in a batch already, and nothing about it has changed."""
        return (
            self._recorder.memory.batches.is_open(*work.unit)
            and work.step.name not in self._changed
            and not work.prepared.forced
        )

    async def _asked_elsewhere(self, step: PipelineStep) -> str:
        """In words, if a batch of another run may have asked what a step is about to ask."""
        if self._context.options.passes_cache(step.name):
            return ""
        for run_id, records in await batches_of_others(self._context):
            names = records.names(step.name)
            if names:
                return (
                    f"what {names} of run {run_id} has asked already is taken from there, and not paid again"
                )
        return ""

    def _is_missed(self, step: PipelineStep) -> bool:
        return self._context.options.offline and not step.is_python

    def _learn(self, entry: CacheEntry) -> None:
        """From a cached answer is learned what its step had learned."""
        memory = self._recorder.memory
        memory.facts.update(entry.metadata.get("_facts", {}))
        memory.memories.update(entry.metadata.get("_memories", {}))

    def _answered(
        self, step: PipelineStep, action: str, output: Output | None
    ) -> tuple[StepPlan, StepForecast]:
        return StepPlan(step.name, action), StepForecast(True, output)

    # -- why ----------------------------------------------------------------------------------

    def _unsure(self, prepared: PreparedStep) -> list[str]:
        """What a step reads that is not certain, in words: parts of steps that run, and what these learn."""
        step, references = prepared.step, prepared.references
        if step.runs_over is not None:
            source = prepared.source
            references = [*(part for part in references if part.step != source.step), source]
        reasons = {
            f"input {part.text} may change, because {part.step} {self._comes(part.step)}": None
            for part in references
            if not self._forecasts[part.step].certain
        }
        for kind, word in (("facts", "fact"), ("memories", "memory")):
            if wants(step, kind):
                for key, learner in self._learned[kind].items():
                    reasons[f"{word} {key} may change, because {learner} runs"] = None
        return list(reasons)

    def _comes(self, name: str) -> str:
        """What happens to a step whose value is not certain."""
        return {"run": "runs", "may run": "may run"}.get(self._actions[name], "is not certain yet")

    async def _in_the_dark(self, prepared: PreparedStep, unsure: list[str]) -> StepPlan:
        """The plan of a step that reads what is not there yet."""
        step = prepared.step
        if prepared.passes_cache:
            return StepPlan(step.name, "run", "forced")
        changes = [*self._changed.get(step.name, ())]
        if not changes and self._context.keyed:
            changes = await self._changes(prepared)
        can_be_answered = prepared.cache is not None or (step.name, None) in self._context.recorded
        if self._is_missed(step):
            why = ["the run is offline: the cache or recorded calls answer, or it fails", *changes, *unsure]
            return StepPlan(step.name, "may run", "; ".join(why))
        if changes:
            # It may be what it was in an earlier run, or what another step was.
            can_be_answered = prepared.cache is not None and await self._has_run_before(prepared)
        action = "may run" if can_be_answered else "run"
        return StepPlan(step.name, action, "; ".join([*changes, *unsure]))

    async def _changes(self, prepared: PreparedStep, now: Mapping[str, str] | None = None) -> list[str]:
        """What differs from the last time a step had a value; without ``now``, in its definition only."""
        before = await self._history.components(prepared.name)
        if before is None:
            return ["first run"]
        if not before:
            return [await self._history.last_time(prepared.name) or "it has no earlier result"]
        if now is not None:
            return explain(before, now, None, None) or await self._history.file_changes(prepared.name)
        return explain(_defined(before), self._definition(prepared), None, None)

    async def _has_run_before(self, prepared: PreparedStep) -> bool:
        """Whether some step of an earlier run had this definition and a value."""
        definition = self._definition(prepared)
        return any(
            [_defined(components) == definition async for components in self._history.all_components()]
        )

    def _definition(self, prepared: PreparedStep) -> dict[str, str]:
        components = prepared.static_components(self._preparation.memo) | whole_components(prepared.step)
        return {**components, **GENERATION}

    async def _why(self, work: WorkItem) -> str:
        """Why a step runs whose inputs are all known."""
        step = work.step
        if work.prepared.passes_cache:
            return "forced"
        if step.name in self._changed:
            return "; ".join(self._changed[step.name])
        ended = await self._history.last_time(step.name)
        if ended:
            return ended
        changes = await self._changes(work.prepared, work.components) if self._context.keyed else []
        if changes:
            return "; ".join(changes)
        return await why_not_cached(work)


def _defined(components: Mapping[str, str]) -> dict[str, str]:
    """The part of a recorded fingerprint that is the definition of its step."""
    return {name: text for name, text in components.items() if name.partition(":")[0] not in _READ}


_READ = ("input", "facts", "memories")
"""Components that come from other steps, not from a step's definition."""


def _gone(step: PipelineStep, action: str, why: str) -> tuple[StepPlan, StepForecast]:
    ended = "is skipped" if action == "skip" else "fails"
    return StepPlan(step.name, action, why), StepForecast(True, None, gone=True, why=ended)
