"""What conditions mean for steps, and for the items of mapped steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.unit.attempt import unprepared
from tagent_nb.engine.unit.prepared import source_of
from tagent_nb.events import Output, StepFailed, StepSkipped
from tagent_nb.pipeline import PipelineStep

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.pipeline import Condition


def unmet_condition(
    context: RunContext,
    recorder: Recorder,
    step: PipelineStep,
    when: str | Condition,
    outputs: Mapping[str, Output | None],
) -> StepSkipped | StepFailed | None:
    """What keeps a step from running: its condition ``when``, which does not hold or cannot be decided.

    One that is to be decided for each item of a mapped step keeps no step from running.
    """
    try:
        if step.item_condition is not None:
            return None
        values = {name: None if output is None else output.value for name, output in outputs.items()}
    except BaseException as error:  # the user's objects may raise anything
        return unprepared(recorder, step, error)
    return _decided(context, recorder, step, when, values)


def item_condition(
    context: RunContext, recorder: Recorder, step: PipelineStep, outputs: Mapping[str, Output | None]
) -> Callable[[str, Any], StepSkipped | StepFailed | None]:
    """Says of an item, by its key and value, whether the step's condition keeps it from running.

    Raises:
        TemplateError: The condition cannot be read.
    """
    when = step.item_condition
    if when is None:
        return lambda key, item: None
    values = {name: None if output is None else output.value for name, output in outputs.items()}
    mapped = source_of(step)
    return lambda key, item: _decided(
        context, recorder, step, when, values, key=key, item=item, mapped=mapped
    )


def _decided(
    context: RunContext,
    recorder: Recorder,
    step: PipelineStep,
    when: str | Condition,
    values: Mapping[str, Any],
    key: str | None = None,
    **about: Any,
) -> StepSkipped | StepFailed | None:
    """What a condition means for a step, or for the item of this ``key``.

    Args:
        context: Of the run.
        recorder: Of the run.
        step: The step.
        when: Its condition.
        values: What the condition reads, by name.
        key: The item's.
        about: The ``item``, and what the step has ``mapped``.
    """
    from tagent_nb.pipeline import holds

    memory = recorder.memory
    try:
        about |= {
            "shared": context.pipeline.shared_context,
            "facts": memory.facts,
            "memories": memory.memories,
        }
        if holds(when, values, step=step.name, **about):
            return None
    except BaseException as error:  # the user's objects may raise anything
        return unprepared(recorder, step, error, key)
    text = step.when if isinstance(step.when, str) or step.when is None else step.when.describe()
    return StepSkipped(run_id=context.run_id, step=step.name, item=key, reason=f"condition not met: {text}")
