"""Sending calls through their middleware, and what a person changes in a call or refuses."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tagent_nb.runners.base import CallMiddleware, ModelCall, ToolCall

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse

EDITED = "tagent_nb_edited"
"""Where a tool's value keeps the arguments that a person put in place of the model's."""


async def model_chain(
    middleware: Sequence[CallMiddleware],
    call: ModelCall,
    last: Callable[[ModelCall], Awaitable[ModelResponse]],
) -> ModelResponse:
    """Send a request through its middleware; behind the last of them is ``last``."""
    for layer in reversed(middleware):
        last = partial(layer.model_call, proceed=last)
    return await last(call)


async def tool_chain(
    middleware: Sequence[CallMiddleware], call: ToolCall, last: Callable[[ToolCall], Awaitable[Any]]
) -> Any:
    """Send a call of a tool through its middleware; behind the last of them is ``last``."""
    for layer in reversed(middleware):
        last = partial(layer.tool_call, proceed=last)
    return await last(call)


def edited_call(call: ToolCall, value: Any, arguments: Mapping[str, Any]) -> Any:
    """What a tool gave for arguments that the user had put in place of the model's, who reads of it.

    Args:
        call: The call as the model made it.
        value: What the tool gave.
        arguments: Those of the user, as plain data in the form of the model's.
    """
    from pydantic_ai.messages import ToolReturn

    returned = value if isinstance(value, ToolReturn) else ToolReturn(value)
    note = _edited(call, arguments)
    more = [returned.content] if isinstance(returned.content, str) else list(returned.content or ())
    metadata = returned.metadata if isinstance(returned.metadata, dict) else {}
    return replace(
        returned, content=[note, *more] if more else note, metadata={**metadata, EDITED: arguments}
    )


def edited_failure(call: ToolCall, error: Exception, arguments: Mapping[str, Any]) -> Exception:
    """The failure of such a call as the model is to read it; any other error as it is."""
    from pydantic_ai.exceptions import ModelRetry, ToolFailed

    if not isinstance(error, ModelRetry | ToolFailed):
        return error
    failure = type(error)(f"{error.message}\n{_edited(call, arguments)}")
    failure.__cause__ = error.__cause__
    return failure


def edited_arguments(value: Any) -> Mapping[str, Any] | None:
    """The user's arguments behind a value of :func:`edited_call`; ``None`` for any other value."""
    metadata = getattr(value, "metadata", None)
    return metadata.get(EDITED) if isinstance(metadata, dict) else None


def _edited(call: ToolCall, arguments: Mapping[str, Any]) -> str:
    shown = json.dumps(arguments, ensure_ascii=False)
    return f"The user changed the arguments of this call before it was made. It was: {call.tool}({shown})"


def call_refused(message: str) -> Exception:
    """What middleware raises to refuse a call of a tool: the model reads ``message``."""
    from pydantic_ai.exceptions import ToolFailed

    return ToolFailed(message)
