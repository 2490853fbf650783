"""The envelope around every stored record: one line that says what follows, and a checksum over all of it.

A record is ``tagent-nb 1 json events <owner> <step> <attempt> <length> <digest>``, a line feed, ``length``
bytes of body and a line feed. ``owner`` is the run's id, or the pipeline's for what belongs to no run. The
digest covers the line and the body: SHA-256, or HMAC-SHA256 with the store's key where the codec says
``signed``. Nothing of a body is decoded before its envelope was verified.

Records of a run form a chain: each names its place in the run (from 0) and how the digest of the record
before it begins (``-`` for the first), in two words before its length, and has version 2.
Records of version 1 have neither; a run that begins with such may go on with a chain, but not the reverse.
Where a chain ends is kept beside it, in one line: ``tail <pipeline> <run> <count> <digest> <checksum>``.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from dataclasses import dataclass
from mmap import mmap

from tagent_nb.errors import CorruptRecordError, FormatVersionError, StorageError

FORMAT = 2
"""Version of the envelope and of what is in it. Older ones are read, newer ones are refused.

Documents and the parts of backups, which stand alone, are written in version 1.
"""

MAX_HEAD = 1024
MAX_BODY = 1 << 30
"""Longest head and body in bytes; longer ones are refused before they are read."""

LINK = 16
"""Digits of a digest that the next record names. 64 bits distinguish records that are there; new
ones cannot be made to fit, since the checksum (with a key: the signature) of each is as long as ever."""

_MAGIC = b"tagent-nb "
_REMEDY = "Restore a backup, or delete it; nothing was changed."
_MARK = b"\n" + _MAGIC


class _DamageError(CorruptRecordError):
    """Bytes that a torn write may have left, unlike those that were put there whole."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what}. {_REMEDY}")


class KeyProblemError(CorruptRecordError):
    """A record that is signed where there is no key, or the reverse: whole, for who opens it otherwise."""


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
        digest: How its checksum or signature begins, for the record that follows.
        place: How many records of its run are before it; ``None`` in records without a chain.
        previous: ``digest`` of the record before it, ``"-"`` if it is the first.
    """

    kind: str
    owner: str
    step: str
    attempt: int
    body: bytes
    signed: bool = False
    digest: str = ""
    place: int | None = None
    previous: str = ""


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the records of a run end: how many there are, and how the digest of the last begins."""

    count: int = 0
    digest: str = "-"


@dataclass(frozen=True, slots=True)
class Journal:
    """The records of a run: ``records``, the bytes they take (``good``) and what is wrong after them."""

    records: list[Envelope]
    good: int
    torn: str | None = None

    @property
    def tail(self) -> Tail:
        """Where they end."""
        return Tail(len(self.records), self.records[-1].digest)

    @property
    def chained(self) -> bool:
        """Whether the last record names its place, as all will that follow."""
        return self.records[-1].place is not None


class Draft:
    """A record of a run that has no place yet. What adds it to the run gives it one, since only there it is
    certain which record is the last.

    Args:
        pipeline_id: The pipeline.
        run_id: The run.
        body: What is stored.
        step: The step it is about.
        attempt: The attempt it is about.
        key: The store's key, if it has one.

    Raises:
        StorageError: The body is longer than a record may be.
    """

    __slots__ = ("_attempt", "_body", "_key", "_pipeline_id", "_run_id", "_step")

    def __init__(
        self,
        pipeline_id: str,
        run_id: str,
        body: bytes,
        *,
        step: str = "-",
        attempt: int = 0,
        key: bytes | None = None,
    ) -> None:
        _check_length(run_id, body)
        self._pipeline_id = pipeline_id
        self._run_id = run_id
        self._body = body
        self._step = step
        self._attempt = attempt
        self._key = key

    def __len__(self) -> int:
        """Its bytes, without the line before them."""
        return len(self._body)

    def seal(self, tail: Tail) -> tuple[bytes, Tail]:
        """The record to be stored behind ``tail``, and where the run ends then."""
        place = f"{tail.count} {tail.digest} "
        record, digest = _sealed(
            "events", self._run_id, self._body, self._step, self._attempt, self._key, place
        )
        return record, Tail(tail.count + 1, digest[:LINK])

    def state(self, tail: Tail) -> bytes:
        """The line to be stored beside the run when it ends at ``tail``."""
        return tail_line(self._pipeline_id, self._run_id, tail, self._key)


class Copied(Draft):
    """A record that was sealed before, such as one from a backup: it is stored as it is."""

    __slots__ = ("_digest",)

    def __init__(self, pipeline_id: str, run_id: str, record: bytes, digest: str, key: bytes | None) -> None:
        self._pipeline_id = pipeline_id
        self._run_id = run_id
        self._body = record
        self._key = key
        self._digest = digest

    def seal(self, tail: Tail) -> tuple[bytes, Tail]:
        """The record itself, and where the run ends behind it."""
        return self._body, Tail(tail.count + 1, self._digest)


def pack(
    kind: str, owner: str, body: bytes, *, step: str = "-", attempt: int = 0, key: bytes | None = None
) -> bytes:
    """Put ``body`` into an envelope; with ``key`` it is signed.

    Raises:
        StorageError: The body is longer than a record may be.
    """
    _check_length(owner, body)
    return _sealed(kind, owner, body, step, attempt, key, "")[0]


def _check_length(owner: str, body: bytes) -> None:
    if len(body) > MAX_BODY:
        raise StorageError(
            f"A record of {owner} has {len(body):,} bytes; at most {MAX_BODY:,} can be stored. "
            "Write such data to a file in the step and return its path."
        )


def _sealed(
    kind: str, owner: str, body: bytes, step: str, attempt: int, key: bytes | None, place: str
) -> tuple[bytes, str]:
    """A record and its digest; ``place`` is what its line says of the chain."""
    # Only an identifier is sure to have neither a space nor a line feed.
    name = step if step.isidentifier() else "-"
    codec = "json" if key is None else "json-signed"
    version = 2 if place else 1
    head = f"tagent-nb {version} {codec} {kind} {owner} {name} {attempt} {place}{len(body)}".encode()
    digest = _digest(head, body, key)
    return b"%b %b\n%b\n" % (head, digest, body), digest.decode()


def tail_line(pipeline_id: str, run_id: str, tail: Tail, key: bytes | None) -> bytes:
    """Where a run ends, as it is kept beside its records; with ``key`` it is signed."""
    line = f"tail {pipeline_id} {run_id} {tail.count} {tail.digest}".encode()
    return b"%b %b" % (line, _digest(line, b"", key))


def has_begun(state: bytes | None) -> bool:
    """Whether a line of :func:`tail_line` is of a run that has records."""
    words = (state or b"").split(b" ")
    return len(words) > 3 and words[3] != b"0"


def read_tail(line: bytes, pipeline_id: str, run_id: str, key: bytes | None) -> Tail:
    """Where a run ends, by the line that is kept beside its records.

    Raises:
        CorruptRecordError: The line is damaged, is not signed with the key, or is of another run.
    """
    words = line.split(b" ")
    if len(words) == 6 and words[3].isdigit() and len(words[3]) <= 10:
        tail = Tail(int(words[3]), words[4].decode("ascii", "replace"))
        if hmac.compare_digest(tail_line(pipeline_id, run_id, tail, key), line):
            return tail
    raise CorruptRecordError(
        f"What says where run {run_id} of pipeline {pipeline_id} ends is damaged, so that nothing shows "
        "whether records are missing there."
    )


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
            envelope, end = _read(data, place, where, kind, owner, key)
        except _DamageError as error:
            if not records or _intact_after(data, place):
                raise CorruptRecordError(str(error)) from None
            return Journal(records, place, error.what)
        _check_place(envelope, records, f"{where}, byte {place:,}")
        records.append(envelope)
        place = end
    if not records:
        raise CorruptRecordError(f"{where} is empty. {_REMEDY}")
    return Journal(records, place)


def end_problem(
    journal: Journal, size: int, state: bytes | None, pipeline_id: str, run_id: str, key: bytes | None
) -> str | None:
    """What is wrong at the end of a run, in a sentence; ``None`` if nothing is.

    Args:
        journal: The run's records.
        size: The bytes that they were read from.
        state: The line that is kept beside them: empty if it is gone, ``None`` if none is kept.
        key: The store's key.
    """
    problems: list[str] = []
    count = len(journal.records)
    if journal.torn is not None:
        lost = size - journal.good
        problems.append(f"The end of run {run_id} was torn and is left out ({lost:,} bytes; {journal.torn}).")
    of = f"run {run_id} of pipeline {pipeline_id}"
    if state:
        try:
            tail = read_tail(state, pipeline_id, run_id, key)
        except CorruptRecordError as error:
            problems.append(str(error))
        else:
            if tail.count > count + len(problems):
                problems.append(
                    f"The end of {of} is missing: {tail.count} records were recorded, and {count} are there. "
                    "Restore a backup, or carry the run on from there."
                )
            elif 0 < tail.count <= count and journal.records[tail.count - 1].digest != tail.digest:
                problems.append(
                    f"Record {tail.count} of {of} is not the one that was recorded there: an older copy of "
                    "the run may have taken its place. Restore a backup, or carry the run on from there."
                )
    elif state is not None and journal.chained:
        problems.append(
            f"What says where {of} ends is gone, so that nothing shows whether records are missing there."
        )
    return " ".join(problems) or None


def ends_with(last: Envelope, state: bytes | None, pipeline_id: str, run_id: str, key: bytes | None) -> bool:
    """Whether nothing speaks against a run's last record being the one that was recorded last."""
    if last.place is None:
        return not state
    if state is None:
        return True
    with contextlib.suppress(CorruptRecordError):
        tail = read_tail(state, pipeline_id, run_id, key)
        return tail.count <= last.place or tail == Tail(last.place + 1, last.digest)
    return False


def _check_place(envelope: Envelope, before: list[Envelope], where: str) -> None:
    """Refuse a record that does not follow those before it: a gap, a repetition, or another order."""
    count = len(before)
    number = f"record {count + 1} of run {envelope.owner}"
    if envelope.place is None:
        if not before or before[-1].place is None:
            return
        what = f"{number} names no place in the run, and the one before it does"
    elif envelope.place > count:
        last = "" if envelope.place == count + 1 else f" to {envelope.place}"
        what = f"{number}{last} is missing: record {envelope.place + 1} is in its place"
    elif envelope.place < count:
        what = f"record {envelope.place + 1} of run {envelope.owner} is in the place of record {count + 1}"
    elif envelope.previous != (before[-1].digest if before else "-"):
        what = f"{number} does not follow the record before it, which is another than when it was written"
    else:
        return
    raise CorruptRecordError(f"{where}: {what}. {_REMEDY}")


def read_record(data: bytes | mmap, start: int, where: str, key: bytes | None) -> tuple[Envelope, int]:
    """Verify the record at ``start``, and say where the next begins. Errors as for :func:`unpack`."""
    return _whole(data, start, where, None, None, key)


def last_record(data: bytes) -> int | None:
    """Where the last record starts in ``data``, which may begin in the middle of another."""
    start = data.rfind(_MARK)
    if start >= 0:
        return start + 1
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
    """:func:`_read`, without a look at whether a torn write explains the damage."""
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
        raise KeyProblemError(f"{place}: the record is signed. Open this store with its key.")
    head = line[: line.rindex(b" ")]
    if not hmac.compare_digest(_digest(head, body, key if signed else None), digest):
        raise _DamageError(f"{place}: the checksum does not match")
    if key is not None and not signed:
        raise KeyProblemError(
            f"{place}: the record is not signed, and this store accepts signed ones only. "
            "Open it without a key, or remove the record."
        )
    if owner is not None and envelope.owner != owner:
        raise CorruptRecordError(
            f"{place}: the record belongs to {envelope.owner!a}, not to {owner!a}. {_REMEDY}"
        )
    if kind is not None and envelope.kind != kind:
        raise CorruptRecordError(f"{place}: holds {envelope.kind!a} where {kind!a} belong. {_REMEDY}")
    whole = Envelope(
        envelope.kind,
        envelope.owner,
        envelope.step,
        envelope.attempt,
        body,
        signed,
        digest[:LINK].decode(),
        envelope.place,
        envelope.previous,
    )
    return whole, body_start + length + 1


def _head(words: list[bytes], place: str) -> tuple[Envelope, bytes, int]:
    """What the line says: an envelope without its body, the digest and the body's length."""
    chained = words[1] == b"2"
    if len(words) != (11 if chained else 9) or words[2] not in (b"json", b"json-signed"):
        raise _DamageError(f"{place}: the head of the record cannot be read")
    try:
        kind, owner, step = words[3].decode("ascii"), words[4].decode("ascii"), words[5].decode()
        previous = words[8].decode("ascii") if chained else ""
    except UnicodeDecodeError:
        raise _DamageError(f"{place}: the head of the record is not text") from None
    numbers = [words[6], words[-2], *words[7:8]]
    if not all(number.isdigit() and len(number) <= 10 for number in numbers) or int(words[-2]) > MAX_BODY:
        raise _DamageError(f"{place}: the head of the record has impossible numbers")
    envelope = Envelope(
        kind, owner, step, int(words[6]), b"", place=int(words[7]) if chained else None, previous=previous
    )
    return envelope, words[-1], int(words[-2])


def _intact_after(data: bytes, start: int) -> bool:
    """Whether a whole record lies somewhere behind ``start``."""
    place = data.find(_MAGIC, start + 1)
    while place >= 0:
        try:
            _read(data, place, "", None, None, None)
        except FormatVersionError:
            # Text within a torn record may look like this, but not after a line feed.
            if data[place - 1 : place] == b"\n":
                return True
        except _DamageError:
            pass
        except CorruptRecordError:
            # Signed: whole enough that it was no torn write.
            return True
        else:
            return True
        place = data.find(_MAGIC, place + 1)
    return False
