"""Values that JSON cannot hold, for those who ask for it: pickled, and signed with a key that only they have.

A pickle runs code when it is loaded. Nothing here is loaded before its signature was checked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagent_nb import serde
from tagent_nb.errors import DefinitionError, EncodeError, StorageUnavailableError
from tagent_nb.serde import signed_dump, signed_load
from tagent_nb.storage.filesystem import make_folder, open_file, read_file, trouble, write_all

KEY_BYTES = 32
_SIGN = b"tagent-nb signed pickle"
"""First bytes of every signed pickle; no JSON begins like that."""


class PickledOutput:
    """A step's value from a signed record, unpickled when it is read."""

    __slots__ = ("_key", "_value", "digest", "sealed")
    _value: Any

    storable = True
    problem = None
    classes: frozenset[type] = frozenset()

    def __init__(self, sealed: bytes, digest: str, key: bytes) -> None:
        self.sealed = sealed
        self.digest = digest
        self._key = key

    @property
    def value(self) -> Any:
        """The value.

        Raises:
            CorruptRecordError: The signature does not match, or the class of the value is not there.
        """
        try:
            return self._value
        except AttributeError:
            self._value = signed_load(self.sealed, self._key)
            return self._value


def seal(output: Any, key: bytes | None) -> bytes | None:
    """A step's value as a signed pickle, if JSON cannot hold it, a pickle can, and there is a key."""
    if key is None:
        return None
    if isinstance(output, PickledOutput):
        return output.sealed
    if output.storable:
        return None
    try:
        return signed_dump(output.value, key)
    except EncodeError:
        # The record says what is wrong with the value.
        return None


def encode_document(data: dict[str, Any], name: str, key: bytes | None) -> bytes:
    """A document as JSON, or if that cannot hold it and there is a key, as a signed pickle.

    Raises:
        EncodeError: It cannot be stored; the message has the path to what is in the way.
    """
    try:
        return serde.encode(data, path=name)
    except EncodeError:
        if key is None:
            raise
        return signed_dump(data, key)


def decode_document(body: bytes, schemas: Mapping[str, type] | None, key: bytes | None) -> Any:
    """The document of :func:`encode_document`.

    Raises:
        CorruptRecordError: It is not one.
    """
    if key is not None and body.startswith(_SIGN):
        return signed_load(body, key)
    return serde.decode(body, schemas)


def key_from(path: Path) -> bytes:
    """The key in a file, which is made (0600) if it is not there.

    Raises:
        DefinitionError: Others may read the file, or it holds no key.
        CorruptRecordError: It is a link, or no regular file.
        StorageUnavailableError: It cannot be read or made.
    """
    key = read_file(path, 4096)
    if key is None:
        return _new_key(path)
    if len(key) < KEY_BYTES:
        raise DefinitionError(f"{path} holds no key: it has {len(key)} bytes, and a key has {KEY_BYTES}.")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise DefinitionError(f"Others may read the key in {path}. Run: chmod 600 {path}")
    return key


def _new_key(path: Path) -> bytes:
    make_folder(path.parent)
    key = os.urandom(KEY_BYTES)
    try:
        descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "make")
    except StorageUnavailableError:
        if not path.exists():
            raise
        # Another process was faster.
        return key_from(path)
    try:
        write_all(descriptor, key)
        os.fsync(descriptor)
    except OSError as error:
        raise trouble(error, "write", path) from error
    finally:
        os.close(descriptor)
    return key
