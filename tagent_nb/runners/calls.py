"""Sending calls through their middleware, and what a person changes in a call or refuses."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tagent_nb.runners.base import CallGate, ModelCall, ToolCall

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse

EDITED = "tagent_nb_edited"
"""Where a tool's value keeps the arguments that a person put in place of the model's."""


async def through_model(
    gates: Sequence[CallGate], call: ModelCall, last: Callable[[ModelCall], Awaitable[ModelResponse]]
) -> ModelResponse:
    """Send a request through the gates; behind the last of them is ``last``."""
    for gate in reversed(gates):
        last = partial(gate.model_call, proceed=last)
    return await last(call)


async def through_tool(
    gates: Sequence[CallGate], call: ToolCall, last: Callable[[ToolCall], Awaitable[Any]]
) -> Any:
    """Send a call of a tool through the gates; behind the last of them is ``last``."""
    for gate in reversed(gates):
        last = partial(gate.tool_call, proceed=last)
    return await last(call)


def edited_call(call: ToolCall, value: Any, arguments: Mapping[str, Any]) -> Any:
    """What a tool gave for arguments that the user had put in place of the model's, who is told of it.

    Args:
        call: The call as the model made it.
        value: What the tool gave.
        arguments: Those of the user, as plain data in the form of the model's.
    """
    from pydantic_ai.messages import ToolReturn

    given = value if isinstance(value, ToolReturn) else ToolReturn(value)
    said = _edited(call, arguments)
    more = [given.content] if isinstance(given.content, str) else list(given.content or ())
    known = given.metadata if isinstance(given.metadata, dict) else {}
    return replace(given, content=[said, *more] if more else said, metadata={**known, EDITED: arguments})


def edited_failure(call: ToolCall, error: Exception, arguments: Mapping[str, Any]) -> Exception:
    """The failure of such a call as the model is to read it; any other error as it is."""
    from pydantic_ai.exceptions import ModelRetry, ToolFailed

    if not isinstance(error, ModelRetry | ToolFailed):
        return error
    told = type(error)(f"{error.message}\n{_edited(call, arguments)}")
    told.__cause__ = error.__cause__
    return told


def edited_arguments(value: Any) -> Mapping[str, Any] | None:
    """The user's arguments behind a value of :func:`edited_call`; ``None`` for any other value."""
    known = getattr(value, "metadata", None)
    return known.get(EDITED) if isinstance(known, dict) else None


def _edited(call: ToolCall, arguments: Mapping[str, Any]) -> str:
    shown = json.dumps(arguments, ensure_ascii=False)
    return f"The user changed the arguments of this call before it was made. It was: {call.tool}({shown})"


def call_refused(message: str) -> Exception:
    """What a gate raises to refuse a call of a tool: the model reads ``message``, and the step goes on."""
    from pydantic_ai.exceptions import ToolFailed

    return ToolFailed(message)
