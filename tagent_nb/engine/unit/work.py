"""What a unit of work is about: its inputs, and its fingerprint with named components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.background import in_thread
from tagent_nb.engine.concurrency import Place
from tagent_nb.engine.memory.entries import last_time
from tagent_nb.engine.memory.store import taught
from tagent_nb.engine.step_reads import reads
from tagent_nb.errors import CorruptRecordError
from tagent_nb.events import Output, StepCached, StepFinished, TokenUsage
from tagent_nb.pipeline import PipelineStep
from tagent_nb.results import failed_items
from tagent_nb.serde import StoredValue
from tagent_nb.templating import Reference

if TYPE_CHECKING:
    from tagent_nb.cache import ResultCache
    from tagent_nb.engine.run_loop import Run
    from tagent_nb.runners import StepRunner

NOT_CACHED, NOT_ASKED = "its earlier answer is not in the cache", "the cache is not asked"
"""Why a step runs that has not changed."""


@dataclass(slots=True)
class Work:
    """What one unit is about: its step, its item, what it reads, its fingerprint, and its place in the run.

    Attributes:
        place: Its place among those that run, from its first attempt on.
        on_aside: Called before it waits for a person.
        took: Tokens and USD that led to its value, where they were counted before it ended.
        calls: How often each call of a tool was held in this attempt, by tool and arguments.
        waited: Seconds that it waited for a person.
    """

    step: PipelineStep
    outputs: Mapping[str, Output | None]
    key: str
    components: Mapping[str, str]
    item: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    memories: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    took: tuple[TokenUsage, float | None] | None = None
    waited: float = 0.0
    on_aside: Callable[[], None] | None = None
    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    place: Place = field(init=False, repr=False)

    @property
    def stood_aside(self) -> bool:
        """Whether somebody else does what it would have done next, since it waited for a person."""
        return hasattr(self, "place") and self.place.was_away

    @property
    def unit(self) -> tuple[str, str | None]:
        return (self.step.name, self.item)


async def prepare(
    run: Run,
    step: PipelineStep,
    outputs: Mapping[str, Output | None],
    item: str | None = None,
    references: Sequence[Reference] | None = None,
    when: str = "",
) -> Work:
    """Work out a unit's fingerprint, with large values in a thread.

    For an item, ``outputs`` has the item for its source.

    ``when`` is the condition by which a mapped step as a whole leaves items out.
    """
    facts, memories = taught(run, step)
    if not run.keyed:
        return Work(step, outputs, "", {}, item, facts, memories)
    from tagent_nb.cache import (
        GENERATION,
        add_components,
        class_components,
        input_components,
        text_digest,
        unit_key,
    )

    components = dict(await _static_beside_the_loop(run, step))
    parts = reads(step, outputs) if references is None else references
    around: dict[str, Any] = {"step": step, "namespace": run.equipment.namespace, "memo": run.memo}
    examine = partial(input_components, parts, outputs, **around)
    heavy = any(is_heavy(outputs.get(part.step)) for part in parts)
    add_components(components, await in_thread(examine) if heavy else examine())
    for name, notes in (("facts", facts), ("memories", memories)):
        if notes:
            stored = StoredValue.of(notes)
            if stored.is_heavy:
                await in_thread(getattr, stored, "digest")
            components[name] = stored.digest
            if stored.classes:
                add_components(components, class_components(name, notes, stored.classes, **around))
    if when:
        components["when"] = text_digest(when)
    key = unit_key(components)
    components.update(GENERATION)
    return Work(step, outputs, key, components, item, facts, memories)


def still_answers(kept: StepFinished | StepCached, work: Work) -> bool:
    """Whether a record of this run is that of the unit as it is now, as far as its version can tell."""
    if kept.key == work.key:
        return True
    from tagent_nb.cache import differing, is_earlier

    return is_earlier(kept.components, work.components) and not differing(kept.components, work.components)


def inputs_for(run: Run, step: str) -> dict[str, Output | None]:
    """The values that a step reads and no step makes, by name."""
    return {name: run.inputs[name] for name in run.reads_inputs.get(step, ())}


def is_heavy(output: Output | None) -> bool:
    """Whether reading or examining a value takes so long that a thread does it."""
    return isinstance(output, StoredValue) and output.is_heavy


async def read_heavy(outputs: Iterable[Output | None]) -> None:
    """Decode in a thread what takes long to decode. Damage is left to who reads the value."""
    for output in outputs:
        if isinstance(output, StoredValue) and output.is_large:
            with suppress(CorruptRecordError):
                await in_thread(getattr, output, "value")


async def _static_beside_the_loop(run: Run, step: PipelineStep) -> Mapping[str, str]:
    """:func:`static_components`, but large values that the step refers to are examined in a thread."""
    from tagent_nb.cache import LargeValue, refusing_large_values, remember_digest

    examined: dict[int, Any] = {}
    while step.name not in run.static:
        try:
            with refusing_large_values(examined):
                static_components(run, step)
        except LargeValue as large:
            examined[id(large.value)] = large.value
            await in_thread(remember_digest, large.value, run.memo)
    return run.static[step.name]


def static_components(run: Run, step: PipelineStep) -> dict[str, str]:
    """The part of a fingerprint that is the same for all items of a step in this run."""
    found = run.static.get(step.name)
    if found is None:
        from tagent_nb.cache import definition_components

        model, parts, tools = None, {}, []
        roles: dict[str, tuple[str, Mapping[str, Any]]] = {}
        if step.body is None:
            from tagent_nb.runners import model_name, model_parts, tools_for

            one = step_model(run, step)
            model, parts, tools = model_name(one), model_parts(one), tools_for(step)
            roles = {role: (model_name(each), model_parts(each)) for role, each in step.models.items()}
        found = run.static[step.name] = definition_components(
            step,
            constraints=[*run.pipeline.global_constraints, *step.constraints],
            shared=run.pipeline.shared_context,
            model=model,
            settings={name: value for name, value in step.settings.items() if name != "stream"},
            tools=tools,
            runner_version=runner_of(run, step).version,
            namespace=run.equipment.namespace,
            inputs=(*run.machine.scheduler.dependency_graph[step.name], *inputs_for(run, step.name)),
            memo=run.memo,
            model_parts=parts,
            instructions=instructions_of(run, step),
            roles=roles,
        )
    return found


def instructions_of(run: Run, step: PipelineStep) -> str | None:
    """The step's own system prompt, else the pipeline's."""
    return run.pipeline.instructions if step.instructions is None else step.instructions


def step_model(run: Run, step: PipelineStep) -> Any:
    """The step's own model, else the run's, else the pipeline's."""
    for model in (step.model, run.equipment.model):
        if model is not None:
            return model
    return run.pipeline.model


def runner_of(run: Run, step: PipelineStep) -> StepRunner:
    """The runner for this kind of step."""
    agent = "plan" if step.agent == "plan" else "agent"
    return run.equipment.runners["python" if step.is_python else agent]


def read_names(run: Run, step: PipelineStep, outputs: Mapping[str, Output | None]) -> frozenset[str]:
    """Names of the steps that units of this step read: the same for all of them."""
    found = run.read.get(step.name)
    if found is None:
        found = run.read[step.name] = frozenset(one.step for one in reads(step, outputs))
    return found


def asked_cache(run: Run, step: PipelineStep) -> ResultCache | None:
    """The cache, if it is asked, and filled, for a step."""
    return run.equipment.cache if run.options.use_cache and step.cache else None


async def why_it_runs(run: Run, work: Work) -> str:
    """In words: what differs from the last time this step ended with a value, or how it ended without."""
    if work.item is not None or not run.keyed:
        return ""
    if run.options.passes_cache(work.step.name):
        return "forced"
    before = await _last_time(run, work)
    if before is None:
        return "first run"
    components, ended = before
    if not components:
        return ended or "it has no earlier result"
    from tagent_nb.cache import explain

    sentences = explain(components, work.components, None, None)
    if sentences:
        return "; ".join(sentences)
    if work.step.map_over is not None:
        return ended  # without failed items, these say for themselves whether they were cached
    return NOT_CACHED if asked_cache(run, work.step) is not None else NOT_ASKED


async def _last_time(run: Run, work: Work) -> tuple[Mapping[str, str], str] | None:
    """The unit's last fingerprint, of this run or of the one before, and what failed then.

    ``None`` if there is no such run.
    """
    recorded = run.restored.get(work.unit)
    if recorded is not None and recorded.components:
        return recorded.components, ""
    ended = run.memory.steps[work.step.name].reason
    if ended:
        return {}, ended  # in an earlier sitting of this run
    previous = await run.last_time()
    if previous is None:
        return None
    before = previous.steps.get(work.step.name)
    if before is None:
        return {}, ""
    ended = last_time(before)
    if ended:
        return {}, ended
    bad = failed_items(before)
    return before.components, f"the last time {bad}" if bad else ""
