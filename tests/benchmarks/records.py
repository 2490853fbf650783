"""The records of 2 KB that steps turn into one another."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]

_TEXT = "The quick brown fox jumps over the lazy dog. " * 43


def following(record: Record | None) -> Record:
    """The next record: 2 KB that differ from those before."""
    number = 0 if record is None else record["number"] + 1
    return {"number": number, "score": number / 7, "text": f"{number}: {_TEXT}", "tags": ["a", "b"]}
