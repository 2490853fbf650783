"""Goes through a run step by step without calling a runner or recording anything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tagent_nb.cache import GENERATION, explain
from tagent_nb.engine.dry_run.history import Past
from tagent_nb.engine.dry_run.plan import RUNS, StepPlan
from tagent_nb.engine.step_reads import reads, source_of, wants
from tagent_nb.engine.unit.execute import held_back
from tagent_nb.engine.unit.map import item_fates, source_rows, whole
from tagent_nb.engine.unit.work import (
    NOT_ASKED,
    NOT_CACHED,
    Work,
    asked_cache,
    inputs_for,
    prepare,
    static_components,
    still_answers,
)
from tagent_nb.errors import TagentError
from tagent_nb.events import Output, StepCached, StepFailed, StepFinished, StepSkipped
from tagent_nb.pipeline import DependencyType, PipelineStep
from tagent_nb.redaction import redact
from tagent_nb.serde import StoredValue
from tagent_nb.templating import Reference
from tagent_nb.user_objects import blame

if TYPE_CHECKING:
    from tagent_nb.cache import CacheEntry
    from tagent_nb.engine.resume import Verdict
    from tagent_nb.engine.run_loop import Run

BREATH = 200
"""Items after which the loop may do something else: runs go on while one is planned."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What is known of a step's value before the run.

    Attributes:
        known: Whether its value is certain.
        output: The value; ``None`` without one.
        gone: Whether it certainly has none: what needs it is skipped.
        why: Why it has none.
    """

    known: bool
    output: Output | None = None
    gone: bool = False
    why: str = ""


UNKNOWN = Fate(False)
NOTHING = StoredValue.of(None)
"""The value of an item that is skipped."""


class Rehearsal:
    """Plans the steps of one run.

    Args:
        run: The run, with a memory that nobody else has: what steps taught is written to it.
        verdict: What a resumed run keeps, and what has changed; ``None`` for a new run.
        past: Earlier runs, for what steps take.
    """

    def __init__(self, run: Run, verdict: Verdict | None, past: Past) -> None:
        self.run = run
        self.kept = frozenset(verdict.kept) if verdict is not None else frozenset()
        self.changed: dict[str, list[str]] = {}
        if verdict is not None:
            lost = {name: ["its recorded value cannot be read"] for name in verdict.unreadable}
            self.changed = {**lost, **verdict.changed}
        self.past = past
        self.fates: dict[str, Fate] = {name: Fate(True, output) for name, output in run.inputs.items()}
        self._actions: dict[str, str] = {}
        self._under_way: dict[str, tuple[str, str | None]] = {}
        self._taught: dict[str, dict[str, str]] = {"facts": {}, "memories": {}}

    async def steps(self) -> list[StepPlan]:
        """The plan of every step, in the order in which they would start."""
        found = []
        for name in self.run.machine.scheduler.get_execution_order():
            step = self.run.by_name[name]
            try:
                plan, fate = await self._look_at(step)
            except TagentError as error:
                plan, fate = _gone(step, "fail", redact(str(error)))
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException as error:  # the user's objects, which fingerprints ask, may raise anything
                plan, fate = _gone(step, "fail", redact(blame(error)))
            self.fates[name], self._actions[name] = fate, plan.action
            if plan.action in RUNS:
                plan = await self.past.expected(step, plan)
                for kind, keys in (await self.past.taught(name)).items():
                    self._taught[kind].update(dict.fromkeys(keys, name))
            found.append(plan)
        return found

    # -- one step ---------------------------------------------------------------------------

    async def _look_at(self, step: PipelineStep) -> tuple[StepPlan, Fate]:
        run = self.run
        outputs = {
            name: self.fates[name].output for name in run.machine.scheduler.dependency_graph[step.name]
        }
        outputs.update(inputs_for(run, step.name))
        if step.name in self.kept:
            return self._answered(step, "recorded", run.restored[step.name, None].output)
        for dependency in run.pipeline.dependencies(step):
            fate = self.fates[dependency.name]
            if dependency.type is DependencyType.STRONG and fate.gone:
                return _gone(step, "skip", f"step {dependency.name!r} {fate.why}")
        doubt = self._doubt(step)
        if step.when is not None and not doubt:
            held = held_back(run, step, outputs)
            if isinstance(held, StepFailed):
                return _gone(step, "fail", held.message)
            if held is not None:
                return _gone(step, "skip", held.reason)
        plan, fate = await self._judge(step, outputs)
        if doubt and plan.action != "fail":
            # Skipped or not: whoever reads it cannot know its value.
            action = "may run" if plan.action == "run" else plan.action
            plan = replace(plan, action=action, why="; ".join(part for part in (plan.why, doubt) if part))
            fate = UNKNOWN
        return plan, fate

    def _doubt(self, step: PipelineStep) -> str:
        """In words, if the condition of a step reads a step whose value is not certain."""
        if step.when is None:
            return ""
        sources = [one.step for one in step.references if one.kind == "when"]
        if step.item_condition is not None:
            # Whether the items are certain is another question: without them nothing is decided.
            sources = [name for name in sources if name != source_of(step).step]
        unsure = [name for name in dict.fromkeys(sources) if not self.fates[name].known]
        return f"its condition depends on {', '.join(unsure)}" if unsure else ""

    async def _judge(self, step: PipelineStep, outputs: Mapping[str, Output | None]) -> tuple[StepPlan, Fate]:
        """Who answers for a step whose condition holds."""
        unsure = self._unsure(step, outputs)
        if unsure:
            return await self._in_the_dark(step, unsure), UNKNOWN
        if step.map_over is not None:
            return await self._judge_items(step, outputs)
        work = await prepare(self.run, step, outputs)
        action, output = await self._answer(work)
        if action:
            return self._answered(step, action, output)
        if self._is_missed(step):
            why = "the run is offline: recorded calls answer, or it fails"
            return StepPlan(step.name, "may run", why), UNKNOWN
        twin = self._twin(work)
        if twin:
            return StepPlan(step.name, "cached", f"it does the same as {twin}"), UNKNOWN
        return StepPlan(step.name, "run", await self._why(work)), UNKNOWN

    async def _judge_items(
        self, step: PipelineStep, outputs: Mapping[str, Output | None]
    ) -> tuple[StepPlan, Fate]:
        run = self.run
        source = source_of(step)
        rows = source_rows(step, outputs[source.step], source)
        values: list[Output | None] = []
        done = skipped = 0
        fate_of = None if self._doubt(step) else item_fates(run, step, outputs)
        recorded = False
        for index, (key, _, row) in enumerate(rows):
            if index % BREATH == BREATH - 1:
                await asyncio.sleep(0)
            held = None if fate_of is None else fate_of(key, row)
            if isinstance(held, StepSkipped):
                skipped += 1
                values.append(NOTHING)
                continue
            if held is not None:
                values.append(None)
                continue
            unit = await prepare(run, step, {**outputs, source.step: StoredValue.of(row)}, key)
            action, output = await self._answer(unit)
            recorded = (recorded or len(values) == skipped) and action == "recorded"
            done += bool(action or self._twin(unit))
            values.append(output if action else None)
        counts: dict[str, Any] = {"items": len(rows) - skipped, "items_done": done}
        if all(value is not None for value in values):
            whole_value = StoredValue.of([value.value for value in values if value is not None])
            plan, fate = self._answered(step, "recorded" if recorded else "cached", whole_value)
            return replace(plan, **counts), fate
        if self._is_missed(step):
            why = "the run is offline: recorded calls answer, or items fail"
            return StepPlan(step.name, "may run", why, **counts), UNKNOWN
        why = await self._why(await whole(run, step, outputs))
        if done:
            why = "the other items are new, have changed, or failed"
        if skipped:
            left_out = f"its condition skips {skipped} of {len(rows)} items"
            why = "; ".join(part for part in (why, left_out) if part)
        return StepPlan(step.name, "run", why, **counts), UNKNOWN

    # -- who answers ------------------------------------------------------------------------

    async def _answer(self, work: Work) -> tuple[str, Output | None]:
        """``"recorded"`` or ``"cached"`` with the value, or ``""`` if the unit runs."""
        run = self.run
        if run.options.forces(work.step.name):
            return "", None
        kept: StepFinished | StepCached | None = run.restored.get(work.unit)
        if kept is not None and still_answers(kept, work):
            return "recorded", kept.output
        if not self._caches(work.step) or run.options.passes_cache(work.step.name):
            return "", None
        cache = run.equipment.cache
        assert cache is not None
        entry = await cache.aget(work.key, run.schemas_of(work.step.name), count=False)
        if entry is None:
            return "", None
        self._learn(entry)
        return "cached", entry.output

    def _twin(self, work: Work) -> str:
        """The step that does the very same before this unit, so that its answer serves both; else ``""``."""
        if not self._caches(work.step) or self.run.options.passes_cache(work.step.name):
            return ""
        first = self._under_way.setdefault(work.key, work.unit)
        return "" if first == work.unit else first[0]

    def _caches(self, step: PipelineStep) -> bool:
        """Whether the cache is asked, and filled, for a step."""
        return asked_cache(self.run, step) is not None

    def _is_missed(self, step: PipelineStep) -> bool:
        return self.run.options.offline and not step.is_python

    def _learn(self, entry: CacheEntry) -> None:
        """A cached answer teaches what its step had taught."""
        self.run.memory.facts.update(entry.metadata.get("_facts", {}))
        self.run.memory.memories.update(entry.metadata.get("_memories", {}))

    def _answered(self, step: PipelineStep, action: str, output: Output | None) -> tuple[StepPlan, Fate]:
        return StepPlan(step.name, action), Fate(True, output)

    # -- why ----------------------------------------------------------------------------------

    def _unsure(self, step: PipelineStep, outputs: Mapping[str, Output | None]) -> list[str]:
        """What a step reads that is not certain, in words: parts of steps that run, and what these teach."""
        read: list[Reference] = reads(step, outputs)
        if step.map_over is not None:
            source = source_of(step)
            read = [*(one for one in read if one.step != source.step), source]
        found = {
            f"input {one.text} may change, because {one.step} {self._comes(one.step)}": None
            for one in read
            if not self.fates[one.step].known
        }
        for kind, word in (("facts", "fact"), ("memories", "memory")):
            if wants(step, kind):
                for key, teacher in self._taught[kind].items():
                    found[f"{word} {key} may change, because {teacher} runs"] = None
        return list(found)

    def _comes(self, name: str) -> str:
        """What happens to a step whose value is not certain."""
        return {"run": "runs", "may run": "may run"}.get(self._actions[name], "is not certain yet")

    async def _in_the_dark(self, step: PipelineStep, unsure: list[str]) -> StepPlan:
        """The plan of a step that reads what is not there yet."""
        if self.run.options.passes_cache(step.name):
            return StepPlan(step.name, "run", "forced")
        changes = [*self.changed.get(step.name, ())]
        if not changes and self.run.keyed:
            changes = await self._changes(step)
        can_be_answered = self._caches(step) or (step.name, None) in self.run.restored
        if self._is_missed(step):
            why = ["the run is offline: the cache or recorded calls answer, or it fails", *changes, *unsure]
            return StepPlan(step.name, "may run", "; ".join(why))
        action = "may run" if can_be_answered and changes == [] else "run"
        return StepPlan(step.name, action, "; ".join([*changes, *unsure]))

    async def _changes(self, step: PipelineStep, now: Mapping[str, str] | None = None) -> list[str]:
        """What differs from the last time a step had a value; without ``now``, in its definition only."""
        before = await self.past.components(step.name)
        if before is None:
            return ["first run"]
        if not before:
            return [await self.past.last_time(step.name) or "it has no earlier result"]
        if now is not None:
            return explain(before, now, None, None)
        defined = {name: text for name, text in before.items() if name.partition(":")[0] not in _READ}
        return explain(defined, {**static_components(self.run, step), **GENERATION}, None, None)

    async def _why(self, work: Work) -> str:
        """Why a step runs whose inputs are all known."""
        step = work.step
        if self.run.options.passes_cache(step.name):
            return "forced"
        if step.name in self.changed:
            return "; ".join(self.changed[step.name])
        ended = await self.past.last_time(step.name)
        if ended:
            return ended
        changes = await self._changes(step, work.components) if self.run.keyed else []
        if changes:
            return "; ".join(changes)
        return NOT_CACHED if self._caches(step) else NOT_ASKED


_READ = ("input", "facts", "memories")
"""Components that come from other steps, not from a step's definition."""


def _gone(step: PipelineStep, action: str, why: str) -> tuple[StepPlan, Fate]:
    ended = "is skipped" if action == "skip" else "fails"
    return StepPlan(step.name, action, why), Fate(True, None, gone=True, why=ended)
