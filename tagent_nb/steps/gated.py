"""A model whose requests pass the gates of a step's context. Imports pydantic-ai: load it late."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from tagent_nb.events import TokenUsage
from tagent_nb.steps.base import StepContext
from tagent_nb.steps.calls import ModelCall, through_model
from tagent_nb.steps.providers import cost_of
from tagent_nb.steps.streaming import pass_on


class GatedModel(WrapperModel):
    """Sends each request through the context's gates, and spends what the answer took on the context.

    Args:
        model: The model behind the gates.
        context: Of the attempt that asks.
        write: Takes the text of answers while it comes; ``None`` waits for whole answers.
    """

    def __init__(
        self, model: Model[Any], context: StepContext, write: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(model)
        self._context = context
        self._write = write

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask, and account for the answer."""
        context = self._context
        call = ModelCall(context, self.wrapped, messages, model_settings, model_request_parameters)
        response = await through_model(context.gates, call, self._ask)
        cost = cost_of(context.model, response)
        if cost is not None:
            response.usage.cost = Decimal(repr(cost))
        context.spend(usage_of(response), cost)
        return response

    async def _ask(self, call: ModelCall) -> ModelResponse:
        if self._write is None:
            return await call.model.request(call.messages, call.settings, call.parameters)
        async with call.model.request_stream(call.messages, call.settings, call.parameters) as stream:
            await pass_on(stream, self._write)
            return stream.get()


def usage_of(response: ModelResponse) -> TokenUsage:
    """Tokens that one answer took."""
    used = response.usage
    return TokenUsage(
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        cached_tokens=used.cache_read_tokens,
        reasoning_tokens=used.output_reasoning_tokens,
        requests=1,
    )
