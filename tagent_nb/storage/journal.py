"""One run in the file backend: its journal of records, and the lease that says who may add to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tagent_nb.errors import LeaseLostError, StorageError, StorageUnavailableError
from tagent_nb.storage.codec import split
from tagent_nb.storage.disk import (
    make_folder,
    open_file,
    read_open,
    replace_file,
    trouble,
    write_all,
)
from tagent_nb.storage.locks import locked

TAIL = 1 << 16
"""Bytes at the end of a journal in which its last record is looked for."""

_TOKEN = 20
_flush = getattr(os, "fdatasync", os.fsync)


class RunFile:
    """A run's journal and lease. With ``wait`` false, a method raises BlockingIOError rather than block.

    The lease's file is the lock of both. It is written in place, so that a writer that has it open sees
    a change of the token at once.
    """

    def __init__(
        self,
        journal: Path,
        run_id: str,
        *,
        sync: bool,
        key: bytes | None,
        lost: Callable[[bytes], LeaseLostError],
        report: Callable[[str], None],
        begin: Callable[[], None],
    ) -> None:
        self.path = journal
        self.lease_path = journal.with_suffix(".lease")
        self._run_id = run_id
        self._sync = sync
        self._key = key
        self._lost = lost
        self._report = report
        self._begin = begin
        self._mutex = threading.Lock()
        self._flushing = threading.Lock()
        self._journal = -1
        self._lease = -1
        self._size = 0
        self._synced = 0

    # -- the lease --------------------------------------------------------------------------

    def lease(self) -> tuple[int, bytes]:
        """Token and holder; ``(0, b"")`` if there never was a lease. Never half of one being written."""
        with self._shared() as lease:
            if lease < 0:
                return _parse_lease(b"")
            return _parse_lease(read_open(lease, self.lease_path, os.fstat(lease).st_size, 1 << 16))

    def swap_lease(self, expected: int, token: int, holder: bytes) -> bool:
        """Set token and holder if the token is still ``expected``."""
        with self._mutex, self._locked():
            if self._stored_lease()[0] != expected:
                return False
            self._write_lease(token, holder)
            return True

    def _stored_lease(self) -> tuple[int, bytes]:
        return _parse_lease(os.pread(self._lease, 1 << 16, 0))

    def _write_lease(self, token: int, holder: bytes) -> None:
        content = b"%0*d %b" % (_TOKEN, token, holder)
        try:
            os.pwrite(self._lease, content, 0)
            os.ftruncate(self._lease, len(content))
            if self._sync:
                os.fsync(self._lease)
        except OSError as error:
            raise trouble(error, "write", self.lease_path) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        while True:
            if self._lease < 0:
                self._open_lease()
            with locked(self._lease, self.lease_path):
                # Somebody may have deleted the run while we waited, and its lock with it.
                if os.fstat(self._lease).st_nlink:
                    yield
                    return
            self._close()

    def _open_lease(self) -> None:
        make_folder(self.path.parent, sync=self._sync)
        try:
            self._lease = open_file(self.lease_path, os.O_RDWR | os.O_CREAT, "write")
        except FileNotFoundError as error:
            raise trouble(error, "write", self.lease_path) from error

    # -- the journal ------------------------------------------------------------------------

    def append(self, record: bytes, token: int | None, *, wait: bool) -> int:
        """Add a record, and return the journal's size with it."""
        if not self._mutex.acquire(blocking=wait):
            raise BlockingIOError
        try:
            if wait:
                with self._locked():
                    self._check(token)
                    self._add(record)
            elif self._journal < 0 or self._lease < 0:
                raise BlockingIOError
            else:
                self._add_now(record, token)
            return self._size
        finally:
            self._mutex.release()

    def _add_now(self, record: bytes, token: int | None) -> None:
        """The path of nearly every record; whatever is unusual is left to the one that may wait."""
        fcntl.flock(self._lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            self._check(token)
            state = os.fstat(self._journal)
            if state.st_size != self._size or not state.st_nlink or not os.fstat(self._lease).st_nlink:
                raise BlockingIOError
            self._write(record)
        finally:
            fcntl.flock(self._lease, fcntl.LOCK_UN)

    def _check(self, token: int | None) -> None:
        if token is not None and os.pread(self._lease, _TOKEN, 0) != b"%0*d" % (_TOKEN, token):
            raise self._lost(self._stored_lease()[1])

    def _add(self, record: bytes) -> None:
        """Open the journal if it is not open, and add ``record``.

        A new journal is never seen without its first record.
        """
        if self._journal < 0:
            try:
                self._journal = open_file(self.path, os.O_RDWR | os.O_APPEND, "write")
            except FileNotFoundError:
                self._begin()
                replace_file(self.path, record, sync=self._sync)
                self._journal = open_file(self.path, os.O_RDWR | os.O_APPEND, "write")
                self._size = self._synced = len(record)
                return
            self._drop_torn_end()
        state = os.fstat(self._journal)
        if not state.st_nlink:
            self._drop_journal()
            raise StorageUnavailableError(
                f"{self.path} was deleted while the run was being recorded. Start the run again."
            )
        if state.st_size != self._size:
            # Somebody else recorded this run meanwhile, maybe only half of something.
            self._drop_torn_end()
        self._write(record)

    def _drop_torn_end(self) -> None:
        """Read the journal that was just opened, or that others have changed, and cut off a torn end."""
        size = os.fstat(self._journal).st_size
        try:
            data = read_open(self._journal, self.path, size)
            journal = split(data, str(self.path), kind="events", owner=self._run_id, key=self._key)
            if journal.torn is not None:
                os.ftruncate(self._journal, journal.good)
        except OSError as error:
            self._drop_journal()
            raise trouble(error, "repair", self.path) from error
        except StorageError:
            self._drop_journal()
            raise
        if journal.torn is not None:
            self._report(
                # In the words of a reader who has met it before: it is told once.
                f"The end of run {self._run_id} was torn and is left out ({size - journal.good:,} bytes; "
                f"{journal.torn})."
            )
        self._size = journal.good

    def _write(self, record: bytes) -> None:
        try:
            write_all(self._journal, record)
        except OSError as error:
            self._undo()
            raise trouble(error, "write", self.path) from error
        self._size += len(record)

    def _undo(self) -> None:
        """Take back the part of a record that was written before an error."""
        try:
            os.ftruncate(self._journal, self._size)
        except OSError:
            # What cannot be undone now is a torn end, which opening the journal again cuts off.
            self._drop_journal()

    def flush(self, size: int) -> None:
        """Bring the first ``size`` bytes to the disk, unless somebody did that meanwhile."""
        with self._flushing:
            if self._synced >= size or self._journal < 0:
                return
            reached = self._size
            try:
                _flush(self._journal)
            except OSError as error:
                self._drop_journal()
                raise trouble(error, "flush", self.path) from error
            self._synced = max(self._synced, reached)

    # -- reading ----------------------------------------------------------------------------

    def read(self, last: int | None = None) -> bytes | None:
        """All records, or the last bytes; never half of a record that is being written."""
        try:
            descriptor = open_file(self.path, os.O_RDONLY, "read")
        except FileNotFoundError:
            return None
        try:
            size = self._settled_size(descriptor)
            if last is None or size <= last:
                return read_open(descriptor, self.path, size)
            return os.pread(descriptor, last, size - last)
        finally:
            os.close(descriptor)

    def look(self, longest: int) -> tuple[int, tuple[int, bytes], bytes]:
        """Size, lease and at most so many last bytes, as they are at one moment.

        Raises:
            FileNotFoundError: There is no such run.
        """
        descriptor = open_file(self.path, os.O_RDONLY, "read")
        try:
            with self._shared() as lease:
                size = os.fstat(descriptor).st_size
                found = b"" if lease < 0 else os.pread(lease, 1 << 16, 0)
                return size, _parse_lease(found), os.pread(descriptor, longest, max(0, size - longest))
        except OSError as error:
            raise trouble(error, "read", self.path) from error
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _shared(self) -> Iterator[int]:
        """The lease's file at a moment when nobody writes; -1 if there is none."""
        try:
            lease = open_file(self.lease_path, os.O_RDONLY, "read")
        except FileNotFoundError:
            yield -1
            return
        try:
            with locked(lease, self.lease_path, shared=True):
                yield lease
        finally:
            os.close(lease)

    def _settled_size(self, descriptor: int) -> int:
        """The journal's size at a moment when nobody writes."""
        with self._shared():
            return os.fstat(descriptor).st_size

    # -- the end ----------------------------------------------------------------------------

    def remove(self, expected: int) -> bool:
        """Delete journal and lease if the token is still ``expected``; say whether it was.

        Writers that have them open find that their token is no longer good.
        """
        with self._mutex:
            with self._locked():
                token, _ = self._stored_lease()
                # A run that another process has deleted has neither; the lock has made its file again.
                if token != expected and (token or self.path.exists()):
                    return False
                self._write_lease(token + 1, b"")
                try:
                    self.path.unlink(missing_ok=True)
                    self.lease_path.unlink(missing_ok=True)
                except OSError as error:
                    raise trouble(error, "delete", self.path) from error
            self._close()
        return True

    def close(self, *, wait: bool = True) -> bool:
        """Flush and close the files, unless one is in use and ``wait`` is false; say whether it was done."""
        if not self._mutex.acquire(blocking=wait):
            return False
        try:
            if self._sync:
                self.flush(self._size)
            self._close()
        finally:
            self._mutex.release()
        return True

    def _close(self) -> None:
        self._drop_journal()
        if self._lease >= 0:
            os.close(self._lease)
            self._lease = -1

    def _drop_journal(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1


def _parse_lease(data: bytes) -> tuple[int, bytes]:
    token, _, holder = data.partition(b" ")
    return (int(token), holder) if len(token) == _TOKEN and token.isdigit() else (0, b"")
