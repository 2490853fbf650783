"""Inputs of a pipeline: names that steps read and that are no steps, such as variables of a notebook."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError, TemplateError, did_you_mean
from tagent_nb.naming import step_name

if TYPE_CHECKING:
    from tagent_nb.pipeline.pipeline import Pipeline, PipelineStep

__all__ = [
    "checked_inputs",
    "input_text",
    "input_value",
    "inputs_by_step",
    "inputs_of",
    "is_variable",
    "shape_text",
    "why_no_input",
]

_SHELL = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})
"""What IPython puts into a notebook's namespace."""

_CODE: dict[type, str] = {
    ModuleType: "a module",
    type: "a class",
    FunctionType: "a function",
    BuiltinFunctionType: "a function",
    MethodType: "a method",
    functools.partial: "a function",
}


def why_no_input(name: str, namespace: Mapping[str, Any]) -> str:
    """Why a variable can never be an input, in words such as ``"is a module"``.

    Empty if it may be one, and if there is no such variable.
    """
    if name not in namespace:
        return ""
    if name in _SHELL:
        return "belongs to IPython"
    if name.startswith("_"):
        return "begins with an underscore"
    value = namespace[name]
    return next((f"is {what}" for kind, what in _CODE.items() if isinstance(value, kind)), "")


def is_variable(name: str, namespace: Mapping[str, Any]) -> bool:
    """Whether a name is a variable of a namespace that may be an input: no code, and nothing of IPython's."""
    return name in namespace and not why_no_input(name, namespace)


def checked_inputs(inputs: object, what: str) -> dict[str, Any]:
    """Values by name, as somebody passed them.

    Args:
        inputs: What was passed.
        what: What that is called in messages, such as ``"Pipeline(inputs=)"``.

    Raises:
        DefinitionError: It is no mapping, or a name is none that a step could read.
    """
    if not isinstance(inputs, Mapping):
        raise DefinitionError(
            f"{what} must be a dict of values by name, such as {{'df': df}}, not {type(inputs).__name__}."
        )
    try:
        return {step_name(name): value for name, value in inputs.items()}
    except DefinitionError as error:
        raise DefinitionError(f"{what}: {str(error).replace('Step name', 'the name', 1)}") from None


def inputs_of(pipeline: Pipeline, step: PipelineStep, known: Iterable[str] | None = None) -> list[str]:
    """Names of the inputs that a step reads, each once.

    They are written as those of steps are: in its goal, its condition, ``map_over``, ``depends_on`` and the
    parameters of its Python. The code of a cell reads what is an input of the pipeline by its name; its other
    variables are the notebook's own.

    Args:
        pipeline: Where the step is.
        step: The step.
        known: Inputs of the pipeline that the code of a cell may read; those of all steps without it.
    """
    found = _named(pipeline, step)
    body = step.body
    if body is not None and body.kind == "cell":
        names = body.names - found.keys()
        if names:
            readable = {*pipeline.inputs, *(_all_named(pipeline) if known is None else known)}
            found.update(dict.fromkeys(name for name in sorted(names & readable) if name not in pipeline))
    return list(found)


def inputs_by_step(pipeline: Pipeline) -> dict[str, list[str]]:
    """The inputs that each step reads, of those that read any, in definition order.

    A step whose goal or condition cannot be read counts as one that reads none.
    """
    named = _all_named(pipeline)
    found = {}
    for step in pipeline.steps:
        try:
            found[step.name] = inputs_of(pipeline, step, named)
        except TemplateError:
            continue
    return {name: inputs for name, inputs in found.items() if inputs}


def _all_named(pipeline: Pipeline) -> set[str]:
    """What all steps name as inputs."""
    found: set[str] = set()
    for step in pipeline.steps:
        try:
            found.update(_named(pipeline, step))
        except TemplateError:  # validate() says so
            continue
    return found


def _named(pipeline: Pipeline, step: PipelineStep) -> dict[str, None]:
    """What of a step's own fields names inputs."""
    body = step.body
    names = [dependency.name for dependency in step.dependencies]
    names += [reference.step for reference in step.references]
    if body is not None:
        # A default is a value already: a variable that happens to have this name must not take its place.
        wanted = (one for one in body.params if one not in body.optional or one in pipeline.inputs)
        names += [name for name in wanted if name != "item"]
    return {name: None for name in names if pipeline.is_input(name)}


def unknown_name(pipeline: Pipeline, name: str) -> str:
    """What is to be said of a name that is neither a step nor an input: what may be meant, and the remedy."""
    variables = pipeline.variables
    steps = [step.name for step in pipeline.steps]
    if variables is None:
        near = did_you_mean(name, [*steps, *pipeline.inputs])
        remedy = "Add a step of that name or correct the name."
        return f"{near} {remedy} For a value that no step makes, pass inputs={{{name!r}: ...}} (--input)."
    why = why_no_input(name, variables)
    if why:
        return f" The variable {name!r} {why}, so it is no input. Name a step, or a variable that holds data."
    names = list(variables)  # at once: a cell may be running
    near = did_you_mean(
        name, [*steps, *pipeline.inputs, *(one for one in names if is_variable(one, variables))]
    )
    return f"{near} Add a step or a variable of that name or correct the name."


def input_text(pipeline: Pipeline, name: str) -> str:
    """An input for people: ``input:df (DataFrame, 3 rows)``."""
    return f"input:{name} ({shape_text(input_value(pipeline, name))})"


def input_value(pipeline: Pipeline, name: str) -> Any:
    """The value of an input as it is now; ``None`` if it is gone."""
    values = pipeline.inputs if name in pipeline.inputs else pipeline.variables or {}
    return values.get(name)


def shape_text(value: Any) -> str:
    """What a value is, in a few words: ``DataFrame, 3 rows``, ``list, 2 items``, ``str``."""
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape and type(shape[0]) is int:
        rows = f"{shape[0]:,} row{'' if shape[0] == 1 else 's'}"
        return f"{kind}, {rows}"
    if isinstance(value, list | tuple | set | frozenset | dict):
        return f"{kind}, {len(value):,} item{'' if len(value) == 1 else 's'}"
    return kind
