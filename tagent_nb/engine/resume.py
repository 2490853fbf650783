"""Carrying on a run: what its records still answer for, and what has changed since."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tagent_nb.cache import differing, explain
from tagent_nb.engine.background import in_thread, is_cancelled
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.unit.map import whole
from tagent_nb.engine.unit.prepared import PreparedStep
from tagent_nb.engine.unit.work import Preparation, file_changes, is_heavy
from tagent_nb.errors import DefinitionError, ResumeConflictError, TagentError
from tagent_nb.events import Output, RunResumed, StepCached, StepFinished
from tagent_nb.pipeline import Pipeline, PipelineStep, StepStatus
from tagent_nb.serde import unreadable
from tagent_nb.user_objects import blame

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext, RunOptions
    from tagent_nb.engine.recorder import Recorder

_FACTS = ("facts", "memories")
_HOW = frozenset(
    {
        "batch",
        "budget",
        "cache",
        "execution_mode",
        "fresh_for",
        "max_failures",
        "max_retries",
        "min_success",
        "retry_count",
        "retry_on",
        "timeout",
        "when",
    }
)

Recorded = dict[tuple[str, str | None], StepFinished | StepCached]


def recorded_units(memory: PipelineMemory) -> Recorded:
    """The last recorded value of each unit of work, if it could be stored.

    What a step gave before it was forced answers for nothing any more.
    """
    units: Recorded = {}
    for event in memory.events:
        if isinstance(event, StepFinished | StepCached):
            if event.output.storable:
                units[event.step, event.item] = event
        elif isinstance(event, RunResumed) and event.forced:
            forced = frozenset(event.forced)
            units = {unit: value for unit, value in units.items() if unit[0] not in forced}
    return units


def carried_on(options: RunOptions, memory: PipelineMemory) -> RunOptions:
    """The options of a run that is carried on: what they leave open is as it was when the run was stopped."""
    return replace(
        options,
        still_forced=frozenset(memory.forced),
        offline=memory.offline if "offline" in options.inherits else options.offline,
        use_cache=memory.use_cache if "use_cache" in options.inherits else options.use_cache,
    )


@dataclass
class Verdict:
    """What a resumed run may keep, and what has changed (step to sentences)."""

    kept: list[str] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)


async def readable(recorded: Recorded, pipeline: Pipeline) -> tuple[Recorded, dict[str, str]]:
    """The records whose value can be read, and why it cannot be, by step, for those of other units.

    A record cannot be read that another version of pandas wrote, for example: its step runs again.
    """
    kept: Recorded = {}
    unreadable_steps: dict[str, str] = {}
    for (step, item), event in recorded.items():
        output = event.output
        problem = await in_thread(unreadable, output) if is_heavy(output) else unreadable(output)
        if problem is None:
            kept[step, item] = event
        elif step in pipeline:
            unreadable_steps[step] = problem
    return kept, unreadable_steps


async def judge(
    context: RunContext,
    recorder: Recorder,
    preparation: Preparation,
    definition: Mapping[str, Any],
    changed: Collection[str] = (),
) -> Verdict:
    """Compare every recorded step with its definition of today, in execution order.

    A step below one that must run again cannot be judged yet: it is neither kept nor changed, and
    its record answers for it later if its inputs turn out the same.

    Args:
        context: Of the run, with the inputs of today.
        recorder: Of the run.
        preparation: Works out fingerprints.
        definition: The pipeline of today.
        changed: Inputs that are not what they were. Unless the run is to run again what has changed, steps
            that read them count as changed even if nothing of them is recorded: two steps of one run must
            not see two values.
    """
    verdict = Verdict()
    context.retried.update(failed_rows(context, recorder.memory))
    records, scheduler = context.recorded, recorder.machine.scheduler
    kept: set[str] = set()
    with_items = {step for step, item in records if item is not None}
    with_files: dict[str, list[StepFinished | StepCached]] = {}
    for (name, _), event in records.items():
        if event.metadata and "files" in event.metadata:
            with_files.setdefault(name, []).append(event)
    before = recorder.memory.pipeline
    if recorder.memory.batches and not definition and before is not None:
        # Nothing records definitions here, but this process has that of the run.
        old, new = _by_name(_definition(before)), _by_name(_definition(context.pipeline))
    else:
        old, new = _by_name(recorder.memory.definition), _by_name(definition)
    for name in scheduler.get_execution_order():
        step = context.pipeline.get_step(name)
        recorded = records.get((name, None))
        in_batches = recorder.memory.batches.names(name)
        if recorded is None and (name in with_items or (in_batches and not context.options.forces(name))):
            # A map that was stopped half-way has no fingerprint of its own yet.
            if name in old and _asked(old[name]) != _asked(new.get(name, {})):
                waits = f" while {in_batches} is out" if in_batches else ""
                verdict.changed[name] = [f"its definition changed{waits}"]
            elif in_batches and (
                model := _other_model(recorder.memory, name, preparation.prepared(step).model)
            ):
                verdict.changed[name] = [f"its model was {model} in {in_batches}"]
            elif _is_same_object(recorder, step) and kept.issuperset(scheduler.dependency_graph[name]):
                context.trusted.add(name)
            continue
        if recorded is None or context.options.forces(name):
            continue
        upstream = scheduler.dependency_graph[name]
        if any(above not in kept for above in upstream):
            continue
        prepared = preparation.prepared(step)
        outputs = prepared.outputs({above: records[above, None].output for above in upstream})
        differences = await _differences(
            recorder, preparation, prepared, outputs, recorded, old.get(name), new.get(name)
        )
        if name in with_files:
            files = {
                file: state for event in with_files[name] for file, state in event.metadata["files"].items()
            }
            differences = [*differences, *(await file_changes({"files": files})).values()]
        if differences:
            verdict.changed[name] = differences
        elif name in context.retried:
            context.trusted.add(name)
        else:
            kept.add(name)
            verdict.kept.append(name)
    if changed and context.options.on_change == "refuse":
        for name, inputs in context.reads_inputs.items():
            other = [
                f"input {input_name} changed since the run began"
                for input_name in inputs
                if input_name in changed
            ]
            if other and name not in verdict.changed:
                verdict.changed[name] = other
    preparation.forget_facts()  # what is known when the run has come so far is another matter
    return verdict


async def _differences(
    recorder: Recorder,
    preparation: Preparation,
    prepared: PreparedStep,
    outputs: Mapping[str, Output | None],
    recorded: StepFinished | StepCached,
    old: Mapping[str, Any] | None,
    new: Mapping[str, Any] | None,
) -> list[str]:
    if not recorded.key:
        # Recorded by this process without fingerprints: its definitions are still at hand.
        if recorder.memory.pipeline is None:
            return ["it was recorded in memory by another executor, so whether it changed is unknown"]
        return [] if _is_same_object(recorder, prepared.step) else ["its definition changed"]
    try:
        if prepared.step.has_items:
            work = await whole(preparation, prepared, outputs)
        else:
            work = await preparation.work_item(prepared, outputs)
    except TagentError as error:
        return [str(error)]
    except BaseException as error:  # the user's objects, which fingerprints ask, may raise anything
        if is_cancelled():
            raise
        return [blame(error)]
    if work.key == recorded.key:
        return []
    # Facts and memories of today hold what was learned after it ran: it is judged by those of then.
    components = {name: digest for name, digest in work.components.items() if name not in _FACTS}
    components.update((name, recorded.components[name]) for name in _FACTS if name in recorded.components)
    if not differing(recorded.components, components, old, new):
        return []
    return explain(recorded.components, components, old, new)


def failed_rows(context: RunContext, memory: PipelineMemory) -> dict[str, int]:
    """How many items of which steps are to be run again since they failed.

    Raises:
        DefinitionError: The run is to do so, and nothing of the steps that it names has failed.
    """
    options = context.options
    if not options.retry_failed:
        return {}
    failed = {}
    for name, step in memory.steps.items():
        if options.retries(name) and name in context.pipeline:
            items = sum(item.status is StepStatus.FAILED for item in (step.items or {}).values())
            if items:
                failed[name] = items
    whole = {name for name, step in memory.steps.items() if step.status is StepStatus.FAILED}
    named = options.retry_failed if isinstance(options.retry_failed, frozenset) else frozenset()
    without = sorted(named - failed.keys() - whole)
    if without or not (failed or whole):
        what = f"step {without[0]!r} has no failed rows" if without else "nothing failed"
        raise DefinitionError(
            f"In run {memory.run_id} of pipeline {context.pipeline.name!r} {what}, so there is nothing to "
            "try again. resume=True (--resume) carries on what was stopped; resume='RUN' (--resume RUN) "
            "names an earlier run."
        )
    return failed


def _is_same_object(recorder: Recorder, step: PipelineStep) -> bool:
    """Whether this process ran the step as it is defined now."""
    before = recorder.memory.pipeline
    return before is not None and step.name in before and before.get_step(step.name) == step


def _asked(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A step's definition without what says only how it is to be run."""
    return {name: value for name, value in definition.items() if name not in _HOW}


def _other_model(memory: PipelineMemory, step: str, model: Any) -> str:
    """The model that the batches of a step ask, if it is not that of today; a run may name it."""
    if not isinstance(model, str):
        return ""
    provider, _, name = model.partition(":")
    return ", ".join(sorted(memory.batches.models(step) - {name or provider}))


def _definition(pipeline: Pipeline) -> dict[str, Any]:
    from tagent_nb.pipeline import pipeline_to_dict

    bare = pipeline.snapshot()
    bare.inputs = {}
    return pipeline_to_dict(bare, strict=False)


def _by_name(definition: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {step["name"]: step for step in definition.get("steps", ())}


def refuse_changes(
    pipeline: str, run_id: str, changed: Mapping[str, list[str]], inputs: Sequence[str] = ()
) -> None:
    """Raise if something has changed.

    Args:
        pipeline: The pipeline's name.
        run_id: The run that is to be carried on.
        changed: Sentences by step.
        inputs: Names of inputs that have changed.

    Raises:
        ResumeConflictError: With the differences, and how to go on.
    """
    if not changed:
        return
    lines = "\n".join(f"  - {step}: {'; '.join(sentences)}" for step, sentences in changed.items())
    restore = ""
    if inputs:
        name = inputs[0]
        restore = (
            f" The run has recorded its inputs: to go on with what it began with, set {name} to the recorded "
            f"value: %tagent_results --run {run_id}, then {name} = result.inputs[{name!r}]."
        )
    raise ResumeConflictError(
        f"Run {run_id} of pipeline {pipeline!r} cannot be resumed as it is: these recorded steps "
        f"have changed since\n{lines}\n"
        'Use on_change="rerun" (%tagent_run --resume --on-change rerun) to run them again and what '
        f"depends on them, or undo the change.{restore}",
        {step: list(sentences) for step, sentences in changed.items()},
    )
