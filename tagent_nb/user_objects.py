"""Errors that come from objects of the user: any method of theirs may raise anything.

What asks such an object for its text, length or class goes through here, or stands inside
:func:`tagent_nb.engine.unit.attempt.unprepared`, which turns what they raise into the failure of one step.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

_PACKAGE = str(Path(__file__).parent) + os.sep
_NAME: Any = type.__dict__["__name__"]
_TRACEBACK: Any = BaseException.__dict__["__traceback__"]


class Interrupted(BaseException):
    """Thrown into a body's thread to end it. Not an Exception, so that ``except Exception`` lets it pass."""


def ends_program(error: BaseException) -> bool:
    """Whether an error is no fault of the object that was asked: Ctrl-C, an exit, or a stopped thread."""
    return issubclass(type(error), (KeyboardInterrupt, SystemExit, Interrupted))


def function_name(function: Callable[..., Any]) -> str:
    """What a function, or another thing that can be called, is named: a tool as models call it, a check."""
    return str(getattr(function, "__name__", type(function).__name__))


def class_name(value: object) -> str:
    """The name of an object's class, whatever the object and its metaclass say of themselves."""
    return str(_NAME.__get__(type(value)))


def message_of(error: BaseException) -> str:
    """``str(error)``; where that raises, a text that says so."""
    try:
        return str.__str__(str(error))
    except BaseException as problem:
        return f"(no message: {blame(problem)})"


def safe_str(value: object) -> str:
    """``str(value)``; where that raises, a text that says so."""
    try:
        return str.__str__(str(value))
    except BaseException as problem:
        return f"<{class_name(value)} that cannot be shown: {blame(problem)}>"


def safe_repr(value: object) -> str:
    """``repr(value)``; where that raises, a text that says so."""
    try:
        return str.__str__(repr(value))
    except BaseException as problem:
        return f"<{class_name(value)} that cannot be shown: {blame(problem)}>"


def blame(error: BaseException) -> str:
    """Which method of which class raised ``error``, as in ``Odd.__len__ raised ValueError: no``.

    Only kind and message where it was not raised by a special method.

    Raises:
        BaseException: ``error`` itself, if it ends the program: that is no fault of an object.
    """
    if ends_program(error):
        raise error
    try:
        text = str.__str__(str(error))
    except BaseException as problem:
        if ends_program(problem):
            raise
        text = "its message cannot be read either"
    description = f"{class_name(error)}: {text}" if text else class_name(error)
    method = raising_method(error)
    return f"{method} raised {description}" if method else description


def raising_method(error: BaseException) -> str:
    """The innermost special method (``Odd.__len__``) of the user's objects that ``error`` came through."""
    method = ""
    for frame, _ in frames_of(error):
        method = _method_of(frame) or method
    return method


def frames_of(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """The frames that ``error`` came through, each with its line, the innermost last."""
    trace: TracebackType | None = _TRACEBACK.__get__(error)
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _method_of(frame: FrameType) -> str:
    code = frame.f_code
    if code.co_filename.startswith(_PACKAGE) or not code.co_varnames:
        return ""
    owner = frame.f_locals.get(code.co_varnames[0])
    if not code.co_argcount and code.co_flags & inspect.CO_VARARGS and owner:
        owner = owner[0]
    kind = owner if issubclass(type(owner), type) else type(owner)
    name = _special_name(kind, code)
    return f"{_NAME.__get__(kind)}.{name}" if name else ""


def _special_name(kind: Any, code: CodeType) -> str:
    """Under which special name a class has this code, its own name first."""
    names = [
        name
        for base in type.__dict__["__mro__"].__get__(kind)
        for name, member in type.__dict__["__dict__"].__get__(base).items()
        if _is_special(name) and _code_of(member) is code
    ]
    return code.co_name if code.co_name in names else next(iter(names), "")


def _code_of(member: object) -> CodeType | None:
    """The code behind a method, a property, or a static or class method of a class."""
    if type(member) is property:
        member = member.fget
    elif type(member) in (staticmethod, classmethod):
        member = member.__func__  # type: ignore[attr-defined]
    code: CodeType | None = getattr(member, "__code__", None) if inspect.isfunction(member) else None
    return code


def _is_special(name: object) -> bool:
    return type(name) is str and name.startswith("__") and name.endswith("__")
