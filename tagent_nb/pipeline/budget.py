"""How much a run or a step may spend, as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tagent_nb.errors import DefinitionError
from tagent_nb.events import TokenUsage
from tagent_nb.formatting import cost_text

__all__ = [
    "Budget",
    "Limit",
    "Price",
    "Share",
    "amount_text",
    "checked_limits",
    "checked_prices",
    "shares",
    "spent_amounts",
]


_PART = re.compile(r"\$?\s*([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*(\$|[a-z]*)", re.IGNORECASE)
_UNITS = {
    **dict.fromkeys(("", "$", "usd", "dollar", "dollars"), "usd"),
    **dict.fromkeys(("token", "tokens"), "tokens"),
    **dict.fromkeys(("request", "requests"), "requests"),
}
_HOW = 'Write USD (0.10), "5000 tokens", "20 requests", or several: "0.10 USD, 20 requests".'


@dataclass(frozen=True, slots=True)
class Budget:
    """Most that may be spent; what is ``None`` is not limited.

    Attributes:
        usd: USD.
        tokens: Input and output tokens together.
        requests: Answers of models.

    Raises:
        DefinitionError: Nothing is limited, or a limit is no number from 0 on.
    """

    usd: float | None = None
    tokens: int | None = None
    requests: int | None = None

    def __post_init__(self) -> None:
        if not self.limits():
            raise DefinitionError(f"A budget limits nothing. {_HOW}")
        for name, value in self.limits().items():
            kinds = (int, float) if name == "usd" else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value < float("inf"):
                what = "USD" if name == "usd" else f"a whole number of {name}"
                raise DefinitionError(f"A budget must be {what} from 0 on, not {value!r}. {_HOW}")

    @classmethod
    def of(cls, value: Any) -> Budget:
        """A budget of a number (USD), of a text such as ``"5000 tokens"``, or as it is.

        Raises:
            DefinitionError: It is none of these.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return cls(usd=value)
        if not isinstance(value, str):
            raise DefinitionError(f"A budget must be a number or text, not {value!r}. {_HOW}")
        limits: dict[str, Any] = {}
        for part in value.split(","):
            match = _PART.fullmatch(part.strip())
            measure = _UNITS.get(match[2].lower()) if match else None
            if match is None or measure is None or measure in limits:
                raise DefinitionError(f"A budget of {value!r} cannot be read. {_HOW}")
            number = float(match[1].replace("_", ""))
            limits[measure] = int(number) if measure != "usd" and number.is_integer() else number
        return cls(**limits)

    def limits(self) -> dict[str, float]:
        """What is limited, by measure: ``usd``, ``tokens``, ``requests``."""
        limits = {"usd": self.usd, "tokens": self.tokens, "requests": self.requests}
        return {name: value for name, value in limits.items() if value is not None}

    def __str__(self) -> str:
        """As :meth:`of` reads it."""
        units = {"usd": "USD", "tokens": "tokens", "requests": "requests"}
        return ", ".join(
            f"{_plain(value)} {units[name].removesuffix('s') if value == 1 else units[name]}"
            for name, value in self.limits().items()
        )


def _plain(value: float) -> str:
    """A number as people write it, without an exponent."""
    text = f"{value:.12f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return text or "0"


@dataclass(frozen=True, slots=True)
class Share:
    """How far one measure of a budget is used up.

    Attributes:
        measure: ``"usd"``, ``"tokens"`` or ``"requests"``.
        spent: What is spent.
        reserved: What calls under way are expected to take.
        limit: Most that may be spent.
        exact: How exactly ``spent`` is known: ``""`` exactly, ``"about"`` or ``"at least"``.
    """

    measure: str
    spent: float
    reserved: float
    limit: float
    exact: str = ""

    def __str__(self) -> str:
        spent, limit = amount_text(self.measure, self.spent), amount_text(self.measure, self.limit)
        reserved = f", {amount_text(self.measure, self.reserved)} reserved" if self.reserved else ""
        return f"{self.exact} {spent} of {limit} spent{reserved}".strip()


def amount_text(measure: str, value: float) -> str:
    """An amount for people: ``"$0.0040"``, ``"5,000 tokens"``, ``"1 request"``."""
    if measure == "usd":
        return cost_text(value)
    number = f"{value:,.0f}"
    return f"{number} {measure.removesuffix('s') if number == '1' else measure}"


def spent_amounts(usage: TokenUsage, cost: float | None) -> dict[str, float]:
    """What was spent, by measure. Tokens that were not reported count as assumed, an unknown cost nothing."""
    return {"usd": cost or 0.0, "tokens": usage.counted.total_tokens, "requests": usage.requests}


def shares(budget: Budget, usage: TokenUsage, cost: float, *, unpriced: bool = False) -> list[Share]:
    """How far each measure of a budget is used up.

    Args:
        budget: What may be spent.
        usage: Tokens and requests that were spent.
        cost: USD, as far as they are known.
        unpriced: Whether more USD were spent, which are not known.
    """
    spent = spent_amounts(usage, cost)
    exact = {"usd": "at least" if unpriced else "", "tokens": "about" if usage.unmeasured else ""}
    limits = budget.limits().items()
    return [Share(name, round(spent[name], 12), 0.0, limit, exact.get(name, "")) for name, limit in limits]


_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """USD for a million tokens of a model.

    Attributes:
        input_per_million: Of what is sent.
        output_per_million: Of what the model writes, reasoning included.
        cached_input_per_million: Of the part of the input that the provider serves from its own
            cache; ``None``: as other input.

    Raises:
        DefinitionError: A price is no number from 0 on.
    """

    input_per_million: float
    output_per_million: float
    cached_input_per_million: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name == "cached_input_per_million":
                continue
            # NaN and infinity fail the comparison as negative numbers do.
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
                raise DefinitionError(f"Price: {field.name} must be USD from 0 on, not {value!r}.")

    @property
    def is_nothing(self) -> bool:
        """Whether all tokens are free."""
        return not (self.input_per_million or self.output_per_million or self.cached_input_per_million)

    def cost(self, usage: TokenUsage) -> float:
        """USD of these tokens. Cached tokens are a part of the input, reasoning a part of the output."""
        cached = min(usage.cached_tokens, usage.input_tokens)
        rate = self.cached_input_per_million
        return (
            (usage.input_tokens - cached) * self.input_per_million
            + cached * (self.input_per_million if rate is None else rate)
            + usage.output_tokens * self.output_per_million
        ) / _MILLION


def checked_prices(prices: Mapping[str, Price] | None) -> dict[str, Price]:
    """A copy of a price table.

    Raises:
        DefinitionError: It does not map names of models to prices.
    """
    table = {} if prices is None else prices
    if not isinstance(table, Mapping) or not all(isinstance(name, str) for name in table):
        raise DefinitionError(
            "prices must map names of models to prices, as in "
            "{'openai:my-model': Price(input_per_million=0.5, output_per_million=1.5)}."
        )
    for model, price in table.items():
        if not isinstance(price, Price):
            raise DefinitionError(
                f"prices[{model!r}] must be a Price(input_per_million=..., output_per_million=...), "
                f"not {price!r}."
            )
    return dict(table)


@dataclass(frozen=True, slots=True)
class Limit:
    """Most that a provider is asked; what is ``None`` is not limited.

    Attributes:
        concurrency: Requests at the same time. Fewer while the provider asks for fewer.
        requests_per_minute: Requests within any 60 seconds.
        tokens_per_minute: Input and output tokens within any 60 seconds.

    Raises:
        DefinitionError: A limit is no whole number from 1 on.
    """

    concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise DefinitionError(f"Limit: {field.name} must be a whole number from 1 on, not {value!r}.")


def checked_limits(limits: Mapping[str, Limit] | None) -> dict[str, Limit]:
    """A copy of limits by provider.

    Raises:
        DefinitionError: They do not map names of providers to limits.
    """
    table = {} if limits is None else limits
    how = "as in {'openai': Limit(concurrency=8, requests_per_minute=500)}"
    if not isinstance(table, Mapping) or not all(isinstance(name, str) for name in table):
        raise DefinitionError(f"limits must map names of providers to limits, {how}.")
    for provider, limit in table.items():
        if not isinstance(limit, Limit):
            raise DefinitionError(f"limits[{provider!r}] must be a Limit, {how}, not {limit!r}.")
    return dict(table)
