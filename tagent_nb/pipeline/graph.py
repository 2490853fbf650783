"""What steps read of each other and of inputs: dependencies, and what is wrong with them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from tagent_nb.errors import CycleError, DefinitionError, TemplateError, did_you_mean
from tagent_nb.naming import step_name
from tagent_nb.pipeline.enums import Dependency, DependencyType, ExecutionMode

if TYPE_CHECKING:
    from tagent_nb.pipeline.step import PipelineStep
    from tagent_nb.templating import Reference


class Definition(Protocol):
    """What is read here, and by the writers of JSON and YAML, of a :class:`~tagent_nb.Pipeline`."""

    name: str
    description: str
    default_mode: ExecutionMode
    model: Any
    final: str | None
    steps: list[PipelineStep]
    global_constraints: list[str]
    shared_context: dict[str, Any]
    inputs: dict[str, Any]
    variables: Mapping[str, Any] | None

    @property
    def instructions(self) -> str | None: ...

    @property
    def timeout(self) -> float | None: ...

    def __contains__(self, name: object) -> bool: ...

    def get_step(self, name: str) -> PipelineStep: ...

    def dependencies(self, step: PipelineStep | str) -> list[Dependency]: ...

    def is_input(self, name: str) -> bool: ...


# -- dependencies ------------------------------------------------------------------------------


def dependencies_of(pipeline: Definition, step: PipelineStep) -> list[Dependency]:
    """See :meth:`Pipeline.dependencies`."""
    names = step.bare_names
    if names is not None and all(name in pipeline for name in names):
        return [Dependency(str(name)) for name in dict.fromkeys(names)]
    dependencies: dict[str, Dependency] = {}
    written = step.dependencies if step.depends_on else ()
    for dependency in written:
        if dependency.type is not DependencyType.OPTIONAL or dependency.name in pipeline:
            dependencies.setdefault(dependency.name, dependency)
    for reference in () if step.is_plain else step.references:
        dependencies.setdefault(reference.step, Dependency(reference.step))
    body = step.body
    if body is not None and (body.params or body.kind == "cell"):
        declared = {dependency.name for dependency in written}
        for name in body.params:
            if name == "item" or name in declared:
                continue
            if name not in body.optional:
                dependencies.setdefault(name, Dependency(name))
            elif name in pipeline:
                dependencies.setdefault(name, Dependency(name, DependencyType.OPTIONAL))
        # A function reads steps by its parameters only: a global name may be another step's function.
        for name in sorted(body.names) if body.kind == "cell" else ():
            if name != step.name and name in pipeline:
                dependencies.setdefault(name, Dependency(name))
    if not _may_have_inputs(pipeline):
        return list(dependencies.values())
    return [dependency for dependency in dependencies.values() if not pipeline.is_input(dependency.name)]


def find_cycle(graph: Mapping[str, Iterable[str]]) -> list[str] | None:
    """A path such as ``a -> b -> a``, or ``None``.

    Args:
        graph: Names that each name waits for; names outside the graph are passed over.

    Returns:
        Names, each after one it waits for; first and last is the one that ``graph`` has first.
    """
    finished: set[str] = set()
    for start in graph:
        path = {} if start in finished else {start: iter(graph[start])}
        while path:
            name = next(reversed(path))
            above = next(path[name], None)
            if above is None:
                finished.add(name)
                path.popitem()
            elif above in path:
                walked = list(path)
                return _turned(walked[walked.index(above) :][::-1], graph)
            elif above in graph and above not in finished:
                path[above] = iter(graph[above])
    return None


def _turned(around: list[str], graph: Mapping[str, Iterable[str]]) -> list[str]:
    members = set(around)
    first = around.index(next(name for name in graph if name in members))
    return [*around[first:], *around[:first], around[first]]


# -- inputs ------------------------------------------------------------------------------------


def inputs_of(pipeline: Definition, step: PipelineStep) -> list[str]:
    """Names of the inputs that a step reads, each once.

    They are written as those of steps are: in its goal, its condition, ``map_over``, ``depends_on`` and the
    parameters of its Python. The code of a cell reads what is an input of the pipeline by its name; its other
    variables are the notebook's own.
    """
    inputs = _named(pipeline, step)
    body = step.body
    if body is not None and body.kind == "cell":
        inputs = _with_reads_of_cell(pipeline, step, inputs, set().union(*_named_by_step(pipeline).values()))
    return list(inputs)


def inputs_by_step(pipeline: Definition) -> dict[str, list[str]]:
    """The inputs that each step reads, of those that read any, in definition order.

    A step whose goal or condition cannot be read counts as one that reads none.
    """
    if not _may_have_inputs(pipeline):
        return {}
    by_step = _named_by_step(pipeline)
    named = set().union(*by_step.values())
    for step in pipeline.steps:
        if step.body is not None and step.body.kind == "cell" and step.name in by_step:
            by_step[step.name] = _with_reads_of_cell(pipeline, step, by_step[step.name], named)
    return {name: list(inputs) for name, inputs in by_step.items() if inputs}


def _may_have_inputs(pipeline: Definition) -> bool:
    """Whether any name may be an input's: else no need to ask for each."""
    return bool(pipeline.inputs or pipeline.variables)


def _named_by_step(pipeline: Definition) -> dict[str, dict[str, None]]:
    """What each step names as inputs, but for those whose goal or condition cannot be read."""
    by_step = {}
    for step in pipeline.steps:
        try:
            by_step[step.name] = _named(pipeline, step)
        except TemplateError:  # validate() says so
            continue
    return by_step


def _with_reads_of_cell(
    pipeline: Definition, step: PipelineStep, inputs: dict[str, None], named: Iterable[str]
) -> dict[str, None]:
    """What the code of a cell reads by name, besides: inputs of the pipeline, and what steps name as such."""
    assert step.body is not None
    names = step.body.names - inputs.keys()
    readable = names & {*pipeline.inputs, *named} if names else ()
    return inputs | dict.fromkeys(name for name in sorted(readable) if name not in pipeline)


def _named(pipeline: Definition, step: PipelineStep) -> dict[str, None]:
    """What of a step's own fields names inputs."""
    bare = step.bare_names
    if bare is not None and all(name in pipeline for name in bare):
        return {}
    body = step.body
    names = [dependency.name for dependency in step.dependencies]
    names += [reference.step for reference in step.references]
    if body is not None:
        # A default is a value already: a variable that happens to have this name must not take its place.
        wanted = (
            parameter
            for parameter in body.params
            if parameter not in body.optional or parameter in pipeline.inputs
        )
        names += [name for name in wanted if name != "item"]
    return {name: None for name in names if pipeline.is_input(name)}


def unknown_name(pipeline: Definition, name: str) -> str:
    """The advice on a name that is neither a step nor an input: what may be meant, and the remedy."""
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
        name,
        [*steps, *pipeline.inputs, *(variable for variable in names if is_variable(variable, variables))],
    )
    return f"{near} Add a step or a variable of that name or correct the name."


def input_text(pipeline: Definition, name: str) -> str:
    """An input for people: ``input:df (DataFrame, 3 rows)``."""
    return f"input:{name} ({shape_text(input_value(pipeline, name))})"


def input_value(pipeline: Definition, name: str) -> Any:
    """The value of an input as it is now; ``None`` if it is gone."""
    values = pipeline.inputs if name in pipeline.inputs else pipeline.variables or {}
    return values.get(name)


# -- values that may be inputs ------------------------------------------------------------------

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
    """Values by name, as they were passed.

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


# -- problems ----------------------------------------------------------------------------------


def check_fields(pipeline: Definition, step: PipelineStep) -> None:
    """Check the fields that a step reads of steps that have a schema, and those that read it.

    Raises:
        TemplateError: A goal or condition cannot be read, or names a field its upstream lacks.
    """
    wrong = _wrong_fields(pipeline, step)
    if wrong:
        raise TemplateError(wrong[0])


def _wrong_fields(pipeline: Definition, step: PipelineStep) -> list[str]:
    from tagent_nb.templating import unknown_fields

    wrong = []
    for reference in step.references:
        if not reference.path or reference.step not in pipeline:
            continue
        source = pipeline.get_step(reference.step)
        # A mapped step's value is a list of its schema, and that of groups is a frame; only their items, or
        # rows, have the fields.
        if source.output_schema is None or source.map_over is not None or source.group_by is not None:
            continue
        if step.runs_over is not None and reference.kind == "goal" and _source(step) == source.name:
            continue
        problem = unknown_fields(source.output_schema, reference.path)
        if problem:
            wrong.append(f"Step {step.name!r}: {{{{ {reference.text} }}}}: {problem}")
    return wrong


def _source(step: PipelineStep) -> str:
    kinds = ("map", "reduce")
    return next((reference.step for reference in step.references if reference.kind in kinds), "")


def duplicate_names(counts: Counter[str]) -> list[str]:
    """A sentence with the remedy for each name that several steps have."""
    return [
        f"Duplicate step names found: {count} steps are named {name!r}. Rename all but one, "
        "or use pipeline.put(...) to replace a step."
        for name, count in counts.items()
        if count > 1
    ]


def _final_problems(pipeline: Definition, counts: Counter[str]) -> list[str]:
    """What is wrong with the choice of the step whose value is the final output."""
    marked = [step.name for step in pipeline.steps if step.final]
    named = [] if pipeline.final is None else [pipeline.final]
    problems = []
    if pipeline.final is not None and pipeline.final not in counts:
        problems.append(
            f"Pipeline {pipeline.name!r}: its final output is that of unknown step {pipeline.final!r}."
            f"{did_you_mean(pipeline.final, counts)} Name one of its steps."
        )
    several = list(dict.fromkeys([*marked, *named]))
    if len(several) > 1:
        problems.append(
            f"Pipeline {pipeline.name!r} has several final steps: {', '.join(map(repr, several))}. "
            "Leave final (--final) to one of them."
        )
    return problems


def problems(pipeline: Definition) -> list[str]:
    """See :meth:`Pipeline.validate`."""
    if not pipeline.steps:
        return [
            f"Pipeline {pipeline.name!r} has no steps. "
            "Add one with pipeline.step(...) or a %%tagent_step cell."
        ]
    counts = Counter(step.name for step in pipeline.steps)
    problems = duplicate_names(counts) + _final_problems(pipeline, counts)
    graph: dict[str, list[str]] = {}
    forward = False
    for step in pipeline.steps:
        names = step.bare_names
        if names is not None and step.name not in names and counts.keys() >= set(names):
            # Names of other steps, and nothing besides: no need of a closer look.
            forward = forward or not graph.keys() >= set(names)
            graph[step.name] = names  # type: ignore[assignment]
            continue
        try:
            needed = pipeline.dependencies(step)
        except TemplateError as error:
            problems.append(str(error))
            continue
        problems.extend(_step_problems(pipeline, step, needed, counts))
        # A step that waits for itself has been reported already.
        above = [dependency.name for dependency in needed if dependency.name != step.name]
        forward = forward or not all(name in graph for name in above)
        graph[step.name] = above
    if forward:
        # Steps that wait only for steps before them cannot wait for each other.
        cycle = find_cycle(graph)
        if cycle is not None:
            problems.append(str(CycleError(cycle)))
    return problems


def _step_problems(
    pipeline: Definition, step: PipelineStep, needed: list[Dependency], steps: Counter[str]
) -> list[str]:
    references = () if step.is_plain else step.references
    problems = []
    for dependency in needed:
        if dependency.name == step.name:
            problems.append(
                f"Step {step.name!r} depends on itself. "
                f"Take its name out of its own {_where(step, step.name, references)}."
            )
        elif dependency.name not in steps:
            problems.append(
                f"Step {step.name!r} depends on unknown step {dependency.name!r} in its "
                f"{_where(step, dependency.name, references)}.{unknown_name(pipeline, dependency.name)}"
                f"{_as_field_of_rows(step, dependency.name, references)}"
            )
    if step.reduce_over is not None:
        from tagent_nb.pipeline.reduction import reduction_problems  # few pipelines reduce

        problems += reduction_problems(pipeline, step)
    return problems + _wrong_fields(pipeline, step) if references else problems


def _as_field_of_rows(step: PipelineStep, name: str, references: tuple[Reference, ...]) -> str:
    """How to write what ``group_by`` names if a field inside of one of the rows is meant, in a sentence."""
    for reference in references:
        if reference.kind == "group" and reference.step == name:
            return f" A field inside of a field of the rows is written {step.reduce_over}.{reference.text}."
    return ""


def _where(step: PipelineStep, name: str, references: tuple[Reference, ...]) -> str:
    """The field of ``step`` that names ``name``, as the user wrote it."""
    if any(dependency.name == name for dependency in step.dependencies):
        return "depends_on"
    kinds = {
        "goal": "goal",
        "when": "condition (when)",
        "map": "map_over",
        "reduce": "reduce_over",
        "group": "group_by",
    }
    for reference in references:
        if reference.step == name:
            return kinds[reference.kind]
    return "parameters"
