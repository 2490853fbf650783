"""The request of an agent step without tools, which its units share. Imports pydantic-ai: load it late.

An agent of pydantic-ai works out once what a step sends: instructions, settings, and the form of the answer.
A unit puts its task into that, asks, and reads the answer. An answer that is not plainly right is not judged
here: an agent gets it as if it had just come, and does what it does with any answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, TypeAdapter
from pydantic_ai import Agent, TextOutput
from pydantic_ai.exceptions import ModelRetry, RetryModelRequest, SkipModelRequest
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

TASK = "The task of a unit."
"""What stands for the task while the request is worked out."""

FOR_THE_AGENT = (ModelRetry, RetryModelRequest, SkipModelRequest)
"""What a model raises to have its agent go on in another way."""

_TIMEOUTS = ("request_timeout", "first_event_timeout")
"""Settings that an agent keeps by itself, beside the model."""


class UnusualAnswer(Exception):  # noqa: N818  # no error: an agent decides what it is
    """An answer that is not plainly right."""


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """What all units of a step send, and how their answers are read.

    Attributes:
        request: The request, with :data:`TASK` in place of the task.
        settings: Those of the step.
        parameters: The form of the answer, and the tool that takes it.
        schema: Reads an answer that is JSON; ``None`` where it is a text.
        read: Reads a text; ``None`` takes it as it is.
    """

    request: ModelRequest
    settings: ModelSettings | None
    parameters: ModelRequestParameters
    schema: TypeAdapter[Any] | None
    read: Callable[[str], Any] | None

    def messages(self, model: Model[Any], task: str) -> list[ModelMessage]:
        """What a unit sends to a model."""
        run = str(uuid4())
        now = datetime.now(UTC)
        parts = [UserPromptPart(task, timestamp=now)]
        request = replace(self.request, parts=parts, timestamp=now, run_id=run, conversation_id=run)
        return model.prepare_messages([request], self.parameters)

    def value(self, response: ModelResponse) -> Any:
        """The value of an answer that is plainly right.

        Raises:
            UnusualAnswer: It is not.
        """
        text, calls = "", []
        for part in response.parts:
            if part.part_kind == "text":
                text += part.content
            elif part.part_kind == "tool-call":
                calls.append(part)
            elif part.part_kind != "thinking":
                raise UnusualAnswer
        data = calls[0].args if calls else text
        by_call = [call.tool_name for call in calls] == [tool.name for tool in self.parameters.output_tools]
        if response.state != "complete" or not data or (calls and not by_call):
            raise UnusualAnswer
        try:
            if self.schema is None:
                return data if self.read is None else self.read(text)
            if not isinstance(data, str):
                return self.schema.validate_python(data)
            # Anything before the JSON may be a fence, which an agent takes away.
            if data.startswith("{") and (calls or self.parameters.output_mode != "tool"):
                return self.schema.validate_json(data)
        except Exception as error:  # validators of the user raise what they like, and do so for the agent too
            raise UnusualAnswer from error
        raise UnusualAnswer


class _Sent(Exception):  # noqa: N818
    """The request is known."""


class _Probe(WrapperModel):
    """Keeps what it is asked, and asks no model."""

    sent: tuple[list[ModelMessage], ModelSettings | None, ModelRequestParameters] | None = None

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        self.sent = (messages, model_settings, model_request_parameters)
        raise _Sent


async def request_template(
    agent: Agent[Any, Any],
    model: Model[Any],
    settings: ModelSettings,
    output: Any,
    form: type[BaseModel] | None,
) -> RequestTemplate | None:
    """What an agent sends first; ``None`` where only the agent can say it.

    Args:
        agent: Without tools.
        model: Whom it will ask.
        settings: Those of the step.
        output: The form of the answer, as the agent got it.
        form: The schema of the answer, if it has one.
    """
    # Who has agents traced wants to see each of them.
    if getattr(Agent, "_instrument_default", False) or any(
        name in {**(model.settings or {}), **settings} for name in _TIMEOUTS
    ):
        return None
    probe = _Probe(model)
    try:
        await agent.run(TASK, model=probe, model_settings=settings)
    except Exception:  # what it cannot be asked, the agent of each unit says
        if probe.sent is None:
            return None
    assert probe.sent is not None
    messages, sent_settings, parameters = probe.sent
    request = messages[0]
    if len(messages) != 1 or not isinstance(request, ModelRequest):
        return None
    if [getattr(part, "content", None) for part in request.parts] != [TASK]:
        return None
    read: Any = output.output_function if isinstance(output, TextOutput) else None
    schema = TypeAdapter(form) if form is not None and read is None else None
    return RequestTemplate(request, sent_settings, parameters, schema, read)
