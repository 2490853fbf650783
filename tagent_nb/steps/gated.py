"""A model whose requests pass the gates of a step's context. Imports pydantic-ai: load it late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from tagent_nb.errors import RetryableError
from tagent_nb.steps.base import StepContext
from tagent_nb.steps.calls import ModelCall, through_model
from tagent_nb.steps.providers import model_name
from tagent_nb.steps.spending import account, assume
from tagent_nb.steps.streaming import pass_on
from tagent_nb.steps.unfinished import ended_early, readable, refuse_cut


class GatedModel(WrapperModel):
    """Sends each request through the context's gates, and spends what the answer took on the context.

    Args:
        model: The model behind the gates.
        context: Of the attempt that asks.
        write: Takes the text of answers while it comes; ``None`` waits for whole answers.
        structured: Whether the answer has a schema.
    """

    def __init__(
        self,
        model: Model[Any],
        context: StepContext,
        write: Callable[[str], None] | None = None,
        *,
        structured: bool = False,
    ) -> None:
        super().__init__(model)
        self._context = context
        self._write = write
        self._structured = structured

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask, and account for every answer, also for one that a gate throws away, or that is not whole.

        What a gate answers by itself takes what it says, unless a model was asked as well.

        Raises:
            RetryableError: The connection closed before the answer was whole.
            OutputTokenLimitExceeded: The answer was cut at its limit.
            ContentFilterError: The provider's filter cut it.
        """
        context = self._context
        answered = False

        async def ask(call: ModelCall) -> ModelResponse:
            nonlocal answered
            response = await self._ask(call)
            answered = True
            # At once: whoever counts what is spent must not find a gap between an answer and its cost.
            assume(call, response)
            account(context, response)
            return response

        call = ModelCall(context, self.wrapped, messages, model_settings, model_request_parameters)
        response = await through_model(context.gates, call, ask)
        if not answered:
            account(context, response)
        settings = {**(self.wrapped.settings or {}), **(model_settings or {})}
        refuse_cut(response, settings, structured=self._structured)
        return response

    async def _ask(self, call: ModelCall) -> ModelResponse:
        """Ask, and refuse an answer that ended early: no gate takes it for one that may be kept."""
        with readable(call):
            if self._write is None:
                response = await call.model.request(call.messages, call.settings, call.parameters)
                early = ended_early(call.model, response)
            else:
                async with call.model.request_stream(call.messages, call.settings, call.parameters) as stream:
                    await pass_on(stream, self._write)
                    response = stream.get()
                early = ended_early(call.model, response, stream)
        if not early:
            return response
        if response.usage.has_values():
            account(self._context, response)
        raise RetryableError(
            f"Step {self._context.step!r}: the answer of {model_name(self._context.model)!r} ended early: "
            "the connection closed before the answer was whole. If its server never says why an answer "
            "ends (no finish_reason), see 'Servers with OpenAI's protocol' in docs/how-to/models.md."
        )
