"""Answers that are not whole: ended early, interrupted, cut at their limit, filtered, or empty.

Imports pydantic-ai: load it late.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelHTTPError,
    OutputTokenLimitExceeded,
    UnexpectedModelBehavior,
)

from tagent_nb.errors import RetryableError, TagentError
from tagent_nb.formatting import short_text
from tagent_nb.redaction import redact
from tagent_nb.runners.base import UNKNOWN_REASON, ModelCall
from tagent_nb.runners.models.errors import SHOWN, protocol_hint
from tagent_nb.runners.models.output import first_json
from tagent_nb.runners.models.refusals import refusal
from tagent_nb.runners.models.resolve import model_name, profiles_behind

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import Model, StreamedResponse

__all__ = [
    "Ending",
    "ended_early",
    "ending_of",
    "is_empty",
    "read_ending",
    "readable",
    "refuse_cut",
]


_STUMBLES = (TypeError, AttributeError, LookupError, ValueError, AssertionError)
"""What clients of providers raise at an answer whose shape they took on trust."""


@contextmanager
def readable(call: ModelCall) -> Iterator[None]:
    """Ask a model inside this block: an answer in the wrong shape becomes one clear error.

    Raises:
        RetryableError: The answer cannot be read.
        ModelAPIError: As it came; one whose body has a code, as if that were its status.
    """
    try:
        yield
    except ModelAPIError as error:
        if type(error) is not ModelAPIError:
            raise
        if error.body is None and "JSON" in error.message:
            raise _unreadable(call, error.message) from error
        # Of an error object inside a stream, the client reads the simplest form only.
        restated = refusal(error.model_name, {"error": error.body})
        if not isinstance(restated, ModelHTTPError):
            raise
        raise restated from error
    except (TagentError, ContentFilterError, OutputTokenLimitExceeded):
        raise
    except (UnexpectedModelBehavior, *_STUMBLES) as error:
        if call.model.base_url is None:
            raise  # a model of tests, or the user's own: the error is in its code
        is_own = isinstance(error, UnexpectedModelBehavior)
        message = str(error) if is_own else f"{type(error).__name__}: {error}"
        raise _unreadable(call, message) from error


def _unreadable(call: ModelCall, message: str) -> RetryableError:
    return RetryableError(
        f"Step {call.context.step!r}: {model_name(call.context.model)!r} sent an answer that cannot be "
        f"read ({short_text(redact(message), SHOWN)}).{protocol_hint(call.context.model)}"
    )


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
    if response.state == "suspended":
        # It can be continued where its provider has named it; else its stream had no beginning.
        return response.provider_response_id is None
    if stream is None or _word(response):
        return False
    if response.finish_reason is None:
        # Models that ask no server, such as those of tests, have no address and give no reason.
        return response.provider_url is not None
    return response.finish_reason == "stop" and _is_made_up(model, stream)


def _is_made_up(model: Model[Any], stream: StreamedResponse) -> bool:
    """Whether pydantic-ai says "stop" for a server that gave no reason."""
    from pydantic_ai.models.openai import OpenAIStreamedResponse

    if not isinstance(stream, OpenAIStreamedResponse):
        return False
    requirements = (
        profile.get("openai_chat_streaming_requires_finish_reason") for profile in profiles_behind(model)
    )
    return any(required is not False for required in requirements)


def read_ending(response: ModelResponse) -> None:
    """Give an answer the finish reason that its provider's own word for it means.

    A word of unknown meaning, also to pydantic-ai, is noted in the answer's metadata.
    """
    word = _word(response)
    if not word:
        return
    ending = ending_of(word)
    if ending is not Ending.UNKNOWN:
        whole = "tool_call" if response.tool_calls else "stop"
        response.finish_reason = whole if ending is Ending.WHOLE else ending.value  # type: ignore[assignment]
    elif response.finish_reason is None:
        response.metadata = {**(response.metadata or {}), UNKNOWN_REASON: word[:SHOWN]}


def _word(response: ModelResponse) -> str:
    """The provider's own word for why an answer ended; empty where it says none."""
    word = (response.provider_details or {}).get("finish_reason")
    return "" if word is None or str(word).lower() in ("null", "none", "undefined") else str(word)


def is_empty(response: ModelResponse) -> bool:
    """Whether there is nothing in an answer that could be used: no text, no call, no file."""
    return not any(
        part.part_kind != "thinking" and getattr(part, "content", part.part_kind) for part in response.parts
    )


def refuse_cut(response: ModelResponse, settings: Mapping[str, Any], *, structured: bool) -> None:
    """Let an answer pass unless its end is missing. What has all its JSON is whole, wherever it was cut.

    Args:
        response: What a model answered.
        settings: Those that it was asked with.
        structured: Whether the answer has a schema, and is JSON where it is text.

    Raises:
        OutputTokenLimitExceeded: It was cut at the limit of output tokens.
        ContentFilterError: The provider's filter cut it or took it away.
    """
    if response.finish_reason == "content_filter":
        details = response.provider_details or {}
        reason = details.get("refusal") or details.get("block_reason") or details.get("finish_reason")
        raise ContentFilterError(str(reason or "content_filter"))
    if response.finish_reason == "length" and not _has_its_end(response, structured):
        limit = settings.get("max_tokens")
        raise OutputTokenLimitExceeded(
            "at the model's own limit of output tokens" if limit is None else f"at max_tokens={limit}"
        )


def _has_its_end(response: ModelResponse, structured: bool) -> bool:
    calls = response.tool_calls
    if not calls and not structured:
        return False
    try:
        for call in calls:
            call.args_as_dict(raise_if_invalid=True)
        if not calls:
            first_json(response.text or "")
    except (ValueError, AssertionError):  # the second where the JSON is no object
        return False
    return True


class Ending(Enum):
    """What a finish reason means for the answer. The values are pydantic-ai's own words for it."""

    WHOLE = "stop"
    LENGTH = "length"
    FILTERED = "content_filter"
    INTERRUPTED = "error"
    UNKNOWN = ""


# As providers document them, without case and marks: `end_turn` and `endTurn` are one. Where two providers
# mean different things by one word, the cautious meaning stands.
_EXACT = {
    Ending.WHOLE: """
        stop stopped end ended endturn endoftext endofturn endofsequence eos eostoken eosfound stopeos
        stoppedeos stopsequence stopsequences stopstring stopstringfound stopword stoppedword stoptoken word
        toolcall toolcalls tooluse functioncall functioncalls function toolcallsstop complete completed
        completion done finish finished success succeeded normal ok pauseturn s imend eot eotid eom streamend
    """,
    Ending.LENGTH: """
        length maxtoken maxtokens maxlength maxlen maxoutput maxoutputtokens maxcontext maxcompletiontokens
        maxnewtokens maxgentokens maxpredictedtokensreached maxtokensreached maxmessages modellength
        modelcontextwindowexceeded contextlength contextlengthexceeded contextlengthreached contextwindow
        contextwindowexceeded tokenlimit tokenslimit tokenlimitreached limit stoppedlimit outputlimit
        errorlimit truncated lengthlimit
    """,
    Ending.FILTERED: """
        contentfilter contentfiltered contentfiltering filter filtered safety imagesafety recitation blocklist
        prohibitedcontent spii refusal refused sensitive moderation guardrailintervened guardrail errortoxic
        toxic blocked ban banned language policyviolation
    """,
    Ending.INTERRUPTED: """
        error errors failed failure fail abort aborted cancel canceled cancelled usercancel userstopped
        modelunloaded interrupted timeout timedout timelimit networkerror insufficientsystemresource
        incomplete serviceunavailable unavailable overloaded ratelimit ratelimited disconnect disconnected
        malformedfunctioncall malformedresponse unexpectedtoolcall preempted evicted
    """,
}

_MEANINGS = {word: ending for ending, words in _EXACT.items() for word in words.split()}

_PARTS = (
    (Ending.FILTERED, ("filter", "safety", "refus", "prohibited", "moderat", "guardrail", "sensitive")),
    (Ending.FILTERED, ("policy", "policies")),
    (Ending.INTERRUPTED, ("error", "fail", "abort", "cancel", "interrupt", "timeout", "timelimit")),
    (Ending.INTERRUPTED, ("unavailable", "overload", "disconnect", "network", "systemresource", "ratelimit")),
    (Ending.INTERRUPTED, ("connection", "timedout", "shutdown", "preempt", "evict", "kill", "crash")),
    (Ending.INTERRUPTED, ("incomplete", "partial", "restart", "unload")),
    (Ending.LENGTH, ("maxtoken", "maxoutput", "maxlen", "length", "tokenlimit", "contextwindow", "truncat")),
)
"""Parts of words that are not documented yet, the cautious meaning first."""

_MARKS = re.compile(r"[^a-z0-9]+")
_PREFIX = re.compile(r"^(?:finish|stop|done)?reason")


def ending_of(reason: object) -> Ending:
    """What a provider's finish reason means.

    Args:
        reason: As the provider writes it, such as ``"stop"``, ``"END_TURN"``, ``"FinishReason.MAX_TOKENS"``.
    """
    word = _MARKS.sub("", str(getattr(reason, "value", reason)).strip(" .").rpartition(".")[2].lower())
    word = _PREFIX.sub("", word) or word
    ending = _MEANINGS.get(word)
    if ending is not None:
        return ending
    return next((ending for ending, parts in _PARTS if any(part in word for part in parts)), Ending.UNKNOWN)
