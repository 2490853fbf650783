"""What a model costs that no price list knows, or that costs this user something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from tagent_nb.errors import DefinitionError
from tagent_nb.events import TokenUsage

__all__ = ["Price", "checked_prices"]

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """USD for a million tokens of a model.

    Attributes:
        input_per_million: Of what is sent.
        output_per_million: Of what the model writes, reasoning included.
        cached_input_per_million: Of the part of the input that the provider serves from its own
            cache; without a say, as other input.

    Raises:
        DefinitionError: A price is no number from 0 on.
    """

    input_per_million: float
    output_per_million: float
    cached_input_per_million: float | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None and one.name == "cached_input_per_million":
                continue
            # NaN and infinity fail the comparison as negative numbers do.
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
                raise DefinitionError(f"Price: {one.name} must be USD from 0 on, not {value!r}.")

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
    if not isinstance(table, Mapping) or not all(isinstance(one, str) for one in table):
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
