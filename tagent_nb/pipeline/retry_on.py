"""Errors that a step tries again though their kind says that another attempt would only repeat them."""

from __future__ import annotations

import builtins
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.user_objects import ends_program

ErrorKind = type[Exception] | str
"""A class of errors, or its name: ``"ValueError"``, ``"requests.HTTPError"``."""


def checked_kinds(step: str, field: str, value: Any) -> list[ErrorKind]:
    """What was passed as ``retry_on``: one class or name, or several. Built-in classes become their names.

    Raises:
        DefinitionError: There is something else among it.
    """
    kinds = list(value) if isinstance(value, list | tuple) else [value]
    return [_checked(step, field, kind) for kind in kinds]


def _checked(step: str, field: str, kind: Any) -> ErrorKind:
    if isinstance(kind, str):
        name = kind.strip()
        if all(part.isidentifier() for part in name.split(".")):
            return name
    elif _is_error(kind):
        name = kind.__name__
        return name if vars(builtins).get(name) is kind else kind
    raise DefinitionError(
        f"Step {step!r}: {field} must name classes of errors, as in [ValueError, 'requests.HTTPError'], not "
        f"{kind!r}."
    )


def error_classes(
    step: str, kinds: Sequence[ErrorKind], namespace: Mapping[str, Any]
) -> tuple[type[Exception], ...]:
    """The classes that are meant. Names are looked up in the namespace, then among Python's own, or imported.

    Args:
        step: The step's name, for messages.
        kinds: Its ``retry_on``.
        namespace: Variables, such as the notebook's.

    Raises:
        DefinitionError: A name means no class of errors.
    """
    return tuple(_class_of(step, kind, namespace) if isinstance(kind, str) else kind for kind in kinds)


def _class_of(step: str, name: str, namespace: Mapping[str, Any]) -> type[Exception]:
    first, *rest = name.split(".")
    value = namespace.get(first, getattr(builtins, name, None))
    for part in rest:
        value = getattr(value, part, None)
    problem = "there is no such name"
    if value is None and rest:
        try:
            value = pkgutil.resolve_name(name)
        except BaseException as error:  # the code of the module that it imports may raise anything
            if ends_program(error):
                raise
            problem = f"{type(error).__name__}: {error}"
    if _is_error(value):
        return value
    if value is not None:
        problem = f"it is {value!r}"
    ours = [known for known, thing in [*vars(builtins).items(), *namespace.items()] if _is_error(thing)]
    raise DefinitionError(
        f"Step {step!r}: retry_on (--retry-on) names {name!r}, which is no class of errors ({problem})."
        f"{did_you_mean(name, ours)} Name a class of the notebook, of Python, or one with its module, as in "
        "requests.HTTPError; in Python, pass the class itself."
    )


def _is_error(value: Any) -> TypeGuard[type[Exception]]:
    return inspect.isclass(value) and issubclass(value, Exception)
