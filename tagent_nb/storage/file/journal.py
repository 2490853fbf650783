"""One run in the file backend: its journal of records, and the lease that says who may add to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tagent_nb.errors import LeaseLostError, StorageError, StorageUnavailableError
from tagent_nb.storage.file.locks import locked
from tagent_nb.storage.file.order import RunOrder
from tagent_nb.storage.filesystem import (
    make_folder,
    open_file,
    read_file,
    read_open,
    replace_file,
    trouble,
    write_all,
)
from tagent_nb.storage.format.envelope import Draft, Tail, end_problem, has_begun, split, tail_line

TAIL = 1 << 16
"""Bytes at the end of a journal in which its last record is looked for."""

_TOKEN = 20
_STATE = 296
"""Bytes of a lease's file for what says where the run ends: above any line of :func:`codec.tail_line`."""

_BEFORE = b'{"tail":"'
_PLACE = _TOKEN + 1 + len(_BEFORE)
_flush = getattr(os, "fdatasync", os.fsync)


class RunFile:
    """A run's journal and lease. With ``wait`` false, a method raises BlockingIOError rather than block.

    The lease's file is the lock of both. It is written in place, so that a writer that has it open sees
    a change of the token at once. It holds the token, the line that says where the journal ends, and the
    holder; of these, line and holder are one object of JSON, as which older versions read them.
    """

    def __init__(
        self,
        journal: Path,
        pipeline_id: str,
        run_id: str,
        *,
        sync: bool,
        key: bytes | None,
        lost: Callable[[bytes], LeaseLostError],
        report: Callable[[str], None],
        order: RunOrder,
    ) -> None:
        self.path = journal
        self.lease_path = journal.with_suffix(".lease")
        self._pipeline_id = pipeline_id
        self._run_id = run_id
        self._sync = sync
        self._key = key
        self._lost = lost
        self._report = report
        self._order = order
        self._mutex = threading.Lock()
        self._flushing = threading.Lock()
        self._journal = -1
        self._lease = -1
        self._size = 0
        self._synced = 0
        self._end = Tail()

    # -- the lease --------------------------------------------------------------------------

    def lease(self) -> tuple[int, bytes]:
        """Token and holder; ``(0, b"")`` if there never was a lease. Never half of one being written."""
        token, holder, _ = self._read_lease()
        return token, holder

    def state(self) -> bytes:
        """What says where the journal ends; empty if nothing does."""
        return self._read_lease()[2]

    def _read_lease(self) -> tuple[int, bytes, bytes]:
        with self._shared() as lease:
            if lease < 0:
                return _parse_lease(b"")
            return _parse_lease(read_open(lease, self.lease_path, os.fstat(lease).st_size, 1 << 16))

    def swap_lease(self, expected: int, token: int, holder: bytes) -> bool:
        """Set token and holder if the token is still ``expected``."""
        with self._mutex, self._locked():
            stored, _, state = self._stored_lease()
            if stored != expected:
                return False
            self._write_lease(token, holder, state)
            return True

    def _stored_lease(self) -> tuple[int, bytes, bytes]:
        return _parse_lease(os.pread(self._lease, 1 << 16, 0))

    def _write_lease(self, token: int, holder: bytes, state: bytes, *, sync: bool = True) -> None:
        rest = b"," + holder[1:] if holder.startswith(b"{") else b"}" + holder
        content = b'%0*d %b%b"%b' % (_TOKEN, token, _BEFORE, state.ljust(_STATE), rest)
        try:
            os.pwrite(self._lease, content, 0)
            os.ftruncate(self._lease, len(content))
            if sync and self._sync:
                os.fsync(self._lease)
        except OSError as error:
            raise trouble(error, "write", self.lease_path) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        while True:
            if self._lease < 0:
                self._open_lease()
            with locked(self._lease, self.lease_path):
                # Another process may have deleted the run while we waited, and its lock with it.
                if os.fstat(self._lease).st_nlink:
                    yield
                    return
            self._close()

    def _open_lease(self) -> None:
        make_folder(self.path.parent, sync=self._sync)
        try:
            self._lease = open_file(self.lease_path, os.O_RDWR, "write")
        except FileNotFoundError:
            try:
                with self._order.checked.changing():
                    self._lease = open_file(self.lease_path, os.O_RDWR | os.O_CREAT, "write")
            except FileNotFoundError as error:
                raise trouble(error, "write", self.lease_path) from error

    # -- the journal ------------------------------------------------------------------------

    def append(self, record: Draft, token: int | None, *, wait: bool) -> int:
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

    def _add_now(self, record: Draft, token: int | None) -> None:
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

    def _add(self, record: Draft) -> None:
        """Open the journal if it is not open, and add ``record``.

        A new journal is never seen without its first record.
        """
        if self._journal < 0:
            try:
                self._journal = open_file(self.path, os.O_RDWR | os.O_APPEND, "write")
            except FileNotFoundError:
                self._start(record)
                return
            self._drop_torn_end()
        state = os.fstat(self._journal)
        if not state.st_nlink:
            self._drop_journal()
            raise StorageUnavailableError(
                f"{self.path} was deleted while the run was being recorded. Start the run again."
            )
        if state.st_size != self._size:
            # Another process recorded this run meanwhile, maybe only half of something.
            self._drop_torn_end()
        self._write(record)

    def _start(self, record: Draft) -> None:
        """Make the journal, with its first record."""
        self._order.add(self.path.stem)
        data, self._end = record.seal(Tail())
        # First: a chain with nothing beside it that says where it ends has lost that.
        self._write_state(record.state(Tail()))
        replace_file(self.path, data, sync=self._sync, changing=self._order.checked.changing)
        self._journal = open_file(self.path, os.O_RDWR | os.O_APPEND, "write")
        self._size = self._synced = len(data)
        self._write_state(record.state(self._end))

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
        state = self._stored_lease()[2]
        # In the words of a reader who has met it before: it is reported once.
        problem = end_problem(journal, size, state, self._pipeline_id, self._run_id, self._key)
        if problem is not None:
            self._report(problem)
        self._size, self._end = journal.good, journal.tail
        self._write_state(tail_line(self._pipeline_id, self._run_id, self._end, self._key))

    def _write(self, record: Draft) -> None:
        data, end = record.seal(self._end)
        try:
            write_all(self._journal, data)
            os.pwrite(self._lease, record.state(end).ljust(_STATE), _PLACE)
        except OSError as error:
            self._undo()
            raise trouble(error, "write", self.path) from error
        self._size += len(data)
        self._end = end

    def _write_state(self, state: bytes) -> None:
        """Say where the journal ends, also in a lease that an older version wrote."""
        token, holder, before = self._stored_lease()
        if state != before:
            self._write_lease(token, holder, state, sync=False)

    def _undo(self) -> None:
        """Take back the part of a record that was written before an error."""
        try:
            os.ftruncate(self._journal, self._size)
        except OSError:
            # What cannot be undone now is a torn end, which opening the journal again cuts off.
            self._drop_journal()

    def flush(self, size: int) -> None:
        """Bring the first ``size`` bytes to the disk, unless another task did that meanwhile."""
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

    def look(self, longest: int) -> tuple[int, tuple[int, bytes, bytes], bytes]:
        """Size, lease and at most so many last bytes, as they are at one moment.

        Raises:
            FileNotFoundError: There is no such run.
        """
        descriptor = open_file(self.path, os.O_RDONLY, "read")
        try:
            with self._shared() as lease:
                size = os.fstat(descriptor).st_size
                data = b"" if lease < 0 else os.pread(lease, 1 << 16, 0)
                return size, _parse_lease(data), os.pread(descriptor, longest, max(0, size - longest))
        except OSError as error:
            raise trouble(error, "read", self.path) from error
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _shared(self) -> Iterator[int]:
        """The lease's file at a moment when no process writes; -1 if there is none."""
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
        """The journal's size at a moment when no process writes."""
        with self._shared():
            return os.fstat(descriptor).st_size

    def put(self, data: bytes) -> None:
        """Make the journal of a run that is not there, with all its records."""
        journal = split(data, str(self.path), kind="events", owner=self._run_id, key=self._key)
        with self._mutex:
            with self._locked():
                self._order.add(self.path.stem)
                self._write_state(tail_line(self._pipeline_id, self._run_id, journal.tail, self._key))
                replace_file(self.path, data, sync=self._sync, changing=self._order.checked.changing)
            self._close()

    # -- the end ----------------------------------------------------------------------------

    def remove(self, expected: int) -> bool:
        """Delete journal and lease if the token is still ``expected``; say whether it was.

        Writers that have them open find that their token is no longer good.
        """
        with self._mutex:
            with self._locked():
                token = self._stored_lease()[0]
                # A run that another process has deleted has neither; the lock has made its file again.
                if token != expected and (token or self.path.exists()):
                    return False
                # Between the two there is no run that seems to have lost its records.
                none = tail_line(self._pipeline_id, self._run_id, Tail(), self._key)
                self._write_lease(token + 1, b"", none)
                try:
                    with self._order.checked.changing():
                        self.path.unlink(missing_ok=True)
                        self.lease_path.unlink(missing_ok=True)
                except OSError as error:
                    raise trouble(error, "delete", self.path) from error
            self._order.remove(self.path.stem)
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


def had_records(lease: Path) -> bool:
    """Whether the journal beside a lease has records, or had: without the lock, which is held by what waits
    until the new run is in order."""
    return has_begun(_parse_lease(read_file(lease, 1 << 16) or b"")[2])


def _parse_lease(data: bytes) -> tuple[int, bytes, bytes]:
    """Token, holder, and what says where the journal ends."""
    token, _, rest = data.partition(b" ")
    if len(token) != _TOKEN or not token.isdigit():
        return 0, b"", b""
    end = len(_BEFORE) + _STATE
    if not rest.startswith(_BEFORE) or rest[end : end + 1] != b'"':
        return int(token), rest, b""
    holder = rest[end + 2 :]
    if rest[end + 1 : end + 2] == b",":
        holder = b"{" + holder
    return int(token), holder, rest[len(_BEFORE) : end].rstrip()
