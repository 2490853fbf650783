"""Whether anything but this program has changed a folder of runs since the order of the runs was checked.

To list a folder takes the longer the more runs there are, so it is not done for each question. A small file
keeps what the system says of the folder and of the order when both were last seen to agree: their numbers,
the order's size, and the times of their last change, which no program can set. As long as they are the same,
nothing was added to the folder, or taken away from it, by others. What this program itself changes, it
changes within :meth:`Checked.changing`, which brings the file up to date. Whatever goes wrong, such as a kill
between the two, leaves a file that does not fit, and the folder is listed again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tagent_nb.errors import StorageError
from tagent_nb.storage.file.locks import locked
from tagent_nb.storage.filesystem import open_file

CHECKED = ".checked"

_WIDTH = 160
"""Bytes of the file: above any line."""

_COARSE = 1_000_000
"""Nanoseconds: a time in whole ones of these is of a system that may not distinguish two changes."""


class Checked:
    """What is known of a folder and the order of its runs.

    A change by another process that falls between this program's own change and the look at its time, some
    microseconds, is taken for part of it. Where a system's times are coarser, it is a tick of its clock.

    Args:
        folder: A pipeline's folder.
        order: The file with the order.
    """

    def __init__(self, folder: Path, order: Path) -> None:
        self._folder = folder
        self._order = order
        self._path = order.with_suffix(CHECKED)

    def holds(self) -> bool:
        """Whether the folder and the order are as they were checked."""
        # What cannot be read vouches for nothing.
        with contextlib.suppress(StorageError, OSError):
            descriptor = open_file(self._path, os.O_RDONLY, "read")
            try:
                with locked(descriptor, self._path, shared=True):
                    return self._fits(descriptor)
            finally:
                os.close(descriptor)
        return False

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Around a short change to folder or order after which they agree if they did before.

        Raises:
            StorageUnavailableError: Another process is within such a change for too long.
        """
        try:
            descriptor = self._open()
        except (StorageError, FileNotFoundError):
            # In a folder that cannot be written the change itself says so; else it is listed the next time.
            yield
            return
        try:
            with locked(descriptor, self._path):
                fits = self._fits(descriptor)
                yield
                if fits:
                    self._write(descriptor, self._line())
        finally:
            os.close(descriptor)

    def looking(self) -> bytes:
        """To be called before a look at all of the folder; what it gives is for :meth:`looked`."""
        if self.holds():
            return b""
        with contextlib.suppress(StorageError, OSError):
            descriptor = self._open()
            try:
                with locked(descriptor, self._path):
                    # Linux distinguishes two changes of a moment only if the time is read between them.
                    os.fstat(descriptor)
                    line = self._line()
                    os.pwrite(descriptor, b" " * _WIDTH, 0)
                    # Else there may be more changes of the same time, which the look does not see.
                    before = self._folder.stat().st_ctime_ns < os.fstat(descriptor).st_ctime_ns
                    return line if before else b""
            finally:
                os.close(descriptor)
        return b""

    def looked(self, before: bytes) -> None:
        """Note that folder and order agree, if they are as they were before the look."""
        if not before.strip():
            return
        with contextlib.suppress(StorageError, OSError):
            descriptor = self._open()
            try:
                with locked(descriptor, self._path):
                    if self._line() == before:
                        self._write(descriptor, before)
            finally:
                os.close(descriptor)

    # -- inside -----------------------------------------------------------------------------

    def _open(self) -> int:
        return open_file(self._path, os.O_RDWR | os.O_CREAT, "write")

    def _fits(self, descriptor: int) -> bool:
        line = self._line()
        return bool(line.strip()) and os.pread(descriptor, _WIDTH, 0) == line

    def _line(self) -> bytes:
        """What the system says now; blank if that does not distinguish changes."""
        try:
            folder, order = self._folder.stat(), self._order.lstat()
        except OSError:
            return b" " * _WIDTH
        times = folder.st_ctime_ns, order.st_ctime_ns
        if not all(time % _COARSE for time in times):
            return b" " * _WIDTH
        return (b"%d %d %d %d %d" % (folder.st_ino, order.st_ino, order.st_size, *times)).ljust(_WIDTH)

    def _write(self, descriptor: int, line: bytes) -> None:
        # On a full disk the old line stays, which does not fit any more.
        with contextlib.suppress(OSError):
            os.pwrite(descriptor, line, 0)
