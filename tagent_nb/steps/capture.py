"""What a body prints, apart from what everybody else prints.

``sys.stdout`` is one object of the whole process. While at least one body runs, a stand-in takes its
place that looks at a context variable: text of a body goes to that body's sink, all other text to
the stream that was there before, which may be a terminal, ipykernel's ``OutStream`` or a test's buffer.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, cast

from tagent_nb.pipeline.secrets import redact

_sink: ContextVar[Lines | None] = ContextVar("tagent_nb_printed", default=None)
_lock = threading.Lock()
_running = 0
_router: _Router | None = None

MAX_PIECE = 4096
"""Characters without a line end after which a piece is passed on all the same."""


class Lines:
    """Passes text on line by line, without the environment's secrets. Usable from several threads.

    Args:
        write: Takes each piece: one or more whole lines, or what is left at the end.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._kept = ""
        self._closed = False
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Take text, as a stream does."""
        with self._lock:
            self._kept += text
            if "\n" in text or "\r" in text or len(self._kept) > MAX_PIECE:
                self._pass_on()
        return len(text)

    def flush(self) -> None:
        """Pass on what is kept, line end or not."""
        if self._kept:
            with self._lock:
                self._pass_on()

    def close(self) -> None:
        """Drop what comes from now on."""
        self._closed = True

    def _pass_on(self) -> None:
        text, self._kept = self._kept, ""
        if text and not self._closed:
            self._write(redact(text))


class _Router:
    """Stands in for ``sys.stdout``; what is not about writing is the stream's own affair."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        lines = _sink.get()
        return cast(int, self.stream.write(text)) if lines is None else lines.write(text)

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        lines = _sink.get()
        if lines is None:
            self.stream.flush()
        else:
            lines.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def show(text: str) -> None:
    """Write to the stream that was there before, whoever asks: a body in a script that nobody watches."""
    stream: Any = sys.stdout
    if type(stream) is _Router:
        stream = stream.stream
    if stream is not None:  # a program without a console
        stream.write(text)
        stream.flush()


class captured:  # noqa: N801  # used as a function; a generator would cost every step three times as much
    """Send what this thread or task prints to ``lines`` until the block ends."""

    __slots__ = ("_before", "_lines")

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def __enter__(self) -> None:
        _install()
        self._before = _sink.get()
        _sink.set(self._lines)

    def __exit__(self, *_: object) -> None:
        # Not by a token: a coroutine that is closed late may end in another context than its own.
        _sink.set(self._before)
        _remove()
        self._lines.flush()


def _install() -> None:
    global _running, _router
    with _lock:
        _running += 1
        stream: Any = sys.stdout
        # A program without a console has no stdout at all.
        if stream is None or type(stream) is _Router:
            return
        if _router is None or _router.stream is not stream:
            _router = _Router(stream)
        sys.stdout = _router


def _remove() -> None:
    global _running
    with _lock:
        _running -= 1
        # Somebody else may have put their own stream in our place; theirs stays.
        if not _running and type(sys.stdout) is _Router:
            sys.stdout = sys.stdout.stream
