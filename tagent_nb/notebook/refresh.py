"""What the options of cells name, looked up again before each run, as helpers of Python steps are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from tagent_nb.engine import part_of
from tagent_nb.errors import DefinitionError, PipelineValidationError, did_you_mean
from tagent_nb.notebook.workspace import CellNames, Workspace
from tagent_nb.pipeline import PipelineStep


class Lookup(Protocol):
    """What names stand for now: a session."""

    namespace: Mapping[str, Any]

    def schema(self, name: str) -> Any: ...
    def function(self, name: str) -> Callable[..., Any]: ...
    def functions(self) -> dict[str, Callable[..., Any]]: ...
    def model(self, name: str | None) -> Any: ...
    def tools(self, wanted: Iterable[str]) -> dict[str, Callable[..., Any]]: ...


def refuse_gone(space: Workspace, lookup: Lookup, until: str | None) -> None:
    """Look up what cells name, and raise if something that the run needs is gone.

    Raises:
        PipelineValidationError: It names step, option and name of each.
    """
    gone = refresh(space, lookup)
    if not gone:
        return
    part = part_of(space.pipeline, until if until in space.pipeline else None)
    asks = any(not step.is_python and step.model is None for step in part.steps)
    problems = [text for step, texts in gone.items() if (step in part if step else asks) for text in texts]
    if problems:
        raise PipelineValidationError(space.pipeline.name, problems)


def refresh(space: Workspace, lookup: Lookup) -> dict[str, list[str]]:
    """Look up what cells name in the namespace as it is now, as helpers of Python steps are.

    Returns a sentence for each name that is gone, by step; by ``""`` for the pipeline's own. What it
    stood for stays in its place, so that the pipeline can be looked at.
    """
    gone: dict[str, list[str]] = {}
    changed: dict[str, PipelineStep] = {}
    pipeline = space.pipeline
    for name, names in list(space.names.items()):
        if name not in pipeline or not names.made(step := pipeline.get_step(name)):
            del space.names[name]
            continue
        before = dict(names.objects)
        changes, problems = _look_up(names, step, lookup)
        if changes:
            try:
                changed[name] = names.step = step.with_(**changes)
            except DefinitionError as error:
                problems.append(str(error))
                names.objects = before  # so that it is found again the next time
        if problems:
            gone[name] = problems
    pipeline.renew(changed)
    if space.model_name is not None and space.model_name[1] is pipeline.model:
        name, model = space.model_name
        model, problem = _model_again(lookup, name, model)
        space.model_name, pipeline.model = (name, model), model
        if problem:
            gone[""] = [f"%tagent_pipeline --model: {problem}"]
    return gone


def _look_up(names: CellNames, step: PipelineStep, lookup: Lookup) -> tuple[dict[str, Any], list[str]]:
    """The fields of a step that change with the names of its cell, and what is gone."""
    changes: dict[str, Any] = {}
    problems: list[str] = []
    objects = names.objects

    def again(option: str, name: str, find: Callable[[str], Any]) -> Any:
        before = objects[option, name]
        try:
            objects[option, name] = find(name)
        except DefinitionError as error:
            problems.append(f"Step {step.name!r}: {option}: {error}")
        return before, objects[option, name]

    if names.schema:
        before, after = again("--output-schema", names.schema, lookup.schema)
        if after is not before and step.output_schema is before:
            changes["output_schema"] = after
    if names.model:
        before = objects["--model", names.model]
        after, problem = _model_again(lookup, names.model, before)
        objects["--model", names.model] = after
        if problem:
            problems.append(f"Step {step.name!r}: --model: {problem}")
        if after is not before and step.model is before:
            changes["model"] = after
    pairs = [again("--check", name, lookup.function) for name in names.checks]
    if any(before is not after for before, after in pairs):
        changes["checks"] = _exchanged(step.checks, pairs)
    changes.update(_tools_again(names, step, problems, lookup))
    return changes, problems


def _tools_again(names: CellNames, step: PipelineStep, problems: list[str], lookup: Lookup) -> dict[str, Any]:
    if not names.tools:
        return {}
    from tagent_nb.runners import registered_tools

    before = {name: value for (option, name), value in names.objects.items() if option == "--tools"}
    after = lookup.tools(names.tools)
    if before.keys() == after.keys() and all(after[name] is before[name] for name in before):
        return {}
    registered = registered_tools()
    for name in before.keys() - after.keys() - registered.keys():
        after[name] = before[name]
        near = did_you_mean(name, [*registered, *lookup.functions()])
        problems.append(
            f"Step {step.name!r}: --tools: there is no function {name!r} any more.{near} "
            f"Define it in a cell above: def {name}(...): ..."
        )
    for name in before.keys() | after.keys():
        names.objects.pop(("--tools", name), None)
    names.objects.update({("--tools", name): value for name, value in after.items()})
    kept = [tool for tool in step.tools if not any(tool is value for value in before.values())]
    own = [after[name] for name in names.tools if name in after]
    same = len(own) + len(kept) == len(step.tools) and all(
        a is b for a, b in zip([*own, *kept], step.tools, strict=True)
    )
    return {} if same else {"tools": [*own, *kept]}


def _model_again(lookup: Lookup, name: str, before: Any) -> tuple[Any, str]:
    """What a name of a model stands for now, and what is wrong if it was an object and is none now."""
    after = lookup.model(name)
    if after is not name or isinstance(before, str):
        return after, ""
    models = [other for other, value in list(lookup.namespace.items()) if hasattr(value, "model_name")]
    other = lookup.namespace.get(name)
    what = "there is no model" if other is None else f"it is {kind_of(other)}, not a model: there is none"
    return before, (
        f"{what} {name!r} any more.{did_you_mean(name, models)} Make it in a cell above, or name another."
    )


def _exchanged(values: Iterable[Any], pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
    """The values, each that is the first of a pair exchanged for the second."""
    exchange = {id(before): after for before, after in pairs}
    return [exchange.get(id(value), value) for value in values]


def kind_of(value: object) -> str:
    """What a value is, for a message."""
    return f"the class {value.__name__}" if inspect.isclass(value) else f"of type {type(value).__name__}"
