"""Files that hold a whole store: written aside, ended by a count, verified from the first byte to the last.

A backup is a row of records as :mod:`tagent_nb.storage.format.envelope` makes them. Each holds a line of
JSON that says what it is, and behind it a document or a part of a run, again in its own envelopes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tagent_nb.errors import CorruptRecordError, DefinitionError, StorageError
from tagent_nb.naming import safe_id
from tagent_nb.storage.filesystem import make_folder, open_file, sync_folder, trouble, write_all
from tagent_nb.storage.format.envelope import pack, read_record, split, unpack
from tagent_nb.storage.format.events import FIRST, begun
from tagent_nb.storage.run_info import BackupInfo, Item

DOCUMENTS = ("snapshot", "memories")
SUFFIX = ".backup"
PART = 64 << 20
"""Bytes of one part of a run."""

_TICK = timedelta(microseconds=1)


@dataclass(slots=True)
class Archive:
    """A verified backup, open for reading. Close it with ``close``.

    Attributes:
        info: What is in it.
        items: For each item the places of its parts.
    """

    info: BackupInfo
    items: dict[Item, list[tuple[int, int]]]
    _data: mmap.mmap

    def read(self, item: Item) -> bytes:
        """The stored bytes of an item."""
        return b"".join(self._data[start:end] for start, end in self.items[item])

    def close(self) -> None:
        """Give the file back."""
        self._data.close()


@dataclass
class Writer:
    """Writes a backup aside; :meth:`finish` puts it in its place."""

    path: Path
    key: bytes | None
    count: int = 0
    _descriptor: int = field(default=-1, init=False)

    @property
    def _aside(self) -> Path:
        return self.path.with_suffix(".tmp")

    @classmethod
    def create(cls, path: Path, key: bytes | None) -> Writer:
        """Begin a backup.

        Raises:
            StorageUnavailableError: The folder or the file cannot be made.
        """
        writer = cls(path, key)
        make_folder(path.parent)
        writer._descriptor = open_file(writer._aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "write")
        return writer

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._aside.unlink(missing_ok=True)

    def add(self, item: Item, data: bytes) -> None:
        """Add a document, or a run in as many parts as it needs.

        Raises:
            StorageUnavailableError: It cannot be written.
        """
        pipeline, kind, name = item
        # With a place the items are in the order of the store: backups of before were in none.
        head = json.dumps({"pipeline": pipeline, "kind": kind, "name": name, "place": self.count}).encode()
        for start in range(0, len(data), PART):
            self._write(pack("part", name, b"%b\n%b" % (head, data[start : start + PART]), key=self.key))

    def finish(self) -> None:
        """Write the count, flush, and give the file its name.

        Raises:
            StorageUnavailableError: That failed; there is no such backup.
        """
        self._write(pack("end", "backup", json.dumps({"parts": self.count}).encode(), key=self.key))
        try:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
            self._aside.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise trouble(error, "write", self.path) from error

    def _write(self, record: bytes) -> None:
        try:
            write_all(self._descriptor, record)
        except OSError as error:
            raise trouble(error, "write", self.path) from error
        self.count += 1


def new_path(folder: Path, tag: str) -> Path:
    """A name for a backup that is made now. It sorts behind those that are there, also after the clock was
    set back."""
    stamp = datetime.now(UTC)
    with contextlib.suppress(OverflowError):  # a name in the year 9999
        stamp = max([stamp, *(_stamp(path) + _TICK for path in paths(folder)[:1])])
    while True:
        path = folder / f"{stamp:%Y%m%dT%H%M%S%f}{tag and '-'}{tag}{SUFFIX}"
        # Another process may have begun one at the same moment.
        if not path.exists() and not path.with_suffix(".tmp").exists():
            return path
        stamp += _TICK


def paths(folder: Path) -> list[Path]:
    """The backups in a folder, newest first."""
    return sorted((path for path in folder.glob(f"*{SUFFIX}") if made_at(path) > 0), reverse=True)


def tag_for(label: str) -> str:
    """What is in the names of backups of the store that is at ``label``; empty for no label."""
    return label and hashlib.sha256(label.encode(errors="surrogateescape")).hexdigest()[:8]


def tag_of(path: Path) -> str:
    """The tag in the name of a backup; empty if it has none."""
    return path.name.removesuffix(SUFFIX).partition("-")[2]


def made_at(path: Path) -> float:
    """When a backup was made, by its name; 0 if it is not a name of ours."""
    _, dash, tag = path.name.removesuffix(SUFFIX).partition("-")
    if dash and not re.fullmatch("[0-9a-f]{8}", tag):
        return 0.0
    try:
        return _stamp(path).timestamp()
    except ValueError:
        return 0.0


def _stamp(path: Path) -> datetime:
    time = path.name.removesuffix(SUFFIX).partition("-")[0]
    return datetime.strptime(time, "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)


def open_archive(path: Path, key: bytes | None) -> Archive:
    """Read a backup from the first byte to the last, and open it if all of it is as it was written.

    Raises:
        CorruptRecordError: It is damaged, or cut off.
        FormatVersionError: A newer version of tagent-nb wrote it.
        StorageUnavailableError: It cannot be read.
    """
    try:
        descriptor = open_file(path, os.O_RDONLY, "read")
    except FileNotFoundError as error:
        raise trouble(error, "read", path) from error
    try:
        size = os.fstat(descriptor).st_size
        if not size:
            raise CorruptRecordError(f"{path} is empty. Use an older backup.")
        data = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    try:
        items = dict(_items(data, path, key))
        archive = Archive(BackupInfo(path, made_at(path), size), {}, data)
        archive.items = items
        for item in items:
            check_item(item, archive.read(item), f"{path}, {item[2]} of pipeline {item[0]}", key)
    except BaseException:
        data.close()
        raise
    pipelines = {pipeline for pipeline, _, _ in items}
    runs = sum(kind == "run" for _, kind, _ in items)
    archive.info = BackupInfo(path, made_at(path), size, len(pipelines), runs)
    return archive


def check_item(item: Item, data: bytes, where: str, key: bytes | None) -> int:
    """Verify a stored document or run; how many of its bytes are good (a run's torn end is not).

    Raises:
        StorageError: It is damaged.
    """
    pipeline, kind, name = item
    if kind == "run":
        return split(data, where, kind="events", owner=name, key=key).good
    unpack(data, where, kind=name, owner=pipeline, key=key)
    return len(data)


def _items(data: mmap.mmap, path: Path, key: bytes | None) -> Iterator[tuple[Item, list[tuple[int, int]]]]:
    """Each item and the places of its parts, in the order of the file."""
    parts: dict[Item, list[tuple[int, int]]] = {}
    place, count, unplaced = 0, 0, False
    while place < len(data):
        record, end = read_record(data, place, str(path), key)
        if record.kind == "end":
            if end != len(data) or _json(record.body, path) != {"parts": count}:
                raise CorruptRecordError(f"{path}: its parts are not all there. Use an older backup.")
            items = list(parts.items())
            if unplaced:
                items.sort(key=lambda entry: _begun(entry[0], data, entry[1][0], key))
            yield from items
            return
        line = record.body.find(b"\n")
        head = _json(record.body[: max(line, 0)], path)
        item = _item(head, f"{path}, byte {place:,}")
        body = end - 1 - len(record.body)
        parts.setdefault(item, []).append((body + line + 1, end - 1))
        unplaced |= "place" not in head
        place, count = end, count + 1
    raise CorruptRecordError(f"{path}: its end is missing. Use an older backup.")


def _begun(item: Item, data: mmap.mmap, part: tuple[int, int], key: bytes | None) -> tuple[float, str]:
    """When a run began; documents come first."""
    if item[1] == "document":
        return -1.0, item[2]
    return begun(data[part[0] : min(part[1], part[0] + FIRST)], item[2], key), item[2]


def _item(head: Any, where: str) -> Item:
    """What a part belongs to. A stranger's names must not lead anywhere else."""
    try:
        pipeline, kind, name = head["pipeline"], head["kind"], head["name"]
        safe_id(pipeline)
        safe_id(name)
    except (KeyError, TypeError, DefinitionError):
        raise CorruptRecordError(f"{where}: this part is not ours. Use an older backup.") from None
    if kind not in ("run", "document") or (kind == "document" and name not in DOCUMENTS):
        raise CorruptRecordError(f"{where}: it is not known what this part is. Use an older backup.")
    return pipeline, kind, name


def _json(text: bytes, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CorruptRecordError(f"{path}: holds something that is not ours. Use an older backup.") from None


def inspect(path: Path, key: bytes | None) -> BackupInfo:
    """What is in a backup; with ``problem`` if it must not be used."""
    try:
        archive = open_archive(path, key)
    except StorageError as error:
        with contextlib.suppress(OSError):
            return BackupInfo(path, made_at(path), path.lstat().st_size, problem=str(error))
        return BackupInfo(path, made_at(path), 0, problem=str(error))
    archive.close()
    return archive.info
