"""Values that must not be written down or shown: those of environment variables that hold secrets.

Each is looked for as it is and in the forms in which programs pass it on: in a URL, in JSON, in HTML, in a
``repr``, as hexadecimal digits, and as Base64, also in the middle of a longer text that was encoded whole,
such as the ``user:key`` of basic authentication.
"""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

HIDDEN = "***"
"""What stands in the place of a secret."""

_NAMES = ("KEY", "KEY_ID", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE")
_SHORTEST = 8


_seen: dict[str, str] = {}
"""Names by value: a step may take a secret out of the environment, and then tell it in an error."""


class Secrets:
    """All forms of the secrets that were noted so far.

    Attributes:
        names: The variable's name by form, the longest form first.
        needles: The forms that have no other one inside: where none of these is, there is no secret.
    """

    __slots__ = ("_begins", "_bytes", "names", "needles")

    def __init__(self, values: Mapping[str, str]) -> None:
        forms = {form: name for value, name in values.items() for form in _forms(value)}
        self.names = dict(sorted(forms.items(), key=lambda pair: -len(pair[0])))
        needles: list[str] = []
        for form in reversed(self.names):
            if not any(needle in form for needle in needles):
                needles.append(form)
        self.needles = tuple(needles)
        self._begins = frozenset(needle[:_SHORTEST] for needle in needles)
        self._bytes = tuple(needle.encode("utf-8", "surrogateescape") for needle in needles)

    def are_in(self, text: str) -> bool:
        """Whether there is a secret in ``text``, in any form."""
        # The time that it takes grows with the text or with the secrets, whichever are fewer.
        if len(text) < len(self.needles) and not any(
            text[place : place + _SHORTEST] in self._begins for place in range(len(text) - _SHORTEST + 1)
        ):
            return False
        for needle in self.needles:  # noqa: SIM110 (any() takes three times as long)
            if needle in text:
                return True
        return False

    def are_in_bytes(self, blob: bytes) -> bool:
        """:meth:`are_in` for text in UTF-8."""
        return any(needle in blob for needle in self._bytes)

    def forms_in(self, text: str) -> Iterator[tuple[str, str]]:
        """The forms that are in ``text``, each with its variable's name, the longest first."""
        return ((form, name) for form, name in self.names.items() if form in text)


_noticed: Any = None
_version = 0
_secrets = Secrets({})


def note_secrets() -> Secrets:
    """Those of the environment now, and all that it had when this was called before.

    They are the values of variables called ``..._API_KEY``, ``..._TOKEN``, ``..._SECRET``, ``..._PASSWORD``
    and the like; short ones are none.

    An environment that has not changed is not read again: its raw data are compared, which takes a
    hundredth of the time of reading it.
    """
    global _noticed, _secrets, _version
    environment = os.environ
    raw = getattr(environment, "_data", None)
    if type(raw) is not dict:  # another mapping is in its place
        raw = dict(environment)
    if raw != _noticed:
        noticed = raw.copy()
        before = _seen.copy()
        for name, value in environment.copy().items():
            if len(value) >= _SHORTEST and name.upper().endswith(_NAMES):
                _seen[value] = name
        if _seen != before:
            _secrets = Secrets(_seen.copy())
        _noticed = noticed
        _version += 1
    return _secrets


def environment_version() -> int:
    """A number that is another one whenever the environment has changed."""
    note_secrets()
    return _version


def _forms(value: str) -> Iterable[str]:
    forms = {value, *_encoded(value.encode("utf-8", "surrogateescape"))}
    if value.strip() != value:  # a file's line end, which programs take off
        forms |= set(_forms(value.strip()))
    if not (value.isalnum() and value.isascii()):
        forms |= set(_escaped(value))
        # Each may stand in JSON, as whatever is stored does.
        forms |= {
            json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in forms for ascii_only in (True, False)
        }
    # What is short may be a word of its own, as two letters of a key are in Base64.
    return (form for form in forms if len(form) >= _SHORTEST)


def _escaped(value: str) -> Iterator[str]:
    raw = value.encode("utf-8", "surrogateescape")
    for url in (quote(raw), quote(raw, safe=""), quote_plus(raw)):
        yield url
        yield _lower_escapes(url)
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        yield text
        yield text.replace("/", "\\/")
    yield repr(value)[1:-1]
    yield repr(raw)[2:-1]
    yield html.escape(value)
    yield html.escape(value, quote=False)


def _lower_escapes(url: str) -> str:
    """``%2F`` as ``%2f``."""
    first, *rest = url.split("%")
    return "%".join([first, *(part[:2].lower() + part[2:] for part in rest)])


def _encoded(raw: bytes) -> Iterator[str]:
    yield raw.hex()
    yield raw.hex().upper()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encode(raw).decode()
        yield whole
        yield whole.rstrip("=")
        # In the middle of other bytes it begins at one of three places of a group of four letters. The
        # letters at its ends that hold bits of its neighbours are left out.
        for before in range(3):
            letters = encode(bytes(before) + raw).decode()
            start = -(-before * 8 // 6)
            yield letters[start : (before + len(raw)) * 8 // 6]
            yield letters[start:]  # where nothing comes after it


def redact(text: str) -> str:
    """``text`` with the values of secret environment variables, in all forms, replaced by ``***``."""
    now = note_secrets()
    return _without(text, now) if now.are_in(text) else text


def _without(text: str, now: Secrets) -> str:
    for form, _ in now.forms_in(text):
        text = text.replace(form, HIDDEN)
    return text


def held_secret(text: str) -> str | None:
    """The name of the first secret environment variable whose value is in ``text``."""
    now = note_secrets()
    return next((name for _, name in now.forms_in(text)), None) if now.are_in(text) else None


def hide(data: Any) -> tuple[Any, dict[str, str]]:
    """Plain data without secrets, and where there were any: the variable's name by path.

    Args:
        data: Dicts with text keys, lists, and values that are no containers.
    """
    now = note_secrets()
    places: dict[str, str] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, str):
            if now.are_in(node):
                places.setdefault(path, next(name for _, name in now.forms_in(node)))
                return _without(node, now)
            return node
        if isinstance(node, dict):
            return {
                walk(key, path): walk(value, f"{path}.{key}" if path else key) for key, value in node.items()
            }
        if isinstance(node, list):
            return [walk(value, f"{path}[{place}]") for place, value in enumerate(node)]
        return node

    return (walk(data, ""), places) if now.needles else (data, {})
