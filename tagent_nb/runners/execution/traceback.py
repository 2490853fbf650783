"""Tracebacks that show a user's own lines, without ours, the libraries' and without secrets."""

from __future__ import annotations

import linecache
import os
import sysconfig
from pathlib import Path
from traceback import StackSummary, TracebackException

from tagent_nb.redaction import redact
from tagent_nb.user_objects import class_name, ends_program, frames_of, message_of

_PACKAGE = str(Path(__file__).parents[2]) + os.sep
_FOREIGN = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


def user_traceback(error: BaseException) -> str:
    """The traceback of ``error`` and its causes, with the frames of the user's own code only.

    Frames of this package, the standard library and installed packages are left out. Values of
    environment variables that hold secrets are replaced by ``***``.
    """
    try:
        summary = TracebackException.from_exception(error, compact=True)
        _shorten(summary)
        text = "".join(summary.format())
    except BaseException as problem:  # an error of the user's class may raise when it is asked anything
        if ends_program(problem):
            raise
        frames = [frame for frame in StackSummary.extract(frames_of(error)) if _is_users(frame.filename)]
        text = "".join(["Traceback (most recent call last):\n", *StackSummary.from_list(frames).format()])
        text += f"{class_name(error)}: {message_of(error)}"
    return redact(text.rstrip())


def show_source(filename: str, source: str) -> None:
    """Let tracebacks show the lines of code that was compiled under ``filename``."""
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)


def _shorten(summary: TracebackException) -> None:
    frames = [frame for frame in summary.stack if _is_users(frame.filename)]
    summary.stack = StackSummary.from_list(frames)
    parts = [summary.__cause__, summary.__context__, *(getattr(summary, "exceptions", None) or ())]
    for part in parts:
        if part is not None:
            _shorten(part)


def _is_users(filename: str) -> bool:
    if filename.startswith("<step "):
        return True
    return not filename.startswith((_PACKAGE, "<frozen ", *_FOREIGN))
