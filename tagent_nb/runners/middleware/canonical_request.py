"""Calls to models and tools in a form that is the same whenever the same is asked.

Two calls are the same if model, settings, tools, form of the answer, instructions and conversation are.
What differs from run to run (times, ids, tokens, a provider's own notes) does not count, and secrets of
the environment are replaced before anything is hashed or kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any

from tagent_nb.redaction import note_secrets, redact
from tagent_nb.runners.base import ModelCall, ToolCall

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.tools import ToolDefinition

SHOWN = 4_000
"""Characters of a question that are kept to tell how another one differs."""

_SILENT = frozenset({"max_retries", "timeout", "extra_headers", "stream"})
"""Settings that are about the connection, and may hold a key."""

_PART = ("part_kind", "content", "tool_name", "args", "tool_call_id", "outcome")


@dataclass(frozen=True, slots=True)
class CanonicalRequest:
    """A call in canonical form.

    Attributes:
        key: SHA-256 over the components.
        components: Named parts of the call and their SHA-256, to tell what differs.
        says: The end of the question, as text.
    """

    key: str
    components: Mapping[str, str]
    says: str

    @property
    def described(self) -> dict[str, Any]:
        """Plain data that tells this call from others."""
        return {"components": dict(self.components), "says": self.says}


class SharedParts:
    """Digests of what the requests of a step have in common: all but the conversation."""

    def __init__(self) -> None:
        self._of: Sequence[Any] = ()
        self._digests: Mapping[str, str] = {}

    def of(self, call: ModelCall, model: str) -> Mapping[str, str]:
        """Those of a request; worked out again where any part of it is another object than before."""
        parameters = call.parameters
        settings = {
            name: value
            for name, value in {**(call.model.settings or {}), **(call.settings or {})}.items()
            if name not in _SILENT
        }
        instructions = [getattr(message, "instructions", None) for message in call.messages]
        of = [note_secrets(), model, parameters, *settings, *settings.values(), *instructions]
        if not same_objects(of, self._of):
            form = parameters.output_object
            parts = {
                "model": model,
                "settings": settings,
                "tools": [_tool(tool) for tool in parameters.function_tools],
                "answer": [
                    parameters.output_mode,
                    parameters.allow_text_output,
                    [_tool(tool) for tool in parameters.output_tools],
                    None if form is None else [form.name, form.description, form.json_schema],
                ],
                "instructions": instructions,
            }
            self._digests = _digests(parts)
            self._of = of
        return self._digests


def model_request(call: ModelCall, model: str, shared: SharedParts | None = None) -> CanonicalRequest:
    """The canonical form of a request to the model of this name.

    Args:
        call: The request.
        model: The model's name.
        shared: What requests of the same step had in common with it.
    """
    messages, says = _conversation(call.messages)
    components = (shared or SharedParts()).of(call, model)
    return _request({**components, **_digests({"messages": messages})}, says)


def tool_request(call: ToolCall) -> CanonicalRequest:
    """The canonical form of a call of a tool."""
    arguments = plain(call.arguments)
    parts = {"tool": call.tool, "arguments": arguments}
    return _request(_digests(parts), f"{call.tool}({_json(arguments)})")


def plain(value: Any) -> Any:
    """``value`` as a model sees it: JSON-able data, without secrets of the environment."""
    return _plain_and_json(value)[0]


def _plain_and_json(value: Any) -> tuple[Any, str]:
    from pydantic_core import to_jsonable_python

    data = to_jsonable_python(value, fallback=repr, inf_nan_mode="null", bytes_mode="base64")
    text = _json(data)
    # In JSON each secret stands in one of its forms: most data has none, and is not walked through.
    if note_secrets().are_in(text):
        data = _clean(data)
        text = _json(data)
    return data, text


def same_objects(values: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects. What is equal may be written otherwise, as 1 and 1.0."""
    return len(values) == len(others) and all(map(is_, values, others))


def _request(components: Mapping[str, str], says: str) -> CanonicalRequest:
    return CanonicalRequest(_digest(_json(components)), components, redact(says)[-SHOWN:])


def _digests(parts: Mapping[str, Any]) -> dict[str, str]:
    return {name: _digest(_plain_and_json(part)[1]) for name, part in parts.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(str(name)): _clean(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def _tool(tool: ToolDefinition) -> list[Any]:
    return [tool.name, tool.description, tool.parameters_json_schema]


def _conversation(messages: Sequence[ModelMessage]) -> tuple[list[Any], str]:
    """What was said, by whom, with ids of calls counted from 1; and the last question as text."""
    numbers: dict[str, int] = {}
    turns: list[list[Any]] = []
    for message in messages:
        parts = []
        for part in _plain_parts(message):
            kept = {name: part[name] for name in _PART if part.get(name) is not None}
            if "tool_call_id" in kept:
                kept["tool_call_id"] = numbers.setdefault(kept["tool_call_id"], len(numbers) + 1)
            if isinstance(kept.get("args"), str):
                kept["args"] = _parsed(kept["args"])
            parts.append(kept)
        turns.append([message.kind, parts])
    question = [part.get("content") for part in (turns[-1][1] if turns else ())]
    return turns, "\n".join(text if isinstance(text, str) else _json(plain(text)) for text in question)


def _plain_parts(message: ModelMessage) -> list[dict[str, Any]]:
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    parts = message.parts
    if len(parts) == 1 and parts[0].part_kind == "user-prompt" and type(parts[0].content) is str:
        # What most requests are; to serialise it takes longer than all else here.
        return [{"part_kind": "user-prompt", "content": parts[0].content}]
    (dumped,) = ModelMessagesTypeAdapter.dump_python([message], mode="json")
    return dumped["parts"]  # type: ignore[no-any-return]


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
