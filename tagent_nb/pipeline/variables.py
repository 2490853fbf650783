"""Values that may be inputs of a pipeline, such as variables of a notebook."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from tagent_nb.errors import DefinitionError
from tagent_nb.naming import step_name

__all__ = [
    "checked_inputs",
    "is_variable",
    "shape_text",
    "why_no_input",
]

_SHELL = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})
"""What IPython puts into a notebook's namespace."""

_CODE: dict[type, str] = {
    ModuleType: "a module",
    type: "a class",
    FunctionType: "a function",
    BuiltinFunctionType: "a function",
    MethodType: "a method",
    functools.partial: "a function",
}


def why_no_input(name: str, namespace: Mapping[str, Any]) -> str:
    """Why a variable can never be an input, in words such as ``"is a module"``.

    Empty if it may be one, and if there is no such variable.
    """
    if name not in namespace:
        return ""
    if name in _SHELL:
        return "belongs to IPython"
    if name.startswith("_"):
        return "begins with an underscore"
    value = namespace[name]
    return next((f"is {what}" for kind, what in _CODE.items() if isinstance(value, kind)), "")


def is_variable(name: str, namespace: Mapping[str, Any]) -> bool:
    """Whether a name is a variable of a namespace that may be an input: no code, and nothing of IPython's."""
    return name in namespace and not why_no_input(name, namespace)


def checked_inputs(inputs: object, what: str) -> dict[str, Any]:
    """Values by name, as they were passed.

    Args:
        inputs: What was passed.
        what: What that is called in messages, such as ``"Pipeline(inputs=)"``.

    Raises:
        DefinitionError: It is no mapping, or a name is none that a step could read.
    """
    if not isinstance(inputs, Mapping):
        raise DefinitionError(
            f"{what} must be a dict of values by name, such as {{'df': df}}, not {type(inputs).__name__}."
        )
    try:
        return {step_name(name): value for name, value in inputs.items()}
    except DefinitionError as error:
        raise DefinitionError(f"{what}: {str(error).replace('Step name', 'the name', 1)}") from None


def shape_text(value: Any) -> str:
    """What a value is, in a few words: ``DataFrame, 3 rows``, ``list, 2 items``, ``str``."""
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape and type(shape[0]) is int:
        rows = f"{shape[0]:,} row{'' if shape[0] == 1 else 's'}"
        return f"{kind}, {rows}"
    if isinstance(value, list | tuple | set | frozenset | dict):
        return f"{kind}, {len(value):,} item{'' if len(value) == 1 else 's'}"
    return kind
