"""Tools as a model sees them: reported, bounded, and with answers that can be sent."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError, StepError, TemplateError
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline.delimiting import plain_text
from tagent_nb.steps.base import StepContext
from tagent_nb.steps.calls import ToolCall, through_tool
from tagent_nb.steps.capture import Lines
from tagent_nb.steps.tools import timeout_of
from tagent_nb.steps.traceback import redact
from tagent_nb.steps.worker import in_thread

if TYPE_CHECKING:
    from pydantic_ai import Tool

LONGEST_TEXT = 20_000
"""Characters that a model gets at most of an answer that had to be turned into text."""

BRIEF = 200
"""Characters of an argument or an error that a report shows at most."""


def toolset(tools: Mapping[str, Callable[..., Any]], context: StepContext) -> list[Tool[Any]]:
    """The tools for a model. Each call is reported as progress of kind ``"tool_call"``.

    A tool's error goes to the model as text and is reported as ``"tool_error"``; only a
    :class:`~tagent_nb.errors.StepError` ends the step. An answer that no request can carry is turned
    into text.

    Args:
        tools: The functions by name.
        context: Of the attempt whose model calls; each call is spent on it.

    Raises:
        DefinitionError: A function's parameters cannot be described to a model.
    """
    return [_tool(name, function, context) for name, function in tools.items()]


def _tool(name: str, function: Callable[..., Any], context: StepContext) -> Tool[Any]:
    from pydantic_ai import Tool

    try:
        plain: Tool[Any] = Tool(function, name=name)
    except Exception as error:  # unresolvable annotations raise whatever evaluating them raises
        raise DefinitionError(
            f"Tool {name!r} cannot be described to a model: {type(error).__name__}: {error}. "
            "Give its parameters plain types such as str, int or a pydantic model."
        ) from error

    async def call(*args: Any, **kwargs: Any) -> Any:
        async def leave(one: ToolCall) -> Any:
            return presentable(await _reported(name, partial(function, *args, **one.arguments), context))

        context.spend(TokenUsage(tool_calls=1), 0.0)
        context.metadata.setdefault("tools_called", []).append(name)
        context.progress("tool_call", tool=name, arguments=_brief(kwargs))
        return await through_tool(context.gates, ToolCall(context, name, kwargs, function=function), leave)

    schema = replace(plain.function_schema, function=call, is_async=True)
    return Tool(call, name=name, description=plain.description, function_schema=schema)


async def _reported(name: str, call: partial[Any], context: StepContext) -> Any:
    from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ModelRetry, ToolFailed

    seconds = timeout_of(call.func)
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await _called(name, call, context)
    except (StepError, ModelRetry, ToolFailed, CallDeferred, ApprovalRequired):
        raise
    except BaseException as error:  # a tool must not end the run, not even by sys.exit()
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        message = f"{type(error).__name__}: {redact(str(error))}"
        if isinstance(error, TimeoutError) and limit.expired():
            message = f"it took longer than its timeout of {seconds:g} s"
        context.progress("tool_error", tool=name, message=message[:BRIEF])
        raise ToolFailed(f"The tool failed: {message}") from error


async def _called(name: str, call: partial[Any], context: StepContext) -> Any:
    if inspect.iscoroutinefunction(call.func):
        return await call()
    # An event of its own: a tool that runs out of time does not stop its step.
    value = await in_thread(name, call, context, Lines(context.write), stop=threading.Event())
    return await value if inspect.isawaitable(value) else value


def presentable(value: Any) -> Any:
    """``value`` if a request can carry it, else its text: CSV for tables, JSON for records and lists,
    what ``repr`` says for the rest."""
    from pydantic_core import to_json

    if isinstance(value, Iterator):
        value = list(value)
    try:
        to_json(value)
    except Exception:  # foreign objects raise what they like; the text below is the answer then
        return _text(value)[:LONGEST_TEXT]
    return value


def _text(value: Any) -> str:
    try:
        return plain_text(value)
    except TemplateError:
        return _safe_repr(value)


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # the user's own __repr__ may fail
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _brief(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {name: _safe_repr(value)[:BRIEF] for name, value in arguments.items()}
