"""How states look to people: marks, words and colours.

Graph, tables and panel share these, so that a state looks the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tagent_nb.pipeline import StepStatus


class Colors(NamedTuple):
    """Colours of a node: its area, its outline and its text."""

    fill: str
    line: str
    text: str


@dataclass(frozen=True, slots=True)
class StatusStyle:
    """How a state is shown: a mark that needs no colour, a word, an outline, colours by theme."""

    mark: str
    word: str
    light: Colors
    dark: Colors
    outline: str = "solid"
    width: float = 1.0


STATUS_STYLES: dict[StepStatus, StatusStyle] = {
    StepStatus.PENDING: StatusStyle(
        "○", "pending", Colors("#f3f4f6", "#8a929e", "#3c4451"), Colors("#2a2e35", "#6f7885", "#d1d5db")
    ),
    StepStatus.READY: StatusStyle(
        "◎", "ready", Colors("#eef0ff", "#5f6fd0", "#2f3a86"), Colors("#252b45", "#818cf8", "#c7d2fe")
    ),
    StepStatus.RUNNING: StatusStyle(
        "▸",
        "running",
        Colors("#dbeafe", "#2563eb", "#173b8c"),
        Colors("#172f55", "#60a5fa", "#dbeafe"),
        width=2.0,
    ),
    StepStatus.WAITING: StatusStyle(
        "…",
        "waiting",
        Colors("#fef3c7", "#b7791f", "#6b4708"),
        Colors("#43330c", "#d9a520", "#fde68a"),
        "dashed",
        1.5,
    ),
    StepStatus.COMPLETED: StatusStyle(
        "✓", "completed", Colors("#dcfce7", "#15803d", "#0f5132"), Colors("#11361f", "#3fb96b", "#bbf7d0")
    ),
    StepStatus.CACHED: StatusStyle(
        "↺", "cached", Colors("#d5f5f6", "#0e7490", "#134e5a"), Colors("#0d3340", "#38b6d8", "#b8ecf8")
    ),
    StepStatus.FAILED: StatusStyle(
        "✗",
        "failed",
        Colors("#fee2e2", "#b91c1c", "#7f1d1d"),
        Colors("#481a1a", "#f87171", "#fecaca"),
        width=2.0,
    ),
    StepStatus.SKIPPED: StatusStyle(
        "⊘",
        "skipped",
        Colors("#fafafa", "#9aa1ab", "#5b6470"),
        Colors("#1d2025", "#6b7280", "#a5adb8"),
        "dashed",
    ),
    StepStatus.CANCELLED: StatusStyle(
        "■", "cancelled", Colors("#f3e8ff", "#7e22ce", "#581c87"), Colors("#35204d", "#c084fc", "#e9d5ff")
    ),
}
"""The style of every state, shared by graph, tables and panel."""

KIND_STYLES = {
    "agent": StatusStyle(
        "✦", "agent", Colors("#f4f2ff", "#7466cf", "#3a2f80"), Colors("#2a2644", "#9a8cf0", "#ddd8ff")
    ),
    "python": StatusStyle(
        "ƒ", "python", Colors("#f1f5f9", "#64748b", "#273444"), Colors("#232a33", "#7f8ea3", "#dbe3ee")
    ),
}
"""The style of a kind of step, where no state is shown."""

INPUT = StatusStyle(
    "◇", "input", Colors("#fff7ed", "#c2660a", "#7c3d06"), Colors("#3b2411", "#e29a4d", "#fed7aa")
)
"""A value that no step makes, such as a variable of the notebook."""

MISSING = StatusStyle(
    "?",
    "not defined yet",
    Colors("#ffffff", "#b91c1c", "#7f1d1d"),
    Colors("#1d2025", "#f87171", "#fecaca"),
    "dotted",
    1.5,
)
"""A step that others refer to and that is not defined."""
