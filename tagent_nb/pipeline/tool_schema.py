"""Tools that are described by a JSON schema, and not by the parameters of a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_NAME = "__tagent_tool__"


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """The description of a tool for a model.

    Attributes:
        description: What it is for.
        parameters: JSON schema of its arguments.
    """

    description: str
    parameters: Mapping[str, Any]


def describe(function: Callable[..., Any], schema: ToolSchema) -> None:
    """Let a schema say what a function takes."""
    setattr(function, _NAME, schema)


def schema_of(function: Callable[..., Any]) -> ToolSchema | None:
    """What describes a function; ``None`` if its own parameters do."""
    schema = getattr(function, _NAME, None)
    return schema if isinstance(schema, ToolSchema) else None
