"""Names that the Python of a pipeline takes from around it: helpers, modules and values of a notebook."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Container
from contextlib import suppress
from typing import TYPE_CHECKING

from tagent_nb.errors import TemplateError

if TYPE_CHECKING:
    from tagent_nb.pipeline.pipeline import Pipeline
    from tagent_nb.pipeline.step import PipelineStep

_BUILT_IN = frozenset(dir(builtins)) | {"__name__"}
_CATCH = frozenset({"NameError", "Exception", "BaseException"})


def outside_names(pipeline: Pipeline) -> dict[str, list[str]]:
    """By step, what its Python reads that neither the step, the pipeline nor Python itself defines.

    The JSON of a pipeline does not hold these.
    """
    readable = _readable(pipeline)
    by_step = {step.name: _outside(step, readable) for step in pipeline.steps}
    return {name: names for name, names in by_step.items() if names}


def missing_names(pipeline: Pipeline, namespace: Container[str]) -> dict[str, list[str]]:
    """By step, what is not in the names that its Python will see: it fails where it comes to them.

    Functions that were not read from data see their own module, and code that catches NameError knows
    what it does: these are passed over.
    """
    written = [step for step in pipeline.steps if step.body is not None and step.body.function is None]
    if not written:
        return {}
    readable = _readable(pipeline)
    by_step = {}
    for step in written:
        body = step.body
        assert body is not None
        names = [name for name in _outside(step, readable) if name not in namespace]
        if names and not _catches(body.source):
            by_step[step.name] = names
    return by_step


def listed(names: list[str]) -> str:
    """``'a', 'b' and 'c'``."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _readable(pipeline: Pipeline) -> set[str]:
    """What a cell reads of its pipeline by name: steps, and inputs, also those that are yet to be given."""
    names = {*(step.name for step in pipeline.steps), *pipeline.inputs}
    for step in pipeline.steps:
        with suppress(TemplateError):  # validate() says so
            names.update(dependency.name for dependency in pipeline.dependencies(step))
    return names


def _outside(step: PipelineStep, readable: set[str]) -> list[str]:
    body = step.body
    if body is None:
        return []
    own = {"item"} if step.map_over is not None else set()
    # A function gets these by its parameters only; what a cell calls by the name of a step is that step.
    return sorted(body.names - body.quoted - _BUILT_IN - own - (readable if body.kind == "cell" else set()))


def _catches(source: str) -> bool:
    handlers = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)]
    caught = [name for handler in handlers for name in ast.walk(handler.type or ast.Name("BaseException"))]
    return any(isinstance(name, ast.Name) and name.id in _CATCH for name in caught)
