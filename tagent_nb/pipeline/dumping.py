"""The text of a syntax tree: equal for code that does the same by its text, whatever Python reads it."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any

_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
_NEW = frozenset({"type_params"})
"""Fields that newer versions of Python have added: empty, they must not change the text."""


def dump(node: Any) -> str:
    """As :func:`ast.dump` of Python 3.11 writes it, without docstrings, and in half of its time.

    The only statement of a cell stays, text or not: it may be the cell's value.
    """
    kind: Any = type(node)
    if kind is list:
        return f"[{', '.join([dump(one) for one in node])}]"
    plan = _fields(kind)
    if plan is None:
        return repr(node)
    given = node.__dict__
    parts = []
    for name, optional, special in plan:
        value = given.get(name)
        if value is None and optional:
            continue
        if special:
            if name in _NEW and not value:
                continue
            value = _without_docstring(kind, value)
        known = _bare(type(value))  # type: ignore[arg-type]
        parts.append(f"{name}={known or dump(value)}")
    return f"{kind.__name__}({', '.join(parts)})"


@cache
def _fields(kind: type) -> tuple[tuple[str, bool, bool], ...] | None:
    """Name of each field of a kind of node, whether it may be left out, and whether to look closer."""
    if not issubclass(kind, ast.AST):
        return None
    return tuple(
        (name, getattr(kind, name, ...) is None, name in _NEW or (name == "body" and kind in _DOCUMENTED))
        for name in kind._fields
    )


@cache
def _bare(kind: type) -> str:
    """The text of a kind of node that has no fields, such as ``Load()``; empty for all else."""
    return f"{kind.__name__}()" if issubclass(kind, ast.AST) and not kind._fields else ""


def _without_docstring(kind: type, body: list[Any]) -> list[Any]:
    first = body[0] if body else None
    if type(first) is not ast.Expr or (kind is ast.Module and len(body) < 2):
        return body
    value = first.value
    return body[1:] if type(value) is ast.Constant and isinstance(value.value, str) else body
