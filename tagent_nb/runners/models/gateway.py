"""A model whose requests pass the middleware of a step's context. Imports pydantic-ai: load it late."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Callable
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from tagent_nb.errors import OutputValidationError, RetryableError, StepError
from tagent_nb.formatting import whole_text
from tagent_nb.runners.base import UNKNOWN_REASON, ModelCall, StepContext
from tagent_nb.runners.calls import model_chain
from tagent_nb.runners.middleware.canonical_response import tidy_answer
from tagent_nb.runners.models.accounting import account, assume
from tagent_nb.runners.models.finish import ended_early, is_empty, read_ending, readable, refuse_cut
from tagent_nb.runners.models.openai_protocol import tolerant, unstreamed_key
from tagent_nb.runners.models.resolve import model_name


class ModelGateway(WrapperModel):
    """Sends each request through the middleware of the context, and counts there what the answer took.

    Args:
        model: The model behind the middleware.
        context: Of the attempt that asks.
        write: Takes the text of answers while it comes; ``None`` waits for whole answers.
        structured: Whether the answer has a schema.
        outcome: What the first request has come to already: it is not made again.
    """

    def __init__(
        self,
        model: Model[Any],
        context: StepContext,
        write: Callable[[str], None] | None = None,
        *,
        structured: bool = False,
        outcome: ModelResponse | Exception | None = None,
    ) -> None:
        super().__init__(tolerant(model, context.quirks.unstreamed))
        self._context = context
        self._write = write
        self._structured = structured
        self._outcome = outcome

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask, and account for every answer, also for one that middleware throws away, or that is not whole.

        What middleware answers by itself counts with its usage, unless a model was asked as well.

        Raises:
            RetryableError: The answer ended early, or its service was interrupted.
            StepError: It ended early again.
            OutputValidationError: There is again nothing in it.
            OutputTokenLimitExceeded: The answer was cut at its limit.
            ContentFilterError: The provider's filter cut it.
        """
        context = self._context
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            return outcome
        answered = False

        async def ask(call: ModelCall) -> ModelResponse:
            nonlocal answered
            response = await self._ask(call)
            answered = True
            # At once: a ledger must not find a gap between an answer and its cost.
            assume(call, response)
            account(context, response)
            return response

        call = ModelCall(context, self.wrapped, messages, model_settings, model_request_parameters)
        if context.batch is not None and not context.batch.takes(call):
            context.batch = None
        batch = context.batch
        try:
            response = await model_chain(context.middleware, call, ask)
        except Exception:
            if batch is not None:
                await batch.go_on(context)
            raise
        if batch is not None:
            await batch.go_on(context)
        if not answered:
            account(context, response)
        settings = {**(self.wrapped.settings or {}), **(model_settings or {})}
        refuse_cut(response, settings, structured=self._structured)
        reason = (response.metadata or {}).get(UNKNOWN_REASON)
        if reason is not None:
            context.metadata[UNKNOWN_REASON] = reason
        if not is_empty(response):
            context.quirks.unusable.discard((context.step, context.item))
        elif self.wrapped.base_url is not None and self._is_given_up():
            raise OutputValidationError(
                f"Step {context.step!r}: {model_name(context.model)!r} answered twice in a row with nothing: "
                "no text and no call of a tool. Try another model, or look at what its server does."
            )
        return response

    async def _ask(self, call: ModelCall) -> ModelResponse:
        """Ask, and refuse an answer that ended early: no middleware takes it for one that may be kept."""
        with readable(call):
            response, stream = await self._answer(call)
            early = ended_early(call.model, response, stream)
        tidy_answer(response, structured=self._structured)
        read_ending(response)
        if not early and response.finish_reason != "error":
            return response
        if response.usage.has_values():
            account(self._context, response)
        who = f"Step {self._context.step!r}: the answer of {model_name(self._context.model)!r}"
        if not early:
            word = (response.provider_details or {}).get("finish_reason", "error")
            raise RetryableError(f"{who} was interrupted: its server ended it with the reason {word!r}.")
        # One that never says why its answers end can be asked without streaming: what comes at once is whole.
        self._context.quirks.unstreamed.add(unstreamed_key(call.model))
        raise (StepError if self._is_given_up() else RetryableError)(
            f"{who} ended early: the connection closed before the answer was whole. If its server never says "
            "why an answer ends (no finish_reason), see 'Servers with OpenAI's protocol' in "
            "docs/how-to/models.md."
        )

    async def _answer(self, call: ModelCall) -> tuple[ModelResponse, StreamedResponse | None]:
        """The answer, and the stream that it came from."""
        if self._context.batch is not None:
            return await self._context.batch.ask(call), None
        write = self._write
        stream, came = None, False
        if write is None or unstreamed_key(call.model) in self._context.quirks.unstreamed:
            response = await call.model.request(call.messages, call.settings, call.parameters)
        else:
            async with call.model.request_stream(call.messages, call.settings, call.parameters) as stream:
                came = await pass_on(stream, write)
                response = stream.get()
        if write is not None and not came and response.text:
            write(whole_text(response.text))
        return response, stream

    def _is_given_up(self) -> bool:
        """Note an answer that was paid and cannot be used; whether the one before could not either."""
        unit, unusable = (self._context.step, self._context.item), self._context.quirks.unusable
        if unit not in unusable:
            unusable.add(unit)
            return False
        unusable.discard(unit)
        return True


class Coalesced:
    """Collects small pieces of text and passes them on at most every ``interval`` seconds.

    Args:
        write: Takes the text.
        interval: Seconds between two pieces.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        interval: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._interval = interval
        self._clock = clock
        self._kept: list[str] = []
        self._last = float("-inf")

    def write(self, text: str) -> None:
        """Take a piece."""
        self._kept.append(text)
        if self._clock() - self._last >= self._interval:
            self.flush()

    def flush(self) -> None:
        """Pass on what is kept."""
        text = "".join(self._kept)
        self._kept.clear()
        if text:
            self._write(whole_text(text))
            self._last = self._clock()


async def pass_on(events: AsyncIterable[Any], write: Callable[[str], None]) -> bool:
    """Write the text of an answer while it comes, and nothing else of a model's stream.

    Returns:
        Whether anything came.
    """
    pieces, came = Coalesced(write), False
    try:
        async for event in events:
            came = True
            if event.event_kind == "part_start" and event.part.part_kind == "text":
                pieces.write(event.part.content)
            elif event.event_kind == "part_delta" and event.delta.part_delta_kind == "text":
                pieces.write(event.delta.content_delta)
    finally:
        pieces.flush()
    return came
