"""What one cache entry is as bytes: a checksum, a small header, metadata, and the value as it was encoded.

A hit reads these bytes, checks them, and decodes none of the value.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tagent_nb import serde
from tagent_nb.errors import CorruptRecordError
from tagent_nb.events import NO_ENTRIES, NO_USAGE, Output, TokenUsage
from tagent_nb.serde import StoredValue

MAGIC = b"tagent-nb cache 1\n"
"""Marks an entry and its format; another number is an entry of another version, and so a miss."""

_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode
_FREE = '",null,0.0]'
"""How the header of an entry ends that took no tokens and no money, behind a digest of 64 letters."""

_LENGTHS = struct.Struct(">II")
_CHECKSUM = 32
_START = len(MAGIC) + _CHECKSUM
_USAGE = TokenUsage.__slots__
_REPORTED = _USAGE.index("assumed_input_tokens")


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """An answer from the cache.

    Attributes:
        output: The value, decoded when it is first read.
        usage: Tokens and calls that computing it took.
        cost: USD that computing it took; ``None`` when the price is unknown.
        metadata: Plain data that was stored with it.
    """

    output: StoredValue
    usage: TokenUsage = field(default_factory=TokenUsage)
    cost: float | None = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)


class SourceDigests:
    """Digests of what functions do by their text, so that what one process has parsed, others need not.

    Args:
        stored: Those that are stored, both sides as bytes.
    """

    def __init__(self, stored: Mapping[bytes, bytes]) -> None:
        self._digests = dict(stored)
        self._new: dict[bytes, bytes] = {}

    def get(self, source: str) -> str | None:
        """The digest of what this text does, in hexadecimal; ``None`` if no process has parsed it."""
        digest = self._digests.get(_source_key(source))
        return digest.hex() if digest is not None and len(digest) == _CHECKSUM else None

    def note(self, source: str, digest: str) -> None:
        """Keep a digest (hex) of what this text does."""
        key = _source_key(source)
        self._digests[key] = self._new[key] = bytes.fromhex(digest)

    def take_new(self) -> dict[bytes, bytes]:
        """What was noted since the last time, to be stored."""
        new, self._new = self._new, {}
        return new


def _source_key(source: str) -> bytes:
    # Another version of Python may parse the same text to another tree, and another one of ours normalise it
    # otherwise.
    return hashlib.sha256(_PARSER + source.encode("utf-8", "surrogatepass")).digest()


NORMALISATION = 1
"""Raised when :meth:`PythonBody.normalised`, or the digest of it, becomes another one for the same text."""

_PARSER = f"{sys.version_info.major}.{sys.version_info.minor} {NORMALISATION}\n".encode()


def pack(
    key: str, output: Output, usage: TokenUsage, cost: float | None, metadata: Mapping[str, Any]
) -> bytes:
    """The bytes of an entry. The checksum covers the key: an entry moved to another key is damaged.

    Raises:
        EncodeError: The value or the metadata cannot be stored; the message has the path.
    """
    stored = output if isinstance(output, StoredValue) else StoredValue.of(output.value)
    blob = stored.blob
    more = serde.encode(dict(metadata), path="metadata") if metadata else b""
    # Assumed tokens, which are rare, are left out: an older version reads all other entries.
    names = _USAGE if usage.unmeasured else _USAGE[:_REPORTED]
    spent = [getattr(usage, name) for name in names] if usage else None
    header = _to_json([stored.digest, spent, cost]).encode()
    body = b"".join((_LENGTHS.pack(len(header), len(more)), header, more, blob))
    return b"".join((MAGIC, _checksum(key, body), body))


def unpack(key: str, record: bytes, schemas: Mapping[str, type] | None) -> CacheEntry:
    """The entry that :func:`pack` made of the same key.

    Raises:
        CorruptRecordError: The bytes are not what was written under this key.
    """
    start = _START + _LENGTHS.size
    if not record.startswith(MAGIC) or len(record) < start:
        raise CorruptRecordError("it is not an entry of this version of tagent-nb")
    if _checksum(key, memoryview(record)[_START:]) != record[len(MAGIC) : _START]:
        raise CorruptRecordError("its checksum does not match")
    header, more = _LENGTHS.unpack_from(record, _START)
    try:
        text = record[start : start + header].decode()
        digest, spent, cost = text[2:66], None, 0.0
        if text[:2] == '["' and text[66:] == _FREE and digest.isalnum() and digest.isascii():
            pass  # what most entries have; to parse it takes twice as long
        else:
            digest, spent, cost = _from_json(text)
        usage = NO_USAGE if spent is None else _counts(spent)
        output = StoredValue.from_blob(record[start + header + more :], _text(digest), schemas)
        metadata = (
            serde.decode(record[start + header : start + header + more], schemas) if more else NO_ENTRIES
        )
        if not isinstance(metadata, dict):
            raise TypeError("metadata is no dict")
        return CacheEntry(output, usage, _price(cost), metadata)
    except (ValueError, TypeError, RecursionError) as error:
        # Right checksum, wrong content: another program wrote it.
        raise CorruptRecordError(f"its header cannot be read: {error}") from None


def _checksum(key: str, body: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key.encode())
    digest.update(body)
    return digest.digest()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no digest")
    return value


def _counts(spent: Sequence[object]) -> TokenUsage:
    if len(spent) not in (_REPORTED, len(_USAGE)) or not all(type(n) is int and n >= 0 for n in spent):
        raise TypeError(f"{spent!r} is no usage")
    return TokenUsage(**dict(zip(_USAGE, spent, strict=False)))  # type: ignore[arg-type]


def _price(value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise TypeError(f"{value!r} is no cost")
    return float(value)  # type: ignore[arg-type]
