"""Digests of values: of what can be stored by its value, of other objects by what they are made of."""

from __future__ import annotations

import copyreg
import hashlib
import inspect
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, get_origin

from tagent_nb import serde
from tagent_nb.cache.fingerprint.modules import is_user_class, is_user_module, name_of
from tagent_nb.serde import is_bulky

BY_TYPE = "type "
"""How the text of a value begins that counts by its type only."""

_NATIVE = (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
)
_CODE = (FunctionType, MethodType, ModuleType, type)

MAX_ENTRIES = 1000
"""Parts of one value that are looked at one by one."""

_MAX_OBJECTS = 100_000
_TABLES = (dict, list, tuple)
_BASIC = (*_TABLES, set, frozenset, str, bytes, int, float)
_DEFAULT: tuple[Any, Any] = (object.__reduce_ex__, object.__reduce__)
_TOOLS = ("decimal", "logging", "os", "random", "numpy.random")
"""Modules whose objects change when they are used, or with the process, such as ``os.environ``; that is no
change of what a step depends on."""
_SERVICES = ("asyncio", "concurrent", "queue", "threading", "unittest", "tagent_nb")
"""Modules whose objects do something: they are no values, and neither is what holds one."""

_SECRET = re.compile(
    r"(^|_)(api_?keys?|secrets?|passw(or)?d|credentials?|auth|access_token|headers|cookies)($|_)"
)

Code = tuple[str, Any]
"""A function or class of the user with its name."""

Memo = dict[tuple[str, Any], Any]
"""Digests by kind and ``id`` of the thing, with the thing so that the id stays its own."""


class _NoValueError(Exception):
    """A part has no value that could be compared: a lock, a connection, an iterator."""


_examined: ContextVar[Container[int] | None] = ContextVar("examined", default=None)


class LargeValue(BaseException):
    """A value was met whose digest takes long. No error, so that nothing that gets over errors stops it.

    Attributes:
        value: The value.
    """

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


@contextmanager
def refusing_large_values(examined: Container[int]) -> Iterator[None]:
    """Within it, a digest that is not in the memo yet and would take long is not worked out.

    Args:
        examined: Ids of values whose digest is worked out all the same.

    Raises:
        LargeValue: Such a value was met.
    """
    token = _examined.set(examined)
    try:
        yield
    finally:
        _examined.reset(token)


def remember_digest(value: Any, memo: Memo) -> None:
    """Put the digest of a value that can be stored into the memo; may be called in a thread.

    A value that is changed meanwhile may look as if it could not be stored; its digest is then left to
    :func:`value_digest`.
    """
    try:
        text, classes = serde.examine(value)
    except Exception:  # as in _digest
        return
    memo["value", id(value)] = (value, text, tuple(users_classes(classes)))


def value_text(value: Any, memo: Memo) -> str:
    """The digest of a value; for one that has none, ``"type "`` and its type's name."""
    return value_digest(value, memo)[0]


def value_digest(value: Any, memo: Memo) -> tuple[str, tuple[Code, ...]]:
    """:func:`value_text`, and what the user has written of that which the value holds."""
    memoized = memo.get(("value", id(value)))
    if memoized is None:
        examined = _examined.get()
        if examined is not None and id(value) not in examined and is_bulky(value):
            raise LargeValue(value)
        text, code = _digest(value)
        memoized = memo["value", id(value)] = (value, text, code)
    return memoized[1], memoized[2]


def _digest(value: Any) -> tuple[str, tuple[Code, ...]]:
    try:
        text, classes = serde.examine(value)
        return text, tuple(users_classes(classes))
    except Exception:  # it cannot be stored, or its own code runs and raises whatever it likes
        walk = _Walk()
    try:
        if not isinstance(value, _TABLES):
            return walk.text(value), tuple(walk.code.values())
    except Exception:  # as above
        pass
    return by_type(value), ()


def users_classes(classes: Iterable[type]) -> list[Code]:
    """Those classes that are the user's own, with their names, in the same order in every process."""
    named_classes = [(kind.__name__, kind) for kind in classes if is_user_class(kind)]
    return sorted(named_classes, key=lambda pair: name_of(pair[1]))


def described(value: Any) -> tuple[str, tuple[Code, ...]]:
    """The digest of a part of a class, such as a default or an option, and the user's code in it.

    Unlike :func:`value_digest`, tables are looked into.
    """
    walk = _Walk()
    try:
        return walk.text(value), tuple(walk.code.values())
    except Exception:  # the value's own code raises whatever it likes
        return by_type(value), tuple(walk.code.values())


def parts_of(value: Any) -> list[tuple[str, Any]] | None:
    """The entries of a table or list, such as one of functions, by where they are in it, to be looked at
    one by one; ``None`` for other values, and for more than 1,000.
    """
    if isinstance(value, dict):
        parts = [(f"[{_short(key)}]", part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"[{place}]", part) for place, part in enumerate(value)]
    else:
        return None
    return parts + fields_beside(value) if len(parts) <= MAX_ENTRIES else None


def fields_beside(value: Any) -> list[tuple[str, Any]]:
    """Attributes of a user's object that do not count in its digest although it can be stored."""
    if not is_user_class(type(value)) or isinstance(value, Enum):
        return []
    private = _ask(value, "__pydantic_private__")
    if private is not None:
        return [(f".{name}", attribute) for name, attribute in private.items()]
    stored = _ask(value, "__dataclass_fields__")
    if stored is None and not isinstance(value, _BASIC):
        return []
    return [
        (f".{name}", attribute) for name, attribute in fields_of(value).items() if name not in (stored or ())
    ]


def fields_of(value: Any) -> dict[str, Any]:
    """The attributes that an object itself has, in its ``__dict__`` and in slots."""
    fields = dict(_ask(value, "__dict__") or {})
    for kind in type(value).__mro__:
        # Members of classes of C may hold addresses; what such an object is, it says to be copied.
        for name, slot in vars(kind).items() if "__slots__" in vars(kind) else ():
            if isinstance(slot, MemberDescriptorType):
                try:
                    fields[name] = slot.__get__(value)
                except AttributeError:  # it is not set
                    continue
    return fields


class _Walk:
    """The digest of an object that cannot be stored, from all that it is made of.

    An object that holds a lock, a connection or an iterator does things: what it remembers meanwhile is
    no change of what a step depends on. It has no digest.

    Attributes:
        code: What the user has written of that which the object holds, by ``id``.
    """

    def __init__(self) -> None:
        self.code: dict[int, Code] = {}
        self._seen: dict[int, tuple[int, Any]] = {}

    def text(self, value: Any) -> str:
        """Raises _NoValueError, and whatever the object's own code raises."""
        before = self._seen.get(id(value))
        if before is not None:
            return f"again {before[0]}"
        if _is_of(type(value), _TOOLS):
            return by_type(value)
        named = self._name(value)
        if named:
            return named
        try:
            text, classes = serde.examine(value)
            self.code.update({id(kind): (name, kind) for name, kind in users_classes(classes)})
            return text
        except Exception:  # it cannot be stored; its parts may
            self._seen[id(value)] = (len(self._seen), value)
        if len(self._seen) > _MAX_OBJECTS:
            raise _NoValueError
        if isinstance(value, set | frozenset):
            return digest_of("set", *sorted(map(self.text, value)))
        return digest_of(
            _named(type(value)), *(f"{name}={self.text(part)}" for name, part in self._parts(value))
        )

    def _name(self, value: Any) -> str:
        """What stands for code: its name, and of the user's its place among :attr:`code`."""
        if isinstance(value, MethodType):
            return f"method {self.text(value.__func__)} of {self.text(value.__self__)}"
        if isinstance(value, ModuleType | type | FunctionType):
            inner = inspect.unwrap(value) if isinstance(value, FunctionType) else value
            if is_users(inner):
                self.code[id(inner)] = (inner.__name__, inner)
            return named(value)
        wrapped = inspect.getattr_static(value, "__wrapped__", None)
        if isinstance(wrapped, FunctionType):
            return self._name(wrapped)
        if is_native(value):
            own = bound_to(value)
            return f"named {value.__qualname__} of {self.text(own)}" if own is not None else named(value)
        return ""

    def _parts(self, value: Any) -> Iterable[tuple[str, Any]]:
        if isinstance(value, dict):
            return sorted(((self.text(key), part) for key, part in value.items()), key=lambda pair: pair[0])
        if isinstance(value, list | tuple):
            return ((str(place), part) for place, part in enumerate(value))
        return self._state(value)

    def _state(self, value: Any) -> Iterator[tuple[str, Any]]:
        kind = type(value)
        if hasattr(kind, "__next__") or _is_of(kind, _SERVICES):
            raise _NoValueError
        users = is_user_class(kind)
        if users:
            self.code[id(kind)] = (kind.__name__, kind)
        fields = fields_of(value)
        # What holds a key is a client: another key is no other answer, and its digest is kept nowhere.
        if not users and any(map(_SECRET.search, fields)):
            raise _NoValueError
        yield from sorted(fields.items())
        yield from _state_of(value)


def _state_of(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object says of itself to be copied or pickled, beyond its fields.

    Raises:
        TypeError: It has state that Python does not see, such as a connection.
    """
    kind = type(value)
    own = copyreg.dispatch_table.get(kind)
    reduced = own(value) if own else value.__reduce_ex__(4)
    if own is None and (kind.__reduce_ex__, kind.__reduce__) == _DEFAULT:
        return  # its fields are all that it has
    if isinstance(reduced, str):
        yield "name", reduced
        return
    # https://docs.python.org/3/library/pickle.html#object.__reduce__
    for place, part in enumerate(reduced):
        yield f"({place})", list(part) if place in (3, 4) and part is not None else part


def is_constant(value: Any) -> bool:
    """Whether a value stays as it is for as long as it lives: a text, a number, or a tuple of such."""
    if isinstance(value, tuple | frozenset):
        return len(value) <= MAX_ENTRIES and all(map(is_constant, value))
    return value is None or isinstance(value, str | bytes | int | float | complex | Enum)


def is_native(value: Any) -> bool:
    """Whether it is a function or method that is not written in Python: of C, Cython, NumPy and the like."""
    if isinstance(value, _NATIVE):
        return True
    if isinstance(value, _CODE) or is_user_class(type(value)) or get_origin(value) is not None:
        return False
    return all(isinstance(_ask(value, name), str) for name in ("__qualname__", "__module__"))


def _ask(value: Any, attribute: str) -> Any:
    try:
        return getattr(value, attribute, None)
    except Exception:  # a proxy for something that is not there
        return None


def is_users(thing: Any) -> bool:
    """Whether a module, class or function is the user's own."""
    if isinstance(thing, ModuleType):
        return is_user_module(thing.__name__)
    if isinstance(thing, type):
        return is_user_class(thing)
    return is_user_module(thing.__globals__.get("__name__"))


def bound_to(function: Any) -> Any:
    """What a method that is not written in Python is bound to; ``None`` for functions of modules."""
    own = getattr(function, "__self__", None)
    return None if isinstance(own, ModuleType) else own


def named(thing: Any) -> str:
    """The text of what counts by its name."""
    return f"named {thing.__name__ if isinstance(thing, ModuleType) else name_of(thing)}"


def digest_of(*texts: str) -> str:
    """SHA-256 (hex) of texts."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "backslashreplace")).hexdigest()


def by_type(value: Any) -> str:
    """The text of a value that counts by its type only."""
    return f"{BY_TYPE}{_named(type(value))}"


def _is_of(kind: type, modules: Iterable[str]) -> bool:
    return any(f"{kind.__module__}.".startswith(f"{module}.") for module in modules)


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _short(key: object) -> str:
    return repr(key)[:40] if isinstance(key, str | int | float | bool) else type(key).__name__
