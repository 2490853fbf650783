"""Checks of the fields of one step: each problem is one sentence that names step, field and remedy."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, NoReturn

from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.pipeline.agents import AGENT_KINDS, SINGLE
from tagent_nb.pipeline.enums import ExecutionMode
from tagent_nb.pipeline.foreign_words import ROLE_WORDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from tagent_nb.pipeline.budget import Budget


OUTPUT_MODES = ("tool", "native", "prompted")

ROLES = tuple(dict.fromkeys(role for kind in AGENT_KINDS.values() for role in kind.roles))
"""What steps of all kinds ask models for."""

MAX_GOAL = 262_144
"""Longest goal, in characters. Longer text belongs into a step that the goal refers to."""


def check_step(step: Any) -> None:
    """Check the fields of one step by themselves.

    Args:
        step: A :class:`PipelineStep` whose fields hold what was passed, of whatever type.

    Raises:
        DefinitionError: The first field that is not allowed.
    """

    def fail(field: str, problem: str) -> NoReturn:
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
        if not all(isinstance(text, str) for text in getattr(step, field) or ()):
            fail(field, "must hold text only.")
    for field in ("tools", "checks"):
        for function in getattr(step, field):
            if not callable(function):
                fail(field, f"must be functions, not {type(function).__name__} ({function!r}).")
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
    kind = AGENT_KINDS.get(step.agent) if isinstance(step.agent, str) else None
    if kind is None:
        fail("agent", f"must be {' or '.join(map(repr, AGENT_KINDS))}, not {step.agent!r}."
             f"{did_you_mean(str(step.agent), AGENT_KINDS)}")  # fmt: skip
    if not isinstance(step.models, dict):
        fail("models", f"must be a dict such as {{'plan': 'openai:gpt-5'}}, not {step.models!r}.")
    for role, model in step.models.items():
        if role not in ROLES:
            fail("models", f"has a role {role!r}.{role_hint(role)} Roles: {', '.join(ROLES)}.")
        if model is None or model == "":
            fail("models", f"names no model for the role {role!r}.")
    if not kind.roles and step.models:
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
    if kind is not SINGLE and step.is_python:
        fail("agent", f"is {step.agent!r}, but a Python step asks no model. "
             f"Leave {kind.option} (agent=) out, or write the step as a goal.")  # fmt: skip
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
        signature = inspect.signature(check)
    except ValueError:  # some built-in functions do not say; those that check take one value
        return False
    parameters = list(signature.parameters.values())
    second = parameters[1] if len(parameters) > 1 else None
    if second is not None and second.name != "context" and second.default is not second.empty:
        second = None
    for count in (1, 2) if second is None else (2, 1):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count == 2
    return None


def _check_when(step: Any) -> None:
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
        for problem in error.errors(include_input=False, include_url=False):
            where = (
                ".".join(str(part) for part in problem["loc"]) or f"a value of type {type(result).__name__}"
            )
            lines.append(f"{where}: {problem['msg']}")
        raise ValueError("; ".join(lines)) from None


def is_number(value: object) -> bool:
    """Whether this is a finite int or float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def checked_timeout(where: str, seconds: Any) -> float | None:
    """Seconds, or ``None`` for no limit.

    Raises:
        DefinitionError: It is no number above 0.
    """
    if seconds is not None and (not is_number(seconds) or seconds <= 0):
        raise DefinitionError(
            f"{where}: timeout must be a number of seconds above 0, or None, not {seconds!r}."
        )
    return seconds  # type: ignore[no-any-return]
