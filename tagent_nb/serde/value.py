"""Values as bytes: strict JSON with tags, no pickle, and no class that the caller did not pass.

``encode`` keeps the order of dicts, since people see it; ``digest`` is over the canonical form, in
which keys are sorted, so that equal values have equal digests.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from tagent_nb.errors import CorruptRecordError, EncodeError
from tagent_nb.events import Output
from tagent_nb.serde.classes import Classes
from tagent_nb.serde.copies import is_bulky
from tagent_nb.serde.decoder import resolve, value_of
from tagent_nb.serde.encoder import MAX_DEPTH, MAX_DIGITS, Encoder, to_canonical, to_json
from tagent_nb.serde.errors import RefusedError
from tagent_nb.serde.nodes import TAG
from tagent_nb.user_objects import blame, raising_method, safe_str

__all__ = [
    "MAX_BYTES",
    "StoredValue",
    "clean",
    "decode",
    "digest",
    "encode",
    "from_tree",
    "notes_to_tree",
    "parse",
    "to_tree",
    "unreadable",
]

MAX_BYTES = 512 * 1024 * 1024
"""Most bytes of one encoded value."""

LARGE = 1_000_000
"""Bytes from which on an event loop lets a thread check and decode a value."""

_MAX_NESTING = 3 * MAX_DEPTH + 10  # a dict with odd keys takes three levels of JSON
_TOO_DEEP = "it is nested too deeply to be stored from here"
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_HALF_PAIR = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")


def to_tree(value: Any, *, path: str = "output") -> Any:
    """A value as JSON-able plain data with tags, for use inside records. Do not change what it
    returns: plain parts may be the value's own.

    Raises:
        EncodeError: Something in it cannot be stored; the message has the path to it.
    """
    try:
        return Encoder(careful=True).tree(value)
    except BaseException as error:  # encoding asks the user's own objects, which may raise anything
        raise _refused(error, path) from None


def notes_to_tree(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Details for people, such as a step's metadata, as :func:`to_tree` does it; but an entry that
    cannot be stored says so in its place."""
    tree = {}
    for key, value in notes.items():
        try:
            tree[_note_name(key)] = to_tree(clean(value) if type(value) is str else value)
        except EncodeError as error:
            tree[_note_name(key)] = f"(not stored: {error.what})"
    return tree


def _note_name(key: object) -> str:
    return clean(key if type(key) is str else safe_str(key))


def clean(text: str) -> str:
    """Messages may quote broken text: half a surrogate pair becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def from_tree(tree: Any, schemas: Mapping[str, type] | None = None) -> Any:
    """The value of :func:`to_tree`; models whose class is not in ``schemas`` come back as dicts.

    Raises:
        CorruptRecordError: The tree is not one that :func:`to_tree` makes.
    """
    try:
        return value_of(tree, Classes.of(schemas))
    except CorruptRecordError:
        raise
    except BaseException as error:  # classes of the user, with which values are rebuilt, may raise anything
        raise _unreadable(error) from error


def encode(value: Any, *, path: str = "output") -> bytes:
    """A value as strict JSON in UTF-8.

    Args:
        value: None, bool, int, float, str, list, dict, tuple, set, frozenset, dates and times,
            Decimal, bytes, UUID, Path, Enum, range, pydantic models, dataclasses, named tuples,
            DataFrame, Series, Index, ndarray, and these inside each other.
        path: What the value is called in messages.

    Raises:
        EncodeError: Something in it cannot be stored; the message has the path to it, as in
            ``output.items[3].fn: a function cannot be stored``.
    """
    return _seal(value, path)[1]


def decode(blob: bytes, schemas: Mapping[str, type] | None = None) -> Any:
    """The value of :func:`encode`.

    Args:
        blob: At most :data:`MAX_BYTES`.
        schemas: Classes by name: pydantic models, dataclasses, enums, named tuples. Without its
            class a model or dataclass comes back as a dict, an enum as its value.

    Raises:
        CorruptRecordError: The bytes are not what :func:`encode` writes.
    """
    classes = Classes.of(schemas)
    try:
        return parse(blob, lambda fields: resolve(fields, classes) if TAG in fields else fields)
    except CorruptRecordError:
        raise
    except BaseException as error:  # as in from_tree
        raise _unreadable(error) from error


def _unreadable(error: BaseException) -> CorruptRecordError:
    """What to raise when decoding ended in ``error``."""
    if type(error) is RecursionError and not raising_method(error):
        return CorruptRecordError("A stored value is nested too deeply.")
    return CorruptRecordError(f"A stored value cannot be read, since {blame(error)}")


def parse(blob: bytes, on_object: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Strict JSON: UTF-8 without a mark, one document, no key twice, no NaN, bounded in size and depth.

    Args:
        blob: At most :data:`MAX_BYTES`.
        on_object: Called with every object, the inner ones first; what it returns stands for it.

    Raises:
        CorruptRecordError: It is not.
    """
    _check_bytes(blob)

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise CorruptRecordError("A stored value has the same key twice.")
        return members if on_object is None else on_object(members)

    try:
        if b"{" not in blob and _parse_int() is int:
            return _without_objects(blob.decode())
        return json.loads(
            blob.decode(), object_pairs_hook=unique, parse_constant=_refuse, parse_int=_parse_int()
        )
    except (ValueError, RecursionError) as error:
        raise CorruptRecordError(f"A stored value cannot be read: {error}") from None


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical form. Values that are equal and of the same types have the
    same digest; the schema of a model does not count.

    Raises:
        EncodeError: Something in it cannot be stored.
    """
    return examine(value)[0]


def examine(value: Any) -> tuple[str, frozenset[type]]:
    """The :func:`digest` of a value, and the classes of its models, dataclasses, enums and named tuples.

    Raises:
        EncodeError: Something in it cannot be stored.
    """
    simple = _simple(value)
    if simple is not None:
        return _sha(simple), _NO_CLASSES
    walk = Encoder(identity=True)
    try:
        return _sha(_to_bytes(value, to_canonical(walk.tree(value)))), _frozen(walk)
    except BaseException as error:  # as in to_tree
        raise _refused(error, "output") from None


_NO_CLASSES: frozenset[type] = frozenset()
_NOTHING: frozenset[str] = frozenset()
"""Shared by all values: each call of ``frozenset()`` makes another set of 216 bytes."""


def _frozen(walk: Encoder) -> frozenset[type]:
    return frozenset(walk.classes) if walk.classes else _NO_CLASSES


class StoredValue:
    """A value that is bytes as well: encoded when it is stored, decoded when it is read.

    Make one with :meth:`of`, :meth:`from_blob` or :meth:`unstorable`.

    Attributes:
        left_out: What was not stored of its objects, and why: attributes beside their fields.
    """

    __slots__ = ("_blob", "_classes", "_digest", "_refused", "_schemas", "_value", "left_out")
    _value: Any
    _blob: bytes | None
    _classes: frozenset[type] | None
    _digest: str | None
    _refused: tuple[str, str] | None
    _schemas: Mapping[str, type] | None
    left_out: frozenset[str]

    @classmethod
    def of(cls, value: Any) -> StoredValue:
        """Wrap a live value. Nothing is encoded yet."""
        stored = cls.__new__(cls)
        stored._value = value
        stored._blob = stored._digest = stored._refused = stored._schemas = stored._classes = None
        stored.left_out = _NOTHING
        return stored

    @classmethod
    def from_blob(cls, blob: bytes, digest: str, schemas: Mapping[str, type] | None = None) -> StoredValue:
        """Wrap encoded bytes and their digest. Nothing is decoded yet."""
        stored = cls.of(_UNREAD)
        stored._blob, stored._digest, stored._schemas = blob, digest, schemas
        return stored

    @classmethod
    def unstorable(cls, problem: str, digest: str | None = None) -> StoredValue:
        """What is left of a value that could not be stored: ``None``, and why."""
        stored = cls.of(None)
        path, _, what = problem.partition(": ")
        stored._refused, stored._digest = (path, what), digest or _no_digest()
        return stored

    def __repr__(self) -> str:
        shown = f"{len(self._blob or b''):,} bytes" if self._value is _UNREAD else repr(self._value)
        return f"<StoredValue {shown}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._refused is not None and self._value is None:
            return StoredValue.unstorable, (": ".join(self._refused), self._digest)
        return StoredValue.of, (self.value,)

    @property
    def value(self) -> Any:
        """The value, decoded when it is first read.

        Raises:
            CorruptRecordError: Its bytes are damaged.
        """
        if self._value is _UNREAD:
            self._value = decode(self._blob or b"", self._schemas)
        return self._value

    @property
    def is_large(self) -> bool:
        """Whether reading the value takes long: many bytes that are not decoded yet."""
        return self._value is _UNREAD and self.size > LARGE

    @property
    def size(self) -> int:
        """Bytes that it takes, if it is encoded already; else 0."""
        return len(self._blob or b"")

    @property
    def is_heavy(self) -> bool:
        """Whether to read, encode or examine it takes so long that an event loop lets a thread do it.

        Decided by its bytes, or else at a glance, and without reading it.
        """
        return self.size > LARGE if self._blob is not None else is_bulky(self._value)

    def sealed(self) -> StoredValue:
        """Itself, with bytes and digest worked out: to ask for them takes no time any more."""
        if self.problem is None:
            _ = self.digest
        return self

    @property
    def blob(self) -> bytes:
        """The encoded bytes.

        Raises:
            EncodeError: It cannot be stored; the message has the path to what is in the way.
        """
        if self._blob is None and self._refused is None:
            simple = _simple(self._value)
            if simple is not None:
                self._blob, self._classes = simple, _NO_CLASSES
                self._digest = self._digest or _sha(simple)
                return simple
            try:
                walk, self._blob, tree = _seal(self._value, "output")
                self._classes = _frozen(walk)
                if walk.left_out:
                    self.left_out = frozenset(walk.left_out)
                if self._digest is None and walk.same:
                    walk.strip()
                    self._digest = _sha(self._blob if walk.sorted else to_canonical(tree).encode())
            except EncodeError as error:
                self._refuse(error)
        if self._blob is None:
            assert self._refused is not None
            raise EncodeError(*self._refused)
        return self._blob

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical form. A value that cannot be stored has an id unlike any other."""
        if self._digest is None:
            try:
                self._digest, self._classes = examine(self._value)
            except EncodeError as error:
                self._refuse(error)
        assert self._digest is not None
        return self._digest

    @property
    def classes(self) -> frozenset[type]:
        """Classes of its models, dataclasses, enums and named tuples, as readers of the value get them."""
        if self._classes is None:
            if self._value is _UNREAD and not any(mark in self.blob for mark in _CLASS_MARKS):
                self._classes = _NO_CLASSES
            else:
                try:
                    self._classes = examine(self.value)[1]
                except (EncodeError, CorruptRecordError):  # reading or storing it says so
                    self._classes = _NO_CLASSES
        return self._classes

    @property
    def storable(self) -> bool:
        """Whether the value can be stored. Encodes it."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """Why it cannot be stored, with the path to what is in the way; ``None`` if it can."""
        if self._blob is None and self._refused is None:
            try:
                _ = self.blob
            except EncodeError as error:
                return str(error)
        return None if self._refused is None else ": ".join(self._refused)

    def _refuse(self, error: EncodeError) -> None:
        self._refused = (error.path, error.what)
        self._digest = _no_digest()


def unreadable(output: Output) -> str | None:
    """Why the bytes of a value cannot be read; ``None`` if they can.

    Plain data always can, and is not decoded; all else is, and kept for readers of the value.
    """
    if isinstance(output, StoredValue) and output._value is _UNREAD and _MARK in (output._blob or b""):
        try:
            _ = output.value
        except CorruptRecordError as error:
            return str(error)
    return None


_UNREAD: Any = object()
_MARK = f'"{TAG}":'.encode()
_CLASS_MARKS = tuple(f'"{TAG}":"{tag}"'.encode() for tag in ("model", "data", "enum", "namedtuple"))
"""How nodes begin whose values have a class of the user's; no text holds such quotes unescaped."""


def _no_digest() -> str:
    return f"unstorable-{uuid.uuid4().hex}"


def _sha(blob: bytes) -> str:
    return sha256(blob).hexdigest()


_WORDS = {None: b"null", True: b"true", False: b"false"}


def _simple(value: Any) -> bytes | None:
    """The bytes of a value that needs no walk, the same with and without what is beside its identity."""
    kind = type(value)
    if kind is str:
        if len(value) < LARGE:
            try:
                return to_json(value).encode()
            except UnicodeEncodeError:  # a walk says where
                return None
    elif kind is int:
        if -LARGE < value < LARGE:
            return b"%d" % value
    elif value is None or kind is bool:
        return _WORDS[value]
    return None


def _seal(value: Any, path: str) -> tuple[Encoder, bytes, Any]:
    """The encoded bytes, and the walk and the tree that they come from."""
    walk = Encoder()
    try:
        tree = walk.tree(value)
        blob = _to_bytes(value, to_json(tree))
    except BaseException as error:  # as in to_tree
        raise _refused(error, path) from None
    if len(blob) > MAX_BYTES:
        raise EncodeError(
            path,
            f"it takes {len(blob):,} bytes; at most {MAX_BYTES:,} can be stored. "
            "Write it to a file and return the file's path",
        )
    return walk, blob, tree


def _refused(error: BaseException, path: str) -> EncodeError:
    """What to raise when encoding ended in ``error``."""
    if type(error) is RefusedError:
        return error.to_error(path)
    if type(error) is RecursionError and not raising_method(error):
        return EncodeError(path, _TOO_DEEP)
    return EncodeError(path, f"it cannot be stored, since {blame(error)}")


def _to_bytes(value: Any, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        # Some text has half a surrogate pair. Only now is it worth to look where.
        Encoder(careful=True).tree(value)
        raise RefusedError(str(error)) from None


def _check_bytes(blob: bytes) -> None:
    if len(blob) > MAX_BYTES:
        raise CorruptRecordError(
            f"A stored value has {len(blob):,} bytes; more than {MAX_BYTES:,} are never written."
        )
    if blob.count(b"[") + blob.count(b"{") > _MAX_NESTING and _is_too_deep(blob):
        raise CorruptRecordError(f"A stored value has more than {_MAX_NESTING} levels.")
    if (b"\\ud" in blob or b"\\uD" in blob) and _HALF_PAIR.search(blob):
        raise CorruptRecordError("A stored text has half a surrogate pair.")


def _is_too_deep(blob: bytes) -> bool:
    """Whether brackets nest too deeply, without a parser that could overflow the stack."""
    # Without escaped quotes, every second piece between quotes is outside of texts.
    outside = b"".join(blob.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside.translate(_ONE_KIND, _NOT_BRACKETS)
    for _ in range(_MAX_NESTING):
        before, brackets = brackets, brackets.replace(b"[]", b"")
        if not brackets:
            return False
        if len(brackets) == len(before):
            break  # not balanced: the parser would refuse it, if it lived to
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_without_objects = json.JSONDecoder(parse_constant=_refuse).decode
"""How to read JSON in which there is no object: nothing has to be made for the reading."""


def _parse_int() -> Any:
    """How to read integers: Python's own way, unless its limit on digits is off."""
    limit = getattr(sys, "get_int_max_str_digits", lambda: 0)()
    return int if 0 < limit <= MAX_DIGITS else _bounded_int


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS + 1:
        raise ValueError(f"an integer has more than {MAX_DIGITS:,} digits")
    return int(text)
