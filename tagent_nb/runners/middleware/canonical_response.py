"""Answers of models and tools as plain data, for records, and back. Imports pydantic-ai: load it late."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import (
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturn,
    ToolReturnPart,
)
from pydantic_ai.usage import RequestUsage

from tagent_nb.errors import CorruptRecordError, EncodeError, OfflineMissError
from tagent_nb.formatting import whole_text
from tagent_nb.runners.middleware.canonical_request import plain
from tagent_nb.serde import from_tree, to_tree

_HALF_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\."
)
"""In JSON: a whole surrogate pair, half of one, or any other escape."""

_PRIVATE = ("provider_details", "provider_response_id", "provider_url", "run_id", "conversation_id")
_response: TypeAdapter[ModelResponse] = TypeAdapter(ModelResponse)
_tool_return: TypeAdapter[Any] = TypeAdapter(ToolReturn)


MOST_TOKENS = 10**12
"""A count above is no count of one answer."""


def tidy_answer(response: ModelResponse, *, structured: bool = False) -> None:
    """Make an answer one that can be sent back, stored and counted, whatever its server wrote.

    Halves of surrogate pairs become letters or U+FFFD, a call that came twice is one, two calls with one id
    get an id each, and counts of tokens below 0 or beyond all measure are no counts.

    Args:
        response: What a model answered.
        structured: Whether the answer has a schema, and is JSON where it is text.
    """
    parts: list[Any] = []
    calls: dict[str, list[ToolCallPart]] = {}
    for part in response.parts:
        if isinstance(part, TextPart | ThinkingPart):
            part.content = _sound_json(part.content) if structured else whole_text(part.content)
        elif isinstance(part, ToolCallPart):
            part.args = _sound_json(part.args) if isinstance(part.args, str) else whole_text(part.args)
            if isinstance(part.args, str) and part.args.strip() == "null":
                part.args = "{}"  # of a tool without parameters
            part.tool_name = whole_text(part.tool_name)
            same = calls.setdefault(part.tool_call_id, [])
            if any(
                call.tool_name == part.tool_name and _arguments(call) == _arguments(part) for call in same
            ):
                continue
            same.append(part)
            if len(same) > 1:
                part.tool_call_id = f"{part.tool_call_id}_{len(same)}"
        parts.append(part)
    response.parts = parts
    used = response.usage
    counts = (used.input_tokens, used.output_tokens, used.cache_read_tokens)
    if min(counts) < 0 or max(counts) > MOST_TOKENS:
        response.usage = RequestUsage(unmeasured_requests=1)


def _arguments(call: ToolCallPart) -> Any:
    """The arguments of a call, however they are written; the text of those that are no JSON."""
    try:
        return json.loads(call.args) if isinstance(call.args, str) else call.args
    except ValueError:
        return call.args


def _sound_json(text: str) -> str:
    """A JSON text whose strings have no half of a surrogate pair, written as a letter or as an escape."""
    text = whole_text(text)
    return _HALF_ESCAPE.sub(_sound_escape, text) if "\\u" in text else text


def _sound_escape(escape: re.Match[str]) -> str:
    is_half = len(escape[0]) == 6
    return "\\ufffd" if is_half else escape[0]


def response_to_plain(response: ModelResponse) -> Any:
    """A model's answer as plain data, without secrets of the environment."""
    dumped = _response.dump_python(response, mode="json", warnings=False)
    # What only the provider understands may hold anything, and is of no use without it.
    return plain({name: value for name, value in dumped.items() if name not in _PRIVATE})


def response_from_plain(data: Any) -> ModelResponse:
    """The answer of :func:`response_to_plain`.

    Raises:
        OfflineMissError: It is none.
    """
    (message,) = ModelMessagesTypeAdapter.validate_python([data])
    if not isinstance(message, ModelResponse):
        raise OfflineMissError("A recorded answer of a model is none: the record was changed by hand.")
    return message


def value_to_plain(value: Any) -> dict[str, Any]:
    """What a tool gave, as plain data, without secrets of the environment.

    Values that storage knows come back as they were, dates and numbers too; models of a class that a
    reader does not have as dicts; all else as a model sees it.
    """
    if isinstance(value, ToolReturn):
        return {"returned": plain(_tool_return.dump_python(value, mode="json", warnings=False))}
    if not _is_content(value):
        try:
            return {"value": plain(to_tree(value, path="answer"))}
        except EncodeError:
            return {"shown": plain(value)}
    request = ModelRequest(parts=[ToolReturnPart("", value, "")])
    (dumped,) = ModelMessagesTypeAdapter.dump_python([request], mode="json", warnings=False)
    return {"content": plain(dumped["parts"][0]["content"])}


def error_to_plain(error: ToolFailed | ModelRetry) -> dict[str, Any]:
    """What a failed call tells the model; ``passing``: the same call may succeed a moment later."""
    kind = "retry" if isinstance(error, ModelRetry) else "failed"
    passing = isinstance(error.__cause__, ConnectionError | TimeoutError)
    return {kind: plain(error.message), **({"passing": True} if passing else {})}


def value_from_plain(data: Mapping[str, Any], schemas: Mapping[str, type] | None = None) -> Any:
    """What :func:`value_to_plain` had, or the error of :func:`error_to_plain`, raised.

    Raises:
        CorruptRecordError: It is neither.
        ToolFailed: The call had failed.
        ModelRetry: The tool had asked for another call.
    """
    cause = TimeoutError("as recorded") if data.get("passing") else None
    if "failed" in data:
        raise ToolFailed(str(data["failed"])) from cause
    if "retry" in data:
        raise ModelRetry(str(data["retry"])) from cause
    try:
        if "value" in data:
            return from_tree(data["value"], schemas)
        if "shown" in data:
            return data["shown"]
        if "returned" in data:
            return _tool_return.validate_python(data["returned"])
        part = {"part_kind": "tool-return", "tool_name": "", "tool_call_id": "", "content": data["content"]}
        (message,) = ModelMessagesTypeAdapter.validate_python([{"kind": "request", "parts": [part]}])
        returned: Any = message.parts[0]
        return returned.content
    except (LookupError, ValueError) as error:
        raise CorruptRecordError(f"A recorded answer of a tool cannot be read: {error}") from None


def _is_content(value: Any) -> bool:
    """Whether it is, or has, what models see as images, documents and the like."""
    inside = value if isinstance(value, list | tuple) else [value]
    return any(type(part).__module__.startswith("pydantic_ai") for part in inside)
