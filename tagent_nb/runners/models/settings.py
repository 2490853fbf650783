"""Names in prices and limits that look misspelt: what they say would count for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tagent_nb.errors import did_you_mean
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline import Price
from tagent_nb.runners.models.resolve import model_name, models_behind, price, provider_names


def misspelt_prices(prices: Mapping[str, Price], models: Sequence[Any]) -> list[str]:
    """A sentence for the prices that no model of a run has, where one of them may have been meant.

    That is where a model has no price, the name is close to one of them, or its provider does not exist.
    """
    behind = [inner for model in models for inner in models_behind(model)]
    names = list(dict.fromkeys(model_name(inner) for inner in behind))
    unused = [name for name in prices if name not in names]
    if not unused:
        return []
    used = TokenUsage(input_tokens=1, output_tokens=1)
    unknown = list(dict.fromkeys(model_name(inner) for inner in behind if price(inner, used, prices) is None))
    providers = _known_providers(models)
    suspects = [
        name
        for name in unused
        if unknown
        or name.partition(":")[0] not in providers
        or (did_you_mean(name, names) and price(name, used) is None)
    ]
    if not suspects:
        return []
    lacks = f" The price of {', '.join(map(repr, unknown))} is unknown." if unknown else ""
    return [
        f"prices names {', '.join(map(repr, suspects[:3]))}, which no step asks: it counts for nothing."
        f"{did_you_mean(suspects[0], names)}{lacks} Models of this run: {', '.join(names)}."
    ]


def misspelt_limits(limits: Sequence[str], models: Sequence[Any]) -> list[str]:
    """A sentence for the limits whose names are no provider's."""
    providers = _known_providers(models)
    unknown = [name for name in limits if name not in providers]
    if not unknown:
        return []
    first = unknown[0].partition(":")[0]
    hint = f" Did you mean {first!r}?" if first in providers else did_you_mean(unknown[0], providers)
    return [
        f"limits names {', '.join(map(repr, unknown[:3]))}, which is no provider: it limits nothing.{hint} "
        "Limits are by provider, the part of a model's name before the colon."
    ]


def _known_providers(models: Sequence[Any]) -> set[str]:
    """Names of providers that pydantic-ai knows, and those of these models."""
    from typing import get_args

    from pydantic_ai.models import KnownModelName

    named = get_args(getattr(KnownModelName, "__value__", KnownModelName))
    behind = [inner for model in models for inner in models_behind(model)]
    return {
        *provider_names(),
        *(name.partition(":")[0] for name in named),
        *(model_name(inner).partition(":")[0] for inner in behind),
        *("openai-chat", "openai-responses", "local", "test", "function"),
    }
