"""Tools as a model sees them: reported, bounded, and with answers that can be sent."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from itertools import count
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError, StepError, TemplateError
from tagent_nb.events import TokenUsage
from tagent_nb.formatting import whole_text
from tagent_nb.pipeline import schema_of
from tagent_nb.redaction import redact
from tagent_nb.runners.base import StepContext, ToolCall, ToolContext, calls_user_code
from tagent_nb.runners.calls import tool_chain
from tagent_nb.runners.execution.capture import Lines
from tagent_nb.runners.execution.thread import in_thread
from tagent_nb.runners.tools.registry import options_of, tools_of
from tagent_nb.serde import StoredValue
from tagent_nb.templating import plain_text
from tagent_nb.user_objects import class_name, message_of, safe_repr

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_ai import RunContext, Tool

MAX_TEXT_CHARS = 20_000
"""Characters that a model gets at most of an answer that had to be turned into text."""

BRIEF = 200
"""Characters of an argument or an error that a report shows at most."""


def toolset(tools: Mapping[str, Callable[..., Any]]) -> list[Tool[Any]]:
    """The tools for a model. Each call is reported as progress of kind ``"tool_call"``.

    It is made for the attempt whose context is the ``deps`` of what pydantic-ai runs, and spent on it.

    A tool's error goes to the model as text and is reported as ``"tool_error"``; only a
    :class:`~tagent_nb.errors.StepError` ends the step. An answer that no request can carry is turned
    into text.

    Args:
        tools: The functions by name.

    Raises:
        DefinitionError: A function's parameters cannot be described to a model.
    """
    return [_tool(name, function) for name, function in tools.items()]


def _tool(name: str, function: Callable[..., Any]) -> Tool[Any]:
    from pydantic_ai import Tool

    taken = context_parameter(function)
    plain = _described(name, function, taken)
    schema, pure = plain.function_schema, options_of(function).effect == "pure"

    async def call(run: RunContext[StepContext], *args: Any, **kwargs: Any) -> Any:
        context = run.deps
        if schema.takes_ctx:
            args = (run, *args)

        async def leave(tool_call: ToolCall) -> Any:
            seen = context if pure else ToolContext.of(context, key)
            values = tool_call.arguments if taken is None else {**tool_call.arguments, taken: seen}
            with tools_of(seen):
                return presentable(await _reported(name, partial(function, *args, **values), context))

        context.spend(TokenUsage(tool_calls=1), 0.0)
        context.metadata.setdefault("tools_called", []).append(name)
        context.progress("tool_call", tool=name, arguments=_brief(kwargs))
        tool_call = ToolCall(
            context,
            name,
            kwargs,
            function=function,
            parameters=schema.json_schema,
            single=schema.single_arg_name or "",
            check=partial(_validated, schema.validator),
        )
        with _keyed(context, name, args, kwargs) as key:
            return await tool_chain(context.middleware, tool_call, leave)

    shown = replace(schema, function=call, is_async=True, takes_ctx=True)
    return Tool(call, name=name, description=plain.description, function_schema=shown)


def _described(name: str, function: Callable[..., Any], taken: str | None) -> Tool[Any]:
    """A tool by its function's parameters, but for the one that no model sees, or by a schema."""
    from pydantic_ai import Tool

    schema = schema_of(function)
    if schema is not None:
        return Tool.from_schema(function, name, schema.description, dict(schema.parameters))
    try:
        return Tool(function if taken is None else _without(function, taken), name=name)
    except Exception as error:  # unresolvable annotations raise whatever evaluating them raises
        raise DefinitionError(
            f"Tool {name!r} cannot be described to a model: {type(error).__name__}: {error}. "
            "Give its parameters plain types such as str, int or a pydantic model."
        ) from error


def _validated(validator: Any, arguments: Any) -> Mapping[str, Any]:
    from pydantic import ValidationError

    try:
        checked: Mapping[str, Any] = validator.validate_python(arguments)
    except ValidationError as error:
        raise ValueError(validation_text(error)) from None
    return checked


def validation_text(error: ValidationError) -> str:
    """What is wrong with a value, without the value."""
    lines = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in lines)


def context_parameter(function: Callable[..., Any]) -> str | None:
    """The parameter of a tool that gets the context of its step, and that no model sees.

    It is the one annotated :class:`StepContext`, or one named ``context`` without an annotation.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions do not say
        return None
    for parameter in parameters:
        annotation = parameter.annotation
        if annotation is StepContext or (
            isinstance(annotation, str) and annotation.strip("'\"").rpartition(".")[2] == "StepContext"
        ):
            return parameter.name
        if parameter.name == "context" and annotation is parameter.empty:
            return parameter.name
    return None


def _without(function: Callable[..., Any], taken: str) -> Callable[..., Any]:
    """A function with the same name, description and parameters, but for one. It is never called."""

    shown: Callable[..., Any] = wraps(function)(lambda: None)
    whole = inspect.signature(function)
    rest = [parameter for parameter in whole.parameters.values() if parameter.name != taken]
    shown.__signature__ = whole.replace(parameters=rest)  # type: ignore[attr-defined]
    shown.__annotations__ = {
        name: parameter for name, parameter in shown.__annotations__.items() if name != taken
    }
    return shown


@contextmanager
def _keyed(
    context: StepContext, name: str, args: tuple[Any, ...], arguments: Mapping[str, Any]
) -> Iterator[str]:
    """A key for a call: that of its step's work, the tool, the arguments, and a number.

    Equal calls that succeeded, or are under way, have different numbers; one that failed gives its number
    back to the next try. The order of different calls does not count: another attempt may make them in
    another one.
    """
    digest = StoredValue.of([list(args), dict(arguments)]).digest[:16]
    taken = context.tool_calls.setdefault((name, digest), set())
    number = next(candidate for candidate in count(1) if candidate not in taken)
    taken.add(number)
    try:
        yield f"{context.idempotency_key}:{name}:{digest}:{number}"
    except BaseException:
        taken.discard(number)
        raise


async def _reported(name: str, call: partial[Any], context: StepContext) -> Any:
    from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ModelRetry, ToolFailed

    seconds = options_of(call.func).timeout
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await _called(name, call, context)
    except (ModelRetry, ToolFailed) as error:
        # In place, so that what it stands for, such as a class of the user's own, stays.
        error.message = whole_text(error.message)
        raise
    except (StepError, CallDeferred, ApprovalRequired):
        raise
    except BaseException as error:  # a tool must not end the run, not even by sys.exit()
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        message = whole_text(f"{class_name(error)}: {redact(message_of(error))}")
        if isinstance(error, TimeoutError) and limit.expired():
            message = f"it took longer than its timeout of {seconds:g} s"
        context.progress("tool_error", tool=name, message=message[:BRIEF])
        raise ToolFailed(f"The tool failed: {message}") from error


@calls_user_code("a tool of it")
async def _called(name: str, call: partial[Any], context: StepContext) -> Any:
    if inspect.iscoroutinefunction(call.func):
        return await call()
    # An event of its own: a tool that runs out of time does not stop its step.
    value = await in_thread(name, call, context, Lines(context.write), stop=threading.Event())
    return await value if inspect.isawaitable(value) else value


def presentable(value: Any) -> Any:
    """``value`` if a request can carry it, else its text: CSV for tables, JSON for records and lists,
    what ``repr`` says for the rest. Halves of surrogate pairs become U+FFFD."""
    if isinstance(value, Iterator):
        value = list(value)
    problem = _problem(value)
    if not problem:
        return value
    if "surrogate" in problem:
        mended = _mended(value)
        if not _problem(mended):
            return mended
    return whole_text(_text(value))[:MAX_TEXT_CHARS]


def _problem(value: Any) -> str:
    """Why no request can carry a value; empty where one can."""
    from pydantic_core import to_json

    try:
        to_json(value)
    except Exception as error:  # foreign objects raise what they like
        return f"{type(error).__name__}: {error}"
    return ""


def _mended(value: Any) -> Any:
    from pydantic_ai.messages import ToolReturn

    if isinstance(value, ToolReturn):
        return replace(
            value,
            return_value=presentable(value.return_value),
            content=whole_text(value.content),
            metadata=whole_text(value.metadata),
        )
    return whole_text(value)


def _text(value: Any) -> str:
    try:
        return plain_text(value)
    except TemplateError:
        return safe_repr(value)


def _brief(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {name: redact(safe_repr(value))[:BRIEF] for name, value in arguments.items()}
