"""What a cell that is run again changes in its step, in a few lines."""

from __future__ import annotations

import difflib
from dataclasses import fields
from enum import Enum
from inspect import isclass
from typing import Any

from tagent_nb.formatting import model_label, one_line
from tagent_nb.pipeline import Condition, PipelineStep

MAX_LINES = 8
"""Lines of a diff at most; a card is no place for more."""

_TEXTS = ("name", "goal", "body")
_DEFAULTS: tuple[Any, ...] = (None, [], {})


def changes(before: PipelineStep, after: PipelineStep) -> list[str]:
    """The options that changed, a line each, then the changed lines of the goal or the Python.

    A changed line begins with ``-`` or ``+``, as in a diff. Empty if the two are the same step.
    """
    lines = []
    if before.is_python is not after.is_python:
        lines.append(f"was {'a Python' if before.is_python else 'an agent'} step")
    for field in fields(PipelineStep):
        if field.name not in _TEXTS:
            old, new = getattr(before, field.name), getattr(after, field.name)
            if _comparable(old) != _comparable(new):
                lines.append(_change(field.name, *(_shown(field.name, value) for value in (old, new))))
    return [*lines, *_diff(_source(before), _source(after))]


def _source(step: PipelineStep) -> list[str]:
    return (step.goal if step.body is None else step.body.source).strip().splitlines()


def _diff(before: list[str], after: list[str]) -> list[str]:
    lines = [
        f"{line[0]} {one_line(line[1:], 110)}"
        for line in list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]
        if not line.startswith("@@")
    ]
    if len(lines) <= MAX_LINES:
        return lines
    return [*lines[: MAX_LINES - 1], f"… and {len(lines) - MAX_LINES + 1} more lines"]


def _change(name: str, old: str, new: str) -> str:
    if old == new:
        # A class or function of the same name, written anew.
        return f"{name}: {new} was defined anew"
    return f"{name}: {old or 'not set'} → {new or 'not set'}"


def _comparable(value: Any) -> Any:
    """Schemas are compared by what they say: a cell that is run again makes a new class each time."""
    if isclass(value) and hasattr(value, "model_json_schema"):
        return value.model_json_schema()
    if isinstance(value, Condition):
        return value.to_dict()
    return value


def _shown(name: str, value: Any) -> str:
    if name == "tools_filter" and not value:
        # Here an empty list is something else than none.
        return "all tools" if value is None else "no tools"
    return _text(value)


def _text(value: Any) -> str:
    if any(value == default and type(value) is type(default) for default in _DEFAULTS):
        return ""
    if isinstance(value, list):
        return one_line(", ".join(_text(part) for part in value), 80)
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Condition):
        return one_line(value.describe(), 80)
    if isclass(value) or callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    if hasattr(value, "model_name"):
        return model_label(value)
    return one_line(str(value), 80)
