"""Checks of definitions: each problem is one sentence that names step, field and remedy."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import CycleError, DefinitionError, TemplateError, did_you_mean
from tagent_nb.pipeline.variables import unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from tagent_nb.pipeline.budget import Budget
    from tagent_nb.pipeline.pipeline import Dependency, Pipeline, PipelineStep
    from tagent_nb.templating import Reference


AGENTS = ("single", "plan")
OUTPUT_MODES = ("tool", "native", "prompted")
ROLES = ("plan", "act", "judge", "answer")
"""What a planning step asks models for."""
"""Kinds of agent steps."""


def check_step(step: PipelineStep) -> None:
    """Check the fields of one step by themselves.

    Raises:
        DefinitionError: The first field that is not allowed.
    """
    from tagent_nb.pipeline.step import MAX_GOAL, ExecutionMode, is_number

    def fail(field: str, problem: str) -> None:
        raise DefinitionError(f"Step {step.name!r}: {field} {problem}")

    if not isinstance(step.goal, str) or not step.goal.strip():
        fail("goal", "cannot be empty. Say what the step is to achieve.")
    if len(step.goal) > MAX_GOAL:
        fail("goal", f"has {len(step.goal):,} characters; at most {MAX_GOAL:,} are allowed. "
             "Put long text into a step and refer to it, as in {{ load }}.")  # fmt: skip
    for field in ("constraints", "depends_on", "tools", "checks", "tools_filter", "approve_tools"):
        value = getattr(step, field)
        if isinstance(value, str) or not (
            isinstance(value, list | tuple) or (field == "tools_filter" and value is None)
        ):
            fail(field, f"must be a list, not {type(value).__name__}. Write [{value!r}].")
    for field in ("constraints", "tools_filter", "approve_tools"):
        if not all(isinstance(one, str) for one in getattr(step, field) or ()):
            fail(field, "must hold text only.")
    for field in ("tools", "checks"):
        for one in getattr(step, field):
            if not callable(one):
                fail(field, f"must be functions, not {type(one).__name__} ({one!r}).")
    for check in step.checks:
        if takes_context(check) is None:
            fail("checks", f"has {check!r}, which takes neither (value) nor (value, context). "
                 "Write: def check(value): ...")  # fmt: skip
    if not isinstance(step.execution_mode, ExecutionMode):
        fail("execution_mode", "must be ExecutionMode.SERIAL or ExecutionMode.CONCURRENT, "
             f"not {step.execution_mode!r}.")  # fmt: skip
    if step.timeout is not None and (not is_number(step.timeout) or step.timeout <= 0):
        fail("timeout", f"must be a number of seconds above 0, or None, not {step.timeout!r}.")
    for field in ("retry_count", "max_retries", "output_retries", "max_replans"):
        value = getattr(step, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            fail(field, f"must be a whole number from 0 on, not {value!r}.")
    if not is_number(step.min_success) or not 0 <= step.min_success <= 1:
        fail("min_success", f"must be a share from 0 to 1, not {step.min_success!r}.")
    if step.agent not in AGENTS:
        fail("agent", f"must be {' or '.join(map(repr, AGENTS))}, not {step.agent!r}."
             f"{did_you_mean(str(step.agent), AGENTS)}")  # fmt: skip
    if not isinstance(step.models, dict):
        fail("models", f"must be a dict such as {{'plan': 'openai:gpt-5'}}, not {step.models!r}.")
    for role, model in step.models.items():
        if role not in ROLES:
            fail("models", f"has a role {role!r}.{role_hint(role)} Roles: {', '.join(ROLES)}.")
        if model is None or model == "":
            fail("models", f"names no model for the role {role!r}.")
    if step.models and step.agent != "plan":
        fail("models", "are for the roles of a planning step. Add agent='plan' (--plan), or write model=.")
    if step.output_mode is not None and step.output_mode not in OUTPUT_MODES:
        fail("output_mode", f"must be {', '.join(map(repr, OUTPUT_MODES))} or None, not {step.output_mode!r}."
             f"{did_you_mean(str(step.output_mode), OUTPUT_MODES)}")  # fmt: skip
    if step.instructions is not None:
        checked_instructions(f"Step {step.name!r}", step.instructions)
        if step.is_python:
            fail("instructions", "are for agent steps; a Python step asks no model. Leave them out.")
    if step.output_mode is not None and step.is_python:
        fail("output_mode", "is for agent steps; a Python step asks no model. Leave it out.")
    if step.agent != "single" and step.is_python:
        fail("agent", f"is {step.agent!r}, but a Python step asks no model. "
             "Leave --plan (agent=) out, or write the step as a goal.")  # fmt: skip
    if not isinstance(step.approve, bool):
        fail("approve", f"must be True or False, not {step.approve!r}. For tools, use approve_tools.")
    if not isinstance(step.final, bool):
        fail("final", f"must be True or False, not {step.final!r}. A pipeline takes a name: final='report'.")
    if not isinstance(step.remember, bool) or (step.remember and step.is_python):
        fail("remember", "must be True or False, and is for agent steps only; "
             "Python steps call context.learn and context.save_memory.")  # fmt: skip
    if step.output_schema is not None:
        _check_schema(step.name, step.output_schema)
    if step.when is not None:
        _check_when(step)
    if step.map_over is not None and not isinstance(step.map_over, str):
        fail("map_over", f"must be a step's name such as 'load' or 'load.rows', not {step.map_over!r}.")
    if not isinstance(step.settings, dict):
        fail("settings", f"must be a dict such as {{'temperature': 0.0}}, not {step.settings!r}.")


def role_hint(role: object) -> str:
    """What a role that does not exist was meant for: another tool's word, or a misspelt one."""
    from tagent_nb.pipeline.foreign_words import ROLE_WORDS

    ours = ROLE_WORDS.get(str(role))
    return f" Write {ours!r}." if ours else did_you_mean(str(role), ROLES)


def checked_instructions(where: str, text: Any) -> str | None:
    """A system prompt of the user's own.

    Raises:
        DefinitionError: It is no text, or blank.
    """
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise DefinitionError(f"{where}: instructions must be text that says something, not {text!r}.")
    return text


def checked_budget(name: str, value: Any) -> Budget:
    """The budget of a step, read.

    Raises:
        DefinitionError: It cannot be read; the message names the step.
    """
    from tagent_nb.pipeline.budget import Budget

    try:
        return Budget.of(value)
    except DefinitionError as error:
        raise DefinitionError(f"Step {name!r}: {error}") from None


def _check_schema(name: str, schema: object) -> None:
    from pydantic import BaseModel

    if not (inspect.isclass(schema) and issubclass(schema, BaseModel)):
        raise DefinitionError(
            f"Step {name!r}: output_schema must be a pydantic model class, not {schema!r}. "
            "Write 'class Answer(BaseModel): ...' and pass Answer itself."
        )


def takes_context(check: Callable[..., Any]) -> bool | None:
    """Whether a check takes ``(value, context)``, else ``(value)``; ``None`` if it takes neither.

    ``context`` is given to a parameter without a default, or of that name.
    """
    try:
        found = inspect.signature(check)
    except ValueError:  # some built-in functions do not say; those that check take one value
        return False
    parameters = list(found.parameters.values())
    second = parameters[1] if len(parameters) > 1 else None
    if second is not None and second.name != "context" and second.default is not second.empty:
        second = None
    for count in (1, 2) if second is None else (2, 1):
        try:
            found.bind(*[None] * count)
        except TypeError:
            continue
        return count == 2
    return None


def _check_when(step: PipelineStep) -> None:
    from tagent_nb.pipeline.conditions import Condition

    if not isinstance(step.when, Condition) and not (isinstance(step.when, str) and step.when.strip()):
        raise DefinitionError(
            f"Step {step.name!r}: when must be an expression such as 'load.count > 0' or a condition "
            f"such as IsGreaterThan('load.count', 0), not {step.when!r}."
        )


def to_schema(schema: type[BaseModel], result: Any) -> BaseModel:
    """Validate ``result`` against ``schema``.

    Raises:
        ValueError: It does not match; the text lists the fields and never shows their values.
    """
    from pydantic import ValidationError

    try:
        return schema.model_validate(result)
    except ValidationError as error:
        lines = []
        for one in error.errors(include_input=False, include_url=False):
            where = ".".join(str(part) for part in one["loc"]) or f"a value of type {type(result).__name__}"
            lines.append(f"{where}: {one['msg']}")
        raise ValueError("; ".join(lines)) from None


def check_fields(pipeline: Pipeline, step: PipelineStep) -> None:
    """Check the fields that a step reads of steps that have a schema, and those that read it.

    Raises:
        TemplateError: A goal or condition cannot be read, or names a field its upstream lacks.
    """
    wrong = _wrong_fields(pipeline, step)
    if wrong:
        raise TemplateError(wrong[0])


def _wrong_fields(pipeline: Pipeline, step: PipelineStep) -> list[str]:
    from tagent_nb.templating import unknown_fields

    wrong = []
    for reference in step.references:
        if not reference.path or reference.step not in pipeline:
            continue
        source = pipeline.get_step(reference.step)
        # A mapped step's value is a list of its schema; only its own items have the fields.
        if source.output_schema is None or source.map_over is not None:
            continue
        if step.map_over is not None and reference.kind == "goal" and _source(step) == source.name:
            continue
        problem = unknown_fields(source.output_schema, reference.path)
        if problem:
            wrong.append(f"Step {step.name!r}: {{{{ {reference.text} }}}}: {problem}")
    return wrong


def _source(step: PipelineStep) -> str:
    return next((one.step for one in step.references if one.kind == "map"), "")


def dependencies_of(pipeline: Pipeline, step: PipelineStep) -> list[Dependency]:
    """See :meth:`Pipeline.dependencies`."""
    from tagent_nb.pipeline.pipeline import Dependency, DependencyType

    found: dict[str, Dependency] = {}
    for dependency in step.dependencies:
        if dependency.type is not DependencyType.OPTIONAL or dependency.name in pipeline:
            found.setdefault(dependency.name, dependency)
    for reference in step.references:
        found.setdefault(reference.step, Dependency(reference.step))
    body = step.body
    if body is not None and (body.params or body.kind == "cell"):
        declared = {dependency.name for dependency in step.dependencies}
        for name in body.params:
            if name == "item" or name in declared:
                continue
            if name not in body.optional:
                found.setdefault(name, Dependency(name))
            elif name in pipeline:
                found.setdefault(name, Dependency(name, DependencyType.OPTIONAL))
        # A function reads steps by its parameters only: a global name may be another step's function.
        for name in sorted(body.names) if body.kind == "cell" else ():
            if name != step.name and name in pipeline:
                found.setdefault(name, Dependency(name))
    return [dependency for dependency in found.values() if not pipeline.is_input(dependency.name)]


def duplicate_names(counts: Counter[str]) -> list[str]:
    """A sentence with the remedy for each name that several steps have."""
    return [
        f"Duplicate step names found: {count} steps are named {name!r}. Rename all but one, "
        "or use pipeline.put(...) to replace a step."
        for name, count in counts.items()
        if count > 1
    ]


def _final_problems(pipeline: Pipeline, counts: Counter[str]) -> list[str]:
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


def problems(pipeline: Pipeline) -> list[str]:
    """See :meth:`Pipeline.validate`."""
    if not pipeline.steps:
        return [
            f"Pipeline {pipeline.name!r} has no steps. "
            "Add one with pipeline.step(...) or a %%tagent_step cell."
        ]
    counts = Counter(step.name for step in pipeline.steps)
    found = duplicate_names(counts) + _final_problems(pipeline, counts)
    graph: dict[str, list[str]] = {}
    forward = False
    for step in pipeline.steps:
        try:
            needed = pipeline.dependencies(step)
        except TemplateError as error:
            found.append(str(error))
            continue
        found.extend(_step_problems(pipeline, step, needed, counts))
        # A step that waits for itself has been told already.
        above = [dependency.name for dependency in needed if dependency.name != step.name]
        forward = forward or not all(name in graph for name in above)
        graph[step.name] = above
    if forward:
        # Steps that wait only for steps before them cannot wait for each other.
        from tagent_nb.pipeline.scheduler import find_cycle

        cycle = find_cycle(graph)
        if cycle is not None:
            found.append(str(CycleError(cycle)))
    return found


def _step_problems(
    pipeline: Pipeline, step: PipelineStep, needed: list[Dependency], known: Counter[str]
) -> list[str]:
    references = step.references
    found = []
    for dependency in needed:
        if dependency.name == step.name:
            found.append(
                f"Step {step.name!r} depends on itself. "
                f"Take its name out of its own {_where(step, step.name, references)}."
            )
        elif dependency.name not in known:
            found.append(
                f"Step {step.name!r} depends on unknown step {dependency.name!r} in its "
                f"{_where(step, dependency.name, references)}.{unknown_name(pipeline, dependency.name)}"
            )
    return found + _wrong_fields(pipeline, step) if references else found


def _where(step: PipelineStep, name: str, references: tuple[Reference, ...]) -> str:
    """The field of ``step`` that names ``name``, as the user wrote it."""
    if any(dependency.name == name for dependency in step.dependencies):
        return "depends_on"
    kinds = {"goal": "goal", "when": "condition (when)", "map": "map_over"}
    for reference in references:
        if reference.step == name:
            return kinds[reference.kind]
    return "parameters"
