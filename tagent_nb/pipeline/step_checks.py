"""What each field of a step may be, and which may be together."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.foreign_words import ROLE_WORDS
from tagent_nb.naming import step_name
from tagent_nb.pipeline.agents import AGENT_KINDS, SINGLE
from tagent_nb.pipeline.enums import Dependency, DependencyType, ExecutionMode
from tagent_nb.pipeline.retry_on import checked_kinds

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.pipeline.budget import Budget

OUTPUT_MODES = ("tool", "native", "prompted")

THEN_LIVE = "then-live"
"""The ``batch`` of a step whose requests are asked one by one after their first batch."""

ROLES = tuple(dict.fromkeys(role for kind in AGENT_KINDS.values() for role in kind.roles))
"""What steps of all kinds ask models for."""

MAX_ROWS_PER_CALL = 1000
"""Most rows that one call may ask for."""

MAX_GOAL = 262_144
"""Longest goal, in characters. Longer text belongs into a step that the goal refers to."""


ENDED_FOR_SHARE = 20
"""Items that have to have ended before ``max_failures`` as a share of them counts."""


def check_fields_of(step: Any, given: Mapping[str, Any]) -> None:
    """Check the fields that were passed for one step, and put what it is to have into its ``__dict__``.

    Args:
        step: A :class:`PipelineStep` that has its name.
        given: What was passed, of whatever type, by field.

    Raises:
        DefinitionError: The first field that is not allowed.
    """
    values = step.__dict__
    for name, value in given.items():
        check = _CHECKS.get(name)
        values[name] = value if check is None else check(step.name, name, value)
    if not given.keys().isdisjoint(_TOGETHER):
        _check_together(step)


def _fail(step: str, field: str, problem: str) -> NoReturn:
    raise DefinitionError(f"Step {step!r}: {field} {problem}")


def _goal(step: str, field: str, goal: Any) -> str:
    if not isinstance(goal, str) or not goal.strip():
        _fail(step, field, "cannot be empty. Say what the step is to achieve.")
    if len(goal) > MAX_GOAL:
        _fail(step, field, f"has {len(goal):,} characters; at most {MAX_GOAL:,} are allowed. "
              "Put long text into a step and refer to it, as in {{ load }}.")  # fmt: skip
    return goal


# Copies of lists and dicts: what the caller does to them afterwards must not reach a definition.


def _list(step: str, field: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        _fail(step, field, f"must be a list, not {type(value).__name__}. Write [{value!r}].")
    return list(value)


def _texts(step: str, field: str, value: Any) -> list[str]:
    texts = _list(step, field, value)
    if not all(isinstance(text, str) for text in texts):
        _fail(step, field, "must hold text only.")
    return texts


def _filter(step: str, field: str, value: Any) -> list[str] | None:
    return None if value is None else _texts(step, field, value)


def _functions(step: str, field: str, value: Any) -> list[Callable[..., Any]]:
    functions = _list(step, field, value)
    for function in functions:
        if not callable(function):
            _fail(step, field, f"must be functions, not {type(function).__name__} ({function!r}).")
    return functions


def _checks(step: str, field: str, value: Any) -> list[Callable[..., Any]]:
    checks = _functions(step, field, value)
    for check in checks:
        if takes_context(check) is None:
            _fail(step, field, f"has {check!r}, which takes neither (value) nor (value, context). "
                  "Write: def check(value): ...")  # fmt: skip
    return checks


def _depends_on(step: str, field: str, value: Any) -> list[str | Dependency]:
    return [
        step_name(entry.strip()) if type(entry) is str and ":" not in entry else _stored(entry)
        for entry in _list(step, field, value)
    ]


def _stored(entry: Any) -> str | Dependency:
    """A strong dependency is kept as its bare name, as the specification writes it."""
    dependency = Dependency.parse(entry)
    return dependency.name if dependency.type is DependencyType.STRONG else dependency


def _execution_mode(step: str, field: str, value: Any) -> ExecutionMode:
    if not isinstance(value, ExecutionMode):
        _fail(step, field, f"must be ExecutionMode.SERIAL or ExecutionMode.CONCURRENT, not {value!r}.")
    return value


def _timeout(step: str, field: str, value: Any) -> float | None:
    return checked_timeout(f"Step {step!r}", value)


def _count(step: str, field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        _fail(step, field, f"must be a whole number from 0 on, not {value!r}.")
    return value


def _rows_per_call(step: str, field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ROWS_PER_CALL:
        _fail(step, field, f"must be a whole number from 1 to {MAX_ROWS_PER_CALL:,}, not {value!r}.")
    return value


def _samples(step: str, field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _fail(step, field, f"must be a whole number from 1 on, not {value!r}: how many answers to ask for.")
    return value


def _flatten(step: str, field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _fail(step, field, f"must be True or False, not {value!r}. What it maps over is named by map_over.")
    return value


def _share(step: str, field: str, value: Any) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        _fail(step, field, f"must be a share from 0 to 1, not {value!r}.")
    return value  # type: ignore[no-any-return]


def _failures(step: str, field: str, value: Any) -> float | None:
    if value is None:
        return None
    whole = isinstance(value, int) and value >= 0
    if not is_number(value) or not (whole or (isinstance(value, float) and 0 < value < 1)):
        _fail(step, field, f"must be a number of items such as 20, or a share of them such as 0.1, not "
              f"{value!r}.")  # fmt: skip
    return value  # type: ignore[no-any-return]


def _agent(step: str, field: str, value: Any) -> str:
    if not isinstance(value, str) or value not in AGENT_KINDS:
        _fail(step, field, f"must be {' or '.join(map(repr, AGENT_KINDS))}, not {value!r}."
              f"{did_you_mean(str(value), AGENT_KINDS)}")  # fmt: skip
    return value


def _models(step: str, field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        _fail(step, field, f"must be a dict such as {{'plan': 'openai:gpt-5'}}, not {value!r}.")
    for role, model in value.items():
        if role not in ROLES:
            _fail(step, field, f"has a role {role!r}.{role_hint(role)} Roles: {', '.join(ROLES)}.")
        if model is None or model == "":
            _fail(step, field, f"names no model for the role {role!r}.")
    return dict(value)


def _output_mode(step: str, field: str, value: Any) -> str | None:
    if value is not None and value not in OUTPUT_MODES:
        _fail(step, field, f"must be {', '.join(map(repr, OUTPUT_MODES))} or None, not {value!r}."
              f"{did_you_mean(str(value), OUTPUT_MODES)}")  # fmt: skip
    return value  # type: ignore[no-any-return]


def _instructions(step: str, field: str, value: Any) -> str | None:
    return checked_instructions(f"Step {step!r}", value)


def _approve(step: str, field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _fail(step, field, f"must be True or False, not {value!r}. For tools, use approve_tools.")
    return value


def _final(step: str, field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _fail(step, field, f"must be True or False, not {value!r}. A pipeline takes a name: final='report'.")
    return value


def _batch(step: str, field: str, value: Any) -> bool | str:
    if not isinstance(value, bool) and value != THEN_LIVE:
        _fail(step, field, f"must be True, False or {THEN_LIVE!r}, not {value!r}.")
    return value  # type: ignore[no-any-return]


def _output_schema(step: str, field: str, value: Any) -> type[BaseModel] | None:
    if value is None:
        return None
    from pydantic import BaseModel

    if not (inspect.isclass(value) and issubclass(value, BaseModel)):
        _fail(step, field, f"must be a pydantic model class, not {value!r}. "
              "Write 'class Answer(BaseModel): ...' and pass Answer itself.")  # fmt: skip
    return value


def _when(step: str, field: str, value: Any) -> Any:
    from tagent_nb.pipeline.conditions import Condition

    if value is not None and not (isinstance(value, Condition) or (isinstance(value, str) and value.strip())):
        _fail(step, field, "must be an expression such as 'load.count > 0' or a condition "
              f"such as IsGreaterThan('load.count', 0), not {value!r}.")  # fmt: skip
    return value


def _map_over(step: str, field: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        _fail(step, field, f"must be a step's name such as 'load' or 'load.rows', not {value!r}.")
    return value


def _text(step: str, field: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        _fail(step, field, f"must be text that says something, not {value!r}.")
    return value


def _tokens(step: str, field: str, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        _fail(step, field, f"must be a whole number of tokens from 1 on, not {value!r}.")
    return value


def _settings(step: str, field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        _fail(step, field, f"must be a dict such as {{'temperature': 0.0}}, not {value!r}.")
    return dict(value)


def _budget(step: str, field: str, value: Any) -> Budget | None:
    if value is None:
        return None
    from tagent_nb.pipeline.budget import Budget

    try:
        return Budget.of(value)
    except DefinitionError as error:
        raise DefinitionError(f"Step {step!r}: {error}") from None


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(step: str, field: str, value: Any) -> float | None:
    if value is None:
        return None
    written = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    seconds = float(written[1]) * _SECONDS[written[2]] if written else value
    if not is_number(seconds) or seconds <= 0:
        _fail(step, field, f"must be seconds above 0, or a text such as '30m', '12h' or '7d', not {value!r}.")
    return float(seconds)


_CHECKS: dict[str, Callable[[str, str, Any], Any]] = {
    "goal": _goal,
    "constraints": _texts,
    "depends_on": _depends_on,
    "execution_mode": _execution_mode,
    "timeout": _timeout,
    "retry_count": _count,
    "max_retries": _count,
    "tools_filter": _filter,
    "output_schema": _output_schema,
    "when": _when,
    "map_over": _map_over,
    "min_success": _share,
    "max_failures": _failures,
    "fresh_for": _duration,
    "retry_on": checked_kinds,
    "agent": _agent,
    "max_replans": _count,
    "settings": _settings,
    "tools": _functions,
    "output_retries": _count,
    "output_mode": _output_mode,
    "checks": _checks,
    "approve": _approve,
    "approve_tools": _texts,
    "budget": _budget,
    "final": _final,
    "instructions": _instructions,
    "models": _models,
    "reduce_over": _map_over,
    "group_by": _text,
    "combine": _text,
    "reduce_tokens": _tokens,
    "batch": _batch,
    "rows_per_call": _rows_per_call,
    "samples": _samples,
    "flatten": _flatten,
}
"""By field, what returns a value that was passed as a step is to have it, or raises."""

_OF_REDUCE = {
    "reduce_over": "--reduce-over",
    "group_by": "--group-by",
    "combine": "--combine",
    "reduce_tokens": "--reduce-tokens",
}
"""Fields of steps with ``reduce_over``, each with its option."""

_TOGETHER = frozenset(
    {
        "agent",
        "models",
        "instructions",
        "output_mode",
        "remember",
        "max_failures",
        "retry_on",
        "batch",
        "rows_per_call",
        "samples",
        "flatten",
        *_OF_REDUCE,
    }
)
"""Fields that are allowed for some kinds of steps only."""


def _check_together(step: Any) -> None:
    name, kind = step.name, AGENT_KINDS[step.agent]
    if step.batch:
        _check_batch(step)
    if not kind.roles and step.models:
        _fail(
            name,
            "models",
            "are for the roles of a planning step. Add agent='plan' (--plan), or write model=.",
        )
    if step.is_python and step.instructions is not None:
        _fail(name, "instructions", "are for agent steps; a Python step asks no model. Leave them out.")
    if step.is_python and step.output_mode is not None:
        _fail(name, "output_mode", "is for agent steps; a Python step asks no model. Leave it out.")
    if step.is_python and kind is not SINGLE:
        _fail(name, "agent", f"is {step.agent!r}, but a Python step asks no model. "
              f"Leave {kind.option} (agent=) out, or write the step as a goal.")  # fmt: skip
    if step.max_failures is not None and step.reduce_over is not None:
        _fail(name, "max_failures", "is about the items of a mapped step, and reduce_over asks for parts of "
              "rows. min_success= (--min-success) says how many must succeed. Leave it out.")  # fmt: skip
    if step.max_failures is not None and step.map_over is None:
        _fail(name, "max_failures", "is about the items of a mapped step, and this one runs once. "
              "Add map_over= (--map-over), or leave it out.")  # fmt: skip
    if step.samples > 1 and (step.is_python or step.reduce_over is not None):
        what = "a Python step asks no model" if step.is_python else "reduce_over reads many rows"
        _fail(name, "samples", f"are for agent steps that are mapped or run once; {what}. Leave them out.")
    if step.flatten and step.map_over is None:
        _fail(name, "flatten", "is for mapped steps. Add map_over (--map-over), the step whose items are "
              "lists.")  # fmt: skip
    if step.retry_on and step.max_retries == 0:
        _fail(name, "retry_on", "says what is tried again, and max_retries is 0: nothing is. Leave one of "
              "them out.")  # fmt: skip
    if not isinstance(step.remember, bool) or (step.remember and step.is_python):
        _fail(name, "remember", "must be True or False, and is for agent steps only; "
              "Python steps call context.learn and context.save_memory.")  # fmt: skip
    if any(getattr(step, field) is not None for field in _OF_REDUCE):
        _check_reduce(step)
    if step.rows_per_call > 1:
        _check_rows_per_call(step)


def _check_reduce(step: Any) -> None:
    name = step.name
    if step.reduce_over is None:
        field = next(field for field in _OF_REDUCE if getattr(step, field) is not None)
        _fail(name, field, f"belongs to reduce_over (--reduce-over). Name the step whose rows are to become "
              f"one answer, or leave {_OF_REDUCE[field]} ({field}=) out.")  # fmt: skip
    if step.is_python:
        _fail(name, "reduce_over", "is for agent steps; a Python step reads all rows as they are. Leave it "
              f"out and write {step.reduce_over} in its code.")  # fmt: skip
    if step.map_over is not None:
        _fail(name, "reduce_over", "and map_over exclude each other: one makes an answer of all rows, the "
              "other one of each. Leave one of them out, or write two steps.")  # fmt: skip
    if AGENT_KINDS[step.agent] is not SINGLE:
        _fail(name, "reduce_over", f"is for steps that answer at once, and agent is {step.agent!r}. "
              f"Leave {AGENT_KINDS[step.agent].option} (agent=) out.")  # fmt: skip


def _check_batch(step: Any) -> None:
    name = step.name
    if step.is_python:
        _fail(name, "batch", "is for agent steps; a Python step asks no model. Leave it out.")
    if step.agent != "single":
        _fail(name, "batch", f"cannot be used with agent={step.agent!r}, which asks again and again. "
              "Leave one of them out.")  # fmt: skip
    if step.map_over is None:
        _fail(name, "batch", "is for steps that run for each row. Add map_over='load' (--map-over load), "
              "or leave batch (--batch) out: one request is no batch.")  # fmt: skip
    if step.rows_per_call > 1:
        _fail(name, "batch", "and rows_per_call exclude each other: a request of a batch is about one row. "
              "Leave one of them (--batch, --rows-per-call) out.")  # fmt: skip
    if step.tools or step.tools_filter or step.approve_tools or step.remember:
        _fail(name, "batch", "cannot be used with tools: a batch answers once, and calls none. Leave tools "
              "(--tools) and remember (--remember) out, or batch (--batch).")  # fmt: skip


def _check_rows_per_call(step: Any) -> None:
    problem = ""
    if step.is_python:
        problem = "a Python step asks no model. Leave it out."
    elif step.map_over is None:
        problem = "the step has no rows. Add map_over (--map-over), or leave it out."
    elif AGENT_KINDS[step.agent] is not SINGLE:
        problem = f"a step with agent={step.agent!r} asks several times for each row. Leave one of them out."
    elif step.samples > 1:
        problem = "samples of rows in one call would not be independent. Leave one of them out."
    elif step.tools or step.tools_filter or step.approve_tools or step.remember:
        problem = (
            "a model that calls tools does so for one row. Leave its tools out (tools, tools_filter, "
            "approve_tools, remember), or ask for each row by itself."
        )
    if problem:
        _fail(step.name, "rows_per_call", f"is {step.rows_per_call}, but {problem}")


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
