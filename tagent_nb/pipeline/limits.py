"""How fast a provider may be asked, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from tagent_nb.errors import DefinitionError

__all__ = ["Limit", "checked_limits"]


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
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise DefinitionError(f"Limit: {one.name} must be a whole number from 1 on, not {value!r}.")


def checked_limits(limits: Mapping[str, Limit] | None) -> dict[str, Limit]:
    """A copy of limits by provider.

    Raises:
        DefinitionError: They do not map names of providers to limits.
    """
    table = {} if limits is None else limits
    how = "as in {'openai': Limit(concurrency=8, requests_per_minute=500)}"
    if not isinstance(table, Mapping) or not all(isinstance(one, str) for one in table):
        raise DefinitionError(f"limits must map names of providers to limits, {how}.")
    for provider, limit in table.items():
        if not isinstance(limit, Limit):
            raise DefinitionError(f"limits[{provider!r}] must be a Limit, {how}, not {limit!r}.")
    return dict(table)
