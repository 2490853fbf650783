"""Schemas of answers that are no records: ``bool``, ``list[Review]``, ``Literal["yes", "no"]``."""

from __future__ import annotations

import ast
import typing
from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Literal

from tagent_nb.errors import DefinitionError

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["bare", "bare_schema", "inner_type", "is_bare", "is_expression", "wrapped"]

_TYPES: dict[str, Any] = {kind.__name__: kind for kind in (bool, int, float, str, list, dict, set, tuple)}
_SPECIAL = {name: getattr(typing, name) for name in ("Literal", "Optional", "Union", "List", "Dict", "Any")}
_MARK = "__tagent_bare__"


def is_expression(text: str) -> bool:
    """Whether a schema is written as a type, and not as the name of a model."""
    return not text.replace(".", "").isidentifier() or text in _TYPES


def bare_schema(text: str, find: Callable[[str], type[BaseModel]]) -> type[BaseModel]:
    """A schema for a type such as ``list[Review]``. The value of a step is then of that type, not a model.

    Models are asked for an object with one field, which all of them can give.

    Args:
        text: The type, as in an annotation.
        find: Gives the model of a name.

    Raises:
        DefinitionError: It is no type that an answer can have; the message says what may be written.
    """
    from pydantic import PydanticUserError, create_model

    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise _refusal(text) from None
    try:
        made = create_model(text, answer=(_type(tree, text, find), ...))
        made.model_json_schema()
    except (TypeError, PydanticUserError):
        raise _refusal(text) from None
    setattr(made, _MARK, True)
    return made


def is_bare(schema: Any) -> bool:
    """Whether a schema is one of :func:`bare_schema`."""
    return getattr(schema, _MARK, False) is True


def inner_type(schema: type[BaseModel]) -> Any:
    """The type that a bare schema stands for."""
    return schema.model_fields["answer"].annotation


def wrapped(schema: type[BaseModel], value: Any) -> Any:
    """A value as a schema takes it: that of a bare one in its field."""
    return {"answer": value} if is_bare(schema) else value


def bare(value: Any) -> Any:
    """What is inside of a value that a :func:`bare_schema` has made; any other value as it is."""
    return value.answer if is_bare(type(value)) else value


def _type(node: ast.expr, text: str, find: Callable[[str], type[BaseModel]]) -> Any:
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name) if name in _TYPES or name in _SPECIAL:
            return _TYPES.get(name, _SPECIAL.get(name))
        case ast.Name() | ast.Attribute():
            return find(ast.unparse(node))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return reduce(or_, (_or_none(_type(side, text, find)) for side in (left, right)))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            words = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return Literal[tuple(_word(word, text) for word in words)]
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in _TYPES or name in _SPECIAL:
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            kinds = tuple(_type(part, text, find) for part in parts)
            return _type(node.value, text, find)[kinds if len(kinds) > 1 else kinds[0]]
        case ast.Constant(value=value) if value is ...:
            return ...
    raise _refusal(text)


def _word(node: ast.expr, text: str) -> Any:
    """A value of a Literal. A shell, or the line of a magic, may have taken its quotes away."""
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _refusal(text) from None


def _or_none(kind: Any) -> Any:
    return type(None) if kind is None else kind


def _refusal(text: str) -> DefinitionError:
    return DefinitionError(
        f"Schema {text!r} is no type that an answer can have. Write a pydantic model, bool, int, float, str, "
        "list[Model], dict[str, Model], Literal['yes', 'no'] or Model | None."
    )
