"""Files and folders: private, whole or absent, never what a link points to."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tagent_nb.errors import CorruptRecordError, DefinitionError, StorageUnavailableError
from tagent_nb.storage.format.envelope import MAX_BODY, MAX_HEAD
from tagent_nb.storage.lease import process_start

MAX_JOURNAL = 1 << 34
"""Longest journal that is read, in bytes."""

MAX_MARK = 1 << 16
"""Longest mark of a restore, in bytes."""

STALE = 3600.0
"""Seconds after which a temporary file was left by a process that died."""

LEFT = 365 * 86_400.0
"""The same, if there is a process of that number: it may be another one by now."""

# Windows has none of the first three, and needs the last.
_SAFE = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_counter = itertools.count()
_WRITER = re.compile(r"(?:^\.|-)([1-9]\d{0,8})-\d+\.tmp$")

# -- names -------------------------------------------------------------------------------------

_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])\Z")
_CAPITAL = re.compile(r"[A-Z]")
_PLAIN = re.compile(r"[a-z0-9_-]{1,64}")


def to_file_name(safe: str) -> str:
    """An id as a file name: two ids never share one, even where case does not count."""
    name = _CAPITAL.sub(lambda capital: "~" + capital.group().lower(), safe)
    return f"~_{name}" if _DEVICES.match(name) else name


def from_file_name(name: str) -> str | None:
    """The id of a file name; ``None`` if :func:`to_file_name` never makes this name."""
    if _PLAIN.fullmatch(name) and not _DEVICES.match(name):
        return name
    plain = name.removeprefix("~_")
    safe = re.sub(r"~([a-z])", lambda letter: letter.group(1).upper(), plain)
    return safe if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", safe) and to_file_name(safe) == name else None


def user_path(value: object, name: str) -> Path:
    """A path that a user gave, absolute.

    Raises:
        DefinitionError: It is no path; the message calls it ``name``.
    """
    try:
        text = os.fspath(value)  # type: ignore[call-overload]
        if isinstance(text, str) and text.strip() and "\0" not in text:
            os.fsencode(text)
            return Path(text).expanduser().absolute()
    except (TypeError, UnicodeError, RuntimeError):
        # Without a folder of that user, ~name is no path either.
        pass
    raise DefinitionError(f"{name} must be the path of a file or folder, not {value!r}.")


# -- reading and writing -----------------------------------------------------------------------


def trouble(error: OSError, doing: str, path: Path) -> StorageUnavailableError | CorruptRecordError:
    """What went wrong with a file, and the remedy."""
    code = error.errno
    if code == errno.ELOOP:
        return CorruptRecordError(
            f"Cannot {doing} {path}: it is a symbolic link. Put the file itself there; nothing was changed."
        )
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "The disk is full: free some space. What was stored before is unchanged."
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "It may not be written or read: change its permissions, or use another folder."
    elif code == errno.ENOENT:
        remedy = "It is not there: check its name and its folder."
    elif code in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        remedy = "A file is where a folder belongs, or the reverse: move it away, or use another folder."
    elif code == errno.ENAMETOOLONG:
        remedy = "Its name is too long: use a shorter one."
    elif code == errno.EMFILE:
        remedy = "This process has too many open files: close some, or raise `ulimit -n`."
    else:
        remedy = "Check the disk; what was stored before is unchanged."
    return StorageUnavailableError(f"Cannot {doing} {path}: {error.strerror or error}. {remedy}")


def open_file(path: Path, flags: int, doing: str) -> int:
    """Open a regular file, made 0600 with ``O_CREAT``; not a link, folder, pipe or device.

    Raises:
        FileNotFoundError: There is none.
        CorruptRecordError: Something else is in its place.
        StorageUnavailableError: It cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | _SAFE, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        # A pipe without a reader, opened to write.
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise _not_a_file(path) from None
        raise trouble(error, doing, path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_a_file(path)
    return descriptor


def is_regular(path: Path) -> bool:
    """Whether a regular file is there; ``False`` if nothing is.

    Raises:
        CorruptRecordError: Something else is in its place, such as a link, a folder or a pipe.
        StorageUnavailableError: It cannot be looked at.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise trouble(error, "open", path) from error
    if not stat.S_ISREG(mode):
        raise _not_a_file(path)
    return True


def _not_a_file(path: Path) -> CorruptRecordError:
    return CorruptRecordError(
        f"{path} is not a regular file. Move it away, or restore a backup; nothing was changed."
    )


def read_file(path: Path, limit: int = MAX_BODY + 2 * MAX_HEAD) -> bytes | None:
    """The bytes of a regular file of at most ``limit`` bytes, or ``None`` if there is none.

    Raises:
        CorruptRecordError: It is too long, or no regular file.
        StorageUnavailableError: It cannot be read.
    """
    try:
        descriptor = open_file(path, os.O_RDONLY, "read")
    except FileNotFoundError:
        return None
    try:
        return read_open(descriptor, path, os.fstat(descriptor).st_size, limit)
    finally:
        os.close(descriptor)


def read_open(descriptor: int, path: Path, size: int, limit: int = MAX_JOURNAL) -> bytes:
    """The first ``size`` bytes of an open file.

    Raises:
        CorruptRecordError: That is more than ``limit``.
        StorageUnavailableError: It cannot be read.
    """
    if size > limit:
        raise CorruptRecordError(f"{path} has {size:,} bytes; at most {limit:,} are read. Move it away.")
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        with open(descriptor, "rb", closefd=False, buffering=0) as file:
            parts, left = [], size
            while left > 0 and (part := file.read(min(left, 1 << 26))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
    except OSError as error:
        raise trouble(error, "read", path) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, however often the system stops half-way."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def replace_file(
    path: Path,
    data: bytes,
    *,
    sync: bool = True,
    changing: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Put ``data`` in place of a file: written aside, flushed, renamed, and the folder flushed.

    Args:
        path: The file.
        data: What it will hold.
        sync: Whether to flush.
        changing: Entered around each change of the folder.

    Raises:
        StorageUnavailableError: That failed; the file is as it was.
    """
    aside = path.with_name(f".{os.getpid()}-{next(_counter)}.tmp")
    try:
        with changing():
            descriptor = open_file(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "write")
        try:
            write_all(descriptor, data)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with changing():
            aside.replace(path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise trouble(error, "write", path) from error


def mark_file(path: Path, text: bytes | None) -> None:
    """Write a small file, or with ``None`` remove it; either is on the disk afterwards.

    Raises:
        StorageUnavailableError: That failed.
    """
    if text is not None:
        make_folder(path.parent)
        replace_file(path, text)
        return
    try:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise trouble(error, "remove", path) from error


def publish(aside: Path, path: Path, *, sync: bool = True) -> bool:
    """Give a whole file its name, unless there is one of that name; whether it was given.

    Raises:
        StorageUnavailableError: That failed.
    """
    try:
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError:
            # A file system without hard links. There, of two that do this at once, the last one wins.
            if path.exists():
                return False
            aside.replace(path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        raise trouble(error, "write", path) from error
    return True


def sync_folder(path: Path) -> None:
    """Flush a folder: the names of its files, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, *, sync: bool = True) -> None:
    """Make a private folder (0700) and what is missing above it, unless it is there.

    Raises:
        StorageUnavailableError: It cannot be made.
    """
    try:
        if path.is_dir():
            return
        missing = [path]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
            if sync:
                sync_folder(folder.parent)
    except OSError as error:
        raise trouble(error, "make the folder", path) from error


def sweep(folder: Path, prefix: str = ".") -> None:
    """Remove temporary files that a process left when it died.

    After the clock was set forward, a file that is being written seems old: its name says by whom.
    """
    try:
        # Of the many files in a folder of runs, only their names are looked at.
        with os.scandir(folder) as entries:
            left = [
                entry for entry in entries if entry.name.endswith(".tmp") and entry.name.startswith(prefix)
            ]
    except OSError:
        return
    for entry in left:
        # Another process may be sweeping, too.
        with contextlib.suppress(OSError):
            file = Path(entry)
            writer = _WRITER.search(file.name)
            age = time.time() - file.lstat().st_mtime
            lives = writer is not None and process_start(int(writer.group(1))) is not None
            if age > (LEFT if lives else STALE):
                file.unlink()
