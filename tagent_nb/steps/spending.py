"""What answers took: told by the provider, or else assumed against budgets."""

from __future__ import annotations

from copy import copy
from decimal import Decimal
from typing import TYPE_CHECKING

from tagent_nb.events import TokenUsage
from tagent_nb.steps.base import StepContext
from tagent_nb.steps.calls import ModelCall
from tagent_nb.steps.estimates import answer_tokens, input_tokens
from tagent_nb.steps.providers import ASSUMED_INPUT, ASSUMED_OUTPUT, cost_of, is_measured, usage_of

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse


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
    """USD that an answer counts against budgets; ``None`` where nobody knows the model's price."""
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
    """Tokens of an answer, told or assumed."""
    return usage_of(response).counted
