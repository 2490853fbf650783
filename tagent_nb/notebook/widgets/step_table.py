"""The rows of a run as a widget: one table for all steps, sent only what is new.

Hooks for tests and style sheets: a row is ``tr[data-step][data-state]`` within ``.tagent-table``; the
button in it has the step's name and ``aria-pressed``; filters are ``.tagent-chips button[data-state]``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import anywidget
import traitlets

from tagent_nb.display import STATUS_STYLES, plain
from tagent_nb.formatting import cost_text, seconds_text, tokens_text
from tagent_nb.notebook.widgets.widget_style import CSS, script
from tagent_nb.pipeline import StepStatus
from tagent_nb.results import BAR, MapProgress, StepResult, about_words, error_text

__all__ = ["StepTable", "row_of", "status_styles"]

MAX_SHOWN = 600
"""Characters of a running step's text that its row shows."""
_BUSY = (StepStatus.RUNNING, StepStatus.WAITING)


def status_styles() -> dict[str, list[str]]:
    """Mark and word of each state, for the widgets."""
    return {status.value: [look.mark, look.word] for status, look in STATUS_STYLES.items()}


def row_of(state: StepResult, items: MapProgress | None, text: str, now: float) -> list[str]:
    """What a row says: name, state, about, time, tokens, cost, error, traceback, text, bar, failures.

    The bar is how many items ended how, and how many there are; failures are JSON: pairs of how often a kind
    came and a line for each of its last items.

    Args:
        state: Of the step.
        items: How far a mapped step is.
        text: What it printed or streamed.
        now: Seconds since the epoch, for the clock of a step that runs.
    """
    seconds = state.seconds
    if state.status in _BUSY and state.started_at is not None:
        seconds = max(seconds, now - state.started_at)
    spent = state.usage.known_tokens != 0
    return [
        plain(state.name),
        state.status.value,
        plain(about_words(state, items)),
        seconds_text(seconds) if seconds or state.status is StepStatus.RUNNING else "",
        tokens_text(state.usage.known_tokens) if spent else "",
        cost_text(state.cost) if spent or state.cost is None else "",
        plain(error_text(state)) if state.error else "",
        plain(state.traceback) if state.status is StepStatus.FAILED else "",
        plain(text[-MAX_SHOWN:]) if state.status in _BUSY else "",
        ",".join(map(str, (*items.ended, items.total))) if items is not None and items.total else "",
        json.dumps([[plain(kind.label), plain(kind.text)] for kind in items.failures])
        if items is not None and items.failures
        else "",
    ]


class StepTable(anywidget.AnyWidget):
    """The widget.

    Attributes:
        bar: States of the pieces of a bar.
        rows: What the rows say, by their place; see :func:`row_of`.
        selected: Name of the step whose details are open, or an empty string; set by clicks too.
        announcement: What a screen reader reads out, once for each change.
    """

    _esm = script("step_table.js")
    _css = CSS
    styles = traitlets.Dict().tag(sync=True)
    bar = traitlets.List([status.value for status in BAR]).tag(sync=True)
    rows = traitlets.Dict().tag(sync=True)
    selected = traitlets.Unicode("").tag(sync=True)
    announcement = traitlets.Unicode("").tag(sync=True)

    def __init__(self, **fields: Any) -> None:
        super().__init__(styles=status_styles(), **fields)
        self._places: dict[str, str] = {}

    def rebuild(self, rows: Mapping[str, list[str]]) -> None:
        """Show other steps: rows by step name, in order."""
        self._places = {name: str(index) for index, name in enumerate(rows)}
        self.rows = {self._places[name]: row for name, row in rows.items()}

    def send_changes(self, rows: Mapping[str, list[str]]) -> None:
        """Show what is new in these rows."""
        changed = {}
        for name, row in rows.items():
            place = self._places[name]
            if self.rows[place] != row:
                # In place: the trait is there for views that are opened later, and is not sent again.
                self.rows[place] = changed[place] = row
        if changed:
            self.send({"rows": changed})
