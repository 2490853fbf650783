"""Spans of a run by the OpenTelemetry API: of the run, its steps, their attempts, and their calls.

Runs, steps and attempts come as events, calls as middleware; this is both. Names and attributes are those
of the semantic conventions for generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/), and
``tagent.*`` where these have none. What is sent and answered, and the messages of errors, which may quote
it, are left out unless asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context, use_span

from tagent_nb.events import (
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCached,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepRetried,
    StepSkipped,
    StepStarted,
    StepWaiting,
    TokenUsage,
)
from tagent_nb.redaction import redact
from tagent_nb.runners.base import CallMiddleware, ModelCall, ToolCall
from tagent_nb.runners.calls import edited_arguments

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse

_SETTINGS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "frequency_penalty",
)
_ENDS: dict[type[Event], str] = {
    StepFinished: "completed",
    StepFailed: "failed",
    StepCancelled: "cancelled",
    StepCached: "cached",
    StepSkipped: "skipped",
}


class Tracing(CallMiddleware):
    """Traces one run: an observer of its events, and the outermost middleware of its calls.

    Args:
        pipeline: The pipeline's name.
        tracer: Makes the spans.
        content: Whether spans hold what is sent and answered, and messages of errors, without secrets.
    """

    reads_text = False

    def __init__(self, pipeline: str, tracer: Tracer, *, content: bool = False) -> None:
        self._pipeline = pipeline
        self._tracer = tracer
        self._content = content
        self._run: Span | None = None
        self._steps: dict[str, Span] = {}
        self._attempts: dict[tuple[str, str | None], Span] = {}

    # -- runs, steps, attempts ------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        """Open and close spans as the events say."""
        if isinstance(event, RunStarted | RunResumed):
            self._begin(event)
        elif isinstance(event, StepStarted):
            self._started(event)
        elif isinstance(event, StepRetried):
            self._attempt_ended(event)
        elif isinstance(event, StepWaiting):
            self._parent(event.step, event.item).add_event("waiting", {"tagent.waits_for": event.reason})
        elif type(event) in _ENDS:
            self._ended(event)
        elif isinstance(event, RunFinished):
            self._finish(event)

    def _begin(self, event: RunStarted | RunResumed) -> None:
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": self._pipeline,
            "tagent.run_id": event.run_id,
            "tagent.resumed": isinstance(event, RunResumed),
        }
        self._run = self._tracer.start_span(f"invoke_workflow {self._pipeline}", attributes=attributes)

    def _finish(self, event: RunFinished) -> None:
        for span in (*self._attempts.values(), *self._steps.values()):
            span.end()
        if self._run is None:
            return  # it ended before it began: nothing could be recorded
        outcome = "completed" if event.success else "cancelled" if event.cancelled else "failed"
        self._run.set_attribute("tagent.status", outcome)
        if outcome == "failed":
            self._run.set_status(Status(StatusCode.ERROR))
        self._run.end()

    def _started(self, event: StepStarted) -> None:
        if event.item is None:
            self._step(event.step)
        if event.items is not None:
            self._steps[event.step].set_attribute("tagent.items", event.items)
            return
        attributes: dict[str, Any] = {"tagent.step": event.step, "tagent.attempt": event.attempt}
        if self._content and event.item is not None:
            attributes["tagent.item"] = event.item
        self._attempts[event.step, event.item] = self._tracer.start_span(
            f"attempt {event.step}", set_span_in_context(self._step(event.step)), attributes=attributes
        )

    def _step(self, name: str) -> Span:
        span = self._steps.get(name)
        if span is None:
            parent = None if self._run is None else set_span_in_context(self._run)
            span = self._steps[name] = self._tracer.start_span(
                f"step {name}", parent, attributes={"tagent.step": name}
            )
        return span

    def _ended(self, event: Any) -> None:
        self._attempt_ended(event)
        if event.item is not None:
            return
        span = self._step(event.step)
        span.set_attribute("tagent.status", _ENDS[type(event)])
        if isinstance(event, StepFailed):
            self._failed(span, event.error_type, event.message)
        span.end()
        del self._steps[event.step]

    def _attempt_ended(self, event: Any) -> None:
        span = self._attempts.pop((event.step, event.item), None)
        if span is None:
            return
        _spent(span, event.usage, event.cost)
        if isinstance(event, StepFailed | StepRetried):
            self._failed(span, event.error_type, event.message)
        elif isinstance(event, StepCancelled):
            span.set_attribute("tagent.status", "cancelled")
        span.end()

    def _parent(self, step: str, item: str | None) -> Span:
        return self._attempts.get((step, item)) or self._step(step)

    def _failed(self, span: Span, kind: str, message: str) -> None:
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, redact(message) if self._content else None))

    # -- calls ----------------------------------------------------------------------------------

    async def model_call(
        self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """A span for a request to a model, with everything that keeps it waiting."""
        model = call.model.model_name
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": call.model.system,
            "gen_ai.request.model": model,
        }
        settings: Mapping[str, Any] = call.settings or {}
        for name in _SETTINGS:
            if isinstance(settings.get(name), int | float):
                attributes[f"gen_ai.request.{name}"] = settings[name]
        if self._content:
            attributes["gen_ai.input.messages"] = _messages(call.messages)
        context = call.context
        attempt = self._parent(context.step, context.item)
        attempt.set_attributes({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": context.step})
        with self._span(f"chat {model}", SpanKind.CLIENT, attributes, attempt) as span:
            response = await proceed(call)
            span.set_attributes(_response_attributes(response))
            if self._content:
                span.set_attribute("gen_ai.output.messages", _messages([response]))
        return response

    async def tool_call(self, call: ToolCall, proceed: Callable[[ToolCall], Awaitable[Any]]) -> Any:
        """A span for a call of a tool."""
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.tool,
            "gen_ai.tool.type": "function" if call.function is not None else "extension",
        }
        if call.id:
            attributes["gen_ai.tool.call.id"] = call.id
        if self._content:
            attributes["gen_ai.tool.call.arguments"] = _json(dict(call.arguments))
        attempt = self._parent(call.context.step, call.context.item)
        with self._span(f"execute_tool {call.tool}", SpanKind.INTERNAL, attributes, attempt) as span:
            value = await proceed(call)
            if self._content:
                edited = edited_arguments(value)
                if edited is not None:
                    span.set_attribute("gen_ai.tool.call.arguments", _json(dict(edited)))
                span.set_attribute("gen_ai.tool.call.result", _json(value))
        return value

    @contextmanager
    def _span(self, name: str, kind: SpanKind, attributes: Mapping[str, Any], parent: Span) -> Iterator[Span]:
        span = self._tracer.start_span(name, set_span_in_context(parent), kind, attributes)
        try:
            # What the call does inside belongs to it: spans of HTTP clients, or of the user's own tools.
            with use_span(span, record_exception=False, set_status_on_exception=False):
                yield span
        except BaseException as error:
            self._failed(span, type(error).__name__, str(error))
            raise
        finally:
            span.end()


def _response_attributes(response: ModelResponse) -> dict[str, Any]:
    # Here, since a run of Python steps asks no provider.
    from tagent_nb.runners.models.resolve import is_measured

    used = response.usage
    attributes: dict[str, Any] = {}
    if is_measured(response):
        attributes = {
            "gen_ai.usage.input_tokens": used.input_tokens,
            "gen_ai.usage.output_tokens": used.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": used.cache_read_tokens,
            "gen_ai.usage.reasoning.output_tokens": used.output_reasoning_tokens,
        }
    if response.model_name:
        attributes["gen_ai.response.model"] = response.model_name
    if response.provider_response_id:
        attributes["gen_ai.response.id"] = response.provider_response_id
    if response.finish_reason:
        attributes["gen_ai.response.finish_reasons"] = [response.finish_reason]
    if used.cost is not None:
        attributes["tagent.cost_usd"] = float(used.cost)
    return attributes


def _spent(span: Span, usage: TokenUsage, cost: float | None) -> None:
    if not usage:
        return
    if not usage.unmeasured:
        span.set_attribute("gen_ai.usage.input_tokens", usage.input_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
    if cost is not None:
        span.set_attribute("tagent.cost_usd", cost)


def _messages(messages: list[ModelMessage]) -> str:
    """A conversation in the form of the conventions."""
    from pydantic_ai.models.instrumented import InstrumentationSettings

    form = InstrumentationSettings(include_content=True, include_binary_content=False)
    return _json(form.messages_to_otel_messages(messages))


def _json(value: Any) -> str:
    from pydantic_core import to_json

    return redact(to_json(value, fallback=repr).decode())
