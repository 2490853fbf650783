"""Files that the body of a step reads: an audit hook sees them, and their state is kept with its value.

What is opened in a body's own context counts (PEP 578), also by Python code of packages that it calls. What a
package opens by itself in C (Arrow, DuckDB, Polars) is not seen, nor are threads of the body's own.
"""

# Names are texts here, as the audit hook gets them and records keep them.
# ruff: noqa: PTH100, PTH109, PTH111, PTH116, PTH118, PTH120, PTH123, PTH208

from __future__ import annotations

import hashlib
import inspect
import linecache
import os
import stat
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from traceback import walk_stack
from typing import Any
from urllib.parse import unquote

WHOLE = 8 * 1024 * 1024
"""Bytes up to which all of a file counts; of a larger one its size, its time and :data:`SAMPLES` pieces."""

SAMPLES = 128
_PIECE = 64 * 1024

_UNSETTLED = "unsettled"
"""In place of the digest of a file of which it is not known what was read."""

_READ, _WRITTEN, _BOTH = "read", "written", "read and written"

_opened: ContextVar[list[tuple[str, str, str]] | None] = ContextVar("tagent_nb_files", default=None)
"""Name, marks before, and what for, of each file that the body of this context opened."""

MANY = 256
"""Files of a value up to which each counts by itself; of more, all that is in their folders, together."""

_LOADERS = frozenset(
    {"<frozen importlib._bootstrap_external>", linecache.__file__, tokenize.__file__, inspect.__file__}
)
"""What reads source, which counts as code."""

_CHANGES = {"os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2}
"""What changes a folder, and how many names it gets."""

_is_watching = False


class reading:  # noqa: N801  # used as a function; a generator would cost every step three times as much
    """Note the files that this thread or task opens until the block ends."""

    __slots__ = ("_before", "_opened")

    def __init__(self) -> None:
        self._opened: list[tuple[str, str, str]] = []

    def expect(self, names: Iterable[str]) -> None:
        """Count files that will be read in a way that is not seen."""
        for name in names:
            path = os.path.abspath(name)
            if _marks(path):
                self._opened.append((path, _marks(path), _READ))

    def __enter__(self) -> None:
        if not _is_watching:
            _watch()
        self._before = _opened.get()
        _opened.set(self._opened)

    def __exit__(self, *_: object) -> None:
        # Not by a token: a coroutine that is closed late may end in another context than its own.
        _opened.set(self._before)

    @property
    def any(self) -> bool:
        """Whether a file was opened."""
        return bool(self._opened)

    def files(self) -> dict[str, str]:
        """By name, the state of each file that was read, but not written before. It may take a while."""
        first: dict[str, tuple[str, str]] = {}
        own: set[str] = set()
        for name, before, purpose in self._opened:
            first.setdefault(name, (before, purpose))
            if purpose is not _READ:
                own.update((name, f"{os.path.dirname(name.rstrip('/'))}/"))
        states = {}
        if len(first) > MANY:
            return _joint(
                name for name, (before, purpose) in first.items() if before and purpose is not _WRITTEN
            )
        for name, (before, purpose) in first.items():
            now = _marks(name)
            if purpose is _WRITTEN or (purpose is _BOTH and not before) or (before and not now):
                continue  # made by the step itself, or removed by it, such as a temporary file
            if name in own or now == before:
                states[_short(name)] = f"{_digest(name, now)} {now}"
            else:
                # Others wrote it meanwhile: what was read is not known.
                states[_short(name)] = f"{_UNSETTLED} {before}"
        return states


def _joint(names: Iterable[str]) -> dict[str, str]:
    folders = sorted(
        {f"{name.rstrip('/') if name.endswith('/') else os.path.dirname(name)}/*" for name in names}
    )
    return {
        _short(folder): f"{_digest(folder, marks)} {marks}" for folder in folders if (marks := _marks(folder))
    }


def are_untouched(files: Mapping[str, str]) -> bool:
    """Whether all files are as they were by size and times; to know that, none is read."""
    for name, state in files.items():
        digest, _, before = state.partition(" ")
        if digest == _UNSETTLED or _marks(name) != before:
            return False
    return True


def changed_files(files: Mapping[str, str]) -> dict[str, str]:
    """What is no longer as it was when it was read: by name a sentence, ``"file d.csv changed"``.

    Args:
        files: States by name, as :meth:`reading.files` gave them.
    """
    sentences = {}
    for name, state in files.items():
        digest, _, before = state.partition(" ")
        now = _marks(name)
        if (now == before and digest != _UNSETTLED) or digest == _digest(name, now) != _UNSETTLED:
            continue
        what = "is gone" if not now else "is new" if not before else "changed"
        kind = "folder" if name.endswith("/") else "files" if name.endswith("/*") else "file"
        sentences[name] = f"{kind} {name} {what}"
    return sentences


def unread_again(before: Mapping[str, str], files: Mapping[str, str]) -> dict[str, str]:
    """Files that have changed since an answer was made from them, and that the one after it did not read.

    Its step has what they were, such as from a function that remembers what it returned, or does not need
    them any more: the answer is not to outlive this process.

    Args:
        before: States of the files of the earlier answer that have changed, by name.
        files: Those of the later answer.

    Returns:
        States that count as changed for ever, by name.
    """
    return {
        name: f"{_UNSETTLED} {state.partition(' ')[2]}"
        for name, state in before.items()
        if name not in files and _marks(name)
    }


def _watch() -> None:
    """Have Python report what is opened, in this process from now on: a hook cannot be taken out."""
    global _is_watching
    _is_watching = True
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...], get: Any = _opened.get) -> None:
    # Called for all that Python audits: the first lines are what it costs.
    if event == "open":
        opened = get()
        if opened is not None:
            _note(opened, arguments[0], _purpose(arguments[2]))
    elif event == "os.scandir" or event == "os.listdir":
        opened = get()
        if opened is not None:
            _note(opened, "." if arguments[0] is None else arguments[0], _READ, folder=True)
    elif event in _CHANGES:
        opened = get()
        if opened is not None:
            for name in arguments[: _CHANGES[event]]:
                _note(opened, name, _WRITTEN)
    elif event == "sqlite3.connect":
        opened = get()
        if opened is not None:
            name = arguments[0]
            if isinstance(name, str) and name.startswith("file:"):
                name = unquote(name[5:].partition("?")[0])
            _note(opened, name, _BOTH)


# Without it a trace function, such as that of a test's coverage, is off meanwhile.
_hook.__cantrace__ = True  # type: ignore[attr-defined]


def _purpose(flags: int) -> str:
    if flags & os.O_TRUNC or flags & os.O_WRONLY:
        return _WRITTEN
    return _BOTH if flags & os.O_RDWR else _READ


def _note(opened: list[tuple[str, str, str]], path: Any, purpose: str, *, folder: bool = False) -> None:
    try:
        name = os.path.abspath(os.fsdecode(path))
    except (TypeError, ValueError):
        return  # the number of an open file, or nothing that can be opened
    if name.startswith(_elsewhere()) or f"{os.sep}.tagent{os.sep}" in name:
        return
    # This function, the hook, and two of what opens.
    callers = islice(walk_stack(sys._getframe()), 4)
    if any(frame.f_code.co_filename in _LOADERS for frame, _ in callers):
        return
    if folder:
        name = f"{name.rstrip('/')}/"
    opened.append((name, _marks(name), purpose))


@lru_cache(maxsize=1)
def _elsewhere() -> tuple[str, ...]:
    """Where Python, packages and the system have their files, and what these keep for themselves."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {
        sys.prefix + "/share",
        sys.base_prefix + "/share",
        "/proc",
        "/sys",
        "/dev",
        "/etc",
        "/usr/lib",
        "/usr/share",
    }
    home = os.path.expanduser("~")
    paths |= {
        os.path.join(home, folder) for folder in (".cache", ".config", ".local", ".ipython", ".jupyter")
    }
    return tuple(os.path.join(path, "") for path in paths if path)


def _short(name: str) -> str:
    """A name from the working directory, if it is below that: another machine may have it there, too."""
    here = os.path.join(os.getcwd(), "")
    short = name.removeprefix(here)
    return f"./{short}" if short in ("", "*") else short


def _marks(name: str) -> str:
    """What any change of a file changes, too, as long as it is the same file on the same machine.

    Empty for what is not there, or is neither a file nor, with a slash at the end, a folder.
    """
    try:
        if name.endswith("/*"):
            return _marks_of_all(name[:-1])
        now = os.stat(name)
    except (OSError, ValueError):
        return ""
    if not (stat.S_ISREG(now.st_mode) or name.endswith("/")):
        return ""
    return f"{now.st_size} {now.st_mtime_ns} {now.st_ctime_ns} {now.st_ino}"


def _digest(name: str, marks: str) -> str:
    """Of the content of a file, or of the names in a folder; ``"none"`` if it is not there."""
    if not marks:
        return "none"
    if name.endswith("/*"):
        return marks  # which say all that counts
    try:
        return _digest_of(f"{os.path.abspath(name)}{'/' if name.endswith('/') else ''}", marks)
    except OSError:
        return _UNSETTLED


@lru_cache(maxsize=1024)
def _digest_of(name: str, marks: str) -> str:
    """The items of a map often read the same file."""
    digest = hashlib.blake2b(digest_size=16)
    size = int(marks.split(" ", 1)[0])
    if name.endswith("/"):
        digest.update("\0".join(sorted(os.listdir(name))).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
    with open(name, "rb", buffering=0) as file:
        if size <= WHOLE:
            digest.update(file.readall())
            return digest.hexdigest()
        # Sampled: a change in place that keeps the size may be missed, so that the time counts as well.
        digest.update(marks.rsplit(" ", 2)[0].encode())
        for number in range(SAMPLES):
            file.seek((size - _PIECE) * number // (SAMPLES - 1))
            digest.update(file.read(_PIECE))
    return digest.hexdigest()


def _marks_of_all(folder: str) -> str:
    """One word for the names, sizes and times of all files in a folder."""
    digest = hashlib.blake2b(digest_size=16)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_file():
                now = entry.stat()
                digest.update(
                    f"{entry.name}\0{now.st_size} {now.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
                )
    return digest.hexdigest()
