"""Damage in SQLite's write-ahead log, which SQLite itself does not report.

To SQLite the log ends before the first frame whose checksum is wrong, as after a crash in the middle of a
write. Frames behind that may belong to transactions that were committed. The log and its index are described
in https://www.sqlite.org/walformat.html.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tagent_nb.errors import CorruptRecordError
from tagent_nb.storage.format.envelope import LINK, Tail, read_record, tail_line
from tagent_nb.storage.sqlite.database import transaction, waiting

_HEAD = struct.Struct(">8I")
"""Magic number, version, size of a page, number of the checkpoint, two salts, two checksums."""

_FRAME = struct.Struct(">6I")
"""Page, size of the database after a commit (else 0), two salts, two checksums; then the page."""

_MAGIC = 0x377F0682
_WORD = 1 << 32
_RECORD = re.compile(
    rb"tagent-nb 2 json(?:-signed)? events ([\w-]{1,64}) \S+ \d+ (\d{1,10}) \S+ \d+ ([0-9a-f]{64})\n"
)
_DOCUMENT = re.compile(
    rb"tagent-nb 1 json(?:-signed)? (snapshot|memories) ([\w-]{1,64}) \S+ \d+ \d+ ([0-9a-f]{64})\n"
)
_STATE = re.compile(rb"tail ([\w-]{1,64}) ([\w-]{1,64}) \d+ ")


def recover(connection: sqlite3.Connection, path: Path, key: bytes | None) -> str | None:
    """Find out what a damaged log has lost, note it beside the runs concerned, and keep the log aside.

    Only the log is read here, never its index beside it (``-shm``): the locks of all connections are held on
    the index, and to close it again would take away those of this process
    (https://www.sqlite.org/howtocorrupt.html, 2.2).

    Returns:
        What was lost, in a sentence; ``None`` if nothing was.
    """
    log = path.with_name(path.name + "-wal")
    data = _read(log)
    if len(data) < _HEAD.size + _FRAME.size or not _lost(data, _frames_in_use(connection)):
        return None
    with waiting(connection), transaction(connection):
        # Now no process writes; before, a transaction may have been half-way.
        data = _read(log)
        whole_head = len(data) >= _HEAD.size + _FRAME.size
        lost = _lost(_mended(data, key), _intact(data)) if whole_head else []
        if not lost:
            return None
        aside = log.with_name(f"{log.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        try:
            shutil.copyfile(log, aside)
            aside.chmod(0o600)
            kept = f"The log as it was is kept in {aside}."
        except OSError as error:
            kept = f"The log as it was could not be kept aside: {error.strerror}."
        what = [*_note_runs(connection, lost, key), *_documents(connection, lost)]
    # What is damaged is not met again.
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return (
        f"{log} is damaged, so that SQLite leaves out its end. Lost: "
        f"{'; '.join(what) or 'nothing of a run, perhaps a claim or a deletion'}. {kept} Restore a backup, "
        "or carry the runs on from where they are."
    )


# -- the frames that are left out ----------------------------------------------------------------


def _read(log: Path) -> bytes:
    """The log as it is at that moment: another connection may empty or remove it meanwhile, which a map of it
    into memory would not survive."""
    try:
        return log.read_bytes()
    except FileNotFoundError:
        return b""


def _frames_in_use(connection: sqlite3.Connection) -> int:
    """How many frames SQLite reads, which it reports with a checkpoint that waits for no other connection.

    Zero if it cannot say, while another connection makes a checkpoint or the disk is full.
    """
    try:
        (_, frames, _) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.OperationalError:
        return 0
    return max(0, int(frames))


def _intact(data: bytes) -> int:
    """How many frames SQLite reads when it opens the log: up to the last commit before the first damage."""
    magic, _, page, *_, first, second = _HEAD.unpack_from(data)
    if not _has_whole_head(data):
        return 0
    size = _FRAME.size + page
    sums, in_use = (first, second), 0
    for number, place in enumerate(range(_HEAD.size, len(data) - size + 1, size), 1):
        _, commit, _, _, first, second = _FRAME.unpack_from(data, place)
        sums = _checksum(_summed(data, place, size), magic & 1, sums)
        if sums != (first, second) or data[place + 8 : place + 16] != data[16:24]:
            break
        if commit:
            in_use = number
    return in_use


def _summed(data: bytes, place: int, size: int) -> bytes:
    """What the checksum of a frame is of: page, size and the page's bytes."""
    return data[place : place + 8] + data[place + _FRAME.size : place + size]


def _mended(data: bytes, key: bytes | None) -> bytes:
    """The log with its first damaged frame as it was, if one bit of it is wrong: its checksum shows which.

    That bit may be in the name of the run that is lost with the frame. It may be in the checksum, too: then
    the frame is right as it is.
    """
    magic, _, page, *_, first, second = _HEAD.unpack_from(data)
    size = _FRAME.size + page
    sums = (first, second)
    for place in range(_HEAD.size, len(data) - size + 1, size) if _has_whole_head(data) else ():
        _, _, _, _, first, second = _FRAME.unpack_from(data, place)
        summed = _summed(data, place, size)
        sums = _checksum(summed, magic & 1, sums)
        if sums != (first, second):
            missing = ((first - sums[0]) % _WORD, (second - sums[1]) % _WORD)
            best = data[place : place + size]
            rank = (*_readable(best, key), False)
            for byte, mask in _wrong_bits(summed, magic & 1, missing):
                at = byte if byte < 8 else byte - 8 + _FRAME.size
                frame = bytearray(data[place : place + size])
                frame[at] ^= mask
                # The highest bits of several words count the same. What matters is a bit of a head: that one
                # is right which makes most records whole, else most heads readable, and is in one.
                spans = [head.span() for kind in (_RECORD, _DOCUMENT) for head in kind.finditer(frame)]
                other = (*_readable(frame, key), any(start <= at < end for start, end in spans))
                if other > rank:
                    best, rank = bytes(frame), other
            return data[:place] + best + data[place + size :]
    return data


def _readable(frame: bytes | bytearray, key: bytes | None) -> tuple[int, int]:
    """How many records in a frame are whole, by their own checksum, and how many heads can be read."""
    whole = heads = 0
    for head in (head for kind in (_RECORD, _DOCUMENT) for head in kind.finditer(frame)):
        heads += 1
        with contextlib.suppress(CorruptRecordError):
            read_record(bytes(frame), head.start(), "", key)
            whole += 1
    return whole, heads


def _wrong_bits(data: bytes, big: int, missing: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Bytes, and bits in them, whose change adds this much to the two sums of some bytes.

    What is added to a word comes into the sums as often as the words behind it pass it on.
    """
    words = struct.unpack(f"{'>' if big else '<'}{len(data) // 4}I", data)
    of_first, of_second = (1, 1), (0, 1)
    for pair in range(len(words) - 2, -1, -2):
        for number, times in ((pair, of_first), (pair + 1, of_second)):
            for bit in range(32):
                change = -(1 << bit) if words[number] >> bit & 1 else 1 << bit
                if change * times[0] % _WORD == missing[0] and change * times[1] % _WORD == missing[1]:
                    byte = bit // 8
                    yield 4 * number + (3 - byte if big else byte), 1 << bit % 8
        of_first, of_second = _passed_on(of_first), _passed_on(of_second)


def _passed_on(times: tuple[int, int]) -> tuple[int, int]:
    first = (times[0] + times[1]) % _WORD
    return first, (first + times[1]) % _WORD


def _has_whole_head(data: bytes) -> bool:
    magic, *_, first, second = _HEAD.unpack_from(data)
    return magic & ~1 == _MAGIC and _checksum(data[:24], magic & 1, (0, 0)) == (first, second)


def _lost(data: bytes, in_use: int) -> list[bytes]:
    """The frames behind those that SQLite reads, if some were committed."""
    _, _, page, _, *salts, _, _ = _HEAD.unpack_from(data)
    if not _has_whole_head(data):
        # All frames are left out. Their salts and their size are in themselves.
        in_use, page, salts = 0, _page_size(data), list(_FRAME.unpack_from(data, _HEAD.size)[2:4])
    size = _FRAME.size + page
    frames: list[bytes] = []
    committed = False
    for place in range(_HEAD.size + in_use * size, len(data) - size + 1, size):
        _, commit, *own, _, _ = _FRAME.unpack_from(data, place)
        same = [ours == theirs for ours, theirs in zip(salts, own, strict=True)]
        # Frames of before the log began anew have other salts, both of them.
        if any(same):
            frames.append(data[place : place + size])
            committed = committed or commit > 0 or not all(same)
    return frames if committed else []


def _page_size(data: bytes) -> int:
    """By the distance of the first two frames, which have the same salts."""
    salts = data[_HEAD.size + 8 : _HEAD.size + 16]
    for power in range(9, 17):
        start = _HEAD.size + _FRAME.size + (1 << power) + 8
        if data[start : start + 8] == salts:
            return 1 << power
    return len(data) - _HEAD.size - _FRAME.size


def _checksum(data: bytes, big: int, sums: tuple[int, int]) -> tuple[int, int]:
    """Carry SQLite's two sums on over these bytes."""
    words = struct.unpack(f"{'>' if big else '<'}{len(data) // 4}I", data)
    first, second = sums
    for x, y in zip(words[::2], words[1::2], strict=True):
        first = (first + x + second) & 0xFFFFFFFF
        second = (second + y + first) & 0xFFFFFFFF
    return first, second


# -- what was in them ----------------------------------------------------------------------------


def _note_runs(connection: sqlite3.Connection, lost: list[bytes], key: bytes | None) -> Iterator[str]:
    """Note beside each run where it ended, as far as the database has less of it; name what is lost."""
    ends: dict[str, Tail] = {}
    pipelines: dict[str, set[str]] = {}
    for frame in lost:
        for run, place, digest in _RECORD.findall(frame):
            end = Tail(int(place) + 1, digest[:LINK].decode())
            ends[run.decode()] = max(ends.get(run.decode(), end), end, key=lambda tail: tail.count)
        for pipeline, run in _STATE.findall(frame):
            pipelines.setdefault(run.decode(), set()).add(pipeline.decode())
    for run_id, end in sorted(ends.items()):
        rows = connection.execute("SELECT pipeline FROM runs WHERE run = ?", (run_id,)).fetchall()
        names = pipelines.get(run_id, set()) | {name for (name,) in rows}
        if not names:
            yield f"run {run_id} ({end.count} records or more)"
        for pipeline_id in sorted(names):
            count = _count(connection, pipeline_id, run_id)
            if count < end.count:
                connection.execute(
                    "INSERT INTO runs(pipeline, run, state) VALUES (?, ?, ?) "
                    "ON CONFLICT(pipeline, run) DO UPDATE SET state = excluded.state",
                    (pipeline_id, run_id, tail_line(pipeline_id, run_id, end, key)),
                )
                what = (
                    f"records {count + 1} to {end.count}" if end.count > count + 1 else f"record {end.count}"
                )
                yield f"{what} of run {run_id} of pipeline {pipeline_id}"


def _count(connection: sqlite3.Connection, pipeline_id: str, run_id: str) -> int:
    query = (
        "SELECT count(*) FROM records, runs WHERE pipeline = ? AND run = ? "
        "AND id BETWEEN number << 32 AND ((number + 1) << 32) - 1"
    )
    (count,) = connection.execute(query, (pipeline_id, run_id)).fetchone()
    return int(count)


def _documents(connection: sqlite3.Connection, lost: list[bytes]) -> Iterator[str]:
    """Name the documents of which the database has another version."""
    digests = {
        (name, pipeline): digest for frame in lost for name, pipeline, digest in _DOCUMENT.findall(frame)
    }
    for (name, pipeline), digest in sorted(digests.items()):
        query = "SELECT record FROM documents WHERE pipeline = ? AND name = ?"
        row = connection.execute(query, (pipeline.decode(), name.decode())).fetchone()
        if row is None or digest not in bytes(row[0])[:1024]:
            yield f"the {name.decode()} that pipeline {pipeline.decode()} saved last"
