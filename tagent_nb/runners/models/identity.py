"""What a model object brings besides its name: two of one name may answer otherwise."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from tagent_nb.runners.models.resolve import model_name, models_behind

_ANSWERS = ("custom_output_text", "custom_output_args", "call_tools", "seed")
"""What pydantic-ai's TestModel answers with."""


def model_parts(model: Any) -> dict[str, Any]:
    """The parts of a model's fingerprint; nothing for a name, which says all.

    Keys are no part of it: a new key asks the same model.

    Args:
        model: A name, or an object of pydantic-ai.

    Returns:
        ``model_settings``, ``model_server`` (without user and password), ``model_answers`` and
        ``model_functions`` (those of test doubles) and ``model_class`` (of the user), as far as there are
        any. Of a fallback, ``model_settings:1 NAME`` and so on for each model behind it.
    """
    if model is None or isinstance(model, str):
        return {}
    behind = [part_model for part_model in models_behind(model) if not isinstance(part_model, str)]
    components = {}
    for place, part_model in enumerate(behind, 1):
        more = f":{place} {model_name(part_model)}" if len(behind) > 1 else ""
        components.update({f"model_{name}{more}": part for name, part in _parts(part_model).items()})
    return components


def _parts(model: Any) -> dict[str, Any]:
    settings, address = getattr(model, "settings", None), getattr(model, "base_url", None)
    functions = [getattr(model, name, None) for name in ("function", "stream_function")]
    answers = {name: getattr(model, name, None) for name in _ANSWERS if hasattr(model, name)}
    parts = {
        "settings": dict(settings) if settings else None,
        "server": _server(str(address)) if address else None,
        "answers": answers,
        "functions": [function for function in functions if callable(function)],
        "class": None if type(model).__module__.startswith(("pydantic_ai.", "tagent_nb.")) else type(model),
    }
    return {name: part for name, part in parts.items() if part}


def _server(address: str) -> str:
    """The address without what logs in there."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
