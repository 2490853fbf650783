"""Batches at a provider, by pydantic-ai's interface of its models. Imports pydantic-ai: load it late."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, UserError
from pydantic_ai.models.batch import Batch, BatchRequest, EncodedBatchRequest

from tagent_nb.errors import RetryableError, StepError
from tagent_nb.runners.base import ModelCall
from tagent_nb.runners.middleware.canonical_request import model_request
from tagent_nb.runners.models.resolve import BATCHED, model_name
from tagent_nb.runners.models.retry_after import usable_wait

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import Model

MOST_REQUESTS = 10_000
"""Most requests of one batch: more are several, whose answers come one batch after the other."""

CLOCKS = 600.0
"""Seconds by which a provider's clock may be behind ours."""

_PASSING = frozenset({408, 409, 425, 429})
"""HTTP status codes below 500 after which the same request may succeed."""


@dataclass(slots=True)
class BatchedCall:
    """One request that is to be sent in a batch.

    Attributes:
        call: The request.
        encoded: The same as its provider takes it.
        key: SHA-256 of its canonical form.
    """

    call: ModelCall
    encoded: EncodedBatchRequest
    key: str

    @classmethod
    async def of(cls, call: ModelCall) -> BatchedCall:
        """Encode a request.

        Raises:
            UserError: It has a setting that no batch can have.
        """
        encoded = await call.model.batch_encode(_request(call))
        return cls(call, encoded, call_key(call))

    @property
    def group(self) -> tuple[str, str]:
        """What the requests of one batch have in common."""
        return self.call.model.system, self.encoded.group

    @property
    def size(self) -> int:
        """Bytes that it adds to a batch; the id that it gets there is not known yet."""
        return self.call.model.batch_request_size(replace(self.encoded, custom_id="0" * 64))


def call_key(call: ModelCall) -> str:
    """SHA-256 of the canonical form of a request."""
    return model_request(call, model_name(call.context.model)).key


def _request(call: ModelCall, custom_id: str = "") -> BatchRequest:
    return BatchRequest(
        custom_id=custom_id,
        messages=call.messages,
        model_settings=call.settings,
        model_request_parameters=call.parameters,
    )


def parted(calls: Sequence[BatchedCall]) -> list[list[BatchedCall]]:
    """Requests as the batches that their provider takes: of one group, and not too many or too large."""
    batches: list[list[BatchedCall]] = []
    last: dict[tuple[str, str], tuple[list[BatchedCall], int]] = {}
    for call in calls:
        model, size = call.call.model, call.size
        batch, total = last.get(call.group, ([], 0))
        most = model.batch_max_bytes
        full = len(batch) >= min(MOST_REQUESTS, model.batch_max_requests or 1)
        if not batch or full or (most is not None and total + size > most):
            batch, total = [], 0
            batches.append(batch)
        batch.append(call)
        last[call.group] = batch, total + size
    return batches


async def create_batch(calls: Sequence[BatchedCall], marker: str) -> Batch:
    """Send requests as a batch. Their ids are ``marker-0``, ``marker-1``, and so on."""
    requests = [
        replace(call.encoded, custom_id=request_id(marker, number)) for number, call in enumerate(calls)
    ]
    return await calls[0].call.model.batch_create(requests)


def request_id(marker: str, number: int) -> str:
    """The id of a request in a batch."""
    return f"{marker}-{number}"


async def cancel_batch(model: Model[Any], batch: Batch) -> None:
    """Ask the provider to cancel a batch."""
    await model.batch_cancel(batch)


def answer_of(call: ModelCall, result: Any, batch: Batch) -> ModelResponse:
    """The answer to a request, by its result in a batch that has ended.

    Args:
        call: The request.
        result: What pydantic-ai calls a ``BatchResult``; ``None`` where the batch has none for it.
        batch: The batch.

    Raises:
        ModelAPIError: As if the request had been sent by itself.
        RetryableError: The batch expired before it was its turn, or has no result for it.
        StepError: The batch was cancelled before that.
    """
    who = f"Step {call.context.step!r}: batch {batch.id} of {model_name(call.context.model)!r}"
    if result is None:
        raise RetryableError(f"{who} has ended without a result for this request.")
    if result.status == "expired":
        raise RetryableError(f"{who} expired before the provider came to this request.")
    if result.status == "canceled":
        raise StepError(
            f"{who} was cancelled before the provider came to this request. Resume the run to send it again."
        )
    response = call.model.batch_decode(result, _request(call, result.custom_id))
    response.metadata = {**(response.metadata or {}), BATCHED: batch.id}
    return response


# -- what is recorded of a batch ------------------------------------------------------------------


@cache
def _handles() -> TypeAdapter[Batch]:
    return TypeAdapter(Batch)


def handle_of(batch: Batch) -> dict[str, Any]:
    """A batch as plain data, which finds it again."""
    data: dict[str, Any] = _handles().dump_python(batch, mode="json")
    return data


def batch_of(handle: Mapping[str, Any]) -> Batch:
    """The batch of :func:`handle_of`."""
    return _handles().validate_python(dict(handle))


# -- trouble --------------------------------------------------------------------------------------


def passes(error: Exception) -> bool:
    """Whether the same may succeed later: a connection that is down, a provider that is busy."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status in _PASSING or status >= 500
    return isinstance(error, ModelAPIError | OSError) or type(error).__name__ in _CONNECTION_ERRORS


_CONNECTION_ERRORS = frozenset({"APIConnectionError", "APITimeoutError"})
"""What the clients of OpenAI and Anthropic call a request that got no answer."""


def is_refusal(error: Exception) -> bool:
    """Whether a provider that answered so has certainly not taken a batch."""
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and status < 500 and status != 408


KEPT = 28 * 86_400.0
"""Seconds for which providers keep the results of a batch."""


_KEY = frozenset({401, 403})
"""HTTP status codes that say that the key is the wrong one."""


def ends_giving_up(error: Exception) -> bool:
    """Whether a provider that answers so to a request to cancel a batch has nothing of it to cancel.

    It does not know it, or the batch has ended, with results that nothing can read, say.
    """
    return is_refusal(error) and not passes(error) and getattr(error, "status_code", None) not in _KEY


def is_gone(model: Model[Any], batch: Batch, error: Exception, *, given_up: bool) -> bool:
    """Whether nothing can be had of a batch any more, and its requests are to be sent again.

    What its user has given up is not waited for, whatever is wrong with it but the key. Else, a
    provider that does not know a new one may be asked with the key of another project: to send it again
    would be to pay for it twice.
    """
    if model.base_url is None:
        return isinstance(error, UserError)  # one of tests, whose batches end with its process
    if given_up:
        return getattr(error, "status_code", None) not in _KEY
    is_old = time.time() - batch.created_at.timestamp() > KEPT
    return is_old and isinstance(error, ModelHTTPError) and error.status_code == 404


def wait_of(error: Exception) -> float | None:
    """Seconds that a provider asks to wait; ``None`` where it does not say."""
    return usable_wait(error) if isinstance(error, ModelAPIError) else None


# -- looking for batches --------------------------------------------------------------------------


def _kind_of(client: Any) -> str:
    """Whose client it is, or is derived from: ``openai``, ``anthropic``, or empty for any other.

    Google's has ``batches`` as well. Names of providers do not tell: others speak OpenAI's protocol.
    """
    packages = {base.__module__.partition(".")[0] for base in type(client).__mro__}
    return next((name for name in ("openai", "anthropic") if name in packages), "")


async def progress_of(model: Model[Any], batch: Batch) -> int | None:
    """How many requests of a batch the provider has done; ``None`` where it does not say."""
    client: Any = getattr(model, "client", None)
    kind = _kind_of(client)
    if kind == "openai":
        counts = (await client.batches.retrieve(batch.id)).request_counts
        return None if counts is None else counts.completed + counts.failed
    if kind == "anthropic":
        counts = (await client.beta.messages.batches.retrieve(batch.id)).request_counts
        done: int = counts.succeeded + counts.errored + counts.canceled + counts.expired
        return done
    return None


async def find_batch(
    calls: Sequence[BatchedCall], marker: str, size: int, since: float, others: Collection[str]
) -> tuple[Batch, bool] | None:
    """The batch that a process has sent and could not record; ``None`` if the provider has none.

    OpenAI shows the requests of a batch, whose ids say which it is. Anthropic does so when it has ended;
    before that, it is the one of the same size that was begun next to then.

    Args:
        calls: Some requests of it, encoded anew.
        marker: What the ids of its requests begin with.
        size: How many requests it has.
        since: When it was about to be sent, in seconds since the epoch.
        others: Ids of batches that are certainly others.

    Returns:
        The batch, and whether it is only supposed to be that.
    """
    model = calls[0].call.model
    client: Any = getattr(model, "client", None)
    kind = _kind_of(client)
    if kind == "openai":
        search = _find_openai(client, marker, size, since, others)
    elif kind == "anthropic":
        search = _find_anthropic(client, marker, size, since, others)
    elif model.base_url is None:
        return None  # one of tests, whose batches end with its process
    else:
        raise StepError(
            f"Whether {model.system!r} has taken a batch cannot be looked up. Resume the run with "
            "force=[STEP] to send it again."
        )
    match = await search
    if match is None:
        return None
    batch_id, supposed = match
    handle = Batch(
        id=batch_id,
        model_name=model.model_name,
        provider_name=model.system,
        group=calls[0].encoded.group,
        status="in_progress",
        created_at=datetime.now(UTC),
        request_count=size,
    )
    return await model.batch_status(handle), supposed


async def _find_openai(
    client: Any, marker: str, size: int, since: float, others: Collection[str]
) -> tuple[str, bool] | None:
    async for batch in client.batches.list(limit=100):
        if batch.created_at < since - CLOCKS:
            return None  # the newest come first
        total = 0 if batch.request_counts is None else batch.request_counts.total
        if batch.id in others or total not in (0, size):
            continue
        try:
            content = (await client.files.content(batch.input_file_id)).content
        except Exception as error:
            if getattr(error, "status_code", None) != 404:
                raise
            continue  # its file is deleted, which is done when all is read
        if _begins_with(content, marker):
            return batch.id, False
    return None


def _begins_with(content: bytes, marker: str) -> bool:
    return f'"custom_id":"{request_id(marker, 0)}"'.encode() in content[:200]


async def _find_anthropic(
    client: Any, marker: str, size: int, since: float, others: Collection[str]
) -> tuple[str, bool] | None:
    batches = client.beta.messages.batches
    supposed: list[tuple[float, str]] = []
    async for batch in batches.list(limit=100):
        if batch.created_at.timestamp() < since - CLOCKS:
            break  # the newest come first
        counts = batch.request_counts
        total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
        if batch.id in others or total != size:
            continue
        if batch.processing_status != "ended":
            supposed.append((abs(batch.created_at.timestamp() - since), batch.id))
            continue
        results = await batches.results(batch.id)
        try:
            first = await anext(aiter(results), None)
        finally:
            await results.close()
        if first is not None and first.custom_id.startswith(f"{marker}-"):
            return batch.id, False
    return (min(supposed)[1], True) if supposed else None
