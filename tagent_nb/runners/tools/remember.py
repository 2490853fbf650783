"""What models read of facts and memories, and the tool by which they add to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tagent_nb.runners.base import StepContext
from tagent_nb.templating import delimit

SHOWN = 8_000
"""Characters of facts, and of memories, that a prompt shows at most. Goals read them whole:
``{{ memories.style }}``."""

LONGEST_KEY, LONGEST_TEXT = 100, 2_000
"""Characters of a key and of a text that a model may remember."""


def remembered_text(title: str, values: Mapping[str, Any]) -> str:
    """Facts or memories for a prompt, as delimited data: the newest that fit into :data:`SHOWN`.

    Args:
        title: What they are.
        values: The newest last.
    """
    shown: dict[str, Any] = {}
    left = SHOWN
    for key in reversed(list(values)):
        length = len(delimit({key: values[key]}))
        if length <= left:
            shown[key] = values[key]
            left -= length
    left_out = len(values) - len(shown)
    note = f" ({left_out} more, older or longer, are left out)" if left_out else ""
    newest_last = dict(reversed(shown.items()))
    return f"{title}{note}: {delimit(newest_last)}" if shown else f"{title}{note}"


def remember(key: str, text: str, context: StepContext, for_later_runs: bool = False) -> str:
    """Remember something that later steps should know.

    Args:
        key: A short name. Another text under the same name replaces the one before.
        text: What to remember.
        for_later_runs: Whether later runs should know it too, and not only the later steps of this one.
    """
    if not key.strip() or len(key) > LONGEST_KEY:
        raise ValueError(f"key must have 1 to {LONGEST_KEY} characters")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"text has {len(text):,} characters; at most {LONGEST_TEXT:,} are remembered")
    if for_later_runs:
        context.save_memory(key, text)
    else:
        context.learn(key, text)
    return "remembered"
