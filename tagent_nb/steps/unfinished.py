"""Answers that are not whole: a stream that ended early. Imports pydantic-ai: load it late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tagent_nb.steps.providers import profiles_behind

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import Model, StreamedResponse


def ended_early(model: Model[Any], response: ModelResponse, stream: StreamedResponse | None = None) -> bool:
    """Whether the connection closed before the provider said that its answer was whole.

    A provider says so by the reason why an answer ends. OpenAI-compatible servers that never tell one are
    taken at their word where the model's profile has ``openai_chat_streaming_requires_finish_reason=False``.

    Args:
        model: Who was asked.
        response: What it answered.
        stream: Where the answer came from, if it came in pieces.
    """
    if response.state in ("incomplete", "interrupted"):
        return True
    if (
        stream is None
        or response.state == "suspended"
        or "finish_reason" in (response.provider_details or {})
    ):
        return False
    if response.finish_reason is None:
        # Models that ask nobody, such as those of tests, have no address and give no reason.
        return response.provider_url is not None
    return response.finish_reason == "stop" and _is_made_up(model, stream)


def _is_made_up(model: Model[Any], stream: StreamedResponse) -> bool:
    """Whether pydantic-ai says "stop" for a server that told no reason."""
    from pydantic_ai.models.openai import OpenAIStreamedResponse

    if not isinstance(stream, OpenAIStreamedResponse):
        return False
    told = (one.get("openai_chat_streaming_requires_finish_reason") for one in profiles_behind(model))
    return any(one is not False for one in told)
