"""Pickle, for those who ask for it by name: it keeps functions and classes by reference, and reading
one can run any code. The codec and the JSON forms never use it."""

from __future__ import annotations

import hmac
import io
import pickle
from typing import Any, TypeVar

from tagent_nb.errors import CorruptRecordError, DefinitionError, EncodeError

T = TypeVar("T")

_MAGIC = b"tagent-nb signed pickle 1\n"
_SEAL = 32
MIN_KEY = 16
"""Fewest bytes of a key."""


_MOVED = {
    "tagent_nb.engine.entries": "tagent_nb.engine.memory.entries",
    "tagent_nb.engine.plan": "tagent_nb.engine.dry_run.plan",
    "tagent_nb.engine.question": "tagent_nb.engine.ask",
    "tagent_nb.pipeline.body": "tagent_nb.pipeline.python_body",
    "tagent_nb.pipeline.classes": "tagent_nb.serde.classes",
    "tagent_nb.pipeline.codec": "tagent_nb.serde.value",
    "tagent_nb.pipeline.kinds": "tagent_nb.pipeline.enums",
    "tagent_nb.pipeline.limits": "tagent_nb.pipeline.budget",
    "tagent_nb.pipeline.models": "tagent_nb.pipeline.pipeline",
    "tagent_nb.pipeline.prices": "tagent_nb.pipeline.budget",
    "tagent_nb.pipeline.result": "tagent_nb.results.result",
    "tagent_nb.pipeline.schemas": "tagent_nb.serde.schemas",
    "tagent_nb.pipeline.template": "tagent_nb.templating.template",
    "tagent_nb.pipeline.views": "tagent_nb.templating.views",
    "tagent_nb.steps.tools": "tagent_nb.runners.tools.registry",
    "tagent_nb.storage.archive": "tagent_nb.storage.run_info",
    "tagent_nb.storage.records": "tagent_nb.storage.run_info",
    "tagent_nb.storage.restoring": "tagent_nb.storage.run_info",
}
"""Modules of ours whose classes stand in pickles, by the names that they had when these were written."""


_MOVED_CLASSES = {
    ("tagent_nb.pipeline.result", name): "tagent_nb.results.records"
    for name in ("OutputMap", "ItemResult", "StepResult")
}
"""As :data:`_MOVED`, of classes that have left their module's others."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        home = _MOVED_CLASSES.get((module, name)) or _MOVED.get(module, module)
        return super().find_class(home, name)


def _loads(blob: bytes) -> Any:
    return _Unpickler(io.BytesIO(blob)).load()


def to_pickle(value: Any) -> bytes:
    """A pipeline, a result or any other value as a pickle.

    Raises:
        EncodeError: Something in it, such as a lambda or an open file, cannot be pickled.
    """
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise EncodeError(type(value).__name__, f"it cannot be pickled: {error}") from None


def from_pickle(blob: bytes, expected: type[T]) -> T:
    """The value of :func:`to_pickle`. A pickle can run code: load only what you wrote yourself.

    Raises:
        CorruptRecordError: The bytes are no pickle, or one of something else than ``expected``.
    """
    try:
        value = _loads(blob)
    except Exception as error:  # a damaged pickle may raise whatever the classes in it raise
        raise CorruptRecordError(f"This pickle cannot be read: {type(error).__name__}: {error}") from None
    if not isinstance(value, expected):
        raise CorruptRecordError(f"This pickle holds {type(value).__name__}, not {expected.__name__}.")
    return value


def signed_dump(value: Any, key: bytes) -> bytes:
    """A pickle sealed with HMAC-SHA256, so that only a holder of ``key`` can have written it.

    Raises:
        DefinitionError: The key is no bytes, or too short.
        EncodeError: The value cannot be pickled.
    """
    _check_key(key)
    body = to_pickle(value)
    return _MAGIC + _seal(body, key) + body


def signed_load(blob: bytes, key: bytes) -> Any:
    """The value of :func:`signed_dump`. Nothing is unpickled before the seal has been checked.

    Raises:
        DefinitionError: The key is no bytes, or too short.
        CorruptRecordError: The bytes are unsigned, damaged, or sealed with another key.
    """
    _check_key(key)
    start = len(_MAGIC) + _SEAL
    if not blob.startswith(_MAGIC) or len(blob) < start:
        raise CorruptRecordError("This is no signed pickle of tagent-nb. An unsigned one is never loaded.")
    body = blob[start:]
    if not hmac.compare_digest(_seal(body, key), blob[len(_MAGIC) : start]):
        raise CorruptRecordError("The signature does not match: it was changed, or signed with another key.")
    return from_pickle(body, object)


def _seal(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, _MAGIC + body, "sha256")


def _check_key(key: object) -> None:
    if not isinstance(key, bytes) or len(key) < MIN_KEY:
        raise DefinitionError(
            f"The key of a signed pickle must be at least {MIN_KEY} bytes. Make one with os.urandom(32), "
            "and keep it outside of what it signs."
        )
