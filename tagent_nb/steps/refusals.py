"""Refusals that a server sends with HTTP 200, or inside a stream: an error object in place of an answer.

Imports pydantic-ai: load it late.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_ai import exceptions

__all__ = ["refusal", "refuses_streaming"]

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
    "badrequesterror": 400,
    "server_error": 500,
    "internal_server_error": 500,
    "internalservererror": 500,
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
_TEXTS = ("message", "msg", "detail", "error_msg", "error_message", "title", "reason")
_STREAM = re.compile(r"\bstream(?:s|ed|ing|_options)?\b")
_UNABLE = re.compile(r"support|implement|verif|not allowed|disabled|not available|cannot stream")

_QUIET = ("choices", "output", "candidates", "content", "delta")


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
    if any(body.get(name) for name in _QUIET):
        return None
    error = body.get("error") or body.get("errors") or body.get("detail")
    if isinstance(error, list) and error:
        error = error[0]
    inner = error if isinstance(error, Mapping) else {}
    if not error and not _is_bare_error(body):
        return None
    text = error if isinstance(error, str) else _text(inner) or _text(body) or json.dumps(body, default=str)
    status = _status([*_codes(inner), *_codes(body)])
    if status is None:
        return exceptions.ModelAPIError(model, str(text), body={"message": text})
    category = _CATEGORIES.get(status, exceptions.ModelServerError if status >= 500 else None)
    return exceptions.ModelHTTPError.for_category(
        category, status_code=status, model_name=model, body={"message": text}, headers=headers
    )


def _is_bare_error(body: Mapping[str, Any]) -> bool:
    """Whether the body itself is the error object, as of older servers of vLLM."""
    if body.get("object") == "error" or body.get("success") is False:
        return True
    return bool(_text(body)) and _status(_codes(body)) is not None


def _text(error: Mapping[str, Any]) -> str:
    for name in _TEXTS:
        text = error.get(name)
        if isinstance(text, str) and text:
            return text
        if isinstance(text, list | dict) and text:
            return json.dumps(text, ensure_ascii=False, default=str)
    return ""


def _codes(error: Mapping[str, Any]) -> list[Any]:
    return [error.get(name) for name in _CODES]


def _status(codes: Iterable[Any]) -> int | None:
    """The first of these that is a status of HTTP, as a number, digits, or a word that stands for one."""
    for code in codes:
        if isinstance(code, str):
            code = int(code) if code.isascii() and code.isdigit() else _STATUS.get(code.strip().lower())
        if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599:
            return code
    return None


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
