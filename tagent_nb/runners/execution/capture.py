"""What a body prints, apart from what all others print.

``sys.stdout`` and ``sys.stderr`` are objects of the whole process. While at least one run goes on, or a body
that has outlived its run, stand-ins take their place that look at a context variable: text of a body goes to
that body's sink, all other text to the stream that was there before, which may be a terminal, ipykernel's
``OutStream`` or a test's buffer.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, cast

from tagent_nb.redaction import redact

_sink: ContextVar[Lines | collected | None] = ContextVar("tagent_nb_printed", default=None)
_lock = threading.Lock()
_running = 0
_NAMES = ("stdout", "stderr")
_routers: dict[str, _Router] = {}

MAX_PIECE = 4096
"""Characters without a line end after which a piece is passed on all the same."""


class Lines:
    """Passes text on line by line, without the environment's secrets. Usable from several threads.

    Args:
        write: Takes each piece: one or more whole lines, or what is left at the end.
        errors: Takes what is written to standard error, such as warnings; without it, ``write`` does.
    """

    def __init__(self, write: Callable[[str], None], *, errors: Callable[[str], None] | None = None) -> None:
        self._write = write
        self.errors = self if errors is None else Lines(errors)
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
        if self.errors is not self:
            self.errors.flush()
        if self._kept:
            with self._lock:
                self._pass_on()

    def close(self) -> None:
        """Drop what comes from now on."""
        self._closed = self.errors._closed = True

    def _pass_on(self) -> None:
        text, self._kept = self._kept, ""
        if text and not self._closed:
            self._write(redact(text))


class collected:  # noqa: N801  # used as a function, as captured is
    """As :class:`captured`, for what does not outlive the block of :class:`routed` around it.

    Its lines are made when something is written: most bodies print nothing.

    Args:
        make: Makes the lines.
        arguments: What it is called with.
    """

    __slots__ = ("_arguments", "_before", "_lines", "_make", "_places")

    def __init__(self, make: Callable[..., Lines], *arguments: Any) -> None:
        self._make = make
        self._arguments = arguments
        self._lines: Lines | None = None
        self._places = False

    @property
    def lines(self) -> Lines:
        """The lines themselves."""
        # Two threads of one body may come at once: both get the same.
        with _lock:
            if self._lines is None:
                self._lines = self._make(*self._arguments)
            return self._lines

    def __enter__(self) -> None:
        if type(sys.stdout) is not _Router or type(sys.stderr) is not _Router:
            # Other code has put its own stream in our place, or there is none.
            self._places = True
            _install()
        self._before = _sink.get()
        _sink.set(self)

    def __exit__(self, *_: object) -> None:
        _sink.set(self._before)
        if self._places:
            _remove()
        if self._lines is not None:
            self._lines.flush()


class _Router:
    """Stands in for a stream; what is not about writing is the stream's own affair."""

    def __init__(self, name: str, stream: Any) -> None:
        self._errors = name == "stderr"
        self.stream = stream

    def _sink(self) -> Lines | None:
        sink = _sink.get()
        lines = sink.lines if isinstance(sink, collected) else sink
        return lines.errors if lines is not None and self._errors else lines

    def write(self, text: str) -> int:
        lines = self._sink()
        return cast(int, self.stream.write(text)) if lines is None else lines.write(text)

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        lines = self._sink()
        if lines is None:
            self.stream.flush()
        else:
            lines.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def show(text: str) -> None:
    """Write to the stream that was there before, for all: a body in a script without observers."""
    _show(sys.stdout, text)


def show_error(text: str) -> None:
    """The same for standard error."""
    _show(sys.stderr, text)


def _show(stream: Any, text: str) -> None:
    if type(stream) is _Router:
        stream = stream.stream
    if stream is not None:  # a program without a console
        stream.write(text)
        stream.flush()


class routed:  # noqa: N801  # used as a function, as captured is
    """Have the stand-ins in place until the block ends, for :class:`collected`."""

    __slots__ = ()

    def __enter__(self) -> None:
        _install()

    def __exit__(self, *_: object) -> None:
        _remove()


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
    global _running
    with _lock:
        _running += 1
        for name in _NAMES:
            stream: Any = getattr(sys, name)
            # A program without a console has no streams at all.
            if stream is None or type(stream) is _Router:
                continue
            router = _routers.get(name)
            if router is None or router.stream is not stream:
                router = _routers[name] = _Router(name, stream)
            setattr(sys, name, router)


def _remove() -> None:
    global _running
    with _lock:
        _running -= 1
        if _running:
            return
        for name in _NAMES:
            stream = getattr(sys, name)
            # Other code may have put their own stream in our place; theirs stays.
            if type(stream) is _Router:
                setattr(sys, name, stream.stream)
