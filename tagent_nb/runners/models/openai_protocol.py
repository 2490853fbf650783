"""Models that speak OpenAI's protocol, as servers really speak it.

Hundreds of servers answer in this protocol, and differ in what they leave out or add. Here an error object
that comes with HTTP 200 is the error that it says, a whole answer that comes in place of a stream is taken, a
request that is refused because it is streamed is made again without, what an answer took is counted once, and
no system message comes later than at the begin, since the templates of many models refuse it.

Imports pydantic-ai: load it late.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from pydantic_ai import exceptions
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    UserPromptPart,
)
from pydantic_ai.models import CompletedStreamedResponse, Model, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from tagent_nb.formatting import whole_text
from tagent_nb.runners.middleware.canonical_request import same_objects
from tagent_nb.runners.middleware.canonical_response import MOST_TOKENS
from tagent_nb.runners.models.refusals import has_error, refusal, refuses_streaming
from tagent_nb.templating import instance_of

__all__ = ["tolerant", "unstreamed_key"]

_OPENAI = "pydantic_ai.models.openai"
_ODD = (
    exceptions.UnexpectedModelBehavior,
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    AssertionError,
)
"""What is raised at an answer that is not as the protocol has it."""


_COUNTS = {
    "prompt_tokens": ("prompt_tokens", "input_tokens", "promptTokens", "inputTokens", "promptTokenCount"),
    "completion_tokens": (
        *("completion_tokens", "output_tokens", "completionTokens", "outputTokens"),
        "candidatesTokenCount",
    ),
}
"""What servers call the two counts."""


def tolerant(model: Model[Any], unstreamed: set[str]) -> Model[Any]:
    """The same model, which takes answers as servers really write them; other models as they are.

    Args:
        model: A model, also one with several behind it.
        unstreamed: Models that are asked without streaming, by :func:`unstreamed_key`; more are added.
    """
    before = getattr(model, "unstreamed", None)
    if before is not None:
        if before is unstreamed:
            return model
        model = copy.copy(model)
        model.unstreamed = unstreamed  # type: ignore[attr-defined]
        return model
    if isinstance(model, FallbackModel):
        fallback = copy.copy(model)
        fallback.models = [tolerant(inner, unstreamed) for inner in model.models]
        return fallback
    if isinstance(model, WrapperModel):
        wrapper = copy.copy(model)
        wrapper.wrapped = tolerant(model.wrapped, unstreamed)
        return wrapper
    # Who has such a model has loaded its module, and with it the client of OpenAI, which takes a while.
    if instance_of(model, _OPENAI, "OpenAIChatModel"):
        kind = _mixed(_ChatModel, type(model))
    elif instance_of(model, _OPENAI, "OpenAIResponsesModel"):
        kind = _mixed(_ResponsesModel, type(model))
    else:
        return model
    _ = model.profile  # which the model works out once, and its copies share
    made: Any = object.__new__(kind)
    made.__dict__.update(model.__dict__, unstreamed=unstreamed)
    return made  # type: ignore[no-any-return]


def unstreamed_key(model: Model[Any]) -> str:
    """What stands for a model among those that are asked without streaming."""
    return f"{model.base_url} {model.model_name}"


@functools.cache
def _mixed(first: type[Any], kind: type[Any]) -> type[Any]:
    """A class of a user may prepare each request in another way."""
    once = (_PreparedOnce,) if kind.__module__.startswith("pydantic_ai.") else ()
    return type(kind.__name__, (first, *once, kind), {})


class _PreparedOnce:
    """Works out once what a model makes of settings and parameters: the units of a step share them."""

    _prepared: tuple[Sequence[Any], tuple[Any, Any]] | None = None

    def prepare_request(self, model_settings: Any, model_request_parameters: Any) -> tuple[Any, Any]:
        settings = model_settings or {}
        of = (model_request_parameters, *settings, *settings.values())
        if self._prepared is None or not same_objects(of, self._prepared[0]):
            model: Any = super()
            self._prepared = (of, model.prepare_request(model_settings, model_request_parameters))
        prepared, parameters = self._prepared[1]
        return None if prepared is None else {**prepared}, parameters


class _Unstreamed:
    """Asks without streaming where a server does not stream."""

    unstreamed: set[str]

    @asynccontextmanager
    async def request_stream(
        self, messages: Any, model_settings: Any, model_request_parameters: Any, run_context: Any = None
    ) -> AsyncIterator[StreamedResponse]:
        model: Any = self
        async with AsyncExitStack() as stack:
            stream: StreamedResponse | None = None
            if unstreamed_key(model) not in self.unstreamed:
                base: Any = super()
                opening = base.request_stream(messages, model_settings, model_request_parameters, run_context)
                try:
                    stream = await stack.enter_async_context(opening)
                except exceptions.UnexpectedModelBehavior:
                    self.unstreamed.add(unstreamed_key(model))  # for the next attempt: nothing came
                    raise
                except exceptions.ModelAPIError as error:
                    if not refuses_streaming(error):
                        raise
                    self.unstreamed.add(unstreamed_key(model))
            if stream is None:
                response = await model.request(messages, model_settings, model_request_parameters)
                stream = CompletedStreamedResponse(
                    response, model_request_parameters=model_request_parameters, replay_events=True
                )
            yield stream

    async def _whole_answer(self, stream: Any) -> Mapping[str, Any] | None:
        """The answer, or the error, that a server sent at once in place of a stream; ``None`` if it streams.

        Raises:
            ModelAPIError: It is an error, or the connection closed.
        """
        model: Any = self
        response = stream.response
        if "json" not in response.headers.get("content-type", ""):
            return None
        try:
            content = await response.aread()
        except Exception as error:  # of one of two libraries for HTTP, whichever the client uses
            message = str(error) or type(error).__name__
            raise exceptions.ModelConnectionError(model.model_name, message) from error
        body = _object(content)
        if body is not None:
            _refuse(model, body, response.headers)
            self.unstreamed.add(unstreamed_key(model))
        return body


def _refuse(model: Any, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
    error = refusal(model.model_name, body, headers)
    if error is not None:
        raise error


class _ChatModel(_Unstreamed):
    """Chat completions."""

    async def _completions_create(
        self, messages: Any, stream: bool, model_settings: Any, model_request_parameters: Any
    ) -> Any:
        from openai.types.chat import ChatCompletion

        model: Any = super()
        response = await model._completions_create(
            in_user_voice(messages),
            stream,
            _without_own_retries(self, model_settings),
            model_request_parameters,
        )
        if stream and not isinstance(response, ModelResponse):
            body = await self._whole_answer(response)
            if body is not None:
                return self._process_response(ChatCompletion.construct(**body))
        return response

    def _process_response(self, response: Any, **options: Any) -> ModelResponse:
        from openai.types.chat import ChatCompletion

        if isinstance(response, list) and response:  # an array, of answers as the client reads it
            response = response[0]
        if isinstance(response, BaseModel) and (
            not getattr(response, "choices", True) or has_error(response)
        ):
            _refuse(self, _plain(response))
        model: Any = super()
        try:
            return model._process_response(response, **options)  # type: ignore[no-any-return]
        except _ODD:
            mended = _mended(_plain(response), model.model_name) if isinstance(response, BaseModel) else None
            if mended is None:
                raise
        return model._process_response(ChatCompletion.construct(**mended), **options)  # type: ignore[no-any-return]

    @property
    def _streamed_response_cls(self) -> type[Any]:
        model: Any = super()
        return _mixed(_ChatStream, model._streamed_response_cls)


class _ChatStream:
    """The pieces of a chat completion."""

    async def _validate_response(self) -> AsyncIterator[Any]:
        from openai.types import CompletionUsage

        stream: Any = super()
        pieces: AsyncIterable[Any] = stream._validate_response()
        async for piece in pieces:
            if (not piece.choices and piece.model_extra) or has_error(piece):
                _refuse(self, _plain(piece))
            for choice in piece.choices or ():
                choice.finish_reason = _word(choice.finish_reason)
                if choice.delta is None:  # a whole message in its place, or nothing
                    message = (choice.model_extra or {}).get("message")
                    choice.delta = _delta(message if isinstance(message, Mapping) else {})
            if piece.usage is not None and not _is_sound(piece.usage):
                counted = _counted(_plain(piece.usage) if isinstance(piece.usage, BaseModel) else piece.usage)
                piece.usage = None if counted is None else CompletionUsage.construct(**counted)
            yield piece

    def _add_usage(self, usage: Any, *, reported: bool, cumulative: bool = False) -> None:
        # Servers that say in each piece what the answer took say it of the answer so far.
        if reported:
            stream: Any = super()
            stream._add_usage(usage, reported=True, cumulative=True)


class _ResponsesModel(_Unstreamed):
    """The Responses API."""

    async def _responses_create(
        self, messages: Any, stream: bool, model_settings: Any, model_request_parameters: Any
    ) -> Any:
        from openai.types.responses import Response

        model: Any = super()
        response = await model._responses_create(
            in_user_voice(messages),
            stream=stream,
            model_settings=_without_own_retries(self, model_settings),
            model_request_parameters=model_request_parameters,
        )
        if stream and hasattr(response, "response"):
            body = await self._whole_answer(response)
            if body is not None:
                return self._process_response(
                    Response.construct(**body), model_settings, model_request_parameters
                )
        return response

    def _process_response(
        self, response: Any, model_settings: Any, model_request_parameters: Any
    ) -> ModelResponse:
        if isinstance(response, BaseModel) and not getattr(response, "output", None):
            _refuse(self, _plain(response))
        model: Any = super()
        return model._process_response(response, model_settings, model_request_parameters)  # type: ignore[no-any-return]


def _without_own_retries(model: Any, settings: Mapping[str, Any]) -> Any:
    """The settings without what the client does anyway: it would be copied for each request to do it."""
    if settings.get("max_retries") != model.client.max_retries:
        return settings
    return {name: value for name, value in settings.items() if name != "max_retries"}


def in_user_voice(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """A conversation with no system message but at its begin: the user says what the system would.

    It is said in one message with what the user says besides, since such templates want turns to alternate.
    """
    return [
        message if number == 0 or not isinstance(message, ModelRequest) else _in_user_voice(message)
        for number, message in enumerate(messages)
    ]


def _in_user_voice(message: ModelRequest) -> ModelRequest:
    if not any(isinstance(part, SystemPromptPart) for part in message.parts):
        return message
    parts: list[Any] = []
    texts: list[str] = []
    for part in message.parts:
        if isinstance(part, SystemPromptPart | UserPromptPart) and isinstance(part.content, str):
            texts.append(part.content)
        else:
            parts.append(part)
    # After the answers of tools, which stand right behind their calls.
    return replace(message, parts=[*parts, UserPromptPart("\n\n".join(texts))])


def _plain(response: BaseModel) -> dict[str, Any]:
    return response.model_dump(warnings=False)


def _object(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object that a text is, or the first of an array; ``None`` where it is none."""
    try:
        body = json.loads(text)
    except ValueError:
        return None
    body = body[0] if isinstance(body, list) and body else body
    return body if isinstance(body, dict) else None


def _word(reason: Any) -> Any:
    """A finish reason as a word, also where a server writes a number, or puts it into something."""
    while isinstance(reason, list | dict):
        reason = next(iter(reason.values() if isinstance(reason, dict) else reason), None)
    return None if reason in (None, "") else str(reason)


def _delta(message: Mapping[str, Any]) -> Any:
    from openai.types.chat.chat_completion_chunk import ChoiceDelta

    return ChoiceDelta.construct(**message)


def _mended(body: dict[str, Any], model: str) -> dict[str, Any] | None:
    """An answer with what the protocol wants in it, and nothing of a wrong type.

    ``None`` where there is none: no choices, and no word of what it took.
    """
    choices: Any = body.get("choices")
    choices = choices if isinstance(choices, list) else []
    usage = _counted(body.get("usage"))
    if not choices and usage is None:
        return None
    choice = next((candidate for candidate in choices if isinstance(candidate, dict)), {})
    message: Any = choice.get("message")
    message = message if isinstance(message, dict) else {}
    content = message.get("content")
    calls = [call for call in message.get("tool_calls") or () if isinstance(call, dict)]
    mended = {
        **body,
        "id": body.get("id") or "",
        "model": body.get("model") or model,
        "object": "chat.completion",
        "created": _number(body.get("created")) or 0,
        "service_tier": None,
        "usage": usage,
        "choices": [
            {
                "index": 0,
                "finish_reason": _word(choice.get("finish_reason")),
                "message": {
                    **message,
                    "role": "assistant",
                    "content": content if isinstance(content, str | list | None) else json.dumps(content),
                    "tool_calls": [_call(call, number) for number, call in enumerate(calls)] or None,
                },
            }
        ],
    }
    return whole_text(mended)  # type: ignore[no-any-return]


def _call(call: Mapping[str, Any], number: int) -> dict[str, Any]:
    function: Any = call.get("function")
    function = dict(function) if isinstance(function, Mapping) else {}
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        function["arguments"] = json.dumps(arguments or {})
    # A call without a name is answered with the names of the tools that there are.
    function["name"] = str(function.get("name") or "")
    return {**call, "id": str(call.get("id") or f"call_{number}"), "type": "function", "function": function}


def _is_sound(usage: Any) -> bool:
    counts = [getattr(usage, name, None) for name in _COUNTS]
    return all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts) and any(counts)


def _counted(usage: Any) -> dict[str, Any] | None:
    """What a server says that an answer took, with counts that are whole numbers from 0 on.

    ``None`` where it does not say it: a count of nothing is none.
    """
    if not isinstance(usage, Mapping):
        return None
    counts = {name: _first_number(usage, names) for name, names in _COUNTS.items()}
    if not any(counts.values()):
        return None
    sound: dict[str, Any] = {**usage, **counts, "total_tokens": sum(counts.values())}
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        details = usage.get(name)
        parts = details if isinstance(details, Mapping) else {}
        numbers = {key: _number(value) for key, value in parts.items()}
        sound[name] = {key: number for key, number in numbers.items() if number is not None} or None
    return sound


def _number(value: Any) -> int | None:
    try:
        return int(value) if 0 <= int(value) <= MOST_TOKENS else None
    except (TypeError, ValueError, OverflowError):
        return None


def _first_number(usage: Mapping[str, Any], names: Sequence[str]) -> int:
    return next(filter(None, (_number(usage.get(name)) for name in names)), 0)
