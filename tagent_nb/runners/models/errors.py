"""What went wrong between a step and its model, in our words and with a remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import OutputValidationError, RetryableError, StepError, TagentError
from tagent_nb.pipeline import PipelineStep, to_schema
from tagent_nb.redaction import redact
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.models.resolve import model_name
from tagent_nb.runners.models.retry_after import MAX_TOTAL_WAIT, usable_wait
from tagent_nb.user_objects import message_of

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_ai.exceptions import FallbackExceptionGroup, ModelAPIError
    from pydantic_ai.messages import ModelMessage

SUGGESTED_TOKENS = 4000
"""Tokens of an answer that an error suggests by way of example."""

SHOWN = 500
"""Characters of an answer or of a provider's message that an error shows at most."""


def explained(
    step: PipelineStep,
    context: StepContext,
    error: Exception,
    messages: Sequence[ModelMessage],
    refused: str = "",
) -> Exception:
    """The error to raise in place of ``error``, which may be ``error`` itself.

    ``refused`` is what a check said of the last answer that matched the schema.

    What another attempt cannot mend becomes a :class:`StepError`, what it may mend a
    :class:`RetryableError` with the wait that the other side asked for.
    """
    from pydantic_ai import exceptions

    if isinstance(error, TagentError):
        return error
    if isinstance(error, exceptions.ModelAPIError):
        return _of_provider(step, context, error)
    if isinstance(error, exceptions.FallbackExceptionGroup):
        return _of_fallback(step, context, error, messages)
    if isinstance(error, exceptions.OutputTokenLimitExceeded):
        return StepError(
            f"Step {step.name!r}: the answer was cut off {error.message}, so its end is missing. "
            f"Raise max_tokens in the step's settings (settings={{'max_tokens': {SUGGESTED_TOKENS}}}, "
            f"%%tagent_step --setting max_tokens={SUGGESTED_TOKENS}), or ask for a shorter answer."
        )
    if isinstance(error, exceptions.ContentFilterError):
        return StepError(
            f"Step {step.name!r}: the content filter of {model_name(context.model)!r} stopped the answer "
            f"({redact(error.message)[:SHOWN]}). Change the goal or the data that it shows, or use another "
            "model."
        )
    if isinstance(error, exceptions.UnexpectedModelBehavior):
        if "maximum output retries" in error.message:
            return _invalid(step, messages, refused)
        return RetryableError(f"Step {step.name!r}: {redact(message_of(error))[:SHOWN]}")
    if isinstance(error, exceptions.UsageLimitExceeded):
        return StepError(f"Step {step.name!r}: {error.message}")
    if isinstance(error, exceptions.UserError):
        return StepError(f"Step {step.name!r} cannot ask {model_name(context.model)!r}: {error}")
    return error


def _of_provider(step: PipelineStep, context: StepContext, error: ModelAPIError) -> StepError:
    from pydantic_ai import exceptions

    model = model_name(context.model)
    reply = provider_message(error)
    if isinstance(error, exceptions.ModelAuthenticationError):
        return StepError(
            f"Step {step.name!r}: {model!r} refused the key ({reply}). "
            "Check the provider's key in the environment."
        )
    if isinstance(error, exceptions.ModelNotFoundError):
        hint = getattr(error, "suggested_model_id", None)
        return StepError(
            f"Step {step.name!r}: the provider has no model {model!r} ({reply})."
            + (f" Did you mean {hint!r}?" if hint else " Check the model's name.")
            + protocol_hint(context.model)
        )
    if isinstance(error, exceptions.ModelQuotaExceededError):
        return StepError(f"Step {step.name!r}: the account behind {model!r} has no quota left ({reply}).")
    if isinstance(error, exceptions.ModelRequestRejectedError):
        return StepError(f"Step {step.name!r}: {model!r} rejected the request ({reply}).")
    if isinstance(error, exceptions.ModelRateLimitError):
        message = f"Step {step.name!r}: {model!r} asks for fewer requests ({reply})."
    elif isinstance(error, exceptions.ModelConnectionError):
        message = (
            f"Step {step.name!r}: {model!r} cannot be reached ({reply}). Is it running, and the network up?"
        )
    else:
        message = f"Step {step.name!r}: {model!r} failed ({reply})."
    wait = usable_wait(error)
    if wait is not None and wait > MAX_TOTAL_WAIT:
        return StepError(f"{message} It asks to wait {wait:g} s: resume the run then.")
    return RetryableError(message, retry_after=wait)


def _of_fallback(
    step: PipelineStep, context: StepContext, group: FallbackExceptionGroup, messages: Sequence[ModelMessage]
) -> StepError:
    """What all models behind a fallback said. Another attempt may help if it may help one of them."""
    from pydantic_ai.exceptions import ModelAPIError

    replies = [
        f"{error.model_name}: {provider_message(error)}"
        if isinstance(error, ModelAPIError)
        else redact(message_of(error))
        for error in group.exceptions
    ]
    message = f"Step {step.name!r}: no model of the fallback answered ({'; '.join(replies)[: 2 * SHOWN]})."
    better = [explained(step, context, error, messages) for error in group.exceptions]
    passing = [error for error in better if isinstance(error, RetryableError)]
    if not passing:
        return StepError(message)
    waits = [error.retry_after for error in passing if error.retry_after is not None]
    return RetryableError(message, retry_after=min(waits, default=None))


def protocol_hint(model: Any) -> str:
    """What to try where a server that is not OpenAI's may not have the Responses API; empty elsewhere."""
    if isinstance(model, str):
        provider, _, name = model.partition(":")
        if provider not in ("openai", "openai-responses") or not os.environ.get("OPENAI_BASE_URL"):
            return ""
        where, remedy = "the server of OPENAI_BASE_URL", f"'openai-chat:{name}'"
    else:
        address = str(getattr(model, "base_url", ""))
        if type(model).__name__ != "OpenAIResponsesModel" or "//api.openai.com" in address:
            return ""
        where, remedy = "its server", "OpenAIChatModel(...)"
    return (
        f" {model_name(model)!r} speaks the Responses API, which {where} may not have: {remedy} speaks chat "
        "completions."
    )


def provider_message(error: ModelAPIError) -> str:
    """What the other side said, short and without secrets."""
    body: Any = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message", inner) if isinstance(inner, dict) else inner
    status = getattr(error, "status_code", None)
    text = str(body) if body else error.message
    return redact(f"HTTP {status}: {text}" if status is not None else text)[:SHOWN]


def _invalid(step: PipelineStep, messages: Sequence[ModelMessage], refused: str) -> OutputValidationError:
    answer = last_answer(messages)
    schema = step.output_schema
    wanted = "text" if schema is None else schema.__name__
    tries = f"{step.output_retries + 1} {'tries' if step.output_retries else 'try'}"
    passed = " and passed its checks" if step.checks else ""
    message = f"Step {step.name!r}: no answer matched {wanted}{passed} in {tries}."
    if not answer:
        return OutputValidationError(f"{message} The last answer was empty.")
    wrong = "" if schema is None else _wrong(schema, answer)
    if refused and not wrong:
        wrong = f" {refused[:SHOWN]}{'' if refused.endswith(('.', '!', '?')) else '.'}"
    shown = answer if len(answer) <= SHOWN else f"{answer[:SHOWN]}..."
    return OutputValidationError(f"{message}{wrong} The last answer was: {shown}")


def last_answer(messages: Sequence[ModelMessage]) -> str:
    """The last text, or the last arguments of the tool that takes the answer."""
    for message in reversed(messages):
        for part in reversed(message.parts if message.kind == "response" else ()):
            if part.part_kind == "text":
                return part.content
            if part.part_kind == "tool-call":
                return part.args if isinstance(part.args, str) else part.args_as_json_str()
    return ""


def _wrong(schema: type[BaseModel], answer: str) -> str:
    try:
        to_schema(schema, json.loads(answer))
    except json.JSONDecodeError:
        return " It was not JSON."
    except ValueError as error:
        return f" Wrong: {error}."
    return ""
