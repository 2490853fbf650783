"""Refusals that a server sends with HTTP 200, or inside a stream: an error object in place of an answer.

Imports pydantic-ai: load it late.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic_ai import exceptions

__all__ = ["has_error", "refusal", "refuses_streaming"]

_STATUS = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "rate_limit_reached_error": 429,
    "rate_limited": 429,
    "too_many_requests": 429,
    "resource_exhausted": 429,
    "insufficient_quota": 402,
    "billing_hard_limit_reached": 402,
    "credit_balance_exhausted": 402,
    "insufficient_balance": 402,
    "insufficient_credits": 402,
    "payment_required": 402,
    "exceeded_current_quota_error": 402,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "unauthorized": 401,
    "unauthenticated": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "forbidden": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "not_found": 404,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "invalid_argument": 400,
    "bad_request": 400,
    "bad_request_error": 400,
    "server_error": 500,
    "internal_server_error": 500,
    "api_error": 500,
    "service_unavailable": 503,
    "unavailable": 503,
    "overloaded": 503,
    "overloaded_error": 503,
    "server_is_overloaded": 503,
}
"""The HTTP status of an error by its code or type, where it says no number."""

_CATEGORIES: dict[int, Any] = {
    400: exceptions.ModelRequestRejectedError,
    401: exceptions.ModelAuthenticationError,
    402: exceptions.ModelQuotaExceededError,
    403: exceptions.ModelAuthenticationError,
    404: exceptions.ModelNotFoundError,
    422: exceptions.ModelRequestRejectedError,
    429: exceptions.ModelRateLimitError,
    503: exceptions.ModelUnavailableError,
    529: exceptions.ModelOverloadedError,
}

_CODES = ("code", "status", "status_code", "http_code", "http_status", "statusCode", "type", "error_code")
_TEXTS = (
    *("message", "msg", "detail", "error_msg", "error_message", "status_msg", "faultstring"),
    *("title", "reason", "description"),
)
_FINE = frozenset({"ok", "success", "succeeded", "none", "null"})
_MARKS = re.compile(r"[^a-z0-9]+")
_STATUS_OF_WORDS = {_MARKS.sub("", word): status for word, status in _STATUS.items()}
_STREAM = re.compile(r"\bstream(?:s|ed|ing|_options)?\b|\bsse\b|\bserver-sent events?\b")
_UNABLE = re.compile(r"support|implement|verif|not allowed|disabled|not available|cannot stream")

_QUIET = ("output", "candidates", "content", "delta")
_INNER = ("error", "errors", "detail", "fault", "base_resp")


def refusal(
    model: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> exceptions.ModelAPIError | None:
    """The error that a body of HTTP 200 stands for; ``None`` where it has an answer in it.

    Its code counts as if it were the status of HTTP: 402 is a quota that is used up, 429 a rate limit.

    Args:
        model: The model's name.
        body: What came, as parsed from JSON.
        headers: Those of the response, which may say how long to wait.
    """
    if any(body.get(name) for name in _QUIET) or any(map(_is_answer, _choices(body))):
        return None
    errors = list(_errors(body))
    if not errors and not _is_bare_error(body):
        return None
    texts = [error if isinstance(error, str) else _text(error) for error in reversed(errors)]
    text = next(filter(None, texts), "") or _text(body) or json.dumps(body, default=str)
    layers = [error for error in reversed(errors) if isinstance(error, Mapping)]
    status = _status(code for layer in (*layers, body) for code in _codes(layer))
    if status is None:
        return exceptions.ModelAPIError(model, text, body={"message": text})
    category = _CATEGORIES.get(status, exceptions.ModelServerError if status >= 500 else None)
    return exceptions.ModelHTTPError.for_category(
        category, status_code=status, model_name=model, body={"message": text}, headers=headers
    )


def has_error(response: Any) -> bool:
    """Whether an answer, or a piece of one, has an error beside its choices or in one of them."""
    choices = getattr(response, "choices", None) or ()
    return any(getattr(part, "error", None) for part in (response, *choices))


def _choices(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = body.get("choices")
    return [choice for choice in choices if isinstance(choice, Mapping)] if isinstance(choices, list) else []


def _is_answer(choice: Mapping[str, Any]) -> bool:
    """Whether a choice has anything in it that a model has said."""
    for message in (choice.get("message"), choice.get("delta")):
        if isinstance(message, Mapping) and any(message[name] for name in message if name != "role"):
            return True
    return bool(choice.get("text"))


def _errors(body: Mapping[str, Any]) -> Iterator[str | Mapping[str, Any]]:
    """The error in a body, and what is nested in it, the outermost first."""
    places = [body.get(name) for name in _INNER] + [choice.get("error") for choice in _choices(body)]
    error: Any = next(filter(None, places), None)
    while error:
        if isinstance(error, str) and error.lstrip().startswith(("{", "[")):
            with contextlib.suppress(ValueError):  # a sentence that begins so
                error = json.loads(error)
        if isinstance(error, list) and error:
            error = error[0]
        if isinstance(error, str):
            yield error
        if not isinstance(error, Mapping):
            return
        if error.get("status_code") == 0:
            return  # a success, as some write it in each answer
        yield error
        error = next(filter(None, (error.get(name) for name in _INNER)), None)


def _is_bare_error(body: Mapping[str, Any]) -> bool:
    """Whether the body itself is the error object, as of older servers of vLLM."""
    if body.get("object") == "error" or body.get("success") is False:
        return True
    if not _text(body):
        return False
    if (
        any(body.get(name) for name in ("error_code", "error_msg", "error_message"))
        or body.get("error") is True
    ):
        return True
    code = body.get("code")
    is_word = isinstance(code, str) and code.isidentifier() and code.lower() not in _FINE
    return ("choices" not in body and is_word) or _status(_codes(body)) is not None


def _text(error: Mapping[str, Any]) -> str:
    for name in _TEXTS:
        text = error.get(name)
        if isinstance(text, str) and text:
            return text
        if isinstance(text, list | dict) and text and name not in _INNER:
            return json.dumps(text, ensure_ascii=False, default=str)
    return ""


def _codes(error: Mapping[str, Any]) -> list[Any]:
    return [error.get(name) for name in _CODES]


def _status(codes: Iterable[Any]) -> int | None:
    """The first of these that is a status of HTTP, as a number, digits, or a word that stands for one."""
    return next((status for status in map(_status_of, codes) if status is not None), None)


def _status_of(code: Any) -> int | None:
    if isinstance(code, str):
        digits = re.match(r"[1-9][0-9]{2}(?![0-9])", code.strip())
        code = int(digits[0]) if digits else _STATUS_OF_WORDS.get(_MARKS.sub("", code.lower()))
    if isinstance(code, float) and code.is_integer():
        code = int(code)
    return code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599 else None


def refuses_streaming(error: exceptions.ModelAPIError) -> bool:
    """Whether a server refuses a request because it is to be streamed."""
    status = getattr(error, "status_code", 0)
    if isinstance(error, exceptions.ModelConnectionError) or status in (401, 429):
        return False
    text = f"{error.body} {error.message}".lower()
    if _STREAM.search(text) is None:
        return False
    # What a request cannot mend is a 4xx; of a server in trouble only clear words count.
    return 400 <= status < 500 or _UNABLE.search(text) is not None
