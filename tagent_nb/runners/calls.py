"""Calls that leave a step: what goes to a model or a tool, and who may stand in between.

Every request to a model and every call of a tool passes the gates of its context, the first one
outermost, and then leaves. A gate may answer by itself (a record of an earlier call), wait (a limit),
refuse (a budget) or look on (a trace). A gate never knows the others.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tagent_nb.runners.base import StepContext

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import Model, ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

EDITED = "tagent_nb_edited"
"""Where a tool's value keeps the arguments that a person put in place of the model's."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One request to a model.

    Attributes:
        context: Of the attempt that asks.
        model: Whom it asks.
        messages: The conversation so far; the last one is the question.
        settings: Such as temperature and max_tokens.
        parameters: Tools and the form of the answer.
    """

    context: StepContext
    model: Model[Any]
    messages: list[ModelMessage]
    settings: ModelSettings | None
    parameters: ModelRequestParameters


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool by a model.

    Attributes:
        context: Of the attempt whose model calls.
        tool: The tool's name.
        arguments: As the tool's function takes them.
        id: The model's id of this call; empty where it gives none.
        function: The user's function; ``None`` for a tool of a server.
        parameters: JSON Schema of the arguments; empty where nobody knows it.
        single: The one parameter whose fields these are, as they are for a model; empty if they are all.
        check: Gives other arguments as the tool takes them, or raises :class:`ValueError`.
    """

    context: StepContext
    tool: str
    arguments: Mapping[str, Any]
    id: str = ""
    function: Callable[..., Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    single: str = ""
    check: Callable[[Any], Mapping[str, Any]] | None = None


class CallGate:
    """Stands between a step and what it calls. By itself it lets everything pass."""

    async def model_call(
        self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Answer a request to a model, usually by ``await proceed(call)``."""
        return await proceed(call)

    async def tool_call(self, call: ToolCall, proceed: Callable[[ToolCall], Awaitable[Any]]) -> Any:
        """Answer a call of a tool, usually by ``await proceed(call)``."""
        return await proceed(call)


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
