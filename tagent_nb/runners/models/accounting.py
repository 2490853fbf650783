"""What answers took: reported by the provider, or else assumed against budgets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tagent_nb.events import TokenUsage
from tagent_nb.runners.base import ModelCall, StepContext
from tagent_nb.runners.models.resolve import (
    ASSUMED_INPUT,
    ASSUMED_OUTPUT,
    cost_of,
    is_measured,
    models_behind,
    price,
    usage_of,
)

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import ModelRequestParameters

    from tagent_nb.runners.base import ModelCall


def assume(call: ModelCall, response: ModelResponse) -> None:
    """Note beside an answer whose tokens its provider did not tell how many they are by the rule of thumb."""
    if not is_measured(response):
        assumed = {ASSUMED_INPUT: input_tokens(call), ASSUMED_OUTPUT: answer_tokens(response)}
        response.usage.details = {**response.usage.details, **assumed}


def account(context: StepContext, response: ModelResponse) -> None:
    """Spend what an answer took, and note what it cost beside it."""
    cost = cost_of(context.model, response, context.prices)
    if cost is not None:
        response.usage.cost = Decimal(repr(cost))
    context.spend(usage_of(response), cost, counts=_counts(context, response, cost))


def take_back(context: StepContext, response: ModelResponse) -> None:
    """Undo :func:`account` for an answer that has been counted before."""
    cost = cost_of(context.model, response, context.prices)
    counts = _counts(context, response, cost)
    context.spend(-usage_of(response), -(cost or 0.0), counts=None if counts is None else -counts)


def _counts(context: StepContext, response: ModelResponse, cost: float | None) -> float | None:
    """USD that an answer counts against budgets; ``None`` where the model's price is unknown."""
    usage = usage_of(response)
    if cost is not None or not usage.unmeasured:
        return cost
    assumed = copy(response)
    assumed.usage = copy(response.usage)
    assumed.usage.unmeasured_requests = 0
    assumed.usage.input_tokens = usage.counted.input_tokens
    assumed.usage.output_tokens = usage.counted.output_tokens
    return cost_of(context.model, assumed, context.prices)


def counted(response: ModelResponse) -> TokenUsage:
    """Tokens of an answer, reported or assumed."""
    return usage_of(response).counted


BYTES_A_TOKEN = 4
"""UTF-8 bytes of text that count as one token. A rule of thumb of providers for English."""
TOKENS_A_PART = 4
"""Tokens that the frame of each part of a conversation takes."""
TOKENS_A_FILE = 1000
"""Tokens that an image or another file counts, whatever its size."""


def input_tokens(call: ModelCall) -> int:
    """About how many tokens a request sends.

    A token for every four bytes (UTF-8) of its texts, of its tools' descriptions and of the schema of
    its answer; four more for each part; 1,000 for an image or a file.
    """
    return sum(_conversation(call.messages)) + sum(_tools(call.parameters))


def answer_tokens(response: ModelResponse) -> int:
    """About how many tokens an answer took, by the same rule. Reasoning that is not shown is not counted."""
    return sum(_contents([response]))


def _conversation(messages: list[ModelMessage]) -> Iterator[int]:
    yield from _contents(messages)
    # Earlier instructions are not sent again.
    instructions = [message.instructions for message in messages if message.kind == "request"]
    if instructions and instructions[-1]:
        yield tokens_of(instructions[-1])


def _contents(messages: Sequence[ModelMessage]) -> Iterator[int]:
    for message in messages:
        for part in message.parts:
            content = getattr(part, "content", None)
            if content is None:
                content = getattr(part, "args", None)
            for piece in content if isinstance(content, list | tuple) else [content]:
                yield tokens_of(piece)


def _tools(parameters: ModelRequestParameters) -> Iterator[int]:
    for tool in [*parameters.function_tools, *parameters.output_tools]:
        yield tokens_of([tool.name, tool.description, tool.parameters_json_schema])
    if parameters.output_object is not None:
        yield tokens_of(parameters.output_object.json_schema)


def tokens_of(content: Any) -> int:
    """About how many tokens a part of a conversation takes; see :func:`input_tokens`."""
    from pydantic_core import to_json

    if hasattr(content, "media_type") or hasattr(content, "url"):
        return TOKENS_A_FILE
    # What no request can carry is turned into text before it is sent; its repr is about as long.
    text = content.encode() if isinstance(content, str) else to_json(content, fallback=repr)
    return math.ceil(len(text) / BYTES_A_TOKEN) + TOKENS_A_PART


def most_output(call: ModelCall, seen: int | None) -> int | None:
    """Most output tokens of an answer: ``max_tokens`` of its settings, else the longest one ``seen``."""
    max_tokens = (call.settings or {}).get("max_tokens")
    return max_tokens if isinstance(max_tokens, int) else seen


def estimate(
    call: ModelCall, sent: int, seen: int | None, factor: float = 1.0, *, batch: bool = False
) -> dict[str, tuple[float, float | None]]:
    """What a request takes by measure, at least and at most; ``None`` where it is not known yet.

    Args:
        call: The request.
        sent: Its input tokens; see :func:`input_tokens`.
        seen: Output tokens of the longest answer so far; ``None`` before the first.
        factor: How many times as many input tokens as expected a request has taken at most.
        batch: Whether it is sent in a batch, at the price of one.
    """
    context, most = call.context, most_output(call, seen)
    most_sent = math.ceil(sent * factor)
    # One token stands for an answer of unknown length: what costs nothing is known to cost nothing.
    answer = TokenUsage(output_tokens=1 if most is None else most)
    behind = models_behind(context.model)

    def costs(usage: TokenUsage) -> list[float | None]:
        return [price(model, usage, context.prices, batch=batch) for model in behind]

    question_costs = [cost or 0.0 for cost in costs(TokenUsage(input_tokens=sent))]
    dearest_questions = [cost or 0.0 for cost in costs(TokenUsage(input_tokens=most_sent))]
    answer_costs = costs(answer)
    dearest = None if None in answer_costs else max(cost or 0.0 for cost in answer_costs)
    is_known = dearest is not None and (most is not None or dearest == 0)
    return {
        "usd": (min(question_costs), max(dearest_questions) + (dearest or 0.0) if is_known else None),
        "tokens": (sent, None if most is None else most_sent + most),
        "requests": (1, 1),
    }
