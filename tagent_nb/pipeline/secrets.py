"""Values that must not be written down or shown: those of environment variables that hold secrets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

HIDDEN = "***"
"""What stands in the place of a secret."""

_NAMES = ("KEY", "KEY_ID", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE")
_SHORTEST = 8


_seen: dict[str, str] = {}
"""Names by value: a step may take a secret out of the environment, and then tell it in an error."""


def note_secrets() -> None:
    """Remember those of the environment for the life of the process."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and name.upper().endswith(_NAMES):
            _seen[value] = name


def secrets() -> dict[str, str]:
    """Names by value of the environment variables that hold secrets, or held them when they were noted
    (``..._API_KEY``, ``..._TOKEN``, ``..._SECRET``, ``..._PASSWORD`` and the like), the longest first.
    Short values are none.

    Each value is there as it is, and as it stands in a URL, in JSON and in the repr of a text."""
    note_secrets()
    found = {form: name for value, name in _seen.copy().items() for form in _forms(value)}
    return dict(sorted(found.items(), key=lambda one: -len(one[0])))


def _forms(value: str) -> Iterable[str]:
    if value.isalnum() and value.isascii():
        return (value,)
    url = value.encode(errors="surrogateescape")
    return (value, quote(url), quote(url, safe=""), quote_plus(url), json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1])  # fmt: skip


def redact(text: str) -> str:
    """``text`` with the values of secret environment variables replaced by ``***``."""
    for value in secrets():
        text = text.replace(value, HIDDEN)
    return text


def held_secret(text: str) -> str | None:
    """The name of the first secret environment variable whose value is in ``text``."""
    return next((name for value, name in secrets().items() if value in text), None)


def hide(data: Any) -> tuple[Any, dict[str, str]]:
    """Plain data without secrets, and where there were any: the variable's name by path.

    Args:
        data: Dicts with text keys, lists, and values that are no containers.
    """
    known = secrets()
    found: dict[str, str] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, str):
            for value, name in known.items():
                if value in node:
                    found.setdefault(path, name)
                    node = node.replace(value, HIDDEN)
            return node
        if isinstance(node, dict):
            return {
                walk(key, path): walk(value, f"{path}.{key}" if path else key) for key, value in node.items()
            }
        if isinstance(node, list):
            return [walk(value, f"{path}[{place}]") for place, value in enumerate(node)]
        return node

    return (walk(data, ""), found) if known else (data, {})
