"""The envelope around every stored record: one line that says what follows, and a checksum over all of it.

A record is ``tagent-nb 1 json events <owner> <step> <attempt> <length> <digest>``, a line feed, ``length``
bytes of body and a line feed. ``owner`` is the run's id, or the pipeline's for what belongs to no run. The
digest covers the line and the body: SHA-256, or HMAC-SHA256 with the store's key where the codec says
``signed``. Nothing of a body is decoded before its envelope was verified.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from mmap import mmap

from tagent_nb.errors import CorruptRecordError, FormatVersionError, StorageError

FORMAT = 1
"""Version of the envelope and of what is in it. Older ones are read, newer ones are refused."""

MAX_HEAD = 1024
MAX_BODY = 1 << 30
"""Longest head and body in bytes; longer ones are refused before they are read."""

_MAGIC = b"tagent-nb "
_REMEDY = "Restore a backup, or delete it; nothing was changed."
_MARK = b"\n" + _MAGIC


class _DamageError(CorruptRecordError):
    """Bytes that a torn write may have left, unlike those that somebody put there whole."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what}. {_REMEDY}")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A verified record.

    Attributes:
        kind: ``"events"``, ``"snapshot"``, ``"memories"`` or ``"manifest"``.
        owner: Id of the run, or of the pipeline.
        step: The step it is about, or ``"-"``.
        attempt: The attempt it is about, or 0.
        body: What was stored.
        signed: Whether the store's key vouches for it.
    """

    kind: str
    owner: str
    step: str
    attempt: int
    body: bytes
    signed: bool = False


@dataclass(frozen=True, slots=True)
class Journal:
    """The records of a run: ``records``, the bytes they take (``good``) and what is wrong after them."""

    records: list[Envelope]
    good: int
    torn: str | None = None


def pack(
    kind: str, owner: str, body: bytes, *, step: str = "-", attempt: int = 0, key: bytes | None = None
) -> bytes:
    """Put ``body`` into an envelope; with ``key`` it is signed.

    Raises:
        StorageError: The body is longer than a record may be.
    """
    if len(body) > MAX_BODY:
        raise StorageError(
            f"A record of {owner} has {len(body):,} bytes; at most {MAX_BODY:,} can be stored. "
            "Write such data to a file in the step and return its path."
        )
    # Only an identifier is sure to have neither a space nor a line feed.
    name = step if step.isidentifier() else "-"
    codec = "json" if key is None else "json-signed"
    head = f"tagent-nb {FORMAT} {codec} {kind} {owner} {name} {attempt} {len(body)}".encode()
    return b"%b %b\n%b\n" % (head, _digest(head, body, key), body)


def unpack(
    data: bytes, where: str, *, kind: str | None = None, owner: str | None = None, key: bytes | None = None
) -> Envelope:
    """Verify one record and take it out of its envelope.

    Args:
        where: What the data is, for messages: a file's path, or table and id.
        kind: The kind it must be.
        owner: The run or pipeline it must belong to.
        key: The store's key; with one, what is not signed is refused.

    Raises:
        CorruptRecordError: It is damaged, or is not what it must be.
        FormatVersionError: A newer version of tagent-nb wrote it.
    """
    envelope, end = _whole(data, 0, where, kind, owner, key)
    if end != len(data):
        raise CorruptRecordError(f"{where}: {len(data) - end:,} bytes follow the record. {_REMEDY}")
    return envelope


def split(
    data: bytes, where: str, *, kind: str | None = None, owner: str | None = None, key: bytes | None = None
) -> Journal:
    """Verify records that follow each other.

    A last record that a torn write left is dropped and described in ``torn``; the same with an intact
    record behind it is an error, and so is data without any whole record. Arguments and errors as for
    :func:`unpack`.
    """
    records: list[Envelope] = []
    place = 0
    while place < len(data):
        try:
            envelope, place = _read(data, place, where, kind, owner, key)
        except _DamageError as error:
            if not records or _intact_after(data, place):
                raise CorruptRecordError(str(error)) from None
            return Journal(records, place, error.what)
        records.append(envelope)
    if not records:
        raise CorruptRecordError(f"{where} is empty. {_REMEDY}")
    return Journal(records, place)


def read_record(data: bytes | mmap, start: int, where: str, key: bytes | None) -> tuple[Envelope, int]:
    """Verify the record at ``start``, and say where the next begins. Errors as for :func:`unpack`."""
    return _whole(data, start, where, None, None, key)


def last_record(data: bytes) -> int | None:
    """Where the last record starts in ``data``, which may begin in the middle of another."""
    found = data.rfind(_MARK)
    if found >= 0:
        return found + 1
    return 0 if data.startswith(_MAGIC) else None


def _digest(head: bytes, body: bytes, key: bytes | None) -> bytes:
    if key is not None:
        return hmac.digest(key, head + b"\n" + body, "sha256").hex().encode()
    digest = hashlib.sha256(head)
    digest.update(b"\n")
    digest.update(body)
    return digest.hexdigest().encode()


def _whole(
    data: bytes | mmap, start: int, where: str, kind: str | None, owner: str | None, key: bytes | None
) -> tuple[Envelope, int]:
    """:func:`_read`, where nobody asks whether a torn write explains the damage."""
    try:
        return _read(data, start, where, kind, owner, key)
    except _DamageError as error:
        raise CorruptRecordError(str(error)) from None


def _read(
    data: bytes | mmap, start: int, where: str, kind: str | None, owner: str | None, key: bytes | None
) -> tuple[Envelope, int]:
    """The record at ``start``, and where the next begins."""
    place = f"{where}, byte {start:,}"
    end = data.find(b"\n", start, start + MAX_HEAD)
    line = data[start:end] if end >= 0 else b""
    words = line.split(b" ")
    if not line.startswith(_MAGIC) or len(words) < 2 or not words[1].isdigit() or len(words[1]) > 9:
        raise _DamageError(f"{place}: no record starts here")
    if int(words[1]) > FORMAT:
        raise FormatVersionError(
            f"{place}: written in format {int(words[1])}, and this tagent-nb reads up to {FORMAT}. "
            "Install a newer tagent-nb; nothing was changed."
        )
    envelope, digest, length = _head(words, place)
    body_start = end + 1
    body = data[body_start : body_start + length]
    signed = words[2] == b"json-signed"
    if len(body) < length or data[body_start + length : body_start + length + 1] != b"\n":
        raise _DamageError(f"{place}: the record is cut off")
    if signed and key is None:
        # Without the key its plain checksum is unknown, so nothing vouches for it.
        raise CorruptRecordError(f"{place}: the record is signed. Open this store with its key.")
    head = line[: line.rindex(b" ")]
    if not hmac.compare_digest(_digest(head, body, key if signed else None), digest):
        raise _DamageError(f"{place}: the checksum does not match")
    if key is not None and not signed:
        raise CorruptRecordError(
            f"{place}: the record is not signed, and this store accepts signed ones only. "
            "Open it without a key, or remove the record."
        )
    if owner is not None and envelope.owner != owner:
        raise CorruptRecordError(
            f"{place}: the record belongs to {envelope.owner!a}, not to {owner!a}. {_REMEDY}"
        )
    if kind is not None and envelope.kind != kind:
        raise CorruptRecordError(f"{place}: holds {envelope.kind!a} where {kind!a} belong. {_REMEDY}")
    found = Envelope(envelope.kind, envelope.owner, envelope.step, envelope.attempt, body, signed)
    return found, body_start + length + 1


def _head(words: list[bytes], place: str) -> tuple[Envelope, bytes, int]:
    """What the line says: an envelope without its body, the digest and the body's length."""
    if len(words) != 9 or words[2] not in (b"json", b"json-signed"):
        raise _DamageError(f"{place}: the head of the record cannot be read")
    try:
        kind, owner, step = words[3].decode("ascii"), words[4].decode("ascii"), words[5].decode()
    except UnicodeDecodeError:
        raise _DamageError(f"{place}: the head of the record is not text") from None
    numbers = words[6:8]
    if not all(number.isdigit() and len(number) <= 10 for number in numbers) or int(numbers[1]) > MAX_BODY:
        raise _DamageError(f"{place}: the head of the record has impossible numbers")
    return Envelope(kind, owner, step, int(numbers[0]), b""), words[8], int(numbers[1])


def _intact_after(data: bytes, start: int) -> bool:
    """Whether a whole record lies somewhere behind ``start``."""
    found = data.find(_MAGIC, start + 1)
    while found >= 0:
        try:
            _read(data, found, "", None, None, None)
        except FormatVersionError:
            # Text within a torn record may look like this, but not after a line feed.
            if data[found - 1 : found] == b"\n":
                return True
        except _DamageError:
            pass
        except CorruptRecordError:
            # Signed: whole enough that it was no torn write.
            return True
        else:
            return True
        found = data.find(_MAGIC, found + 1)
    return False
