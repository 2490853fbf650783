"""The inputs of a run: copies of values that no step makes, as they were when it began."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.background import in_thread
from tagent_nb.engine.preflight import refuse_problems
from tagent_nb.errors import DefinitionError, PipelineValidationError, TemplateError, did_you_mean
from tagent_nb.events import Output
from tagent_nb.pipeline import Pipeline, checked_inputs, input_value, inputs_by_step
from tagent_nb.serde import StoredValue, own_copy

if TYPE_CHECKING:
    from tagent_nb.engine.memory.memory import PipelineMemory

__all__ = ["TakenInputs", "expected_names", "looking_in", "settle", "take", "taken_names"]


class TakenInputs(dict[str, Output]):
    """Copies of a pipeline's inputs by name, all of one moment. What happens to the originals later does not
    reach them."""


def looking_in(pipeline: Pipeline, values: Mapping[str, Any], namespace: Mapping[str, Any]) -> Pipeline:
    """A snapshot of a pipeline that finds inputs where a run does: what it was given, its own, variables.

    Args:
        pipeline: The pipeline.
        values: Values for this run alone.
        namespace: Variables, such as the notebook's; those that the pipeline knows of come after them.
    """
    snapshot = pipeline.snapshot()
    snapshot.inputs.update(values)
    if namespace and pipeline.variables is not None and pipeline.variables is not namespace:
        snapshot.variables = ChainMap(dict(namespace), dict(pipeline.variables))
    elif namespace:
        snapshot.variables = namespace
    return snapshot


def take(pipeline: Pipeline, values: Mapping[str, Any] | None, namespace: Mapping[str, Any]) -> TakenInputs:
    """Copy the inputs that steps read, as they are now.

    Raises:
        DefinitionError: ``values`` has a name that no step reads as an input.
    """
    if isinstance(values, TakenInputs):
        return values
    own = checked_inputs(values or {}, "inputs")
    snapshot = looking_in(pipeline, own, namespace)
    names = taken_names(snapshot)
    for name in own.keys() - names:
        if name in pipeline:
            raise DefinitionError(
                f"inputs: {name!r} is a step of pipeline {pipeline.name!r}, and its value is what the step "
                f"makes. Rename one of them, or let the step read a file: feed(pipeline, '{name}=FILE')."
            )
        raise DefinitionError(
            f"inputs: no step of pipeline {pipeline.name!r} reads {name!r}.{did_you_mean(name, names)} "
            f"Steps read as inputs: {', '.join(names) or 'nothing'}."
        )
    return TakenInputs((name, _copied(input_value(snapshot, name))) for name in names)


def taken_names(pipeline: Pipeline) -> list[str]:
    """The inputs that steps of a pipeline read, each once."""
    return list(dict.fromkeys(name for names in inputs_by_step(pipeline).values() for name in names))


def _copied(value: Any) -> StoredValue:
    return StoredValue.of(own_copy(value))


def expected_names(pipeline: Pipeline) -> list[str]:
    """Names that steps read and that are neither steps nor inputs: a run that is carried on may have them."""
    names: dict[str, None] = {}
    for step in pipeline.steps:
        try:
            needed = pipeline.dependencies(step)
        except TemplateError:  # validate() says so
            continue
        names.update(
            dict.fromkeys(dependency.name for dependency in needed if dependency.name not in pipeline)
        )
    return list(names)


async def settle(
    pipeline: Pipeline, taken: TakenInputs, memory: PipelineMemory
) -> tuple[dict[str, Output], list[str]]:
    """The inputs of a run, and the names of those that have changed since it began.

    Args:
        pipeline: The snapshot that runs. What neither the caller nor the run has is no input of it any more.
        taken: Inputs as they are now.
        memory: What the run has recorded of them.

    Raises:
        PipelineValidationError: A step reads what is neither a step nor an input, or an input that cannot be
            stored.
    """
    readers = _readers(pipeline)
    settled: dict[str, Output] = {}
    problems, changed = [], []
    for name, steps in readers.items():
        recorded, now = memory.inputs.get(name), taken.get(name)
        if now is None:
            if recorded is not None:
                settled[name] = recorded
            continue
        problem = await _problem(now)
        if problem is not None:
            problems.append(_refusal(name, steps, now, problem))
        elif recorded is not None and recorded.digest == now.digest:
            settled[name] = recorded
        else:
            settled[name] = now
            if recorded is not None:
                changed.append(name)
    pipeline.inputs = dict.fromkeys(settled)
    if len(settled) + len(problems) < len(readers):
        pipeline.forget_dependencies()
        refuse_problems(pipeline, problems)
    pipeline.variables = None
    if problems:
        raise PipelineValidationError(pipeline.name, problems)
    return settled, changed


def _readers(pipeline: Pipeline) -> dict[str, list[str]]:
    """The steps that read each input."""
    readers: dict[str, list[str]] = {}
    for step, names in inputs_by_step(pipeline).items():
        for name in names:
            readers.setdefault(name, []).append(step)
    return readers


async def _problem(value: Output) -> str | None:
    """Why an input cannot be stored; ``None`` if it can."""
    if isinstance(value, StoredValue) and value.is_heavy:
        await in_thread(value.sealed)
    return value.problem


def _refusal(name: str, steps: Iterable[str], value: Output, problem: str) -> str:
    first, *others = steps
    more = f" (and {len(others)} more)" if others else ""
    kind = type(value.value)
    return (
        f"Step {first!r}{more} reads {name!r} as an input, a value of type {kind.__module__}."
        f"{kind.__qualname__}, which cannot be stored with the run: {name}{problem.removeprefix('output')}. "
        "Put what the step needs of it into a variable that holds data, such as a list, a dict or a "
        "DataFrame, or make it in a Python step."
    )
