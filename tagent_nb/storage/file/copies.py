"""A document in a folder, and beside it a verified copy of the version before: what is damaged comes back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tagent_nb.errors import CorruptRecordError, FormatVersionError, StorageUnavailableError
from tagent_nb.storage.file.locks import locked
from tagent_nb.storage.filesystem import read_file, replace_file, sync_folder, trouble
from tagent_nb.storage.format.envelope import KeyProblemError, unpack

RECORD = ".record"
COPY = ".copy"
"""The version before. It answers only for a document that is there and damaged."""

RECOVERING = ".recovering"
"""A copy on its way into the place of a damaged document: a process that finds it there goes on."""

DAMAGED = ".damaged-"
"""What is in the names of damaged documents that were put aside."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a pipeline.

    Attributes:
        folder: The pipeline's folder.
        name: Its name, which is its kind.
        owner: The pipeline.
        key: The store's key.
        report: Called with what was recovered.
        changing: Entered around each change of the folder by which a document is replaced.
    """

    folder: Path
    name: str
    owner: str
    key: bytes | None
    report: Callable[[str], None]
    changing: Callable[[], AbstractContextManager[None]]

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._beside(RECORD)

    def _beside(self, ending: str) -> Path:
        return self.folder / f"{self.name}{ending}"

    def read(self) -> bytes | None:
        """Its bytes, from the copy if they are damaged; ``None`` if there is none.

        Where no copy is intact, the damaged bytes are given as they are.

        Raises:
            CorruptRecordError: It is no file, and no copy is intact.
            StorageUnavailableError: It cannot be read.
        """
        data, problem = self._look()
        if problem is None and (data is not None or not os.path.lexists(self._beside(RECOVERING))):
            return data
        # Another process may be replacing it at this moment.
        with folder_locked(self.folder):
            data, problem = self._look()
            if data is None or problem is not None:
                recovered = self._recover(problem)
                if recovered is not None:
                    return recovered
        if data is None and problem is not None:
            raise problem
        return data

    def replace(self, record: bytes) -> None:
        """Put ``record`` in its place, and keep what was there as the copy, if that is intact.

        Raises:
            StorageUnavailableError: It cannot be written; it is as it was.
        """
        with folder_locked(self.folder):
            data, problem = self._look()
            if data is None and problem is None:
                # What was deleted never comes back.
                discard(self._beside(COPY))
            elif data is not None and problem is None and self._is_ours(data):
                replace_file(self._beside(COPY), data, changing=self.changing)
            elif self.path.is_dir():
                self._put_aside()
            replace_file(self.path, record, changing=self.changing)
            discard(self._beside(RECOVERING))

    def _look(self) -> tuple[bytes | None, CorruptRecordError | None]:
        """The bytes that are there, and in what way they are damaged."""
        try:
            data = read_file(self.path)
            if data is not None:
                unpack(data, str(self.path), kind=self.name, owner=self.owner, key=self.key)
        except (FormatVersionError, KeyProblemError):
            # It is whole, for another version of tagent-nb or for a process that has the key.
            return data, None
        except CorruptRecordError as error:
            with contextlib.suppress(CorruptRecordError):
                return read_file(self.path), error
            return None, error
        return data, None

    def _is_ours(self, data: bytes) -> bool:
        try:
            unpack(data, str(self.path), kind=self.name, owner=self.owner, key=self.key)
        except (CorruptRecordError, FormatVersionError):
            return False
        return True

    def _recover(self, problem: CorruptRecordError | None) -> bytes | None:
        """Put the copy in the place of what is damaged; its bytes, or ``None`` if there is none intact."""
        for path in (self._beside(RECOVERING), self._beside(COPY)):
            with contextlib.suppress(CorruptRecordError):
                data = read_file(path)
                if data is not None and self._is_ours(data):
                    break
        else:
            return None
        what = f"{self.path} was damaged" + ("" if problem is None else f" ({str(problem).split('. ')[0]})")
        lost = "What was saved last is lost, and the version before it is there again"
        try:
            replace_file(self._beside(RECOVERING), data)
            aside = self._put_aside()
            self._beside(RECOVERING).replace(self.path)
            sync_folder(self.folder)
        except (StorageUnavailableError, OSError) as error:
            self.report(f"{what}. {lost}, for this process only: the copy cannot take its place. {error}")
        else:
            kept = f"; the damaged one is {aside}" if aside is not None else ""
            self.report(f"{what}. {lost}{kept}.")
        return data

    def _put_aside(self) -> Path | None:
        """Give what is in the document's place another name; ``None`` if nothing is there."""
        aside = self._beside(f"{RECORD}{DAMAGED}{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise trouble(error, "move", self.path) from error
        return aside


def is_document(name: str) -> bool:
    """Whether a file of that name is a document, or one that is being recovered."""
    return name.endswith((RECORD, RECOVERING))


def is_kept(name: str) -> bool:
    """Whether a file of that name is kept for a document: a copy of it, or a damaged one."""
    return name.endswith((COPY, RECOVERING)) or DAMAGED in name


def discard(path: Path) -> None:
    """Remove a file that may not be there.

    Raises:
        StorageUnavailableError: It cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise trouble(error, "remove", path) from error


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Let one at a time change the documents in a folder.

    Raises:
        StorageUnavailableError: Another process does for too long, or the folder cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise trouble(error, "open", folder) from error
    try:
        with locked(descriptor, folder):
            yield
    finally:
        os.close(descriptor)
