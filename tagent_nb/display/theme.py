"""How states and numbers look to people: marks, words, colours and short texts.

Graph, tables and panel share these, so that a state looks the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tagent_nb.formatting import cost_text, model_label, seconds_text, tokens_text, total_tokens_text
from tagent_nb.pipeline import StepStatus

__all__ = [
    "INPUT",
    "KIND_LOOKS",
    "LOOKS",
    "MISSING",
    "Look",
    "Paint",
    "cost_text",
    "model_label",
    "seconds_text",
    "tokens_text",
    "total_tokens_text",
]


class Paint(NamedTuple):
    """Colours of a node: its area, its outline and its text."""

    fill: str
    line: str
    text: str


@dataclass(frozen=True, slots=True)
class Look:
    """How a state is shown: a mark that needs no colour, a word, an outline, colours by theme."""

    mark: str
    word: str
    light: Paint
    dark: Paint
    outline: str = "solid"
    width: float = 1.0


LOOKS: dict[StepStatus, Look] = {
    StepStatus.PENDING: Look(
        "○", "pending", Paint("#f3f4f6", "#8a929e", "#3c4451"), Paint("#2a2e35", "#6f7885", "#d1d5db")
    ),
    StepStatus.READY: Look(
        "◎", "ready", Paint("#eef0ff", "#5f6fd0", "#2f3a86"), Paint("#252b45", "#818cf8", "#c7d2fe")
    ),
    StepStatus.RUNNING: Look(
        "▸",
        "running",
        Paint("#dbeafe", "#2563eb", "#173b8c"),
        Paint("#172f55", "#60a5fa", "#dbeafe"),
        width=2.0,
    ),
    StepStatus.WAITING: Look(
        "…",
        "waiting",
        Paint("#fef3c7", "#b7791f", "#6b4708"),
        Paint("#43330c", "#d9a520", "#fde68a"),
        "dashed",
        1.5,
    ),
    StepStatus.COMPLETED: Look(
        "✓", "completed", Paint("#dcfce7", "#15803d", "#0f5132"), Paint("#11361f", "#3fb96b", "#bbf7d0")
    ),
    StepStatus.CACHED: Look(
        "↺", "cached", Paint("#d5f5f6", "#0e7490", "#134e5a"), Paint("#0d3340", "#38b6d8", "#b8ecf8")
    ),
    StepStatus.FAILED: Look(
        "✗",
        "failed",
        Paint("#fee2e2", "#b91c1c", "#7f1d1d"),
        Paint("#481a1a", "#f87171", "#fecaca"),
        width=2.0,
    ),
    StepStatus.SKIPPED: Look(
        "⊘",
        "skipped",
        Paint("#fafafa", "#9aa1ab", "#5b6470"),
        Paint("#1d2025", "#6b7280", "#a5adb8"),
        "dashed",
    ),
    StepStatus.CANCELLED: Look(
        "■", "cancelled", Paint("#f3e8ff", "#7e22ce", "#581c87"), Paint("#35204d", "#c084fc", "#e9d5ff")
    ),
}
"""The look of every state, shared by graph, tables and panel."""

KIND_LOOKS = {
    "agent": Look(
        "✦", "agent", Paint("#f4f2ff", "#7466cf", "#3a2f80"), Paint("#2a2644", "#9a8cf0", "#ddd8ff")
    ),
    "python": Look(
        "ƒ", "python", Paint("#f1f5f9", "#64748b", "#273444"), Paint("#232a33", "#7f8ea3", "#dbe3ee")
    ),
}
"""The look of a kind of step, where no state is shown."""

INPUT = Look("◇", "input", Paint("#fff7ed", "#c2660a", "#7c3d06"), Paint("#3b2411", "#e29a4d", "#fed7aa"))
"""A value that no step makes, such as a variable of the notebook."""

MISSING = Look(
    "?",
    "not defined yet",
    Paint("#ffffff", "#b91c1c", "#7f1d1d"),
    Paint("#1d2025", "#f87171", "#fecaca"),
    "dotted",
    1.5,
)
"""A step that others refer to and that is not defined."""
