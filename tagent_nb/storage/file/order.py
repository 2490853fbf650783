"""In which order the runs of a pipeline were begun: kept by counting, since clocks are set back.

SQLite numbers its runs and Redis has a sorted set. In a folder it is a file of names that grows at its end.
Stores of before have no order: it is worked out once, from the times in the runs' first records.

The newest runs are read from the end of the file as long as only this program has changed the folder (see
:mod:`tagent_nb.storage.file.checked`); else the folder is listed, and the file is put right.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tagent_nb.errors import StorageUnavailableError
from tagent_nb.storage.file.checked import Checked
from tagent_nb.storage.file.locks import locked
from tagent_nb.storage.filesystem import from_file_name, open_file, replace_file, trouble, write_all
from tagent_nb.storage.format.events import completed

JOURNAL = ".journal"
LEASE = ".lease"
ORDER = ".order"

LINE = 256
"""More bytes than the longest name has."""

PART = 4096
"""Bytes at the end of the file in which the line of a deleted run is looked for."""

SPARE = 1000
"""Lines of deleted runs, beyond the number of runs, with which the file is written anew."""


class RunOrder:
    """The order of the runs in a folder.

    A run is noted after its lease is made and before its journal is. So a journal that is not noted is of an
    older version, was put there by hand, or the file is damaged: then the order is completed. And a name that
    has neither lease nor journal is that of a deleted run, or it is damaged.

    Args:
        folder: A pipeline's folder, with a journal for each run.
        start: When the run of a journal began, by the name of its file without the ending.
        begun: Whether the run of a lease that has no journal has begun: then the journal was lost.
        sync: Whether to flush.

    Attributes:
        checked: Notices whether others have changed the folder.
    """

    def __init__(
        self, folder: Path, start: Callable[[str], float], begun: Callable[[str], bool], *, sync: bool
    ) -> None:
        self._folder = folder
        self._path = folder / f"runs{ORDER}"
        self._start = start
        self._begun = begun
        self._sync = sync
        self.checked = Checked(folder, self._path)

    def add(self, name: str) -> None:
        """Note a run that begins.

        Raises:
            StorageUnavailableError: It cannot be written.
        """
        with self._locked() as descriptor:
            if not os.fstat(descriptor).st_size and (journals := self._look()[0]):
                # Runs of an older version come first, whatever the clock says now.
                self._rewrite([*completed([], journals, self._start), name])
                return
            try:
                with self.checked.changing():
                    self._append(descriptor, name)
                if self._sync:
                    os.fsync(descriptor)
            except OSError as error:
                raise trouble(error, "write", self._path) from error

    def remove(self, name: str) -> None:
        """Take out a run that was deleted, if it is among the last: see :meth:`newest` for the others."""
        # The run is deleted, whether or not this can be written.
        with contextlib.suppress(StorageUnavailableError, OSError), self._locked() as descriptor:
            if self._exists(name, JOURNAL) or self._exists(name, LEASE):
                # It was begun anew meanwhile.
                return
            first = max(0, os.fstat(descriptor).st_size - PART)
            end = os.pread(descriptor, PART, first)
            if not first:
                end, first = b"\n" + end, -1
            line = b"\n%b\n" % name.encode()
            place = end.rfind(line)
            if place < 0:
                return
            with self.checked.changing():
                if end[place + len(line) :].strip():
                    # In one write: whenever the process dies, the file is the one or the other.
                    os.pwrite(descriptor, b" " * len(name), first + place + 1)
                else:
                    os.ftruncate(descriptor, first + 1 + len(end[:place].rstrip(b" \n")))

    def newest(self, count: int) -> list[str]:
        """The last runs, oldest first: of a folder that only this program changes, however many there are, in
        the same time.

        Raises:
            CorruptRecordError: Something else is in the file's place.
        """
        if not self.checked.holds():
            return self._last(count)
        newest: dict[str, None] = {}
        for name in filter(None, self._from_end()):
            if self._exists(name, JOURNAL) or self._begun(name):
                if from_file_name(name) is not None:
                    newest[name] = None
            elif not self._exists(name, LEASE):
                # The line may be damaged, and then hides a run. If it does not, it is in the way no more.
                return self._last(count, tidy=True)
            if len(newest) == count:
                break
        return list(newest)[::-1]

    def names(self, *, tidy: bool = False) -> list[str]:
        """All runs, oldest first; with ``tidy`` the names of deleted ones are taken out of the file.

        Raises:
            CorruptRecordError: Something else is in the file's place.
        """
        before = self.checked.looking()
        # First what is there: what is begun meanwhile is noted before.
        journals, _ = self._look()
        if not journals:
            return []
        lines = self._lines()
        order = _known(lines, journals)
        if len(order) == len(journals) and len(lines) < 2 * len(order) + SPARE and not tidy:
            self.checked.looked(before)
            return order
        # Where it cannot be written, as on a full disk or in a folder that may only be read, reading goes on.
        with contextlib.suppress(StorageUnavailableError), self._locked():
            journals, leases = self._look()
            lines = self._lines()
            order = self._completed(lines, journals)
            # Some may have been noted, and their journals are being made.
            self._rewrite([*order, *(name for name in lines if name in leases)])
            return order
        return self._completed(self._lines(), journals)

    # -- inside -----------------------------------------------------------------------------

    def _last(self, count: int, *, tidy: bool = False) -> list[str]:
        return [name for name in self.names(tidy=tidy) if from_file_name(name) is not None][-count:]

    def _completed(self, lines: list[str], journals: set[str]) -> list[str]:
        order = _known(lines, journals)
        return completed(order, journals.difference(order), self._start)

    def _look(self) -> tuple[set[str], set[str]]:
        """Names of all runs that have begun, and those of leases of which none has."""
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return set(), set()
        except OSError as error:
            raise trouble(error, "read", self._folder) from error
        journals = {name[: -len(JOURNAL)] for name in names if name.endswith(JOURNAL)}
        leases = {name[: -len(LEASE)] for name in names if name.endswith(LEASE)} - journals
        lost = set(filter(self._begun, leases))
        return journals | lost, leases - lost

    def _exists(self, name: str, suffix: str) -> bool:
        return os.path.lexists(self._folder / f"{name}{suffix}")

    def _lines(self) -> list[str]:
        """All lines of the file."""
        return list(self._from_end())[::-1]

    def _from_end(self) -> Iterator[str]:
        """The lines of the file from the last one on, without a torn one; empty where a run was deleted."""
        try:
            descriptor = open_file(self._path, os.O_RDONLY, "read")
        except FileNotFoundError:
            return
        try:
            place, rest = os.fstat(descriptor).st_size, b""
            torn = True
            while place > 0:
                size = min(place, PART)
                place -= size
                rest, *lines = (self._part(descriptor, size, place) + rest).split(b"\n")
                if torn and lines:
                    # Behind the last line feed there is nothing, or what was torn.
                    lines.pop()
                    torn = False
                if not (place or torn):
                    lines.insert(0, rest)
                yield from (line.strip().decode(errors="replace") for line in reversed(lines))
        finally:
            os.close(descriptor)

    def _part(self, descriptor: int, size: int, place: int) -> bytes:
        try:
            return os.pread(descriptor, size, place)
        except OSError as error:
            raise trouble(error, "read", self._path) from error

    def _append(self, descriptor: int, name: str) -> None:
        size = os.fstat(descriptor).st_size
        end = os.pread(descriptor, LINE, max(0, size - LINE))
        # Half of a name, left by a crash, could be the name of another run.
        size -= len(end) - (end.rfind(b"\n") + 1)
        os.ftruncate(descriptor, size)
        os.lseek(descriptor, 0, os.SEEK_END)
        write_all(descriptor, name.encode() + b"\n")

    def _rewrite(self, names: list[str]) -> None:
        replace_file(self._path, "".join(f"{name}\n" for name in names).encode(), sync=self._sync)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        while True:
            try:
                descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT, "write")
            except FileNotFoundError as error:
                raise trouble(error, "write", self._path) from error
            try:
                with locked(descriptor, self._path):
                    # Another process may have written it anew meanwhile.
                    if os.fstat(descriptor).st_nlink:
                        yield descriptor
                        return
            finally:
                os.close(descriptor)


def _known(lines: list[str], journals: set[str]) -> list[str]:
    """The journals in the order of the lines; of one that is there twice the last, since it was made anew."""
    return list(dict.fromkeys(name for name in reversed(lines) if name in journals))[::-1]
