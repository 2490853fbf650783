"""Options about models and providers: ``--price``, ``--limit`` and ``--setting``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from IPython.core.error import UsageError

from tagent_nb.errors import did_you_mean
from tagent_nb.pipeline.limits import Limit
from tagent_nb.pipeline.prices import Price

_PRICE = {
    "input": "input_per_million",
    "output": "output_per_million",
    "cached_input": "cached_input_per_million",
}
_LIMIT = {
    "concurrency": "concurrency",
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
}


def read_price(text: str) -> tuple[str, Price]:
    """``"openai:my-model input=0.5 output=1.5 cached_input=0.05"``: a model, and USD a million tokens.

    Raises:
        UsageError: It is not written so.
        DefinitionError: A price is not allowed.
    """
    model, found = _read("--price", text, _PRICE, float, "openai:my-model input=0.5 output=1.5")
    for name in ("input", "output"):
        if _PRICE[name] not in found:
            raise UsageError(f"--price {text!r}: {name}=... is missing, in USD for a million tokens.")
    return model, Price(**found)


def read_limit(text: str) -> tuple[str, Limit]:
    """``"openai concurrency=8 requests=500 tokens=90000"``: a provider, and what it is asked at most.

    Raises:
        UsageError: It is not written so.
        DefinitionError: A limit is not allowed.
    """
    provider, found = _read("--limit", text, _LIMIT, int, "openai concurrency=8 requests=500")
    return provider, Limit(**found)


def read_settings(texts: Iterable[str]) -> dict[str, Any]:
    """``["max_tokens=200", "stream=false"]``: names and values in Python's notation, or else texts.

    ``true`` and ``false`` are truth values, however they are written.

    Raises:
        UsageError: One is not written so, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not name.isidentifier() or not sign or not value:
            raise UsageError(f"--setting {text!r} cannot be read. Write: --setting max_tokens=200")
        if name in found:
            raise UsageError(f"--setting: {name} is given twice. Keep one.")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = {"true": True, "false": False}.get(value.lower(), value)
    return found


def _read(
    option: str, text: str, fields: Mapping[str, str], kind: Callable[[str], Any], example: str
) -> tuple[str, dict[str, Any]]:
    how = f'Write: {option} "{example}"'
    name, *parts = text.split() or [""]
    if not name or "=" in name or not parts:
        raise UsageError(f"{option} {text!r} cannot be read. {how}")
    found: dict[str, Any] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in fields:
            known = ", ".join(f"{one}=" for one in fields)
            raise UsageError(
                f"{option} {text!r}: there is no {key!r}.{did_you_mean(key, fields)} Known: {known}."
            )
        try:
            found[fields[key]] = kind(value)
        except ValueError:
            raise UsageError(f"{option} {text!r}: {value!r} is no number. {how}") from None
    return name, found
