"""In which order the runs of a pipeline were begun: kept by counting, since clocks are set back.

SQLite numbers its runs and Redis has a sorted set. In a folder it is a file of names that grows at its end.
Stores of before have no order: it is worked out once, from the times that the runs' first records tell.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tagent_nb.errors import StorageUnavailableError
from tagent_nb.storage.disk import open_file, read_open, replace_file, trouble, write_all
from tagent_nb.storage.locks import locked
from tagent_nb.storage.records import completed

JOURNAL = ".journal"
LEASE = ".lease"
ORDER = ".order"

LINE = 256
"""More bytes than the longest name has."""

BEGINNING = 100
"""Names at the end of the file that are kept though they have no journal yet."""

SPARE = 1000
"""Lines of deleted runs, beyond the number of runs, with which the file is written anew."""


class RunOrder:
    """The order of the runs in a folder.

    A run is noted before its journal is made, so a journal that is not noted is of an older version, was put
    there by hand, or the file is damaged: then the order is completed.

    Args:
        folder: A pipeline's folder, with a journal for each run.
        start: When the run of a journal began, by the name of its file without the ending.
        begun: Whether the run of a lease that has no journal has begun: then the journal was lost.
        sync: Whether to flush.
    """

    def __init__(
        self, folder: Path, start: Callable[[str], float], begun: Callable[[str], bool], *, sync: bool
    ) -> None:
        self._folder = folder
        self._path = folder / f"runs{ORDER}"
        self._start = start
        self._begun = begun
        self._sync = sync

    def add(self, name: str) -> None:
        """Note a run that begins.

        Raises:
            StorageUnavailableError: It cannot be written.
        """
        with self._locked() as descriptor:
            if not os.fstat(descriptor).st_size and self._journals():
                # Runs of an older version come first, whatever the clock says now.
                self._rewrite([*completed([], self._journals(), self._start), name])
                return
            self._append(descriptor, name)

    def names(self) -> list[str]:
        """All runs, oldest first.

        Raises:
            CorruptRecordError: Something else is in the file's place.
        """
        # First what is there: what is begun meanwhile is noted before.
        journals = self._journals()
        if not journals:
            return []
        lines = self._lines()
        order = _known(lines, journals)
        if len(order) == len(journals) and len(lines) < 2 * len(order) + SPARE:
            return order
        # Where it cannot be written, as on a full disk or in a folder that may only be read, reading goes on.
        with contextlib.suppress(StorageUnavailableError), self._locked():
            journals = self._journals()
            order = self._completed(journals)
            # Some may have been noted, and their journals are being made.
            self._rewrite([*order, *(name for name in self._lines()[-BEGINNING:] if name not in journals)])
            return order
        return self._completed(journals)

    # -- inside -----------------------------------------------------------------------------

    def _completed(self, journals: set[str]) -> list[str]:
        order = _known(self._lines(), journals)
        return completed(order, journals.difference(order), self._start)

    def _journals(self) -> set[str]:
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise trouble(error, "read", self._folder) from error
        journals = {name[: -len(JOURNAL)] for name in names if name.endswith(JOURNAL)}
        leases = {name[: -len(LEASE)] for name in names if name.endswith(LEASE)}
        return journals | {name for name in leases - journals if self._begun(name)}

    def _lines(self) -> list[str]:
        """All names in the file, without a last one that was torn."""
        try:
            descriptor = open_file(self._path, os.O_RDONLY, "read")
        except FileNotFoundError:
            return []
        try:
            data = read_open(descriptor, self._path, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        return data.decode(errors="replace").split("\n")[:-1]

    def _append(self, descriptor: int, name: str) -> None:
        size = os.fstat(descriptor).st_size
        try:
            end = os.pread(descriptor, LINE, max(0, size - LINE))
            # Half of a name, left by a crash, could be the name of another run.
            size -= len(end) - (end.rfind(b"\n") + 1)
            os.ftruncate(descriptor, size)
            os.lseek(descriptor, 0, os.SEEK_END)
            write_all(descriptor, name.encode() + b"\n")
            if self._sync:
                os.fsync(descriptor)
        except OSError as error:
            raise trouble(error, "write", self._path) from error

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
